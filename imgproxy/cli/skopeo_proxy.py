"""The command that takes the place of `skopeo experimental-image-proxy`: imgproxy-skopeo(7).

Initialize is answered before what is heavy is imported. The client then says what it wants, and the
connection to a registry is made during the imports.
"""

from __future__ import annotations

from functools import partial

from imgproxy.cli import runtime
from imgproxy.errors import shortage
from imgproxy.frontends import skopeo_initialize
from imgproxy.frontends.skopeo_messages import MAX_PACKET
from imgproxy.server.packet_socket import PacketSocket

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from imgproxy.cli.skopeo_options import SkopeoOptions
    from imgproxy.frontends.skopeo_proxy import SkopeoProxy
    from imgproxy.images.catalog import Catalog
    from imgproxy.transports.registry.network import Network

EXIT_DEFECT = 1


def run(options: SkopeoOptions) -> int:
    """Converse on the socket that the options name, and return the exit status.

    It is 0 at the end of a conversation, whatever failed in it. Raises `UsageError`.
    """
    runtime.ignore_warnings()
    packets = PacketSocket(options.sockfd, MAX_PACKET)
    files = runtime.OptionFiles(options)
    diagnostics = runtime.new_diagnostics(options, shares_stderr=False)
    if not skopeo_initialize.initialize(packets, options.contradiction, diagnostics.masked):
        return 0
    configuration = runtime.new_configuration(options, files, diagnostics)
    image = skopeo_initialize.next_image(packets)
    preconnection = image and runtime.preconnect(options, image, configuration, lambda: True)

    runtime.load_hashes()
    from imgproxy.frontends.skopeo_proxy import SkopeoProxy

    network = runtime.new_network(options, configuration, diagnostics, preconnection or None)
    catalog = runtime.new_catalog(options, configuration, network)
    new_image = partial(catalog.image, wanted=runtime.wanted(options), anew=True)
    proxy = SkopeoProxy(packets, new_image, diagnostics)
    try:
        runtime.run_event_loop(_converse, proxy, catalog, network)
    except Exception as error:  # noqa: BLE001  (its traceback may have secrets)
        if failure := shortage("conversing", error):
            raise failure from None
        diagnostics.defect("conversing", error)
        return EXIT_DEFECT
    return 0


async def _converse(proxy: SkopeoProxy, catalog: Catalog[str], network: Network) -> None:
    """Converse until the end, and close what was opened."""
    try:
        await proxy.run()
    finally:
        catalog.close()
        network.close()

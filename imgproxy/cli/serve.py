"""The command that serves one image on inherited sockets: imgproxy(1).

What is heavy is imported late: after everything that can be a usage error, and after the
connection to the registry has begun, so that importing and connecting happen at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.cli import runtime
from imgproxy.host import environment
from imgproxy.server import inherited_sockets

if TYPE_CHECKING:
    from imgproxy.cli.options import Options
    from imgproxy.images.catalog import Catalog
    from imgproxy.server.inherited_sockets import InheritedSockets
    from imgproxy.server.service import Service
    from imgproxy.transports.registry.network import Network


def run(options: Options) -> int:
    """Serve the image that the options name, and return the exit status. Raises `UsageError`."""
    runtime.ignore_warnings()
    files = runtime.OptionFiles(options)
    inherited = _inherited_sockets(options)
    diagnostics = runtime.new_diagnostics(options, shares_stderr=inherited.shares_stderr)
    configuration = runtime.new_configuration(options, files, diagnostics)
    preconnection = runtime.preconnect(options, options.image, configuration, inherited.is_asked)

    runtime.load_hashes()
    from imgproxy.errors import shortage
    from imgproxy.frontends.single_image import SingleImage
    from imgproxy.server.http_connection import Severity
    from imgproxy.server.service import EXIT_STATUS, Service

    network = runtime.new_network(options, configuration, diagnostics, preconnection)
    catalog = runtime.new_catalog(options, configuration, network)
    image = catalog.image(options.image, runtime.wanted(options))
    service = Service(
        SingleImage(image, options.layer_specs),
        diagnostics,
        allow_remote=options.allow_remote,
        hosts=options.hosts,
    )
    try:
        return runtime.run_event_loop(_serve, service, inherited, catalog, network)
    except Exception as error:  # noqa: BLE001  (its traceback may have secrets)
        if failure := shortage("serving", error):
            raise failure from None
        diagnostics.defect("serving", error)
        return EXIT_STATUS[Severity.DEFECT]


async def _serve(
    service: Service, inherited: InheritedSockets, catalog: Catalog[str], network: Network
) -> int:
    """Serve until the end, close what was opened, and return the exit status."""
    try:
        return await service.run(inherited)
    finally:
        catalog.close()
        network.close()


def _inherited_sockets(options: Options) -> InheritedSockets:
    """Return the sockets to serve on. Raises `UsageError`.

    To be called before an event loop exists, which makes descriptors of its own.
    """
    fds = options.sockfds or environment.take_listen_fds()
    inherited = (
        inherited_sockets.classify(fds) if fds else inherited_sockets.classify_standard_streams()
    )
    served = fds or [inherited_sockets.STDIN, inherited_sockets.STDOUT]
    inherited_sockets.check_source(options.image, served)
    return inherited

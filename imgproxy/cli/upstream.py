"""The registries that `imgproxy registry` stands before: `--upstream`, and what it takes.

What the credentials of this host may have is in the cache afterwards, and would be had by all who
can connect to a TCP listener. That wants to be said, or to be impossible.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.cli import options as common
from imgproxy.cli import runtime
from imgproxy.cli.registry_protection import ProtectionOptions
from imgproxy.errors import UsageError, clean
from imgproxy.specs.http import via
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.cli.parser import Parser
    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.cache import Cache
    from imgproxy.transports.fills import Fills
    from imgproxy.transports.mirror_place import MirrorPlace
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.upstream_place import UpstreamPlace
    from imgproxy.verification.verified_blob import LargeBlobs

# In seconds: how long a registry has to say what a tag stands for where that was asked before.
_PATIENCE = 10.0

# In seconds: how long one that could not be reached is not asked again. Clients come one after the
# other, and each would wait for so long otherwise.
_OUTAGE_TIME = 5.0

# What makes sure that only those get what was fetched by a login who may, by the names of their
# attributes. `--client-ca` goes with TLS, which all TCP listeners speak then.
_PROTECTIONS = {
    "no_creds": "--no-creds",
    "htpasswd": "--htpasswd",
    "client_ca": "--client-ca",
    "share_credentials": "--share-credentials",
}


class UpstreamOptions(ProtectionOptions):
    """The options of a command that asks registries on behalf of others."""

    upstreams: list[str]
    share_credentials: bool


def add_options(parser: Parser) -> None:
    """Add what the command takes for registries that it asks."""
    add = parser.add_argument
    add(
        "--upstream",
        metavar="HOST[:PORT]",
        dest="upstreams",
        type=_upstream,
        action="append",
        default=[],
        help="a registry to fetch from what is not here, with --cache; may be given several times",
    )
    add(
        "--share-credentials",
        action="store_true",
        help="let all who can connect have what the credentials of this host may fetch",
    )
    common.add_reach(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_networks(parser)


def _upstream(text: str) -> str:
    normal = registry_name.normal(text)
    if not registry_name.is_registry(normal):
        raise UsageError(f'--upstream: "{clean(text)}" is no registry; expected HOST[:PORT]')
    return normal


def check(options: UpstreamOptions) -> None:
    """Raise `UsageError` where options do not go together, whatever the listeners are."""
    upstreams = options.upstreams
    if upstreams and options.cache is None:
        raise UsageError("--upstream wants --cache DIR, where what it sends is kept")
    given = {"--creds": options.creds, "--registry-token": options.registry_token}
    option = next((name for name, value in given.items() if value is not None), "")
    if option and len({*map(registry_name.place, upstreams)}) != 1:
        raise UsageError(
            f"{option} wants exactly one --upstream, the registry that it is for; an --authfile"
            " has the credentials of several"
        )


def check_listeners(options: UpstreamOptions, sockets: Sequence[socket.socket]) -> None:
    """Raise `UsageError` where everybody on this host would get what its credentials may have."""
    if not options.upstreams or all(each.family == socket.AF_UNIX for each in sockets):
        return
    if not any(getattr(options, attribute) for attribute in _PROTECTIONS):
        raise UsageError(
            "--upstream on a TCP listener: all who can connect would get what the credentials of"
            f" this host may have; give one of {', '.join(_PROTECTIONS.values())}, or listen at"
            " unix:PATH alone"
        )


class Upstreams:
    """The place that the options name, if any; close it in the end. `run` must be running.

    `for_registries` is that place for other registries that have this one as a mirror.
    """

    def __init__(
        self,
        options: UpstreamOptions,
        configuration: Configuration,
        diagnostics: Diagnostics,
        large_blobs: LargeBlobs,
    ) -> None:
        self.places: list[UpstreamPlace] = []
        self.for_registries: list[MirrorPlace] = []
        self._registries = {registry_name.place(each) for each in options.upstreams}
        self._fills: Fills | None = None
        self.network: Network | None = None
        self._unasked: Network | None = None  # for what is here already
        self._cache: Cache | None = None
        if options.upstreams:
            from imgproxy.images.whole_blobs import read_through
            from imgproxy.transports.fills import Fills
            from imgproxy.transports.mirror_place import WHY, MirrorPlace
            from imgproxy.transports.registry.network import Network
            from imgproxy.transports.upstream_place import UpstreamPlace

            self.network = runtime.new_network(
                options, configuration, diagnostics, None, outage_time=_OUTAGE_TIME, via=via.VALUE
            )
            cache = self._cache = runtime.new_cache(options, self.network, patience=_PATIENCE)
            assert cache is not None  # noqa: S101  (see `check`)
            self._fills = Fills(cache, partial(read_through, large_blobs))
            place = UpstreamPlace(options.upstreams, self.network, cache, self._fills)
            self.places = [place]
            offline = self.network.options._replace(offline=True)
            self._unasked = Network(offline, configuration, diagnostics)
            kept = UpstreamPlace(options.upstreams, self._unasked, cache.without_asking(WHY), None)
            self.for_registries = [MirrorPlace(place, kept, self.network.has_mirrors)]

    def image(self, reference: Reference, elsewhere: Network) -> RegistryImage:
        """Return an image at its registry if that may be asked, otherwise as `elsewhere` has it."""
        is_one = registry_name.place(reference.registry) in self._registries
        network = self.network if is_one else None
        return (network or elsewhere).repository(reference)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive blobs that are asked for, until cancelled."""
        if self._fills is None:
            task_status.started()
        else:
            await self._fills.run(task_status)

    def forget(self) -> None:
        """Reach registries anew, from the next image on: see `Network.forget`."""
        for network in (self.network, self._unasked):
            if network is not None:
                network.forget()

    def close(self) -> None:
        """Wait until the disk has what is to be kept, and close all connections."""
        if self._cache is not None:
            self._cache.close()
        if self.network is not None:
            self.network.close()

"""`imgproxy registry`: a read-only registry over what lies on this host."""

from __future__ import annotations

import signal
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.cli import options as common
from imgproxy.cli import registry_protection as protection
from imgproxy.cli import runtime, upstream
from imgproxy.cli.parser import Parser, described, unknown_options
from imgproxy.cli.upstream import UpstreamOptions
from imgproxy.errors import Failure, UsageError, clean
from imgproxy.frontends.registry_api import RegistryApi
from imgproxy.frontends.registry_metrics import Measured, Metrics
from imgproxy.frontends.registry_mirror import MirrorApi, WithMirror
from imgproxy.host import environment, ownership
from imgproxy.host.blocking_calls import settle
from imgproxy.images.catalog import Catalog
from imgproxy.images.repositories import Repositories
from imgproxy.server import listeners
from imgproxy.server.inherited_sockets import InheritedSockets
from imgproxy.server.listeners import Listeners
from imgproxy.server.service import PUBLIC, Service
from imgproxy.specs.oci import registry_name
from imgproxy.store.archive_records import ArchiveRecords
from imgproxy.store.content_store import ContentStore
from imgproxy.transports.image_files import ImageFiles
from imgproxy.transports.known_archives import KnownArchives
from imgproxy.transports.places import Candidate, Files, refusal
from imgproxy.transports.registry.foreign_layers import ForeignLayers
from imgproxy.transports.registry.network import Network
from imgproxy.transports.registry.options import NetworkOptions
from imgproxy.transports.sideload_places import SideloadPlace
from imgproxy.verification.known_blobs import KnownBlobs
from imgproxy.verification.verified_blob import LargeBlobs
from imgproxy.verification.verified_parts import VerifiedParts

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.cli.runtime import OptionFiles
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.server.listeners import Address
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import Place
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.source import Source

EPILOG = """For example: imgproxy registry --images /srv/images, and then
skopeo copy --src-tls-verify=false docker://127.0.0.1:5000/quay.io/acme/os:1 dir:os
See imgproxy-registry(7)."""

DESCRIPTION = "Serve the images that lie on this host, or in registries, as a read-only registry."


class RegistryOptions(UpstreamOptions):
    """The options of `registry`."""

    images: list[str]
    listen: list[Address]
    default_registry: str
    catalog: bool
    trust_writable: bool


def add_options(parser: Parser) -> None:
    """Add what the command takes."""
    add = parser.add_argument
    add(
        "--images",
        metavar="PATH",
        action="append",
        default=[],
        help="an OCI layout, an archive, or a directory of them, whose images are served under the"
        " names inside; may be given several times",
    )
    common.add_sideload(parser)
    upstream.add_options(parser)
    add(
        "--listen",
        metavar="HOST:PORT|unix:PATH",
        type=_address,
        action="append",
        default=[],
        help=f"where to listen (default: {listeners.DEFAULT}); may be given several times",
    )
    common.add_sockets(parser)
    add(
        "--default-registry",
        metavar="HOST[:PORT]",
        type=_registry,
        default="docker.io",
        help="the registry of names that have none (default: docker.io)",
    )
    add("--catalog", action="store_true", help="list the repositories under /v2/_catalog")
    add(
        "--trust-writable",
        action="store_true",
        help="serve files that other users than root and this one may change as well",
    )
    common.add_cache(parser)
    common.add_configuration(parser)
    common.add_service(parser)
    protection.add_options(parser)
    common.add_diagnostics(parser)


def parse(arguments: list[str], options: RegistryOptions) -> None:
    """Add the options in the arguments of a command line. Raises `UsageError`."""
    parser = Parser("imgproxy registry", DESCRIPTION, EPILOG)
    common.add_command(parser)
    add_options(parser)
    unknown = common.parse_known(parser, arguments, options)
    if unknown_options(unknown):
        parser.error(described(unknown))
    if unknown:
        parser.error("it takes no IMAGE: --images PATH names what is to be served")


def _address(text: str) -> Address:
    try:
        return listeners.parse(text)
    except ValueError as error:
        raise UsageError(f"--listen {clean(text)}: {error}") from None


def _registry(text: str) -> str:
    normal = registry_name.normal(text)
    if not registry_name.is_registry(normal):
        raise UsageError(f'--default-registry: "{clean(text)}" is no registry')
    return normal


def run(options: RegistryOptions) -> int:
    """Serve until the end, and return the exit status. Raises `UsageError`."""
    runtime.ignore_warnings()
    if not options.images and not options.sideload and not options.upstreams:
        raise UsageError("nothing to serve: give --images, --sideload or --upstream")
    upstream.check(options)
    _check_paths(options)
    protection.check(options)
    files = runtime.OptionFiles(options)
    fds = options.sockfds or environment.take_listen_fds()
    with closing(Listeners(options.listen, fds, allow_remote=options.allow_remote)) as listening:
        protection.check_sockets(options, listening.sockets)
        upstream.check_listeners(options, listening.sockets)
        sockets = InheritedSockets([], listening.sockets, shares_stderr=False)
        ended_by = runtime.run_event_loop(_serve, options, files, sockets)
    if ended_by is not None:  # whoever sent it wants to see that it did
        signal.raise_signal(ended_by)
    return 0


def _check_paths(options: RegistryOptions) -> None:
    """Raise `UsageError` for a path that was named and is not there, or may not be served."""
    for path in options.images:
        try:
            reason = None
            if not options.trust_writable:
                reason = ownership.changeable_by_others(path)
        except OSError as error:
            transport, is_name, _ = path.partition(":")
            way_out = "; give the path alone" if is_name and "/" not in transport else ""
            raise UsageError(f"--images {clean(path)}: {error.strerror}{way_out}") from None
        if reason is not None:
            raise UsageError(f"--images {refusal(path, reason)}")


async def _serve(
    options: RegistryOptions, files: OptionFiles, sockets: InheritedSockets
) -> int | None:
    """Serve until the end, and return the signal that was its cause, None if it had another."""
    diagnostics = runtime.new_diagnostics(options, shares_stderr=sockets.shares_stderr)
    tcp_stream = protection.new_tcp_stream(options, diagnostics)
    with_passwords = protection.new_passwords(options, diagnostics)
    configuration = runtime.new_watched_configuration(options, files, diagnostics)
    # Of a registry that is not an upstream, nothing is asked.
    network = Network(NetworkOptions(offline=True), configuration, diagnostics)
    known = KnownBlobs()
    large_blobs = LargeBlobs(known)
    upstreams = upstream.Upstreams(options, configuration, diagnostics, large_blobs)
    registry_image = partial(upstreams.image, elsewhere=network)
    images, local = _local_places(options, registry_image, diagnostics)
    metrics = Metrics()
    new_catalog = partial(
        Catalog[Candidate],
        _open,
        configuration.policy,
        ForeignLayers(upstreams.network or network).open,
        configuration.warn,
        large_blobs=large_blobs,
    )
    async with trio.open_nursery() as nursery:
        parts = VerifiedParts(nursery, large_blobs, known)
        # For clients, and for registries that have this one as a mirror.
        served = [
            Repositories([*local, *asked], new_catalog(), parts, metrics.judged)
            for asked in (upstreams.places, upstreams.for_registries)
        ]

        async def renew() -> None:
            if await settle(configuration.have_changed):
                for repositories in served:
                    repositories.forget()
                network.forget()
                upstreams.forget()

        apis = [
            api(
                repositories,
                default_registry=options.default_registry,
                has_catalog=options.catalog,
                report=diagnostics.progress,
                renew=renew,
                metrics=metrics,
            )
            for api, repositories in zip((RegistryApi, MirrorApi), served, strict=True)
        ]
        service = Service(
            Measured(with_passwords(WithMirror(*apis)), metrics),
            diagnostics,
            allow_remote=options.allow_remote,
            hosts=options.hosts,
            limits=PUBLIC,
            tcp_stream=tcp_stream,
        )
        metrics.connections = lambda: service.open_connections
        await nursery.start(images.run)
        for repositories in served:
            await nursery.start(repositories.run)
        await nursery.start(upstreams.run)
        try:
            await service.run(sockets)
        finally:
            nursery.cancel_scope.cancel()
            for repositories in served:
                repositories.close()
            images.close()
            upstreams.close()
            network.close()
    return service.ended_by


def _local_places(
    options: RegistryOptions,
    registry_image: Callable[[Reference], RegistryImage],
    diagnostics: Diagnostics,
) -> tuple[ImageFiles, list[Place]]:
    """Return the images of `--images`, whose `run` must be running, and the places that serve."""
    allowed = Files(diagnostics.failure, trusts_writable=options.trust_writable)
    archives = _known_archives(options, diagnostics)
    images = ImageFiles(options.images, allowed, diagnostics.failure, archives, registry_image)
    sideloaded = [
        SideloadPlace(each, allowed, registry_image, options.default_registry, archives)
        for each in options.sideload
    ]
    return images, [*([images] if options.images else []), *sideloaded]


def _known_archives(options: RegistryOptions, diagnostics: Diagnostics) -> KnownArchives:
    """Return what is known of archives; with a cache, after a restart as well."""
    if options.cache is None:
        return KnownArchives()
    try:
        ContentStore(options.cache).create()
    except Failure as failure:
        diagnostics.failure(f"going on without a record of archives: {failure.message}")
        return KnownArchives()
    return KnownArchives(ArchiveRecords(options.cache), diagnostics.failure)


async def _open(candidate: Candidate) -> list[Source]:
    return [await candidate.open_source()]

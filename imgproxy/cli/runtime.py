"""The objects that a command needs, built from its options by keyword.

The parts are built one after the other and not at once, since a preconnection is to begin before
the modules for the rest are imported, and a usage error is to import none of them.
"""

from __future__ import annotations

import sys

from imgproxy.host import environment

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from imgproxy.cli.options import Options
    from imgproxy.host.configuration import Configuration, Overrides
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.host.watched_configuration import WatchedConfiguration
    from imgproxy.images.catalog import Catalog
    from imgproxy.images.selection import Wanted
    from imgproxy.net.preconnect import Preconnection
    from imgproxy.store.content_store import ContentStore
    from imgproxy.transports.cache import Cache
    from imgproxy.transports.kept_blobs import KeptBlobs
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.source import Source

    T = TypeVar("T")


def ignore_warnings() -> None:
    """Keep warnings of libraries, meant for programmers, off standard error.

    HTTP may be served there.
    """
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def load_hashes() -> None:
    """Load the library of digests. Raises `ImportError` where memory is too short for it.

    To be called before anything imports `hashlib`, which would go on without it, after a traceback
    for each algorithm.
    """
    try:  # noqa: SIM105  (contextlib is imported later)
        import _hashlib  # noqa: F401
    except ModuleNotFoundError:  # this interpreter was built without it
        pass


def run_event_loop(main: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run an asynchronous function, and return what it returns or raise what it raises.

    What has been imported by now is garbage at no time: no collection looks at it again, neither
    later nor the one at the end, which would take a tenth of the time of a short life.
    """
    import gc

    import trio

    gc.freeze()
    gc.enable()
    return trio.run(main, *arguments)


class OptionFiles:
    """The files that options name: for each its content, see `Overrides`, and its path.

    Raises `UsageError` for one that cannot be read.
    """

    def __init__(self, options: Options) -> None:
        self.policy = _read("--policy", options.policy)
        self.registries = _read("--registries-conf", options.registries_conf)
        self.auth = _read("--authfile", options.authfile)
        if options.cert_dir is not None:
            environment.check_option_directory("--cert-dir", options.cert_dir)
        if options.registries_d is not None:
            environment.check_option_directory("--registries.d", options.registries_d)

    def read_again(self) -> None:
        """Let files be read when they are needed, as later content counts; pipes have none."""
        from os.path import isfile

        for name in ("policy", "registries", "auth"):
            chosen = getattr(self, name)
            if chosen is not None and isfile(chosen[1]):
                setattr(self, name, (None, chosen[1]))


def _read(option: str, path: str | None) -> tuple[bytes | None, str] | None:
    return None if path is None else (environment.read_option_file(option, path), path)


def new_diagnostics(options: Options, *, shares_stderr: bool) -> Diagnostics:
    """Return the diagnostics; `shares_stderr`: HTTP is served where they would be written."""
    from imgproxy.host.diagnostics import Diagnostics

    diagnostics = Diagnostics(quiet=options.quiet or shares_stderr, debug=options.debug)
    diagnostics.hide(options.secrets)
    return diagnostics


def new_configuration(
    options: Options, files: OptionFiles, diagnostics: Diagnostics
) -> Configuration:
    """Return the configuration of this host, with what the options put in its place."""
    from imgproxy.host.configuration import Configuration

    return Configuration(_overrides(options, files), diagnostics)


def new_watched_configuration(
    options: Options, files: OptionFiles, diagnostics: Diagnostics
) -> WatchedConfiguration:
    """Return the configuration of this host for a service, in which later content counts."""
    from imgproxy.host.watched_configuration import WatchedConfiguration

    files.read_again()
    return WatchedConfiguration(_overrides(options, files), diagnostics)


def _overrides(options: Options, files: OptionFiles) -> Overrides:
    from imgproxy.config.policy import ACCEPT_ANYTHING
    from imgproxy.host.configuration import Overrides

    insecure = (ACCEPT_ANYTHING, "--insecure-policy") if options.insecure_policy else None
    return Overrides(
        policy=insecure or files.policy,
        registries=files.registries,
        auth=files.auth,
        cert_dir=options.cert_dir,
        registries_d=options.registries_d,
        requires_signatures=options.requires_signatures,
    )


def preconnect(
    options: Options, image: str, configuration: Configuration, is_asked: Callable[[], bool]
) -> Preconnection | None:
    """Begin the connection that an image will need, unless an option forbids or may avoid it.

    `is_asked` returns whether the image will be asked for in any case.
    """
    local = ("oci:", "oci-archive:", "docker-archive:", "dir:")
    is_path = image[:1] in "./" or image.startswith(local)
    may_be_cached = options.cache is not None and ("@" in image or options.tag_ttl > 0)
    if is_path or options.offline or options.sideload or options.tls_verify is False:
        return None
    if may_be_cached:
        return None
    from imgproxy.transports.registry import preconnect

    # The request is always the same one: without a token, and in this program's own name. What is
    # in a cache is asked for in another way.
    is_plain = options.registry_token is None and not options.user_agent_prefix
    is_plain = is_plain and options.cache is None
    return preconnect.begin(
        image,
        configuration,
        lambda: is_plain and is_asked(),
        mirrors=not options.no_mirrors,
        timeout=options.stall_timeout,
    )


class Beginning:
    """What a command begins with: the configuration of this host, and a connection, if any."""

    def __init__(self, configuration: Configuration, preconnection: Preconnection | None) -> None:
        self.configuration = configuration
        self.preconnection = preconnection

    def close(self) -> None:
        """Close the connection, if nobody uses it. May be called again."""
        if self.preconnection is not None:
            self.preconnection.close()


def begin(options: Options, diagnostics: Diagnostics) -> Beginning:
    """Begin a command, with the connection that its image will need. Raises `UsageError`."""
    configuration = new_configuration(options, OptionFiles(options), diagnostics)
    connection = preconnect(options, options.image, configuration, lambda: True)
    return Beginning(configuration, connection)


def new_network(
    options: Options,
    configuration: Configuration,
    diagnostics: Diagnostics,
    preconnection: Preconnection | None,
    outage_time: float = 0.0,
    via: str = "",
) -> Network:
    """Return the network as options and configuration permit it; close it in the end.

    `outage_time`, `via`: see `NetworkOptions`.
    """
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.registry.options import NetworkOptions

    network_options = NetworkOptions(
        offline=options.offline,
        tls_verify=options.tls_verify,
        mirrors=not options.no_mirrors,
        retries=options.retries,
        stall_timeout=options.stall_timeout,
        credentials=options.creds,
        anonymous=options.no_creds,
        registry_token=options.registry_token or "",
        foreign_layers=options.foreign_layers,
        user_agent_prefix=options.user_agent_prefix,
        outage_time=outage_time,
        via=via,
    )
    return Network(network_options, configuration, diagnostics, preconnection)


def wanted(options: Options) -> Wanted:
    """Return what the options choose from an index."""
    from imgproxy.images.selection import Wanted

    platform = options.platform or environment.host_platform()
    if not (options.artifact_type or options.annotations):
        return Wanted(platform)
    from imgproxy.specs.oci.manifest_selection import ManifestConditions

    conditions = ManifestConditions(options.artifact_type or "", tuple(options.annotations))
    return Wanted(platform, conditions)


def new_catalog(
    options: Options,
    configuration: Configuration,
    network: Network,
    kept: KeptBlobs | None = None,
) -> Catalog[str]:
    """Return the catalog that opens images as the options say; close it in the end.

    `kept` are the blobs of a store that gets all that is read.
    """
    from functools import partial

    from imgproxy.images.catalog import Catalog
    from imgproxy.transports import open_sources
    from imgproxy.transports.registry.foreign_layers import ForeignLayers

    cache = new_cache(options, network, kept.store if kept else None)
    open_raw = partial(open_sources, network=network, sideload=options.sideload, cache=cache)
    open_foreign = ForeignLayers(network).open
    return Catalog(
        open_sources=_keeping(open_raw, kept) if kept else open_raw,
        load_policy=configuration.policy,
        open_foreign=kept.with_foreign(open_foreign) if kept else open_foreign,
        warn=configuration.warn,
        close=cache.close if cache else lambda: None,
    )


def _keeping(
    open_raw: Callable[[str], Awaitable[list[Source]]], kept: KeptBlobs
) -> Callable[[str], Awaitable[list[Source]]]:
    from imgproxy.transports.cached import CachedSource

    async def opened(name: str) -> list[Source]:
        return [CachedSource(source, kept) for source in await open_raw(name)]

    return opened


def new_cache(
    options: Options,
    network: Network,
    store: ContentStore | None = None,
    patience: float = 30.0,
) -> Cache | None:
    """Return the cache that the options name, if any; close it in the end.

    `store` has the blobs of a command: what is in both is kept once. `patience`: see
    `CacheOptions`.
    """
    path = options.cache
    if path is None:
        return None
    from os.path import realpath

    from imgproxy.transports.cache import Cache, CacheOptions
    from imgproxy.verification.documents import compare

    cache_options = CacheOptions(
        size=options.cache_size,
        tag_ttl=options.tag_ttl,
        max_stale=options.max_stale,
        offline=options.offline,
        keeps_blobs=store is None or realpath(path) != realpath(store.path),
        patience=patience,
        anonymous=options.no_creds,
    )
    return Cache(path, cache_options, network.report, compare)

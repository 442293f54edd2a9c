"""From the command line to the exit status. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would take as long as all else that --version needs
if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.cli.options import Options
    from imgproxy.host.configuration import Configuration
    from imgproxy.net.preconnect import Preconnection

EXIT_USAGE = 2


def main() -> int:
    """Run the program on `sys.argv`; give the exit status."""
    if sys.argv[1:] == ["--version"]:
        from imgproxy import __version__

        print(f"imgproxy {__version__}")  # noqa: T201
        return 0
    _die_by_signal()
    from imgproxy.cli import options
    from imgproxy.errors import UsageError

    try:
        return _run(options.parse(sys.argv[1:]))
    except UsageError as error:
        from imgproxy.host.diagnostics import Diagnostics, super_server

        Diagnostics(quiet=super_server()).failure(str(error))
        return EXIT_USAGE


def _keep_quiet() -> None:
    """Keep what libraries have to say to programmers off standard error, where it may be served."""
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def _die_by_signal() -> None:
    """Let an interrupt end the process by that signal, as SIGTERM does, and not by a traceback."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(options: Options) -> int:
    _keep_quiet()
    from imgproxy.host import environment
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.server import inherited_sockets

    def named(option: str, path: str | None) -> tuple[bytes, str] | None:
        return None if path is None else (environment.read_option_file(option, path), path)

    policy = named("--policy", options.policy)
    registries = named("--registries-conf", options.registries_conf)
    auth = named("--authfile", options.authfile)
    if options.cert_dir is not None:
        environment.check_option_directory("--cert-dir", options.cert_dir)
    if options.registries_d is not None:
        environment.check_option_directory("--registries.d", options.registries_d)
    if options.insecure_policy:
        from imgproxy.config.policy import ACCEPT_ANYTHING

        policy = ACCEPT_ANYTHING, "--insecure-policy"

    # Before the event loop exists, which makes descriptors of its own.
    fds = options.sockfds or environment.take_listen_fds()
    handed = (
        inherited_sockets.classify(fds) if fds else inherited_sockets.classify_standard_streams()
    )
    inherited_sockets.check_source(
        options.image, fds or [inherited_sockets.STDIN, inherited_sockets.STDOUT]
    )
    diagnostics = Diagnostics(quiet=options.quiet or handed.shares_stderr, debug=options.debug)

    from imgproxy.host.configuration import Configuration, Overrides

    chosen = Overrides(policy, registries, auth, options.cert_dir, options.registries_d)
    configuration = Configuration(chosen, diagnostics)
    preconnection = _begin_early(options, configuration, handed.is_asked)

    from functools import partial

    import trio

    from imgproxy.images.image import Image
    from imgproxy.server.service import Service
    from imgproxy.transports import open_sources
    from imgproxy.transports.registry.foreign_layers import ForeignLayers
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.registry.options import NetworkOptions

    network = Network(
        NetworkOptions(
            offline=options.offline,
            tls_verify=options.tls_verify,
            mirrors=not options.no_mirrors,
            retries=options.retries,
            stall_timeout=options.stall_timeout,
            credentials=options.creds,
            anonymous=options.no_creds,
            registry_token=options.registry_token or "",
            foreign_layers=options.foreign_layers,
        ),
        configuration,
        diagnostics,
        preconnection,
    )
    image = Image(
        partial(open_sources, options.image, network, options.sideload),
        configuration.policy,
        options.platform or environment.host_platform(),
        ForeignLayers(network).open,
    )
    service = Service(image, diagnostics, allow_remote=options.allow_remote)

    async def serve() -> int:
        try:
            return await service.run(handed)
        finally:
            network.close()

    return trio.run(serve)


def _begin_early(
    options: Options, configuration: Configuration, is_asked: Callable[[], bool]
) -> Preconnection | None:
    """Begin the connection that is needed, where no option says that it may not be."""
    here = ("oci:", "oci-archive:", "docker-archive:", "dir:")
    is_path = options.image[:1] in "./" or options.image.startswith(here)
    if is_path or options.offline or options.sideload or options.tls_verify is False:
        return None
    from imgproxy.net import preconnect

    return preconnect.begin(
        options.image,
        configuration,
        lambda: options.registry_token is None and is_asked(),  # a token would go with the request
        mirrors=not options.no_mirrors,
        timeout=options.stall_timeout,
    )


if __name__ == "__main__":
    sys.exit(main())

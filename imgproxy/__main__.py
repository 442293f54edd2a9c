"""From the command line to the exit status. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys

COMMANDS = ("list", "pull", "copy", "extract", "unpack", "export", "tag", "rm", "gc", "verify")
REGISTRY = "registry"

EXIT_USAGE = 2
EXIT_SHORTAGE = 5

# As skopeo has it for its own command line.
EXIT_USAGE_AS_SKOPEO = 1

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from imgproxy.cli.options import Options


def main() -> int:
    """Run the program on `sys.argv`, and return the exit status."""
    program = sys.argv[0].rpartition("/")[2]
    if sys.argv[1:] == ["--version"]:
        from imgproxy import __version__

        in_place = f", in the place of {program}" if program == "skopeo" else ""
        print(f"imgproxy {__version__}{in_place}")  # noqa: T201
        return 0
    import gc

    gc.disable()  # until `runtime.run_event_loop`: what is imported stays
    _die_by_signal()
    is_as_skopeo = program == "skopeo" or "experimental-image-proxy" in sys.argv[1:]
    from imgproxy.errors import UsageError, shortage
    from imgproxy.host.diagnostics import Diagnostics, super_server

    options: Options | None = None
    try:
        if is_as_skopeo:
            from imgproxy.cli.skopeo_options import SkopeoOptions
            from imgproxy.cli.skopeo_options import parse as parse_as_skopeo

            options = skopeo = SkopeoOptions()
            parse_as_skopeo(sys.argv[1:], skopeo, program)
            from imgproxy.cli import skopeo_proxy

            return skopeo_proxy.run(skopeo)
        from imgproxy.cli.options import WITH_VALUE, Options, parse

        options = Options()
        command = _command(sys.argv[1:], WITH_VALUE)
        if command == REGISTRY:
            from imgproxy.cli import registry

            options = registry_options = registry.RegistryOptions()
            registry.parse(sys.argv[1:], registry_options)
            return registry.run(registry_options)
        if command is not None:
            from imgproxy.cli import commands

            return commands.run(command, sys.argv[1:], options)
        parse(sys.argv[1:], options)
        from imgproxy.cli import serve

        return serve.run(options)
    except Exception as error:
        failure = error if isinstance(error, UsageError) else shortage("serving", error)
        if failure is None:
            raise
        diagnostics = Diagnostics(quiet=super_server())
        if options is not None:
            diagnostics.hide(options.secrets)
        diagnostics.failure(str(failure))
        if isinstance(failure, UsageError):
            return EXIT_USAGE_AS_SKOPEO if is_as_skopeo else EXIT_USAGE
        # The interpreter would end its threads, for which the C library loads another library, and
        # aborts where it cannot.
        os._exit(EXIT_SHORTAGE)


def _command(arguments: list[str], with_value: frozenset[str]) -> str | None:
    """Return the command in the arguments, None where the first word that is no option is none.

    `with_value` are the options whose value may be the next argument.
    """
    rest = iter(arguments)
    for each in rest:
        if not each.startswith("-"):
            return each if each in {*COMMANDS, REGISTRY} else None
        if each in with_value:
            next(rest, None)
    return None


def _die_by_signal() -> None:
    """Let an interrupt end the process by that signal, as SIGTERM does, and not by a traceback."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())

"""From the command line to the exit status. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

EXIT_USAGE = 2
EXIT_SHORTAGE = 5


def main() -> int:
    """Run the program on `sys.argv`, and return the exit status."""
    if sys.argv[1:] == ["--version"]:
        from imgproxy import __version__

        print(f"imgproxy {__version__}")  # noqa: T201
        return 0
    _die_by_signal()
    from imgproxy.errors import UsageError, shortage
    from imgproxy.host.diagnostics import Diagnostics, super_server

    parsed = None
    try:
        from imgproxy.cli import options

        parsed = options.Options()
        options.parse(sys.argv[1:], parsed)
        from imgproxy.cli import serve

        return serve.run(parsed)
    except Exception as error:
        failure = error if isinstance(error, UsageError) else shortage("serving", error)
        if failure is None:
            raise
        diagnostics = Diagnostics(quiet=super_server())
        if parsed is not None:
            diagnostics.hide(parsed.secrets)
        diagnostics.failure(str(failure))
        return EXIT_USAGE if isinstance(failure, UsageError) else EXIT_SHORTAGE


def _die_by_signal() -> None:
    """Let an interrupt end the process by that signal, as SIGTERM does, and not by a traceback."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())

"""The parser of the command line, and its complaints."""

from __future__ import annotations

import argparse
import re

from imgproxy.errors import UsageError

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from typing import NoReturn

_WIDTH = 79

# The name of an option; of a short one, as in -uUSER, what follows it may be its value.
_NAME = re.compile(r"--[A-Za-z0-9._-]+|-[^-]")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UsageError`s, and show no values.

    `--help` has a fixed width: argparse would ask the terminal for one each time.
    """

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=_WIDTH),
        )

    def error(self, message: str) -> NoReturn:
        """See `argparse`."""
        # The value of an option that takes none may be a secret that was meant for another option.
        option, is_ignored, _ = message.partition(": ignored explicit argument")
        if is_ignored:
            message = f"{option}: it takes no value"
        raise UsageError(f"{message} ({self.prog} --help lists the options)")


def described(arguments: list[str]) -> str:
    """Return the complaint about unknown arguments: what they are called, and none of their values.

    A mistyped --creds has a secret for its value, which may be an argument of its own.
    """
    names = unknown_options(arguments)
    if names:
        return f"unknown option: {', '.join(names)}"
    return f"expected one IMAGE, got {len(arguments) + 1} arguments that are no options"


def unknown_options(arguments: list[str]) -> list[str]:
    """Return the names of the options in unknown arguments, each once."""
    return list(dict.fromkeys(match[0] for match in map(_NAME.match, arguments) if match))

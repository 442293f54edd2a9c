"""The commands: imgproxy(1), COMMANDS. Each has a module of its own beside this one.

A module describes itself in `DESCRIPTION`, adds the options and operands that it takes to a parser
in `add_options`, and does its work in `run`, which returns what it did, as JSON has it. Where that
is for people as well, `text` returns it in lines.

Those that read an image have the first two in a module of their own, which imports little: the
connection to the registry begins before the rest is imported, so that both happen at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from imgproxy.cli import options as common
from imgproxy.cli import runtime
from imgproxy.cli.parser import Parser, described
from imgproxy.errors import BadRequestError, DefectError, Failure, InvalidError, UsageError
from imgproxy.errors import shortage as shortage_in
from imgproxy.server.error_body import error_body
from imgproxy.store.files import DestinationError, using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgproxy.cli.options import Options
    from imgproxy.host.diagnostics import Diagnostics

EXIT_DONE = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_FINAL = 3
EXIT_WRONG = 4
EXIT_MAY_PASS = 5
EXIT_DESTINATION = 6

EPILOG = "See imgproxy(1)."


# Those whose module for options is `<name>_options`; `run` takes a `runtime.Beginning` as well.
_READING = frozenset({"pull", "copy", "extract", "unpack"})


class CommandOptions(Protocol):
    """The module of a command that has its options."""

    DESCRIPTION: str

    def add_options(self, parser: Parser) -> None:
        """Add what the command takes."""

    @property
    def check(self) -> Callable[[Any], None]:
        """Raise `UsageError` for options that contradict each other; a module may do without."""


class Command(Protocol):
    """The module of a command."""

    async def run(self, *given: Any) -> dict[str, Any]:  # noqa: ANN401
        """Do the work, and return what was done. Raises `Failure` and `UsageError`."""


def run(name: str, arguments: list[str], options: Options) -> int:
    """Run a command and return its exit status. Raises `UsageError` for its command line."""
    _hold_standard_descriptors()
    try:
        return _run(name, arguments, options)
    except UsageError as error:
        if _wants_json(arguments):
            diagnostics = runtime.new_diagnostics(options, shares_stderr=False)
            _write_failure(BadRequestError(str(error)), diagnostics)
        raise


def _run(name: str, arguments: list[str], options: Options) -> int:
    _parse(name, options_of(name), arguments, options)
    runtime.ignore_warnings()
    diagnostics = runtime.new_diagnostics(options, shares_stderr=False)
    beginning = None
    try:
        given: tuple[object, ...] = (options, diagnostics)
        if name in _READING:
            beginning = runtime.begin(options, diagnostics)
            given = (options, beginning, diagnostics)
        command: Command = import_module(f"imgproxy.cli.{name}")
        done = runtime.run_event_loop(command.run, *given)
        if options.format == "json":
            _write([json.dumps(done, ensure_ascii=False)])
        elif hasattr(command, "text"):
            _write(command.text(done))
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  (a defect is reported as one)
        failure = error if isinstance(error, Failure) else shortage_in(name, error)
        if failure is None:
            diagnostics.defect(name, error)
            failure = DefectError("a defect of this program; --debug shows where, please report it")
        else:
            diagnostics.failure(f"{name}: {failure.message}")
        if options.format == "json":
            _write_failure(failure, diagnostics)
        return exit_status(failure)
    finally:
        if beginning is not None:
            beginning.close()
    return EXIT_DONE


def options_of(name: str) -> CommandOptions:
    """Return the module that has the options of a command."""
    options: CommandOptions = import_module(
        f"imgproxy.cli.{name}_options" if name in _READING else f"imgproxy.cli.{name}"
    )
    return options


def _hold_standard_descriptors() -> None:
    """Keep those that are closed from becoming a file of a store, in which messages would land.

    Whoever uses them all the same fails as with closed ones.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free


def _wants_json(arguments: list[str]) -> bool:
    """Return whether a command line, which may be wrong, asks for JSON."""
    return "--format=json" in arguments or ("--format", "json") in pairwise(arguments)


def _write_failure(failure: Failure, diagnostics: Diagnostics) -> None:
    """Write the document of a failure, which may be that of standard output."""
    with suppress(DestinationError):
        _write([error_body(failure, diagnostics.masked).decode()])


def _write(lines: Iterable[str]) -> None:
    """Write lines to standard output, as far as its reader wants them. Raises `Failure`."""
    if sys.stdout is None:
        raise DestinationError("standard output is closed")
    with using("standard output", passing=(BrokenPipeError,)), suppress(BrokenPipeError):
        try:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8")  # as JSON is, whatever the locale has
            sys.stdout.writelines(f"{line}\n" for line in lines)
            sys.stdout.flush()
        except OSError:  # what is left in the buffer must not fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def _parse(name: str, command: CommandOptions, arguments: list[str], options: Options) -> None:
    parser = Parser(f"imgproxy {name}", command.DESCRIPTION, EPILOG)
    common.add_command(parser)
    command.add_options(parser)
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json: one document on standard output, of what was done or why not",
    )
    common.add_diagnostics(parser)
    unknown = common.parse_known(parser, arguments, options, intermixed=True)
    if any(each.startswith("-") for each in unknown):
        parser.error(described(unknown))
    if unknown:  # which may be secrets, of an option that was mistyped
        parser.error(f"{len(unknown)} arguments more than {name} takes")
    if hasattr(command, "check"):
        command.check(options)


def exit_status(failure: Failure) -> int:
    """Return the exit status that a failure stands for: imgproxy(1), EXIT STATUS."""
    if isinstance(failure, DefectError):
        return EXIT_DEFECT
    if isinstance(failure, BadRequestError):
        return EXIT_USAGE
    if isinstance(failure, InvalidError):
        return EXIT_WRONG
    if isinstance(failure, DestinationError):
        return EXIT_DESTINATION
    return EXIT_MAY_PASS if failure.retryable else EXIT_FINAL

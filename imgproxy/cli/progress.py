"""What people see while blobs arrive: bars on a terminal, else a line for each that has.

The bars are drawn by rich, which is the extra `cli`; it is imported on a terminal alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID

    from imgproxy.cli.options import Options
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.manifest import Descriptor

_STDERR = 2

# Of a digest: enough to tell the blobs of an image from each other.
_SHOWN = len("sha256:") + 12


class Progress(Protocol):
    """What is told of blobs on their way. Close it before anything else is told."""

    def begin(self, size: int) -> None:
        """Tell that so many bytes are to come."""

    def advance(self, blob: Descriptor, count: int) -> None:
        """Tell that so many bytes of a blob have come; less than 0 if they must come again."""

    def finish(self, blob: Descriptor) -> None:
        """Tell that a blob is there."""

    def say(self, message: str) -> None:
        """Tell something else, in a line."""

    def close(self) -> None:
        """Take the bars away."""


def counted(number: int, noun: str) -> str:
    """Return how many there are of something, with an `s` unless it is one."""
    return f"{number} {noun}{'s' * (number != 1)}"


def new_progress(options: Options, diagnostics: Diagnostics) -> Progress:
    """Return the progress for this standard error and these options."""
    if not options.quiet and not options.debug and os.isatty(_STDERR):
        try:
            bars = Bars(diagnostics)
        except ImportError:
            pass
        else:
            if bars.is_drawn:
                return bars
    return Lines(diagnostics)


class Lines:
    """A line for each blob that has arrived. See `Progress`."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.say = diagnostics.progress

    def begin(self, size: int) -> None:
        """See `Progress`."""

    def advance(self, blob: Descriptor, count: int) -> None:
        """See `Progress`."""

    def finish(self, blob: Descriptor) -> None:
        """See `Progress`."""
        self.say(f"{blob.digest}: {blob.size} bytes")

    def close(self) -> None:
        """See `Progress`."""


class Bars:
    """Bars for each blob on its way, and for all together. See `Progress`.

    Raises `ImportError` where rich is not installed.
    """

    def __init__(self, diagnostics: Diagnostics) -> None:
        from rich import progress as bars
        from rich.console import Console

        self._masked = diagnostics.masked
        self._console = Console(stderr=True)
        # A signal ends the process at once, and nobody would show a hidden cursor again.
        self._console.show_cursor = lambda show=True: show  # type: ignore[method-assign]
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._all = self._bars.add_task("all", total=None)
        self._blobs: dict[Descriptor, TaskID] = {}

    @property
    def is_drawn(self) -> bool:
        """Whether the terminal can draw over what it has; see `TERM`."""
        return self._console.is_interactive

    def begin(self, size: int) -> None:
        """See `Progress`."""
        self._bars.update(self._all, total=size)
        self._bars.start()

    def advance(self, blob: Descriptor, count: int) -> None:
        """See `Progress`."""
        if blob not in self._blobs:
            self._blobs[blob] = self._bars.add_task(str(blob.digest)[:_SHOWN], total=blob.size)
        for task in (self._blobs[blob], self._all):
            self._bars.advance(task, count)

    def finish(self, blob: Descriptor) -> None:
        """See `Progress`."""
        if blob in self._blobs:
            self._bars.remove_task(self._blobs.pop(blob))
        self.say(f"{blob.digest}: {blob.size} bytes")

    def say(self, message: str) -> None:
        """See `Progress`."""
        self._console.out(f"imgproxy: {self._masked(message)}", highlight=False)

    def close(self) -> None:
        """See `Progress`."""
        self._bars.stop()

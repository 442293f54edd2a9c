"""What can go wrong between a parent and its child, as exceptions with facts, and how a child ends.

`retryable` says of each whether the same may succeed later.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# imgproxy(1), EXIT STATUS.
_MEANINGS = {
    0: "nothing was wrong with what it delivered",
    1: "a defect of imgproxy",
    2: "wrong usage",
    4: "a blob was not what its digest says",
    5: "the source was lost in the middle of a blob",
}
_SOURCE_LOST = 5

# The line on standard error about a body that stays short names the code of the cause.
_WRONG_BYTES = re.compile(": broken off: (?:DIGEST|SIZE)_INVALID: ")


class Ending(NamedTuple):
    """How the child ended: `status` is its exit status, or `signal` what killed it.

    `diagnostics` are the last lines of its standard error.
    """

    status: int | None
    signal: int | None
    diagnostics: tuple[str, ...]

    @property
    def retryable(self) -> bool:
        """Whether a new child may have more luck: the source was lost, or it was killed."""
        return self.signal is not None or self.status == _SOURCE_LOST

    def __str__(self) -> str:
        if self.signal is not None:
            return f"imgproxy was killed by {_signal_name(self.signal)}"
        meaning = f" ({_MEANINGS[self.status]})" if self.status in _MEANINGS else ""
        return f"imgproxy ended with exit status {self.status}{meaning}"


def ending(returncode: int, diagnostics: tuple[str, ...]) -> Ending:
    """Give how a process ended from what `subprocess` calls its `returncode`."""
    if returncode < 0:
        return Ending(None, -returncode, diagnostics)
    return Ending(returncode, None, diagnostics)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


class ParentError(Exception):
    """Whatever this package raises by itself. An `OSError` is raised where nothing can be started.

    `target` is the path that was asked for, such as `/manifest`.
    """

    def __init__(self, target: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{target}: {message}")
        self.target = target
        self.retryable = retryable


class RefusedError(ParentError):
    """An error reply: imgproxy(1), ERRORS. `detail` has `retryable` and what the message lists."""

    def __init__(
        self, target: str, status: int, code: str, message: str, detail: Mapping[str, Any]
    ) -> None:
        retryable = detail.get("retryable") is True
        super().__init__(target, f"{status} {code}: {message}", retryable=retryable)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail


class HungUpError(ParentError):
    """No reply came: the child ended, or hung up.

    `ending` is None where the child goes on, or where how it ended is not known yet. `reason` is
    the last line that it left on standard error, if there is one.
    """

    def __init__(
        self, target: str, message: str, reason: str | None, ending: Ending | None
    ) -> None:
        words = [message, *map(str, filter(None, (ending, reason)))]
        super().__init__(target, ": ".join(words), retryable=_may_pass(reason, ending))
        self.reason = reason
        self.ending = ending


class ShortBodyError(HungUpError):
    """A body ended early: it is not what its digest says, its source was lost, or the child was.

    `received` of `expected` bytes had come. A `reason` names the blob.
    """

    def __init__(
        self, target: str, counts: tuple[int, int], reason: str | None, ending: Ending | None
    ) -> None:
        self.received, self.expected = counts
        message = f"short body, {self.received} of {self.expected} bytes"
        super().__init__(target, message, reason, ending)


class StalledError(ParentError):
    """The child has sent nothing for as long as `start` allows."""

    def __init__(self, target: str, seconds: float) -> None:
        super().__init__(target, f"nothing came for {seconds:g} seconds", retryable=True)


class BrokenReplyError(ParentError):
    """What came is no reply of this program."""


class BusyError(ParentError):
    """All sockets are in use by who asks for one more: waiting would never end."""


def _may_pass(reason: str | None, ending: Ending | None) -> bool:
    if ending is not None:
        return ending.retryable
    return not (reason and _WRONG_BYTES.search(reason))


def reason_for(target: str, diagnostics: tuple[str, ...]) -> str | None:
    """Give the last line about a request, or else the last one."""
    about = [line for line in diagnostics if f" {target}: " in line]
    lines = about or list(diagnostics)
    return lines[-1] if lines else None

"""The failures between a parent and its child as exceptions, and the endings of a child.

`retryable` is true where the same request, perhaps to a new child, may succeed later.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# imgproxy(1), EXIT STATUS.
_MEANINGS = {
    0: "no blob failed",
    1: "a defect of imgproxy",
    2: "wrong usage",
    4: "a blob did not match its digest",
    5: "the source was lost, or the system was short of something",
}
_SOURCE_LOST = 5

# The line on standard error about a short body contains the code of the cause.
_WRONG_BYTES = re.compile(": broken off: (?:DIGEST|SIZE)_INVALID: ")


class Ending(NamedTuple):
    """How the child ended: its exit `status`, or the `signal` that killed it.

    `diagnostics` are the last lines of its standard error.
    """

    status: int | None
    signal: int | None
    diagnostics: tuple[str, ...]

    @property
    def retryable(self) -> bool:
        """Return whether a new child may succeed: the source was lost, or it was killed."""
        return self.signal is not None or self.status == _SOURCE_LOST

    def __str__(self) -> str:
        if self.signal is not None:
            return f"imgproxy was killed by {_signal_name(self.signal)}"
        meaning = f" ({_MEANINGS[self.status]})" if self.status in _MEANINGS else ""
        return f"imgproxy ended with exit status {self.status}{meaning}"


def ending(returncode: int, diagnostics: tuple[str, ...]) -> Ending:
    """Return how a process ended, from the `returncode` of `subprocess`."""
    if returncode < 0:
        return Ending(None, -returncode, diagnostics)
    return Ending(returncode, None, diagnostics)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


class ParentError(Exception):
    """The base of this package's exceptions; only `start` raises `OSError` as well.

    `target` is the path of the request, such as `/manifest`.
    """

    def __init__(self, target: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{target}: {message}")
        self.target = target
        self.retryable = retryable


class RefusedError(ParentError):
    """An error reply: imgproxy(1), ERRORS. `detail` has `retryable` and lists from the message."""

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
    """There was no reply: the child ended, or closed the connection.

    `ending` is None where the child still runs, or has not been reaped yet. `reason` is the last
    line about the request, else the last line at all, on standard error, None where there is none.
    """

    def __init__(
        self, target: str, message: str, reason: str | None, ending: Ending | None
    ) -> None:
        parts = [message, *map(str, filter(None, (ending, reason)))]
        super().__init__(target, ": ".join(parts), retryable=_is_retryable(reason, ending))
        self.reason = reason
        self.ending = ending


class ShortBodyError(HungUpError):
    """A body was cut off: it does not match its digest, or its source or the child was lost.

    `received` of `expected` bytes arrived. The `reason`, if any, names the blob.
    """

    def __init__(
        self, target: str, counts: tuple[int, int], reason: str | None, ending: Ending | None
    ) -> None:
        self.received, self.expected = counts
        message = f"short body, {self.received} of {self.expected} bytes"
        super().__init__(target, message, reason, ending)


class StalledError(ParentError):
    """The child has sent nothing for the `timeout` of `start`."""

    def __init__(self, target: str, seconds: float) -> None:
        super().__init__(target, f"nothing came for {seconds:g} seconds", retryable=True)


class BrokenReplyError(ParentError):
    """The received bytes are not a reply of this program."""


class BusyError(ParentError):
    """All sockets carry blobs of the caller itself, so waiting for one would never end."""


def _is_retryable(reason: str | None, ending: Ending | None) -> bool:
    if ending is not None:
        return ending.retryable
    return not (reason and _WRONG_BYTES.search(reason))


def reason_for(target: str, diagnostics: tuple[str, ...]) -> str | None:
    """Return the last line about a request, else the last line, None where there is none."""
    about = [line for line in diagnostics if f" {target}: " in line]
    lines = about or list(diagnostics)
    return lines[-1] if lines else None

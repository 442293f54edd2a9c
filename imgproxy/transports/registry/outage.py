"""Servers that could not be reached a moment ago, and so are not asked again at once.

Whoever asks next would wait as long as the last one for the same failure. One lost connection is no
outage: only what all tries for something end with is remembered, and any answer of the server
counts for more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import UnreachableError

if TYPE_CHECKING:
    from imgproxy.errors import Failure


class Outage:
    """What is known of whether a server can be reached.

    That it could not be is remembered for `seconds`, and not at all if that is 0.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._message = ""
        self._noted = self._answered = -math.inf

    def answered(self) -> None:
        """Note an answer, whatever it was."""
        self._answered, self._noted = trio.current_time(), -math.inf

    def note(self, message: str, began: float) -> None:
        """Note how all tries since `began` have failed, unless the server answered others."""
        if self._answered < began:
            self._message, self._noted = message, trio.current_time()

    def current(self) -> Failure | None:
        """Return the failure with which the server is not asked, None where it is to be asked."""
        age = trio.current_time() - self._noted
        if age >= self._seconds:
            return None
        # It may pass, as clients are told, but is not waited for here.
        return UnreachableError(
            f"not asked again yet, as it could not be reached {age:.0f} s ago: {self._message}",
            is_transient=False,
        )

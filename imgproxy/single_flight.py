"""One attempt for all who want the same thing at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from imgproxy.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class SingleFlight:
    """Something that several tasks need and one of them gets.

    A failure is not remembered for ever, but whoever had been waiting for the attempt shares it:
    a dead registry is not waited for once for each.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._failures = 0
        self._last: Failure | None = None

    async def get(self, have: Callable[[], T | None], make: Callable[[], Awaitable[T]]) -> T:
        """Give what `have` gives, after `make` if that is nothing yet. Raises `Failure`."""
        failures = self._failures
        async with self._turn:
            value = have()
            if value is not None:
                return value
            if self._last is not None and self._failures > failures:
                raise self._last
            try:
                return await make()
            except Failure as error:
                self._last = error
                self._failures += 1
                raise

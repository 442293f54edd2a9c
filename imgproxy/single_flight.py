"""A single flight: one attempt at something that several tasks need at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from imgproxy.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class SingleFlight:
    """Something that several tasks need and one of them gets, while the others wait.

    A failure is raised in all tasks that had been waiting for the attempt, so that a dead registry
    is not waited for once for each; a task that comes later makes another attempt.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._failures = 0
        self._last: Failure | None = None

    async def get(self, have: Callable[[], T | None], make: Callable[[], Awaitable[T]]) -> T:
        """Return the value of `have`, or if that is None, the value of `make`.

        Raises what `make` raises, now or in the attempt that was waited for.
        """
        failures = self._failures
        async with self._turn:
            value = have()
            if value is not None:
                return value
            if self._last is not None and self._failures > failures:
                raise self._last.copy()
            try:
                return await make()
            except Failure as error:
                self._last = error.copy()
                self._failures += 1
                raise

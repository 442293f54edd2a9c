"""Tasks that receive blobs, some at the same time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from imgproxy.net import body_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

# Blobs that are received at the same time. More share the same line, and cost memory. What small
# ones wait for is mostly the way to the registry and back.
AT_ONCE, SMALL_AT_ONCE = 8, 16
SMALL = 1024 * 1024


class _Places:
    """Places for tasks that receive so many blobs at once.

    As many more ask where their blobs are meanwhile: see `net.body_turn`.
    """

    def __init__(self, at_once: int) -> None:
        self._under_way = trio.CapacityLimiter(2 * at_once)
        self._asking, self._receiving = (trio.CapacityLimiter(at_once) for _ in range(2))

    async def run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task in a place."""
        is_asking = True

        async def wait(*, is_redirected: bool) -> None:
            nonlocal is_asking
            if is_asking and is_redirected:
                is_asking = False
                await place.aclose()
                await place.enter_async_context(self._receiving)

        async with self._under_way, AsyncExitStack() as place:
            await place.enter_async_context(self._asking)
            with body_turn.awaited(wait):
                await task()


async def run_all(tasks: Sequence[tuple[int, Callable[[], Awaitable[None]]]]) -> None:
    """Run tasks, some at the same time, each with the size of its blob.

    Raises what one raises, when the others have stopped.
    """
    raised: list[Exception] = []
    places, small_places = map(_Places, (AT_ONCE, SMALL_AT_ONCE))

    async def run_one(places: _Places, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await places.run(task)
        except Exception as error:  # noqa: BLE001  (it is raised below)
            raised.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for size, task in tasks:
            nursery.start_soon(run_one, small_places if size <= SMALL else places, task)
    if raised:
        raise raised[0]

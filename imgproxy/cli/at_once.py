"""Tasks that receive blobs, some at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

# Blobs that are received at the same time. More share the same line, and cost memory. What small
# ones wait for is mostly the way to the registry and back.
AT_ONCE, SMALL_AT_ONCE = 4, 16
SMALL = 1024 * 1024


async def run_all(tasks: Sequence[tuple[int, Callable[[], Awaitable[None]]]]) -> None:
    """Run tasks, some at the same time, each with the size of its blob.

    Raises what one raises, when the others have stopped.
    """
    raised: list[Exception] = []
    places, small_places = map(trio.CapacityLimiter, (AT_ONCE, SMALL_AT_ONCE))

    async def run_one(places: trio.CapacityLimiter, task: Callable[[], Awaitable[None]]) -> None:
        try:
            async with places:
                await task()
        except Exception as error:  # noqa: BLE001  (it is raised below)
            raised.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for size, task in tasks:
            nursery.start_soon(run_one, small_places if size <= SMALL else places, task)
    if raised:
        raise raised[0]

"""Tasks that receive blobs, some at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

# Blobs that are received at the same time. More share the same line, and cost memory.
AT_ONCE = 4


async def run_all(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run tasks, some at the same time. Raises what one raises, when the others have stopped."""
    raised: list[Exception] = []
    places = trio.CapacityLimiter(AT_ONCE)

    async def run_one(task: Callable[[], Awaitable[None]]) -> None:
        try:
            async with places:
                await task()
        except Exception as error:  # noqa: BLE001  (it is raised below)
            raised.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(run_one, task)
    if raised:
        raise raised[0]

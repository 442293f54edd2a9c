"""Tasks that receive blobs, some at the same time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from imgproxy.net import body_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

# Blobs that are received at the same time. More share the same line, and cost memory. What small
# ones wait for is mostly the way to the registry and back.
AT_ONCE, SMALL_AT_ONCE = 8, 16
SMALL = 1024 * 1024


class _Places:
    """Places for tasks that receive so many blobs at once.

    As many more ask where their blobs are meanwhile: see `net.body_turn`.
    """

    def __init__(self, at_once: int) -> None:
        self._under_way = trio.Semaphore(2 * at_once)
        self._asking, self._receiving = trio.Semaphore(at_once), trio.Semaphore(at_once)

    async def take(self) -> None:
        """Wait for a place for one more task, which `run` leaves."""
        await self._under_way.acquire()

    async def run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task, which is begun anew where it waits too long for its turn."""
        is_asking = True

        async def wait(*, is_redirected: bool) -> None:
            nonlocal is_asking
            if is_asking and is_redirected:
                is_asking = False
                await place.aclose()
                await place.enter_async_context(self._receiving)

        try:
            async with AsyncExitStack() as place:
                await place.enter_async_context(self._asking)
                try:
                    with body_turn.awaited(wait):
                        await task()
                except body_turn.OverdueError:
                    await place.enter_async_context(self._receiving)
                    await task()
        finally:
            self._under_way.release()


async def run_all(tasks: Sequence[tuple[int, Callable[[], Awaitable[None]]]]) -> None:
    """Run tasks, each with the size of its blob, in their order and some at the same time.

    Raises what one raises, when the others have stopped.
    """
    raised: list[Exception] = []

    async def start(places: _Places, tasks: Iterable[Callable[[], Awaitable[None]]]) -> None:
        for task in tasks:
            await places.take()
            nursery.start_soon(run, places, task)

    async def run(places: _Places, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await places.run(task)
        except Exception as error:  # noqa: BLE001  (it is raised below)
            raised.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for at_once, is_small in ((AT_ONCE, False), (SMALL_AT_ONCE, True)):
            chosen = [task for size, task in tasks if (size <= SMALL) == is_small]
            nursery.start_soon(start, _Places(at_once), chosen)
    if raised:
        raise raised[0]

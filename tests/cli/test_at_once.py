"""How many blobs are received at the same time, and how many more are asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.streams import virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.cli.at_once import AT_ONCE, SMALL, SMALL_AT_ONCE, run_all
from imgproxy.errors import UnavailableError
from imgproxy.net import body_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

COUNT = 3 * SMALL_AT_ONCE


class Blobs:
    """Blobs that have not come yet: which were asked for, and which are received.

    They are elsewhere if they are `moved`; each comes when it is let go.
    """

    def __init__(self, *, moved: bool) -> None:
        self.moved = moved
        self.asked: list[int] = []
        self.receiving: list[int] = []
        self.come = trio.Event()

    async def receive(self, number: int) -> None:
        self.asked.append(number)
        await trio.lowlevel.checkpoint()
        for _ in range(2):  # once more after a failure
            await body_turn.come(is_redirected=self.moved)
        self.receiving.append(number)
        await self.come.wait()

    def tasks(self, size: int) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        return [(size, partial(self.receive, number)) for number in range(COUNT)]


@virtual_time
@pytest.mark.parametrize(("size", "at_once"), [(SMALL, SMALL_AT_ONCE), (SMALL + 1, AT_ONCE)])
@pytest.mark.parametrize("moved", [False, True])
async def test_so_many_are_received_at_once_and_as_many_more_are_found(
    size: int,
    at_once: int,
    moved: bool,  # noqa: FBT001  (a parameter)
) -> None:
    blobs = Blobs(moved=moved)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_all, blobs.tasks(size))
        await wait_all_tasks_blocked()
        assert blobs.receiving == list(range(at_once))
        assert blobs.asked == list(range((2 if moved else 1) * at_once))
        blobs.come.set()
    assert sorted(blobs.asked) == sorted(blobs.receiving) == list(range(COUNT))


@virtual_time
async def test_no_more_ask_at_the_same_time_than_are_received() -> None:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_all, [(SMALL, ask)] * COUNT)
        await wait_all_tasks_blocked()
        assert asked == SMALL_AT_ONCE
        nursery.cancel_scope.cancel()


@virtual_time
async def test_one_that_fails_ends_those_that_wait_for_their_turn() -> None:
    blobs = Blobs(moved=True)

    async def fail() -> None:
        await trio.sleep(1)
        raise UnavailableError("it is away")

    with pytest.raises(UnavailableError, match="away"):
        await run_all([(SMALL, fail), *blobs.tasks(SMALL)])
    assert len(blobs.receiving) < len(blobs.asked) < COUNT


@virtual_time
async def test_what_waits_too_long_for_its_turn_is_asked_for_anew() -> None:
    """Where it is may have changed, and another process may wait for it."""
    blobs = Blobs(moved=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_all, blobs.tasks(SMALL))
        await trio.sleep(body_turn.FRESH + 1)
        assert blobs.receiving == list(range(SMALL_AT_ONCE))
        await trio.sleep(10 * body_turn.FRESH)
        assert blobs.asked == list(range(2 * SMALL_AT_ONCE))  # and only then
        blobs.come.set()
    assert sorted(set(blobs.receiving)) == list(range(COUNT))
    again = sorted(each for each in set(blobs.asked) if blobs.asked.count(each) == 2)
    assert again == list(range(SMALL_AT_ONCE, 2 * SMALL_AT_ONCE))

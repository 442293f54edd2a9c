"""What a shutdown and a hang-up interrupt: what waits, and what begins to wait later."""

from __future__ import annotations

import pytest
import trio
from support.streams import SILENCE, MemoryStream, elapsing, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.server.shutdown import HangUp, Interruption, Shutdown


@pytest.mark.parametrize("kind", [Shutdown, HangUp])
@virtual_time
async def test_a_request_interrupts_what_waits_and_what_comes_later(
    kind: type[Interruption],
) -> None:
    interruption = kind()
    before = interruption.requested
    interrupted: list[bool] = []

    async def wait() -> None:
        with interruption.interrupts() as scope:
            await trio.sleep(SILENCE)
        interrupted.append(scope.cancelled_caught)

    with elapsing(0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            interruption.request()
        await wait()
    assert interrupted == [True] * 3
    assert (before, interruption.requested) == (False, True)
    assert interruption.scopes == set()


@virtual_time
async def test_what_takes_no_wait_is_not_interrupted() -> None:
    shutdown = Shutdown()
    shutdown.request()
    with shutdown.interrupts() as scope:
        pass
    assert not scope.cancelled_caught


@virtual_time
async def test_tasks_that_a_hang_up_wakes_go_on_before_they_are_cancelled() -> None:
    hang_up, stream = HangUp(), MemoryStream()
    received: list[int] = []

    async def receive() -> None:
        with hang_up.interrupts():
            received.append(await stream.receive_into(memoryview(bytearray(9))))
            received.append(-1)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(hang_up.watch, stream)
        await wait_all_tasks_blocked()
        stream.inbox.add(b"last")
        stream.lose_reader()
    assert received == [4, -1]
    assert hang_up.requested


@virtual_time
async def test_a_stream_that_cannot_be_watched_is_not_interrupted() -> None:
    class Unwatched(MemoryStream):
        async def wait_hung_up(self) -> None:
            raise OSError(24, "Too many open files")

    hang_up = HangUp()
    await hang_up.watch(Unwatched())
    assert not hang_up.requested

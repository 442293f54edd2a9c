"""When a body is received in larger pieces, and that no byte is waited for in vain."""

from __future__ import annotations

import select
import socket

import pytest
import trio
from support.streams import Inbox, virtual_time

from imgproxy.net.low_water import BRISK, LEVEL, MARGIN, PATIENCE, SAMPLE, SMALL, LowWater
from imgproxy.net.streams import SocketStream

PIECE = 17 * 1024
BODY = 4 << 20


class Scripted(SocketStream):
    """A stream that yields `piece` bytes after `delay` seconds, or all that was waited for.

    `levels` are those that were set, with what was received before; `waits` counts waits.
    """

    def __init__(self, piece: int = PIECE, delay: float = 0.001) -> None:
        self.piece = piece
        self.delay = delay
        self.levels: list[tuple[int, int]] = []
        self.waits = self.received = self.arrived = 0

    def set_low_water(self, count: int) -> None:
        self.levels.append((count, self.received))

    async def wait_arrived(self) -> None:
        self.waits += 1
        while self.arrived < self.levels[-1][0]:
            await trio.sleep(self.delay)
            self.arrived += self.piece

    async def receive_into(self, buffer: memoryview) -> int:
        if not self.arrived:
            await trio.sleep(self.delay)
            self.arrived = self.piece
        count = min(self.arrived, len(buffer))
        self.arrived -= count
        self.received += count
        return count


async def receive_all(stream: Scripted, size: int = BODY) -> int:
    """Receive a body, and return in how many pieces."""
    low_water, buffer, pieces = LowWater(stream), memoryview(bytearray(1 << 20)), 0
    while size:
        size -= await low_water.receive_into(buffer, size)
        pieces += 1
    return pieces


@virtual_time
async def test_small_pieces_of_a_brisk_line_are_collected() -> None:
    stream = Scripted()
    pieces = await receive_all(stream)
    (level, raised), (one, lowered) = stream.levels
    assert (level, one) == (LEVEL, 1)
    assert SAMPLE <= raised < SAMPLE + PIECE
    assert BODY - (LEVEL + MARGIN) < lowered < BODY
    assert stream.waits == (lowered - raised + LEVEL) // (LEVEL + PIECE)
    assert pieces < 2 * SAMPLE // PIECE + BODY // LEVEL + (LEVEL + MARGIN) // PIECE


@virtual_time
@pytest.mark.parametrize("size", [1, SAMPLE, SAMPLE + LEVEL])
async def test_a_body_that_is_soon_over_is_received_as_it_comes(size: int) -> None:
    stream = Scripted()
    await receive_all(stream, size)
    assert (stream.levels, stream.waits) == ([], 0)


@virtual_time
async def test_large_pieces_are_received_as_they_come() -> None:
    stream = Scripted(2 * SMALL)
    assert await receive_all(stream) == BODY // (2 * SMALL)
    assert (stream.levels, stream.waits) == ([], 0)


@virtual_time
async def test_a_trickle_is_received_as_it_comes() -> None:
    stream = Scripted(delay=1.1 * BRISK * PIECE / SAMPLE)
    await receive_all(stream)
    assert (stream.levels, stream.waits) == ([], 0)


@virtual_time
async def test_a_line_that_becomes_slow_is_received_as_it_comes_from_then_on() -> None:
    stream = Scripted()
    low_water, buffer, left = LowWater(stream), memoryview(bytearray(1 << 20)), BODY
    while not stream.levels:
        left -= await low_water.receive_into(buffer, left)
    stream.delay = PATIENCE / 2
    assert await low_water.receive_into(buffer, left) < LEVEL
    assert [level for level, _ in stream.levels] == [LEVEL, 1]
    stream.delay = 0.001
    while left:
        left -= await low_water.receive_into(buffer, left)
    assert stream.waits == 1


@virtual_time
@pytest.mark.parametrize("rest", [0, 1, LEVEL, LEVEL + MARGIN - 1])
async def test_what_follows_a_body_that_ends_in_one_piece_is_received_as_it_comes(
    rest: int,
) -> None:
    stream = Scripted()
    low_water, buffer, left = LowWater(stream), memoryview(bytearray(BODY)), BODY
    while not stream.levels:
        left -= await low_water.receive_into(buffer, left)
    stream.arrived = left - rest
    assert await low_water.receive_into(buffer, left) == left - rest
    assert [level for level, _ in stream.levels] == [LEVEL, 1]


@virtual_time
async def test_what_is_no_socket_is_received_as_it_comes() -> None:
    low_water = LowWater(Inbox(*[bytes(PIECE)] * 100))  # type: ignore[arg-type]
    buffer = memoryview(bytearray(1 << 20))
    for _ in range(100):
        assert await low_water.receive_into(buffer, BODY) == PIECE


def is_readable(sock: socket.socket, patience: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(patience * 1000))


@pytest.mark.parametrize("ends", [True, False])
def test_the_kernel_says_so_when_enough_has_arrived_or_nothing_more_will(
    ends: bool,  # noqa: FBT001  (a parameter)
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        stream, buffer = SocketStream(ours), memoryview(bytearray(2 * LEVEL))
        stream.set_low_water(LEVEL)
        theirs.sendall(bytes(1000))
        assert not is_readable(ours, 0.05)
        if ends:
            theirs.shutdown(socket.SHUT_WR)
        else:
            theirs.sendall(bytes(LEVEL))
        assert is_readable(ours, 10)
        assert 0 < stream.receive_now(buffer) <= LEVEL + 1000
        stream.set_low_water(1)

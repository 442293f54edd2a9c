"""Signatures in numbered files, and several of them that are read at the same time."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from support.streams import elapsing, virtual_time

from imgproxy.errors import Failure, InvalidError, NotFoundError, UnavailableError
from imgproxy.specs.signing.signature import MAX_SIGNATURES
from imgproxy.transports.signature_files import (
    MAX_TOGETHER,
    in_batches,
    next_together,
    numbered,
    together,
)

SIGNATURE = b"\x90 something"


class Server:
    """A server of so many signatures, each of which takes a second."""

    def __init__(self, count: int, **failures: Failure) -> None:
        self.asked: list[int] = []
        self.most = 0
        self._count = count
        self._failures = {int(name[1:]): failure for name, failure in failures.items()}
        self._now = 0

    async def read(self, name: str) -> bytes:
        number = int(name.removeprefix("signature-"))
        self.asked.append(number)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await trio.sleep(1)
        finally:
            self._now -= 1
        if number in self._failures:
            raise self._failures[number]
        if number > self._count:
            raise NotFoundError("gone")
        return SIGNATURE + name.encode()

    async def names(self) -> list[str]:
        return [each.name for each in await numbered(self.read, "at ")]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@virtual_time
async def test_a_few_are_read_one_after_the_other_and_nothing_in_vain(count: int) -> None:
    server = Server(count)
    assert await server.names() == [f"at signature-{n + 1}" for n in range(count)]
    assert server.asked == [*range(1, count + 2)]


@pytest.mark.parametrize("count", [4, 5, 7, 20, 60, MAX_SIGNATURES])
@virtual_time
async def test_many_are_read_a_few_at_a_time_in_their_order(count: int) -> None:
    server = Server(count)
    started = trio.current_time()
    assert await server.names() == [f"at signature-{n + 1}" for n in range(count)]
    assert server.most <= MAX_TOGETHER
    assert sorted(server.asked) == [*range(1, len(server.asked) + 1)]
    assert len(server.asked) <= count + max(count // 2, 1)
    assert trio.current_time() - started <= 8 + count / MAX_TOGETHER


@virtual_time
async def test_there_may_be_only_so_many() -> None:
    server = Server(1 << 20)
    with pytest.raises(InvalidError, match="more than 128 signatures"):
        await server.names()
    assert len(server.asked) <= MAX_SIGNATURES + MAX_TOGETHER


@virtual_time
async def test_one_that_fails_spoils_the_place_and_one_after_the_end_does_not() -> None:
    busy = UnavailableError("busy")
    for number in (1, 2, 5, 9):
        with pytest.raises(UnavailableError, match="busy"):
            await Server(20, **{f"n{number}": busy}).names()
    server = Server(4, n6=busy)
    assert len(await server.names()) == 4
    assert 6 in server.asked


@virtual_time
async def test_the_first_failure_ends_the_other_attempts() -> None:
    async def attempt(seconds: float) -> float:
        await trio.sleep(seconds)
        if seconds == 2:
            raise UnavailableError("busy")
        return seconds

    with elapsing(2), pytest.raises(UnavailableError) as raised:
        await together([partial(attempt, each) for each in (1, 2, 3)])
    assert raised.value.__context__ is None  # and it is in no group
    with elapsing(5):
        assert await together([partial(attempt, each) for each in (5, 1, 3)]) == [5, 1, 3]


@virtual_time
async def test_batches_grow_to_a_limit_and_results_keep_their_order() -> None:
    now, most = 0, list[int]()

    async def attempt(n: int) -> int:
        nonlocal now
        now += 1
        most.append(now)
        await trio.sleep(1)
        now -= 1
        return n

    assert await in_batches([partial(attempt, n) for n in range(100)]) == [*range(100)]
    assert max(most) == MAX_TOGETHER
    assert [next_together(n) for n in (0, 1, 2, 3, 4, 6, 12, 100)] == [1, 1, 1, 1, 2, 3, 6, 6]

"""Connections between requests, and those that are still being made."""

from __future__ import annotations

import trio
from support.streams import END, MemoryStream, elapsing, virtual_time

from imgproxy.net.connection_pool import MAX_IDLE, Connection, ConnectionPool

HERE = ("https", "registry.test", 443)
OTHERS = [
    ("http", "registry.test", 443),
    ("https", "other.test", 443),
    ("https", "registry.test", 444),
]


class Pending:
    """An entry whose connection takes so many seconds, and that returns it once."""

    def __init__(self, seconds: float, connection: Connection | None) -> None:
        self._seconds = seconds
        self._connection = connection
        self.closed = False

    async def connection(self) -> Connection | None:
        await trio.sleep(self._seconds)
        connection, self._connection = self._connection, None
        return connection

    def close(self) -> None:
        self.closed = True


def opened() -> tuple[Connection, MemoryStream]:
    stream = MemoryStream()
    return Connection(stream), stream


@virtual_time
async def test_a_connection_is_taken_once_and_by_its_origin_alone() -> None:
    pool, (connection, stream) = ConnectionPool(), opened()
    pool.put(HERE, connection)
    for other in OTHERS:
        assert await pool.take(other) is None
    assert await pool.take(HERE) == connection
    assert await pool.take(HERE) is None
    assert not stream.closed


@virtual_time
async def test_the_last_connection_is_taken_first() -> None:
    pool, connections = ConnectionPool(), [opened()[0] for _ in range(3)]
    for each in connections:
        pool.put(HERE, each)
    assert [await pool.take(HERE) for _ in connections] == connections[::-1]


@virtual_time
async def test_no_more_are_kept_than_the_limit_to_each_origin() -> None:
    pool, streams = ConnectionPool(), list[MemoryStream]()
    for origin in (HERE, OTHERS[0]):
        for _ in range(MAX_IDLE + 1):
            connection, stream = opened()
            pool.put(origin, connection)
            streams.append(stream)
    assert [stream.closed for stream in streams] == [*[False] * MAX_IDLE, True] * 2
    surplus = Pending(1, None)
    pool.put(HERE, surplus)
    assert surplus.closed


@virtual_time
async def test_a_connection_that_is_not_quiet_is_closed_and_the_next_one_taken() -> None:
    pool, (good, _), streams = ConnectionPool(), opened(), list[MemoryStream]()
    pool.put(HERE, good)
    for step in (END, b"surplus", ConnectionResetError()):
        streams.append(MemoryStream(step))
        pool.put(HERE, Connection(streams[-1]))
    assert await pool.take(HERE) == good
    assert all(stream.closed for stream in streams)


@virtual_time
async def test_a_connection_that_a_request_was_sent_on_may_have_its_answer() -> None:
    pool, connection = ConnectionPool(), Connection(MemoryStream(b"HTTP/1.1 200 OK"), b"GET")
    pool.put(HERE, connection)
    assert await pool.take(HERE) == connection


@virtual_time
async def test_one_that_is_being_made_is_waited_for() -> None:
    pool, (connection, _) = ConnectionPool(), opened()
    pool.put(HERE, Pending(2, connection))
    with elapsing(0):
        assert await pool.take(OTHERS[0]) is None
    with elapsing(2):
        assert await pool.take(HERE) == connection
    with elapsing(0):
        assert await pool.take(HERE) is None


@virtual_time
async def test_one_that_is_not_made_is_asked_once_and_the_next_is_taken() -> None:
    pool, (connection, _) = ConnectionPool(), opened()
    pool.put(HERE, connection)
    pool.put(HERE, Pending(2, None))
    with elapsing(2):
        assert await pool.take(HERE) == connection
        assert await pool.take(HERE) is None


@virtual_time
async def test_a_task_that_is_cancelled_leaves_the_entry_to_the_next() -> None:
    pool, (connection, _) = ConnectionPool(), opened()
    pool.put(HERE, Pending(2, connection))
    with trio.move_on_after(1) as scope:
        await pool.take(HERE)
    assert scope.cancelled_caught
    assert await pool.take(HERE) == connection


@virtual_time
async def test_of_several_that_wait_one_gets_the_connection() -> None:
    pool, (connection, stream) = ConnectionPool(), opened()
    taken = list[Connection | None]()

    async def take() -> None:
        taken.append(await pool.take(HERE))

    pool.put(HERE, Pending(1, connection))
    with elapsing(1):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(take)
    assert sorted(taken, key=bool) == [None, None, connection]
    assert not stream.closed


@virtual_time
async def test_one_that_is_put_while_another_is_waited_for_stays() -> None:
    pool, (first, _), (second, _) = ConnectionPool(), opened(), opened()
    taken = list[Connection | None]()

    async def take() -> None:
        taken.append(await pool.take(HERE))

    pool.put(HERE, Pending(1, first))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        pool.put(HERE, second)
    assert taken == [first]
    assert await pool.take(HERE) == second


@virtual_time
async def test_all_are_closed_with_the_pool() -> None:
    pool, (connection, stream), pending = ConnectionPool(), opened(), Pending(1, None)
    pool.put(HERE, connection)
    pool.put(OTHERS[0], pending)
    pool.close()
    assert stream.closed
    assert pending.closed
    assert await pool.take(HERE) is None
    pool.close()


@virtual_time
async def test_a_pool_is_closed_while_a_task_waits() -> None:
    pool, pending = ConnectionPool(), Pending(1, None)
    pool.put(HERE, pending)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.take, HERE)
        await trio.testing.wait_all_tasks_blocked()
        pool.close()
    assert pending.closed

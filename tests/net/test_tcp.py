"""Connections to the first of several addresses that answers, however many there are."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.opened import open_descriptors
from support.streams import elapsing, real_time, virtual_time

from imgproxy.net import tcp
from imgproxy.net.response import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.net.tcp import Target

V4, V6 = socket.AF_INET, socket.AF_INET6


def targets(*names: str) -> list[Target]:
    return [(V4, (name, 80)) for name in names]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Return what is tried and when; a name tells what comes of it and after how many seconds."""
    found: list[tuple[str, float]] = []

    async def connect(target: Target) -> socket.socket:
        name = target[1][0]
        found.append((name, trio.current_time()))
        what, _, seconds = name.partition(" ")
        await trio.sleep(float(seconds or 0))
        if what == "silent":
            await trio.sleep_forever()
        if what == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return socket.socket()

    monkeypatch.setattr(tcp, "_connect", connect)
    return found


async def close_of(names: list[str]) -> None:
    sock, address = await tcp.connect(targets(*names))
    assert address.startswith("answers")
    sock.close()


@virtual_time
async def test_the_next_address_is_tried_at_once_after_a_failure(
    attempts: list[tuple[str, float]],
) -> None:
    with elapsing(0):
        await close_of(["refuses", "refuses", "answers", "never"])
    assert [name for name, _ in attempts] == ["refuses", "refuses", "answers"]


@virtual_time
async def test_the_next_address_is_tried_beside_one_that_is_silent(
    attempts: list[tuple[str, float]],
) -> None:
    with elapsing(0.5):
        await close_of(["silent", "silent", "answers", "never"])
    assert [name for name, _ in attempts] == ["silent", "silent", "answers"]


@virtual_time
async def test_the_first_that_answers_is_used(attempts: list[tuple[str, float]]) -> None:
    with elapsing(0.4):
        await close_of(["answers 0.4", "answers 0.4"])
    assert len(attempts) == 2


@pytest.mark.parametrize("count", [1, 130, 1000])
@virtual_time
async def test_the_time_is_bounded_and_not_the_number_of_addresses(
    count: int, attempts: list[tuple[str, float]]
) -> None:
    with trio.fail_after(30):
        await close_of(["silent"] * count + ["answers"])
    assert len(attempts) == count + 1
    assert trio.current_time() - attempts[0][1] <= 15.001


@virtual_time
async def test_an_address_that_is_slow_outlives_many_that_refuse(
    attempts: list[tuple[str, float]],
) -> None:
    with elapsing(3):
        await close_of(["answers 3", *["refuses"] * 200])
    assert len(attempts) == 201


@virtual_time
async def test_no_more_descriptors_are_used_at_a_time_than_attempts_may_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = most = 0

    async def connect(_: Target) -> socket.socket:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep_forever()
        finally:
            running -= 1
        raise AssertionError

    monkeypatch.setattr(tcp, "_connect", connect)
    with trio.move_on_after(30) as scope:
        await tcp.connect(targets(*map(str, range(1000))))
    assert scope.cancelled_caught
    assert most <= tcp.MAX_ATTEMPTS + 1


def test_addresses_that_are_avoided_are_tried_after_all_others() -> None:
    route = tcp.Route(["c", "x", "a"])
    assert [each[1][0] for each in route.ordered(targets("a", "b", "c", "d"))] == list("bdca")
    assert route.addresses == list("bdca")


@virtual_time
async def test_addresses_that_all_fail_are_one_failure(attempts: list[tuple[str, float]]) -> None:
    with pytest.raises(OSError, match="no address answered") as raised:
        await close_of(["refuses"] * 200)
    assert reason(raised.value) == "Connection refused"
    assert len(attempts) == 200


@virtual_time
async def test_silent_addresses_take_the_time_there_is(attempts: list[tuple[str, float]]) -> None:
    with elapsing(30), pytest.raises(trio.TooSlowError), trio.fail_after(30):
        await close_of(["silent"] * 10)
    assert len(attempts) == 10


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ("666444", "646644"),
        ("444", "444"),
        ("46", "46"),
        ("4446", "4644"),
    ],
)
@real_time
async def test_the_second_address_is_of_the_other_family(
    found: str, tried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = {"4": V4, "6": V6}

    async def resolve(*_: object, **__: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [(families[each], 1, 6, "", (at,)) for at, each in enumerate(found)]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    assert [family for family, _ in await tcp.look_up("x", 80)] == [families[x] for x in tried]


@contextmanager
def silent_listener() -> Iterator[tuple[str, int]]:
    """Yield an address that answers no connection: those that nobody accepts are too many."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)  # noqa: FBT003  (the name says it)
            waiting[-1].connect_ex(address)
        yield address
        for sock in waiting:
            sock.close()


@pytest.mark.slow
@real_time
async def test_a_real_server_is_found_behind_many_that_are_silent() -> None:
    with silent_listener() as silent, socket.create_server(("127.0.0.1", 0)) as listener:
        before = open_descriptors()
        address = listener.getsockname()
        with trio.fail_after(4):
            sock, _ = await tcp.connect([*[(V4, silent)] * 130, (V4, address)])
        assert sock.getpeername() == address
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getblocking()
        sock.close()
        assert open_descriptors() == before


@real_time
async def test_what_the_system_says_of_a_real_address_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(OSError, match="no address answered") as raised:
        await tcp.connect([(V4, address), (V6, ("::1", address[1], 0, 0))])
    assert "Connection refused" in reason(raised.value)

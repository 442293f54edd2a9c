"""Replies that are begun before their turn: when, how many, and that only the time shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.conversations import GET, QUIT, FrontEnd, Pulled, ask, hold, started, talk
from support.streams import END, MemoryStream, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import NotFoundError, UnavailableError
from imgproxy.net import body_turn
from imgproxy.net.body_turn import FRESH
from imgproxy.server.ahead import MAX_BEFORE
from imgproxy.server.handler import (
    MAX_BEGUN,
    MAX_BEGUN_IN_ALL,
    MAX_BEGUN_SIZE,
    MAX_HELD,
    Reply,
    Room,
    Weight,
)
from imgproxy.server.http_connection import Severity
from imgproxy.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Container

    from imgproxy.server.handler import Request

BLOBS = [f"/{number:02}" for number in range(20)]


class Distant(FrontEnd):
    """A front-end whose answers below `/` may be begun early; each waits for a gate of its own.

    `reached` are the targets that were asked for, sorted, `weights` what each has and holds, if not
    one byte. Those of bodies that are `moved` elsewhere are in `received` as well, as soon as that
    place is asked.
    """

    def __init__(
        self,
        *shut: str,
        weights: dict[str, Weight | None] | None = None,
        moved: Container[str] = (),
    ) -> None:
        super().__init__({each: (each.encode(),) for each in BLOBS})
        self.room = Room()
        self.weights = weights or {}
        self.gates = {each: trio.Event() for each in shut}
        self.reached: list[str] = []
        self.received: list[str] = []
        self.cancelled: list[str] = []
        self.moved = moved
        self.is_distant = True

    def waits(self) -> bool:
        return self.is_distant

    def weight_ahead(self, request: Request) -> Weight | None:
        target = request.target.decode()
        return self.weights.get(target, Weight(1, 1)) if target in BLOBS else None

    async def handle(self, request: Request) -> Reply:
        target = request.target.decode()
        self.reached = sorted([*self.reached, target])  # trio begins tasks in no certain order
        try:
            if target in self.moved:
                await trio.lowlevel.checkpoint()
                await body_turn.come(is_redirected=True)
                self.received = sorted([*self.received, target])
            if target in self.gates:
                await self.gates[target].wait()
            await body_turn.come(is_redirected=False)
            return await super().handle(request)
        except trio.Cancelled:
            self.cancelled.append(target)
            raise

    def open(self, target: str) -> None:
        self.gates[target].set()


def asking(*targets: str) -> bytes:
    return b"".join(ask("GET", each) for each in targets)


@virtual_time
async def test_the_next_replies_are_begun_while_the_present_one_is_waited_for() -> None:
    handler = Distant("/00")
    stream = MemoryStream(asking(*BLOBS[:4]))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        assert handler.reached == BLOBS[:4]
        assert stream.sent == b""  # whatever is there, the first has its turn
        handler.open("/00")
        stream.inbox.add(END)
    assert [each.body.decode() for each in ended[0].replies(*["GET"] * 4)] == BLOBS[:4]
    assert [body.closed for body in handler.bodies] == [1] * 4
    assert [body.ahead for body in handler.bodies] == [1, 1, 1, 0]  # the first of them is made last
    assert (handler.room.held, handler.room.conversations) == (0, 0)


@virtual_time
async def test_the_next_replies_are_begun_while_a_body_is_sent() -> None:
    handler = Distant()
    handler.answers["/00"] = (b"one", b"two")
    stream = MemoryStream(asking("/00"))
    stream.stop_reading()
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        stream.inbox.add(asking("/01", "/02"))
        await wait_all_tasks_blocked()
        assert handler.reached == ["/00"]
        stream.read_on()
        await wait_all_tasks_blocked()
        stream.inbox.add(END)
    assert [each.body for each in ended[0].replies("GET", "GET", "GET")] == [
        b"onetwo",
        b"/01",
        b"/02",
    ]


@virtual_time
async def test_replies_are_byte_for_byte_those_that_are_not_begun_early() -> None:
    targets = ["/manifest", *BLOBS[:3], "/absent", "/config", *BLOBS[3:6]]
    sent = []
    for is_distant in (True, False):
        handler = Distant()
        handler.answers["/01"] = NotFoundError("not there")
        handler.is_distant = is_distant
        talked = await talk(handler, asking(*targets) + ask("HEAD", "/07") + QUIT)
        methods = ["GET"] * len(targets) + ["HEAD", "POST"]
        sent.append([(each.status, each.body) for each in talked.replies(*methods)])
        assert len(handler.asked) == len(targets) + 2
    assert sent[0] == sent[1]


@virtual_time
async def test_a_failure_is_told_when_its_request_has_its_turn() -> None:
    handler = Distant("/00")
    handler.answers["/01"] = UnavailableError("it is away")
    stream = MemoryStream(asking(*BLOBS[:3]))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        assert handler.reached == BLOBS[:3]
        handler.open("/00")
        stream.inbox.add(END)
    first, second, third = ended[0].replies("GET", "GET", "GET")
    assert (first.status, second.status, third.status) == (200, 503, 200)
    assert ended[0].notes.failures == ["GET /01: 503 UNAVAILABLE: it is away"]
    assert handler.reached == BLOBS[:3]  # and is not asked for again


@virtual_time
async def test_a_defect_is_one_when_its_request_has_its_turn() -> None:
    handler = Distant()
    handler.answers["/01"] = ZeroDivisionError()
    talked = await talk(handler, asking(*BLOBS[:3]))
    assert [each.status for each in talked.replies("GET", "GET", "GET")] == [200, 500, 200]
    assert talked.severity == Severity.DEFECT


@virtual_time
async def test_a_conversation_begins_so_many_replies_at_most() -> None:
    handler = Distant(*BLOBS)
    stream = MemoryStream(asking(*BLOBS))
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, stream)
        assert handler.reached == BLOBS[: MAX_BEGUN + 1]
        handler.open("/00")
        await wait_all_tasks_blocked()
        assert handler.reached == BLOBS[: MAX_BEGUN + 2]
        nursery.cancel_scope.cancel()
    assert sorted(handler.cancelled) == BLOBS[1 : MAX_BEGUN + 2]
    assert (handler.room.held, handler.room.conversations) == (0, 0)


@virtual_time
async def test_many_conversations_begin_fewer_each() -> None:
    count = MAX_BEGUN_IN_ALL // 2
    handler = Distant(*BLOBS)
    handler.room.conversations = count - 1
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == BLOBS[:3]
        handler.reached.clear()
        handler.room.conversations = MAX_BEGUN_IN_ALL
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == BLOBS[:1]
        nursery.cancel_scope.cancel()


@virtual_time
async def test_what_is_begun_holds_so_many_bytes_at_most() -> None:
    weights: dict[str, Weight | None] = dict.fromkeys(BLOBS, Weight(1, MAX_HELD // 2))
    handler = Distant(*BLOBS, weights=weights)
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == BLOBS[:3]
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))  # of the same process
        assert handler.reached == ["/00", *BLOBS[:3]]
        assert handler.room.held == MAX_HELD
        nursery.cancel_scope.cancel()
    assert handler.room.held == 0


@virtual_time
async def test_nothing_is_begun_behind_large_bodies() -> None:
    weights: dict[str, Weight | None] = {
        "/01": Weight(MAX_BEGUN_SIZE - 1, 1),
        "/03": Weight(MAX_BEGUN_SIZE, 1),
    }
    handler = Distant(*BLOBS, weights=weights)
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == BLOBS[:3]
        for opened, reached in {"/00": 4, "/01": 4, "/02": 4 + MAX_BEGUN}.items():
            handler.open(opened)
            await wait_all_tasks_blocked()
            assert handler.reached == BLOBS[:reached]
        nursery.cancel_scope.cancel()


@virtual_time
@pytest.mark.parametrize("odd", ["/manifest", "/manifests/x", "/absent"])
async def test_nothing_is_begun_behind_what_must_not_be(odd: str) -> None:
    handler = Distant("/00")
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking("/00", "/01", odd, "/02")))
        assert handler.reached == ["/00", "/01"]
        nursery.cancel_scope.cancel()


@virtual_time
async def test_what_must_not_be_given_out_any_more_is_asked_for_anew() -> None:
    handler = Distant("/00")
    stream = MemoryStream(asking("/00", "/01", "/02"))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        handler.weights["/01"] = None
        handler.open("/00")
        stream.inbox.add(END)
    assert [each.body.decode() for each in ended[0].replies("GET", "GET", "GET")] == BLOBS[:3]
    assert handler.reached == ["/00", "/01", "/01", "/02", "/02"]
    assert [body.closed for body in handler.bodies] == [1] * 5


@virtual_time
async def test_nothing_is_begun_where_nothing_is_waited_for() -> None:
    handler = Distant("/00")
    handler.is_distant = False
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking("/00", "/01")))
        assert handler.reached == ["/00"]
        nursery.cancel_scope.cancel()


@virtual_time
async def test_quitting_drops_what_is_begun_behind_it_elsewhere() -> None:
    handler, shutdown = Distant("/00"), Shutdown()
    stream = MemoryStream(asking("/00", "/01", "/02"))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream, shutdown)
        await hold(handler, MemoryStream(QUIT), shutdown=shutdown)
        handler.open("/00")
    assert ended[0].reply().get("Connection") == "close"
    assert [body.closed for body in handler.bodies] == [1] * 3
    assert (handler.room.held, handler.room.conversations) == (0, 0)


@virtual_time
async def test_nothing_is_begun_behind_a_request_that_ends_the_service() -> None:
    handler = Distant()
    talked = await talk(handler, asking("/00", "/01") + QUIT + asking("/02"))
    assert [each.status for each in talked.replies("GET", "GET", "POST")] == [200] * 3
    assert handler.reached == ["/00", "/01", "/quit"]


@virtual_time
async def test_a_client_that_hangs_up_ends_what_is_begun() -> None:
    handler = Distant("/00", "/02")
    stream = MemoryStream(asking(*BLOBS[:3]))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        stream.hang_up()
    assert ended[0].stream.sent == b""
    assert sorted(handler.cancelled) == ["/00", "/02"]
    assert [body.closed for body in handler.bodies] == [1]
    assert (handler.room.held, handler.room.conversations) == (0, 0)


@virtual_time
async def test_as_many_more_are_asked_for_where_bodies_are_elsewhere() -> None:
    handler = Distant(*BLOBS, moved=BLOBS)
    stream = MemoryStream(asking(*BLOBS))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        assert handler.reached == handler.received == BLOBS[: MAX_BEGUN + 1]
        handler.open("/00")
        await wait_all_tasks_blocked()
        assert handler.received == BLOBS[: MAX_BEGUN + 2]
        assert handler.reached == BLOBS[: 2 * MAX_BEGUN + 1]  # so many at the same time
        handler.open("/01")
        await wait_all_tasks_blocked()
        assert handler.received == BLOBS[: MAX_BEGUN + 3]
        assert handler.reached == BLOBS[: 2 * MAX_BEGUN + 3]
        for each in BLOBS[2:]:
            handler.open(each)
        stream.inbox.add(END)
    assert [each.body.decode() for each in ended[0].replies(*["GET"] * len(BLOBS))] == BLOBS
    assert handler.reached == handler.received == BLOBS
    assert (handler.room.held, handler.room.conversations) == (0, 0)


@virtual_time
async def test_no_more_are_asked_for_where_some_have_their_bodies_themselves() -> None:
    """What has come in spite of it waits unread, and is not made room for."""
    handler = Distant(*BLOBS[:9], moved=BLOBS[1])
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        for each in BLOBS[:2]:
            handler.open(each)
        await wait_all_tasks_blocked()
        assert len(handler.reached) == 2 * MAX_BEGUN + 2 - (MAX_BEGUN - 1)
        nursery.cancel_scope.cancel()


@virtual_time
async def test_bodies_elsewhere_hold_no_more_than_others() -> None:
    weights: dict[str, Weight | None] = dict.fromkeys(BLOBS, Weight(1, MAX_HELD // 2))
    handler = Distant(*BLOBS, weights=weights, moved=BLOBS)
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == handler.received == BLOBS[:3]
        handler.open("/00")
        await wait_all_tasks_blocked()
        assert handler.received == BLOBS[:4]
        assert handler.reached == BLOBS[: 3 + MAX_BEGUN]
        assert handler.room.held == MAX_HELD
        nursery.cancel_scope.cancel()
    assert handler.room.held == 0


@virtual_time
async def test_the_next_large_body_elsewhere_is_found_early_and_none_behind_it() -> None:
    weights: dict[str, Weight | None] = dict.fromkeys(BLOBS, Weight(MAX_BEGUN_SIZE, 1))
    weights["/07"] = Weight(MAX_BEFORE, 1)
    handler = Distant(*BLOBS, weights=weights, moved=BLOBS)
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, MemoryStream(asking(*BLOBS)))
        assert handler.reached == BLOBS[:2]
        for each in range(7):
            handler.open(BLOBS[each])
            await wait_all_tasks_blocked()
            assert handler.received == BLOBS[: each + 3]
            # Nothing waits behind one of which nobody knows how long it takes.
            assert handler.reached == BLOBS[: each + (3 if each + 2 == 7 else 4)]
        nursery.cancel_scope.cancel()


@virtual_time
async def test_what_has_waited_too_long_for_its_turn_is_asked_for_anew() -> None:
    handler = Distant("/00", "/01", moved=BLOBS)
    stream = MemoryStream(asking(*BLOBS))
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        handler.open("/00")
        await wait_all_tasks_blocked()
        waiting = handler.reached[len(handler.received) :]
        assert len(waiting) == MAX_BEGUN - 1
        await trio.sleep(FRESH + 1)
        handler.open("/01")
        stream.inbox.add(END)
    assert [each.body.decode() for each in ended[0].replies(*["GET"] * len(BLOBS))] == BLOBS
    assert handler.received == BLOBS
    assert handler.reached == sorted([*BLOBS, *waiting])


@virtual_time
async def test_a_client_that_hangs_up_ends_what_waits_for_its_turn() -> None:
    handler = Distant(*BLOBS[1:], moved=BLOBS)
    stream = MemoryStream(asking(*BLOBS))
    async with trio.open_nursery() as nursery:
        await started(nursery, handler, stream)
        assert len(handler.reached) > len(handler.received)
        stream.hang_up()
    assert sorted(handler.cancelled) == handler.reached[1:]
    assert (handler.room.held, handler.room.conversations) == (0, 0)


class Stubborn(Distant):
    """A front-end whose answers cannot be cancelled once they are asked for."""

    async def handle(self, request: Request) -> Reply:
        with trio.CancelScope(shield=True):
            return await super().handle(request)


@virtual_time
async def test_a_reply_that_is_there_after_all_is_closed_when_nobody_wants_it() -> None:
    handler, shutdown = Stubborn("/01"), Shutdown()
    stream = MemoryStream(asking("/00", "/01") + GET)
    stream.stop_reading()
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream, shutdown)
        stream.hang_up()
        stream.read_on()
        await wait_all_tasks_blocked()
        handler.open("/01")
    assert ended[0].stream.sent == b""
    assert [body.closed for body in handler.bodies] == [1, 1]


def test_a_reply_closes_a_body_that_is_not_sent() -> None:
    body = Pulled()
    Reply([], 0, body).close()
    assert body.closed == 1
    Reply([], 0, b"").close()


@virtual_time
async def test_nothing_more_is_received_of_a_body_that_is_there_or_cannot_be() -> None:
    class Plain:
        async def read(self) -> bytes:
            raise AssertionError("it was read")

        def close(self) -> None:
            raise AssertionError("it was closed")

    for body in (b"", Plain()):
        await Reply([], 0, body).read_ahead()

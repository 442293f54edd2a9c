"""A service for anybody: many clients that come and go, and the signals that end it."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.conversations import FrontEnd, Pulled, ask
from support.streams import Notes, elapsing, real_time, replies, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import UnavailableError
from imgproxy.host import environment
from imgproxy.server import service as services
from imgproxy.server.handler import Reply
from imgproxy.server.inherited_sockets import InheritedSockets
from imgproxy.server.patience import IDLE_LIMIT, REQUEST_LIMIT, STALL_LIMIT
from imgproxy.server.places import INTERVAL
from imgproxy.server.service import GRACE, ONE_IMAGE, PUBLIC, Limits, Service
from imgproxy.verification.verified_blob import CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from imgproxy.server.handler import Handler

GET = ask()
BLOB = "/blob"
# More than all buffers of a connection hold.
ENDLESS = bytes(16 * CHUNK) + b"end"


class Running:
    """A service at a listener: what it said, and the status it ended with."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.notes = Notes()
        self.status: int | None = None
        listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._address = listener.getsockname()
        self._sockets = InheritedSockets([], [listener], shares_stderr=False)
        self._service = Service(handler, self.notes, limits=limits)
        self._clients = ExitStack()

    async def run(self) -> None:
        self.status = await self._service.run(self._sockets)

    def connect(self, *requests: bytes) -> socket.socket:
        sock = self._clients.enter_context(socket.socket())
        sock.connect(self._address)
        sock.sendall(b"".join(requests))
        sock.settimeout(0)
        return sock

    @property
    def failures(self) -> list[str]:
        first, *others = self.notes.failures
        assert first.startswith("listening on 127.0.0.1:")
        return others

    def close(self) -> None:
        self._clients.close()


@asynccontextmanager
async def served(handler: Handler, limits: Limits = PUBLIC) -> AsyncIterator[Running]:
    """Serve; after the block the service is told to end, if it has not been, and must do so."""
    running = Running(handler, limits)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await wait_all_tasks_blocked()
            yield running
            running.close()
            if running.status is None:
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        running.close()
    assert running.status == 0


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Give the descriptors back that a service lets the process have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def received(sock: socket.socket) -> bytes | None:
    """Return what has been received, nothing for the end, None if there is neither."""
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return None


def drained(sock: socket.socket) -> bytes:
    parts = []
    while part := received(sock):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close a connection in a way that is noticed at once, as those do that have unread bytes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def statuses(sock: socket.socket, *methods: str) -> list[int]:
    return [reply.status for reply in replies(drained(sock), *(methods or ("GET",)))]


# --- clients that make no progress --------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        pytest.param(b"", IDLE_LIMIT, id="idle"),
        pytest.param(GET, IDLE_LIMIT, id="idle-after-a-reply"),
        pytest.param(GET[:20], REQUEST_LIMIT, id="half-a-head"),
        pytest.param(GET + GET[:20], REQUEST_LIMIT, id="half-a-head-after-a-reply"),
        pytest.param(GET[:-2] + b"Content-Length: 5\r\n\r\nx", REQUEST_LIMIT, id="half-a-body"),
    ],
)
@virtual_time
async def test_a_client_that_asks_for_nothing_is_dropped_although_nobody_waits(
    sent: bytes, limit: float
) -> None:
    async with served(FrontEnd()) as running:
        sock = running.connect(sent)
        await trio.sleep(limit - INTERVAL)
        drained(sock)
        assert received(sock) is None
        await trio.sleep(2 * INTERVAL + 1)
        assert received(sock) == b""
    assert running.failures == []


@virtual_time
async def test_a_client_that_asks_now_and_then_is_kept() -> None:
    async with served(FrontEnd()) as running:
        sock = running.connect()
        for _ in range(5):
            await trio.sleep(IDLE_LIMIT - INTERVAL - 1)
            sock.sendall(GET)
            await wait_all_tasks_blocked()
            assert statuses(sock) == [200]


@virtual_time
async def test_a_reader_that_has_stopped_is_dropped_although_nobody_waits() -> None:
    front_end = FrontEnd({BLOB: (ENDLESS,)})
    async with served(front_end) as running:
        sock = running.connect(ask(target=BLOB))
        await trio.sleep(STALL_LIMIT - 1)
        assert running.failures == []
        await trio.sleep(1 + 2 * INTERVAL)
        assert [body.closed for body in front_end.bodies] == [1]
        assert len(drained(sock)) < len(ENDLESS)
    (line,) = running.failures
    assert line.startswith("GET /blob: broken off: the client has read nothing for 30 seconds")


@virtual_time
async def test_a_reader_that_is_slow_gets_everything() -> None:
    got = b""
    async with served(FrontEnd({BLOB: (ENDLESS,)})) as running:
        sock = running.connect(ask(target=BLOB))
        await trio.sleep(STALL_LIMIT - 2)
        while part := drained(sock):
            got += part
            await trio.sleep(STALL_LIMIT - 2)
        assert replies(got, "GET")[0].body == ENDLESS
    assert running.failures == []


@virtual_time
async def test_what_the_front_end_takes_is_not_counted_against_the_client() -> None:
    front_end = FrontEnd({BLOB: (10 * STALL_LIMIT, b"late")})
    async with served(front_end) as running:
        sock = running.connect(ask(target=BLOB))
        await trio.sleep(10 * STALL_LIMIT + 1)
        assert statuses(sock) == [200]


# --- places for bodies --------------------------------------------------------------------------


@virtual_time
async def test_what_is_small_does_not_wait_for_bodies_and_bodies_wait_for_one_another() -> None:
    front_end = FrontEnd({BLOB: (ENDLESS,)})
    async with served(front_end, Limits(8, 1, is_public=True)) as running:
        first, second = (running.connect(ask(target=BLOB)) for _ in range(2))
        await wait_all_tasks_blocked()
        small = running.connect(GET, ask("HEAD"), ask("HEAD", BLOB))
        with elapsing(0):
            await wait_all_tasks_blocked()
            assert statuses(small, "GET", "HEAD", "HEAD") == [200] * 3
            assert received(second) is None
            while len(drained(first)) > 0:
                await wait_all_tasks_blocked()
            assert drained(second)
            small.sendall(ask(target=BLOB))
            first.close()
            second.close()
            await wait_all_tasks_blocked()
            assert drained(small), "a place is given back by those that hang up"
    assert {body.closed for body in front_end.bodies} == {1}
    assert running.failures == []


@virtual_time
async def test_a_body_is_opened_when_there_is_a_place_for_it() -> None:
    opened: list[Pulled] = []

    async def opener() -> Pulled:
        opened.append(Pulled(ENDLESS))
        return opened[-1]

    front_end = FrontEnd({BLOB: Reply([], len(ENDLESS), opener)})
    async with served(front_end, Limits(8, 1, is_public=True)) as running:
        first, second, gone = (running.connect(ask(target=BLOB)) for _ in range(3))
        await wait_all_tasks_blocked()
        assert len(opened) == 1
        reset(gone)
        await wait_all_tasks_blocked()
        first.close()
        await wait_all_tasks_blocked()
        assert drained(second)
    assert [body.closed for body in opened] == [1, 1]


@pytest.mark.parametrize("late", [True, False])
@virtual_time
async def test_a_body_that_fails_gives_its_place_back(late: bool) -> None:  # noqa: FBT001
    async def fail() -> Pulled:
        raise UnavailableError("words")

    body = Pulled(b"x", UnavailableError("words"))
    front_end = FrontEnd({BLOB: Reply([], 9, body if late else fail), "/other": (b"whole",)})
    async with served(front_end, Limits(8, 1, is_public=True)) as running:
        for _ in range(3):
            running.connect(ask(target=BLOB))
        await wait_all_tasks_blocked()
        sock = running.connect(ask(target="/other"))
        await wait_all_tasks_blocked()
        assert statuses(sock) == [200]
    assert len(running.failures) == 3


@virtual_time
async def test_a_body_whose_client_goes_while_it_waits_for_a_place_is_closed() -> None:
    front_end = FrontEnd({BLOB: (ENDLESS,)})
    async with served(front_end, Limits(8, 1, is_public=True)) as running:
        first = running.connect(ask(target=BLOB))
        await wait_all_tasks_blocked()
        second = running.connect(ask(target=BLOB))
        await wait_all_tasks_blocked()
        reset(second)
        await wait_all_tasks_blocked()
        assert [body.closed for body in front_end.bodies] == [0, 1]
        assert drained(first)


@virtual_time
async def test_an_idle_connection_gives_way_where_no_more_can_be_accepted() -> None:
    async with served(FrontEnd(), Limits(2, 1, is_public=True)) as running:
        idle = running.connect(GET)
        await wait_all_tasks_blocked()
        others = [running.connect(GET) for _ in range(2)]
        await wait_all_tasks_blocked()
        assert [statuses(sock) for sock in (*others, idle)] == [[200]] * 3
        await trio.sleep(2)
        assert received(idle) == b""


# --- what clients do ----------------------------------------------------------------------------


@virtual_time
async def test_what_is_no_request_is_said_with_debug_alone() -> None:
    """Many clients try TLS first."""
    async with served(FrontEnd()) as running:
        sock = running.connect(b"\x16\x03\x01\x02\x00\x01")
        await wait_all_tasks_blocked()
        assert statuses(sock) == [400]
    assert running.failures == []
    assert any(line.startswith("400 BAD_REQUEST: ") for line in running.notes.details)


@pytest.mark.parametrize("read", [0, 1000, 3 * CHUNK])
@real_time
async def test_a_hang_up_in_a_body_is_nothing_to_speak_of(read: int) -> None:
    front_end = FrontEnd({BLOB: (bytes(CHUNK),) * 16})
    async with served(front_end) as running:
        sock = running.connect(ask(target=BLOB))
        left = read
        while left > 0:
            await trio.lowlevel.wait_readable(sock)
            left -= len(sock.recv(left))
        await wait_all_tasks_blocked()
        reset(sock)
        await wait_all_tasks_blocked(0.05)
        assert [body.closed for body in front_end.bodies] == [1]
    assert running.failures == []


# --- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@virtual_time
async def test_a_signal_ends_the_service_after_the_replies_under_way(number: int) -> None:
    before = signal.getsignal(number)
    async with served(FrontEnd({BLOB: (ENDLESS,)})) as running:
        sock, idle = running.connect(ask(target=BLOB) + GET), running.connect(GET)
        await wait_all_tasks_blocked()
        os.kill(os.getpid(), number)
        got = b""
        with elapsing(GRACE - 1):
            await trio.sleep(GRACE - 1)
            with pytest.raises(ConnectionRefusedError):
                running.connect()
            while part := drained(sock):
                got += part
                await wait_all_tasks_blocked()
        assert replies(got, "GET")[0].body == ENDLESS, "and nothing of the next request"
        assert statuses(idle) == [200]
        await trio.sleep(2)
        assert running.status == 0
    assert running.failures == []
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("again", [True, False])
@virtual_time
async def test_a_reply_that_takes_too_long_after_a_signal_is_broken_off(again: bool) -> None:  # noqa: FBT001
    front_end = FrontEnd({BLOB: (b"a" * 10, float("inf")), "/stuck": (ENDLESS,)}, {BLOB: 20})
    front_end.answers["/slow"] = b"never"
    async with served(front_end) as running:
        for target in (BLOB, "/stuck"):
            running.connect(ask(target=target))
        await wait_all_tasks_blocked()
        front_end.gate = trio.Event()
        running.connect(ask(target="/slow"))
        await wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGTERM)
        with elapsing(0 if again else GRACE):
            if again:
                await wait_all_tasks_blocked()
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                await trio.sleep(GRACE)
            await wait_all_tasks_blocked()
            assert running.status == 0
    assert running.failures == ["GET /stuck: broken off: the service ends"]
    assert [body.closed for body in front_end.bodies] == [1, 1]


# --- descriptors --------------------------------------------------------------------------------


@virtual_time
async def test_the_process_may_have_as_many_descriptors_as_the_system_lets_it() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    async with served(FrontEnd()):
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(1 << 30, 1024), (4096, 1024), (1024, 320), (20, 1)]
)
def test_no_more_connections_are_accepted_than_there_are_descriptors_for(
    descriptors: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "raise_descriptor_limit", lambda: descriptors)
    assert services._affordable(PUBLIC) == connections


def test_one_image_leaves_the_limit_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise AssertionError

    monkeypatch.setattr(services, "raise_descriptor_limit", fail)
    assert services._affordable(ONE_IMAGE) == ONE_IMAGE.connections


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1 << 40))
    monkeypatch.setattr(resource, "setrlimit", refused)
    assert environment.raise_descriptor_limit() == 100

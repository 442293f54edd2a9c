"""Every conversation of the process, over real sockets and pipes; and the status it ends with."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.conversations import FrontEnd
from support.parent import listener_at
from support.streams import Notes, Step, elapsing, real_time, replies, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import InvalidError, UnavailableError
from imgproxy.net.streams import accept
from imgproxy.server import service as services
from imgproxy.server.http_connection import DRAIN_TIMEOUT, Severity
from imgproxy.server.inherited_sockets import InheritedSockets, Pipes
from imgproxy.server.patience import IDLE_LIMIT, REQUEST_LIMIT, STALL_LIMIT
from imgproxy.server.places import INTERVAL
from imgproxy.server.service import (
    EXIT_STATUS,
    MAX_ACCEPTED,
    MAX_WAITING,
    ONE_IMAGE,
    SEND_BUFFER,
    Limits,
    Service,
)
from imgproxy.verification.verified_blob import CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from support.parent import Reply

    from imgproxy.server.handler import Handler

LARGE = bytes(2 * CHUNK)
# More than all buffers of a connection hold.
ENDLESS = bytes(16 * CHUNK) + b"end"
BLOB = "/blob"


def ask(path: str = "/manifest", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


GET, QUIT = ask(), ask("/quit", "POST")


def front_end(*steps: Step) -> FrontEnd:
    """Return a front-end with a large body; `steps` are what comes in place of that."""
    return FrontEnd({BLOB: steps or (LARGE,)}, {BLOB: len(LARGE)})


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pair(
    resources: ExitStack, *requests: bytes, ends: bool = True
) -> tuple[socket.socket, socket.socket]:
    """Return the program's half of a pair, and the parent's, which has sent its requests."""
    ours, theirs = socket.socketpair()
    resources.enter_context(ours)
    resources.enter_context(theirs)
    theirs.settimeout(10)
    theirs.sendall(b"".join(requests))
    if ends:
        theirs.shutdown(socket.SHUT_WR)
    return ours, theirs


def listening_at(resources: ExitStack, path: Path) -> socket.socket:
    return resources.enter_context(listener_at(path))


def listening(resources: ExitStack) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    return resources.enter_context(listener)


def connect(resources: ExitStack, listener: socket.socket, *requests: bytes) -> socket.socket:
    sock = resources.enter_context(socket.socket(listener.family))
    sock.settimeout(10)
    sock.connect(listener.getsockname())
    sock.sendall(b"".join(requests))
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def read_reply(sock: socket.socket) -> Reply:
    """Read until a reply to a GET is whole."""
    received = b""
    while True:
        received += sock.recv(1 << 16)
        if received.count(b"\r\n\r\n"):
            (reply,) = replies(received, "GET")
            if reply.complete:
                return reply


async def serve(
    handler: Handler,
    *connected: socket.socket | Pipes,
    listening: tuple[socket.socket, ...] = (),
    hosts: tuple[str, ...] = (),
    limits: Limits = ONE_IMAGE,
) -> tuple[int, Notes]:
    notes = Notes()
    inherited = InheritedSockets(list(connected), list(listening), shares_stderr=False)
    return await Service(handler, notes, hosts=hosts, limits=limits).run(inherited), notes


# --- connected descriptors ----------------------------------------------------------------------


@real_time
async def test_a_connected_socket_is_served_to_its_end(resources: ExitStack) -> None:
    ours, theirs = pair(resources, GET, GET)
    status, notes = await serve(front_end(), ours)
    assert status == 0
    assert [reply.status for reply in replies(read_to_end(theirs), "GET", "GET")] == [200, 200]
    assert ours.fileno() == -1
    assert notes.failures == []


@real_time
async def test_standard_streams_are_served_and_stay_open(resources: ExitStack) -> None:
    request_fd, to_program = os.pipe()
    from_program, reply_fd = os.pipe()
    for fd in (request_fd, from_program, reply_fd):
        resources.callback(os.close, fd)
    os.write(to_program, GET)
    os.close(to_program)
    status, _ = await serve(front_end(), Pipes(request_fd, reply_fd))
    assert status == 0
    assert os.get_blocking(request_fd)
    assert os.get_blocking(reply_fd)
    (reply,) = replies(os.read(from_program, 1 << 16), "GET")
    assert reply.status == 200


@real_time
async def test_several_conversations_share_one_front_end(resources: ExitStack) -> None:
    shared = front_end()
    pairs = [pair(resources, GET) for _ in range(5)]
    status, _ = await serve(shared, *(ours for ours, _ in pairs))
    assert status == 0
    for _, theirs in pairs:
        assert replies(read_to_end(theirs), "GET")[0].status == 200
    assert [request.target for request in shared.asked] == [b"/manifest"] * 5


LOST = UnavailableError("the source is lost")
MISMATCH = InvalidError("its bytes do not have the digest", code="DIGEST_INVALID")

EVENTS: dict[str, tuple[tuple[Step, ...], int]] = {
    "nothing": ((), 0),
    "a defect": ((LARGE[:-1], ZeroDivisionError()), 1),
    "a mismatch": ((LARGE[:-1], MISMATCH), 4),
    "a loss": ((LARGE[:-1], LOST), 5),
}


@pytest.mark.parametrize("event", EVENTS)
@real_time
async def test_the_exit_status_says_what_happened_after_a_head(
    event: str, resources: ExitStack
) -> None:
    steps, wanted = EVENTS[event]
    ours, theirs = pair(resources, ask(BLOB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read_to_end, theirs)
        status, notes = await serve(front_end(*steps), ours)
    assert status == wanted
    assert len(notes.failures) == (1 if wanted else 0)


@real_time
async def test_a_quit_does_not_erase_what_happened(resources: ExitStack) -> None:
    failing, theirs = pair(resources, ask(BLOB))
    shutdown, to_quitting = pair(resources, ends=False)
    async with trio.open_nursery() as nursery:
        statuses: list[int] = []

        async def run() -> None:
            statuses.append((await serve(front_end(LARGE[:-1], LOST), failing, shutdown))[0])

        nursery.start_soon(run)
        await trio.to_thread.run_sync(read_to_end, theirs)
        to_quitting.sendall(QUIT)
    assert statuses == [5]


def test_the_send_buffer_takes_a_piece_of_a_body() -> None:
    assert SEND_BUFFER == CHUNK


def test_the_most_severe_event_decides() -> None:
    assert [EXIT_STATUS[severity] for severity in sorted(Severity)] == [0, 5, 4, 1]


@real_time
async def test_an_error_that_was_answered_is_no_event(resources: ExitStack) -> None:
    ours, _ = pair(resources, ask("/nothing"), b"garbage\r\n\r\n")
    status, notes = await serve(front_end(), ours)
    assert status == 0
    assert len(notes.failures) == 2


# --- listeners ----------------------------------------------------------------------------------


@real_time
async def test_a_listener_is_served_until_a_quit(resources: ExitStack) -> None:
    listener = listening(resources)
    socks = [connect(resources, listener, GET) for _ in range(3)]
    connect(resources, listener, QUIT)
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
    status, _ = await serve(front_end(), listening=(listener,))
    assert status == 0
    for sock in socks:
        assert replies(read_to_end(sock), "GET")[0].status == 200
    assert listener.fileno() == -1


@real_time
async def test_what_happens_to_accepted_connections_does_not_count(resources: ExitStack) -> None:
    listener = listening(resources)
    sock = connect(resources, listener, ask(BLOB))
    sock.shutdown(socket.SHUT_WR)
    async with trio.open_nursery() as nursery:
        statuses: list[int] = []

        async def run() -> None:
            handler = front_end(LARGE[:-1], MISMATCH)
            statuses.append((await serve(handler, listening=(listener,)))[0])

        nursery.start_soon(run)
        (reply,) = replies(await trio.to_thread.run_sync(read_to_end, sock), "GET")
        assert reply.ending == "end"
        connect(resources, listener, QUIT)
    assert statuses == [0]


@real_time
async def test_listeners_end_with_the_last_connected_descriptor(resources: ExitStack) -> None:
    """What they accepted finishes the reply it is at."""
    listeners = (listening(resources), listening(resources))
    under_way = connect(resources, listeners[0], ask(BLOB))
    idle = connect(resources, listeners[1])
    ours, theirs = pair(resources, ends=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, front_end(), ours, listeners)
        assert await trio.to_thread.run_sync(under_way.recv, 10) == b"HTTP/1.1 2"
        theirs.close()
        rest = await trio.to_thread.run_sync(read_to_end, under_way)
        under_way.close()
        assert await trio.to_thread.run_sync(read_to_end, idle) == b""
        idle.close()
    assert rest.endswith(LARGE)


async def _serve(
    handler: Handler, connected: socket.socket, listeners: tuple[socket.socket, ...]
) -> None:
    assert (await serve(handler, connected, listening=listeners))[0] == 0


@real_time
async def test_as_many_as_allowed_are_served_and_the_others_wait(resources: ExitStack) -> None:
    assert MAX_ACCEPTED == 64
    listener = listening(resources)
    socks = [connect(resources, listener, GET) for _ in range(MAX_ACCEPTED)]
    late = connect(resources, listener, GET)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_listener, listener)
        for sock in socks:
            assert (await trio.to_thread.run_sync(read_reply, sock)).status == 200
        await wait_all_tasks_blocked()
        late.settimeout(0)
        with pytest.raises(BlockingIOError):
            late.recv(1)
        late.settimeout(10)
        socks.pop().close()
        assert (await trio.to_thread.run_sync(read_reply, late)).status == 200
        socks.pop().sendall(QUIT)
        for sock in (*socks, late):
            sock.close()


async def _serve_listener(listener: socket.socket) -> None:
    assert (await serve(front_end(), listening=(listener,)))[0] == 0


@real_time
async def test_a_page_in_a_browser_gets_nothing_from_a_listener(resources: ExitStack) -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\nOrigin: http://localhost\r\n\r\n")
    listener = listening(resources)
    sock = connect(resources, listener, request)
    ours, theirs = pair(resources, request)
    sock.shutdown(socket.SHUT_WR)
    connect(resources, listener, QUIT)
    await serve(front_end(), ours, listening=(listener,))
    assert replies(read_to_end(sock), "GET")[0].status == 403
    assert replies(read_to_end(theirs), "GET")[0].status == 200


@real_time
async def test_a_page_whose_name_resolves_to_this_host_gets_nothing_from_a_tcp_listener(
    resources: ExitStack, tmp_path: Path
) -> None:
    """DNS rebinding. A Unix socket and a connected one, which no browser reaches, have no rule."""
    request = GET.replace(b"localhost", b"attacker.example")
    quitting = QUIT.replace(b"localhost", b"attacker.example")
    listener, unix = listening(resources), listening_at(resources, tmp_path / "socket")
    foreign = connect(resources, listener, request, quitting)
    named = connect(resources, listener, GET.replace(b"localhost", b"image.lan:80"))
    by_path = connect(resources, unix, request)
    ours, theirs = pair(resources, request, ends=False)

    async def read_all() -> None:
        for sock in (named, by_path, theirs):
            assert (await trio.to_thread.run_sync(read_reply, sock)).status == 200
        foreign.shutdown(socket.SHUT_WR)
        refused = await trio.to_thread.run_sync(read_to_end, foreign)
        assert [reply.status for reply in replies(refused, "GET", "POST")] == [403, 403]
        theirs.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        listeners = (listener, unix)
        _, notes = await serve(front_end(), ours, listening=listeners, hosts=("image.lan",))
    assert len(notes.failures) == 2
    assert all('"attacker.example"' in line for line in notes.failures)


# --- clients that make no progress --------------------------------------------------------------

# Their places are taken for others, as whoever can connect could else lock everybody out by doing
# nothing. By the virtual clock: what was sent before is there at once.


def fill(resources: ExitStack, listener: socket.socket, *requests: bytes) -> list[socket.socket]:
    """Return as many connections as there are places, each with these requests."""
    return [connect(resources, listener, *requests) for _ in range(MAX_ACCEPTED)]


def received(sock: socket.socket) -> bytes | None:
    """Return what has been received, nothing for the end, None if there is neither."""
    sock.settimeout(0)
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return None


def drained(sock: socket.socket) -> bytes:
    """Return all that has been received."""
    parts = []
    while part := received(sock):
        parts.append(part)
    return b"".join(parts)


def are_open(socks: list[socket.socket]) -> list[bool]:
    return [received(sock) is None for sock in socks]


@asynccontextmanager
async def served(
    handler: Handler, listener: socket.socket, limits: Limits = ONE_IMAGE
) -> AsyncIterator[Notes]:
    """Serve a listener; it must end by itself at the end of the block."""
    notes = Notes()
    service = Service(handler, notes, limits=limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, InheritedSockets([], [listener], shares_stderr=False))
        await wait_all_tasks_blocked()
        yield notes


@pytest.mark.parametrize("sent", [b"", GET[:20], b"\r\n", ask(method="POST")], ids=repr)
@virtual_time
async def test_connections_that_ask_for_nothing_keep_nobody_waiting(
    sent: bytes, resources: ExitStack
) -> None:
    listener = listening(resources)
    silent = fill(resources, listener, sent) + fill(resources, listener, sent)
    async with served(front_end(), listener):
        with elapsing(0):
            late = connect(resources, listener, GET)
            await wait_all_tasks_blocked()
            assert replies(received(late) or b"", "GET")[0].status == 200
            quitting = connect(resources, listener, QUIT)
            await wait_all_tasks_blocked()
            assert replies(received(quitting) or b"", "POST")[0].status == 200
    resources.close()
    assert len(silent) == 2 * MAX_ACCEPTED


PATIENCE = {"idle": (b"", IDLE_LIMIT), "half a head": (GET[:20], REQUEST_LIMIT)} | {
    "half a body": (GET[:-2] + b"Content-Length: 5\r\n\r\nhell", REQUEST_LIMIT)
}


@pytest.mark.parametrize("case", PATIENCE)
@virtual_time
async def test_a_conversation_gives_its_place_after_a_while_to_another_that_waits(
    case: str, resources: ExitStack
) -> None:
    sent, limit = PATIENCE[case]
    listener = listening(resources)
    held = fill(resources, listener, GET, sent)
    async with served(front_end(), listener) as notes:
        assert all(replies(received(sock) or b"", "GET") for sock in held)
        late = connect(resources, listener, GET)
        await trio.sleep(limit - 1)
        assert (received(late), are_open(held)) == (None, [True] * MAX_ACCEPTED)
        await trio.sleep(1 + INTERVAL + DRAIN_TIMEOUT)
        assert replies(received(late) or b"", "GET")[0].status == 200
        assert are_open(held).count(False) == 1, "no more than those that wait"
        late.sendall(QUIT)
    assert notes.failures == []


@pytest.mark.parametrize("case", PATIENCE)
@virtual_time
async def test_while_nobody_waits_nobody_gives_way(case: str, resources: ExitStack) -> None:
    listener = listening(resources)
    held = fill(resources, listener, GET, PATIENCE[case][0])
    async with served(front_end(), listener):
        assert all(replies(received(sock) or b"", "GET") for sock in held)
        await trio.sleep(10_000)
        assert are_open(held) == [True] * MAX_ACCEPTED
        connect(resources, listener, QUIT)


@virtual_time
async def test_a_reply_that_is_not_read_gives_its_place_to_another_that_waits(
    resources: ExitStack,
) -> None:
    listener = listening(resources)
    held = fill(resources, listener, ask(BLOB))
    async with served(FrontEnd({BLOB: (ENDLESS,)}), listener) as notes:
        late = connect(resources, listener, GET)
        await trio.sleep(STALL_LIMIT - 1)
        assert received(late) is None
        await trio.sleep(1 + INTERVAL)
        assert replies(received(late) or b"", "GET")[0].status == 200
        assert len(notes.failures) == 1
        connect(resources, listener, QUIT)
        for sock in held:
            sock.close()
    assert notes.failures[0].startswith("GET /blob: broken off: the client has read nothing for 30")
    assert notes.failures[0].endswith("others wait for its place")


@virtual_time
async def test_a_reply_that_is_read_however_slowly_keeps_its_place(
    resources: ExitStack,
) -> None:
    listener = listening(resources)
    slow = connect(resources, listener, ask(BLOB))
    handler = FrontEnd({BLOB: (ENDLESS,) * 20})
    async with served(handler, listener, Limits(2, 1)) as notes:
        late = connect(resources, listener, GET)
        for _ in range(10):
            await trio.sleep(STALL_LIMIT - 2)
            assert drained(slow)
        assert (received(late), notes.failures) == (None, [])
        connect(resources, listener, QUIT)
        slow.close()


@virtual_time
async def test_a_reply_that_is_awaited_from_a_registry_keeps_its_place(
    resources: ExitStack,
) -> None:
    listener = listening(resources)
    handler = FrontEnd()
    handler.gate = trio.Event()
    held = fill(resources, listener, GET)
    async with served(handler, listener):
        late = connect(resources, listener, GET)
        await trio.sleep(10_000)
        assert are_open([*held, late]) == [True] * (MAX_ACCEPTED + 1)
        handler.gate.set()
        connect(resources, listener, QUIT)


@virtual_time
async def test_a_quit_gets_through_when_all_places_are_taken_and_others_wait(
    resources: ExitStack,
) -> None:
    listener = listening(resources)
    handler = FrontEnd()
    handler.gate = trio.Event()
    held = fill(resources, listener, GET)
    late = [connect(resources, listener, GET) for _ in range(MAX_WAITING - 1)]
    async with served(handler, listener):
        with elapsing(0):
            quitting = connect(resources, listener, QUIT)
            await wait_all_tasks_blocked()
            (reply,) = replies(received(quitting) or b"", "POST")
        assert (reply.status, reply.get("Connection")) == (200, "close")
        handler.gate.set()
    for sock in held:
        (reply,) = replies(received(sock) or b"", "GET")
        assert (reply.status, reply.get("Connection")) == (200, "close")
    assert [received(sock) for sock in late] == [b""] * len(late)


@pytest.mark.parametrize("accepted", [True, False])
@virtual_time
async def test_a_service_that_ends_does_not_wait_for_ever_for_a_reader_that_stopped(
    accepted: bool,  # noqa: FBT001  (a parameter)
    resources: ExitStack,
) -> None:
    """Such as a program in Go that has not closed the body of a response."""
    listener = listening(resources)
    ours, theirs = pair(resources, ask(BLOB), ends=False)
    quitting, to_quitting = pair(resources, ends=False)
    connected = (quitting,) if accepted else (quitting, ours)
    if accepted:
        theirs = connect(resources, listener, ask(BLOB))
    ended: list[tuple[int, Notes]] = []

    async def run() -> None:
        ended.append(await serve(FrontEnd({BLOB: (ENDLESS,)}), *connected, listening=(listener,)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(1000)  # while it does not end, nobody minds
        to_quitting.sendall(QUIT)
        with elapsing(STALL_LIMIT):
            await trio.sleep(STALL_LIMIT - 1)
            assert ended == []
            await trio.sleep(1)
    ((status, notes),) = ended
    assert status == 0
    (line,) = notes.failures
    assert line.startswith("GET /blob: broken off: the client has read nothing for 30 seconds, and")
    assert line.endswith("the service ends")
    theirs.settimeout(10)


@virtual_time
async def test_a_service_that_ends_finishes_a_reply_that_is_read_slowly(
    resources: ExitStack,
) -> None:
    ours, theirs = pair(resources, ask(BLOB), ends=False)
    quitting, _ = pair(resources, QUIT, ends=False)
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, FrontEnd({BLOB: (ENDLESS,)}), ours, quitting)
        await trio.sleep(STALL_LIMIT - 2)
        while part := drained(theirs):
            got += part
            await trio.sleep(STALL_LIMIT - 2)
    assert replies(got, "GET")[0].body == ENDLESS


ADDRESSES = {
    "127.0.0.1": True,
    "127.255.0.3": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    "10.0.0.1": False,
    "192.0.2.1": False,
    "0.0.0.0": False,  # noqa: S104  (it is refused)
    "::": False,
    "2001:db8::1": False,
    "fe80::1%eth0": False,
    "::ffff:10.0.0.1": False,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_only_this_host_is_answered_unless_others_are_allowed(address: str) -> None:
    notes = Notes()
    service = Service(front_end(), notes)
    assert service._is_allowed(address) == ADDRESSES[address]
    assert len(notes.failures) == (not ADDRESSES[address])
    assert all("--allow-remote" in line for line in notes.failures)
    service = Service(front_end(), notes, allow_remote=True)
    assert service._is_allowed(address)


class Accepting:
    """`streams.accept`, with faults before and addresses in place of the real ones.

    A fault that is None is a connection.
    """

    def __init__(
        self, faults: Sequence[OSError | None] = (), addresses: Sequence[str] = ()
    ) -> None:
        self._faults = iter(faults)
        self._addresses = iter(addresses)

    async def __call__(self, listener: socket.socket) -> tuple[socket.socket, Any]:
        fault = next(self._faults, None)
        if fault is not None:
            raise fault
        sock, address = await accept(listener)
        return sock, (next(self._addresses, address[0]), 1234)


@real_time
async def test_a_connection_from_another_host_is_closed_and_takes_no_slot(
    resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "accept", Accepting(addresses=("192.0.2.1", "192.0.2.2")))
    listener = listening(resources)
    remotes = [connect(resources, listener) for _ in range(2)]
    local = connect(resources, listener, GET, QUIT)
    _, notes = await serve(front_end(), listening=(listener,), limits=Limits(1, 1))
    for sock in remotes:
        assert read_to_end(sock) == b""
    assert [reply.status for reply in replies(read_to_end(local), "GET", "POST")] == [200, 200]
    assert notes.failures == [
        f"refused a connection from 192.0.2.{n}: only loopback is answered without --allow-remote"
        for n in (1, 2)
    ]


@virtual_time
async def test_a_shortage_is_reported_and_waited_out(
    resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
    faults = [OSError(number, os.strerror(number)) for number in numbers]
    monkeypatch.setattr(services, "accept", Accepting(faults))
    listener = listening(resources)
    connect(resources, listener, QUIT)
    with elapsing(round(0.2 * len(numbers), 6)):
        status, notes = await serve(front_end(), listening=(listener,))
    assert status == 0
    assert notes.failures == [f"accepting a connection: {os.strerror(errno.EMFILE)}"]


@virtual_time
async def test_a_shortage_is_reported_again_only_after_it_has_ended(
    resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was accepted between two failures shows no more than that one has ended."""
    short = OSError(errno.EMFILE, "Too many open files")
    faults = [short, None, short, short, None, None, short, None]
    monkeypatch.setattr(services, "accept", Accepting(faults))
    listener = listening(resources)
    for _ in range(faults.count(None)):
        connect(resources, listener).close()
    connect(resources, listener, QUIT)
    _, notes = await serve(front_end(), listening=(listener,))
    assert notes.failures == ["accepting a connection: Too many open files"] * 2


@virtual_time
async def test_a_shutdown_does_not_wait_for_a_shortage_to_end(
    resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(services, "accept", Accepting([shortage] * 1000))
    ours, _ = pair(resources, QUIT)
    listener = listening(resources)
    with elapsing(0):
        assert (await serve(front_end(), ours, listening=(listener,)))[0] == 0


@real_time
async def test_a_conversation_that_is_over_gives_its_descriptor_back(resources: ExitStack) -> None:
    listener = listening(resources)
    before = len(os.listdir("/proc/self/fd"))
    with closing(connect(resources, listener, GET)) as sock:
        sock.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_listener, listener)
            await trio.to_thread.run_sync(read_to_end, sock)
            connect(resources, listener, QUIT).shutdown(socket.SHUT_WR)
    resources.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the listener is closed as well

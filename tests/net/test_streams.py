"""Real sockets, TLS, pipes and files behind a `ByteStream`."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
import trustme
from support.streams import real_time, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.host import event_loop
from imgproxy.net import streams
from imgproxy.net.streams import (
    ByteStream,
    FdStream,
    SocketStream,
    TlsStream,
    accept,
    start_tls,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

T = TypeVar("T")

MIB = 1 << 20


async def received(stream: ByteStream, count: int) -> bytes:
    buffer = memoryview(bytearray(count))
    return bytes(buffer[: await stream.receive_into(buffer)])


async def begun(nursery: trio.Nursery, operation: Callable[[], Awaitable[T]]) -> list[T]:
    """Begin an operation that must wait; return the list that its result is put into."""
    done: list[T] = []

    async def run() -> None:
        done.append(await operation())

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    assert done == []
    return done


def socket_stream() -> tuple[SocketStream, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    theirs.settimeout(10)
    return SocketStream(ours), theirs


def drain(end: socket.socket, count: int) -> bytes:
    """Return so many bytes, read by a thread."""
    parts = []
    while count:
        parts.append(end.recv(count))
        count -= len(parts[-1])
    return b"".join(parts)


# --- sockets ------------------------------------------------------------------------------------


@real_time
async def test_a_socket_receives_what_is_there_and_then_the_end() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        theirs.sendall(b"abcdef")
        assert await received(stream, 4) == b"abcd"
        assert await received(stream, 4) == b"ef"
        theirs.shutdown(socket.SHUT_WR)
        assert await received(stream, 4) == b""


@real_time
async def test_a_socket_waits_for_what_is_not_there_yet() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, lambda: received(stream, 4))
            theirs.sendall(b"late")
        assert done == [b"late"]


@real_time
async def test_a_socket_sends_more_than_fits_at_once() -> None:
    stream, theirs = socket_stream()
    data = os.urandom(4 * MIB)
    with closing(stream), theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, data)
            await wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(drain, theirs, len(data)) == data


@pytest.mark.parametrize("how", ["send", "receive"])
@real_time
async def test_a_socket_that_was_reset_fails_as_the_system_says(how: str) -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        await stream.send(b"never read")
        theirs.close()
        with pytest.raises(ConnectionError):
            await (stream.send(b"x") if how == "send" else received(stream, 1))


@real_time
async def test_an_operation_that_is_cancelled_loses_no_bytes() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        theirs.sendall(b"abc")
        with trio.CancelScope() as scope:
            scope.cancel()
            await received(stream, 3)
        assert scope.cancelled_caught
        assert await received(stream, 3) == b"abc"


@real_time
async def test_operations_that_need_not_wait_yield_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A turn for each operation costs too much, and without any other tasks would starve."""
    now, turns = [100.0], [0]

    async def take_turn() -> None:
        turns[0] += 1
        await trio.lowlevel.cancel_shielded_checkpoint()

    monkeypatch.setattr(event_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(event_loop, "_last_turn", 0.0)
    monkeypatch.setattr(event_loop, "cancel_shielded_checkpoint", take_turn)
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        theirs.sendall(b"abcd")
        counts = []
        for passed in (0.0, 0.0, event_loop._TURN / 2, event_loop._TURN):
            now[0] += passed
            await received(stream, 1)
            await stream.send(b"x")
            counts.append(turns[0])
    assert counts == [1, 1, 1, 2]


@real_time
async def test_finishing_lets_the_other_side_read_the_end_and_not_a_reset() -> None:
    stream, theirs = socket_stream()
    with theirs:
        theirs.sendall(b"x" * 100)  # surplus, which is discarded
        theirs.shutdown(socket.SHUT_WR)
        await stream.send(b"reply")
        await stream.finish(1000, 10)
        stream.close()
        assert theirs.recv(10) == b"reply"
        assert theirs.recv(10) == b""


@virtual_time
async def test_finishing_has_a_limit_in_time() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        started = trio.current_time()
        await stream.finish(1000, 1.5)
        assert trio.current_time() - started == 1.5
        assert theirs.recv(10) == b""


@real_time
async def test_finishing_has_a_limit_in_bytes() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        theirs.sendall(bytes(100))
        await stream.finish(99, 1000)
        assert len(await received(stream, 100)) == 1


@real_time
async def test_finishing_a_connection_that_is_gone_is_no_failure() -> None:
    stream, theirs = socket_stream()
    with closing(stream):
        await stream.send(b"never read")
        theirs.close()
        await stream.finish(1000, 1000)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
@real_time
async def test_a_socket_is_hung_up_when_both_directions_are_shut(
    family: socket.AddressFamily,
) -> None:
    ours, theirs = connected(family)
    stream = SocketStream(ours)
    with closing(stream), theirs:
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, stream.wait_hung_up)
            theirs.sendall(b"more")
            theirs.shutdown(socket.SHUT_WR)
            await wait_all_tasks_blocked()
            assert done == []  # the other side may still read
            if family == socket.AF_INET:
                ours.send(b"x")  # TCP learns of it by a reset
            theirs.close()
        assert done == [None]


def connected(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    """Return a non-blocking socket and its other end."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    ours.settimeout(0)
    return ours, theirs


@real_time
async def test_a_socket_is_quiet_while_nothing_waits() -> None:
    stream, theirs = socket_stream()
    with closing(stream), theirs:
        assert stream.is_quiet()
        theirs.sendall(b"x")
        assert not stream.is_quiet()
        await received(stream, 1)
        assert stream.is_quiet()
        theirs.shutdown(socket.SHUT_WR)
        assert not stream.is_quiet()


@real_time
async def test_a_socket_may_be_closed_twice() -> None:
    stream, theirs = socket_stream()
    with theirs:
        stream.close()
        stream.close()
        assert theirs.recv(1) == b""


# --- TLS ----------------------------------------------------------------------------------------

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("registry.test")
CLIENT = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT)
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CERTIFICATE.configure_cert(SERVER)


async def tls_stream(host: str = "registry.test") -> tuple[TlsStream, ssl.SSLSocket]:
    """Perform a handshake over a socket pair; the server's side is a blocking socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    theirs.settimeout(10)
    servers: list[ssl.SSLSocket] = []

    def serve() -> None:
        servers.append(SERVER.wrap_socket(theirs, server_side=True, suppress_ragged_eofs=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, serve)
        stream = await start_tls(ours, CLIENT, host)
    return stream, servers[0]


@real_time
async def test_tls_receives_all_records_that_are_there() -> None:
    stream, theirs = await tls_stream()
    with closing(stream), theirs:
        for record in (b"ab", b"cd", b"ef"):
            theirs.sendall(record)
        assert await received(stream, 5) == b"abcde"
        assert await received(stream, 5) == b"f"


@pytest.mark.parametrize("ending", ["notified", "ragged"])
@real_time
async def test_tls_gives_what_came_before_the_end(ending: str) -> None:
    stream, theirs = await tls_stream()
    with closing(stream), theirs:
        theirs.sendall(b"last words")
        if ending == "notified":
            theirs.settimeout(0)
            with pytest.raises(ssl.SSLWantReadError):  # it waits for our close_notify
                theirs.unwrap()
        theirs.close()
        assert await received(stream, 100) == b"last words"
        assert await received(stream, 100) == b""


@real_time
async def test_tls_gives_what_came_before_a_broken_record() -> None:
    stream, theirs = await tls_stream()
    with closing(stream), theirs:
        theirs.sendall(b"whole")
        with socket.socket(fileno=theirs.detach()) as raw:
            raw.sendall(b"no record of TLS")
            assert await received(stream, 100) == b"whole"
            with pytest.raises(ssl.SSLError):
                await received(stream, 100)


@real_time
async def test_tls_sends_more_than_fits_at_once() -> None:
    stream, theirs = await tls_stream()
    data = os.urandom(MIB)
    with closing(stream), theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, data)
            await wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(drain, theirs, len(data)) == data


@real_time
async def test_tls_that_has_decrypted_more_than_was_taken_is_not_quiet() -> None:
    """The socket below it is empty."""
    stream, theirs = await tls_stream()
    with closing(stream), theirs:
        assert stream.is_quiet()
        theirs.sendall(b"body and surplus")
        assert await received(stream, 4) == b"body"
        assert not stream.is_quiet()


@real_time
async def test_session_tickets_are_no_surplus() -> None:
    """TLS 1.3 servers send them unasked after the handshake."""
    stream, theirs = await tls_stream()
    with closing(stream), theirs:
        assert theirs.version() == "TLSv1.3"
        assert stream.is_quiet()
        theirs.sendall(b"x")
        assert await received(stream, 1) == b"x"
        assert stream.is_quiet()


@real_time
async def test_tls_that_ended_or_broke_is_not_quiet() -> None:
    for ending in (b"", b"no record of TLS"):
        stream, theirs = await tls_stream()
        with closing(stream), socket.socket(fileno=theirs.detach()) as raw:
            raw.sendall(ending)
            raw.close()
            assert not stream.is_quiet()


@real_time
async def test_a_handshake_that_fails_closes_the_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with theirs:
        theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await start_tls(ours, CLIENT, "registry.test")
        drain(theirs, theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        assert closed_by_its_peer(theirs)


def closed_by_its_peer(sock: socket.socket) -> bool:
    """Discard what has arrived; return whether the end follows."""
    sock.settimeout(0)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass  # the other side closed with bytes unread
    return True


@virtual_time
async def test_a_handshake_that_is_given_up_closes_the_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with theirs:
        with trio.move_on_after(1) as scope:
            await start_tls(ours, CLIENT, "registry.test")
        assert scope.cancelled_caught
        assert closed_by_its_peer(theirs)


# --- descriptors --------------------------------------------------------------------------------


class Pipes:
    """A stream over two pipes, and the ends that a parent holds."""

    def __init__(self) -> None:
        read_fd, self.to_stream = os.pipe()
        self.from_stream, write_fd = os.pipe()
        self.fds = (read_fd, write_fd)
        self.stream = FdStream(*self.fds)

    def close(self) -> None:
        self.stream.close()
        for fd in (*self.fds, self.to_stream, self.from_stream):
            if fd >= 0:
                os.close(fd)

    def stop_sending(self) -> None:
        os.close(self.to_stream)
        self.to_stream = -1

    def stop_reading(self) -> None:
        os.close(self.from_stream)
        self.from_stream = -1


@real_time
async def test_pipes_carry_a_conversation() -> None:
    with closing(Pipes()) as pipes:
        os.write(pipes.to_stream, b"abc")
        assert await received(pipes.stream, 10) == b"abc"
        await pipes.stream.send(b"def")
        assert os.read(pipes.from_stream, 10) == b"def"
        pipes.stop_sending()
        assert await received(pipes.stream, 10) == b""


@real_time
async def test_pipes_are_waited_for_in_both_directions() -> None:
    data = os.urandom(MIB)
    with closing(Pipes()) as pipes:
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, lambda: received(pipes.stream, 4))
            nursery.start_soon(pipes.stream.send, data)
            await wait_all_tasks_blocked()
            os.write(pipes.to_stream, b"late")
            read = b""
            while len(read) < len(data):
                read += await trio.to_thread.run_sync(os.read, pipes.from_stream, MIB)
        assert done == [b"late"]
        assert read == data


@real_time
async def test_pipes_are_hung_up_when_the_replies_are_no_longer_read() -> None:
    with closing(Pipes()) as pipes:
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, pipes.stream.wait_hung_up)
            pipes.stop_sending()
            await wait_all_tasks_blocked()
            assert done == []  # the other side still reads
            pipes.stop_reading()
        assert done == [None]
        with pytest.raises(BrokenPipeError):
            await pipes.stream.send(b"x")


@real_time
async def test_pipes_have_nothing_to_finish_and_are_never_kept() -> None:
    with closing(Pipes()) as pipes:
        os.write(pipes.to_stream, b"unread")
        await pipes.stream.finish(100, 1000)
        assert not pipes.stream.is_quiet()


@real_time
async def test_files_are_a_request_and_a_reply(tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(b"GET")
    with (tmp_path / "request").open("rb") as request, (tmp_path / "reply").open("wb") as reply:
        stream = FdStream(request.fileno(), reply.fileno())
        assert await received(stream, 10) == b"GET"
        assert await received(stream, 10) == b""
        await stream.send(b"200")
        stream.close()
    assert (tmp_path / "reply").read_bytes() == b"200"


@pytest.mark.parametrize("path", [os.devnull, "regular file"])
@virtual_time
async def test_files_are_never_hung_up(path: str, tmp_path: Path) -> None:
    with (tmp_path / path).open("w+b") as file:
        stream = FdStream(file.fileno(), file.fileno())
        with trio.move_on_after(1e5) as scope:
            await stream.wait_hung_up()
        assert scope.cancelled_caught
        stream.close()


@real_time
async def test_a_device_that_discards_everything_is_served(tmp_path: Path) -> None:
    with (tmp_path / os.devnull).open("r+b", buffering=0) as null:
        stream = FdStream(null.fileno(), null.fileno())
        assert await received(stream, 10) == b""
        await stream.send(bytes(MIB))
        stream.close()


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "pipe of another user", "sockets apart", "socket"])
@real_time
async def test_the_mode_of_descriptors_is_left_alone_and_no_call_waits(
    kind: str,
    blocking: bool,  # noqa: FBT001  (a parameter)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other processes share the mode, and a process that is killed cannot restore it."""
    if kind == "pipe of another user":  # which cannot be opened once more
        monkeypatch.setattr(streams, "_reopened", lambda *_: None)
    with ExitStack() as stack:
        ours, theirs = _connected(kind, stack)
        for fd in {*ours}:
            os.set_blocking(fd, blocking)
        stream: ByteStream
        if kind == "socket":
            stream = SocketStream(stack.enter_context(socket.socket(fileno=os.dup(ours[0]))))
        else:
            stream = FdStream(*ours)
        data = os.urandom(MIB)
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, lambda: received(stream, 4))
            nursery.start_soon(stream.send, data)
            await wait_all_tasks_blocked()  # with nothing to read, and no room to write
            assert [os.get_blocking(fd) for fd in ours] == [blocking, blocking]
            os.write(theirs[1], b"late")
            read = b""
            while len(read) < len(data):
                read += await trio.to_thread.run_sync(os.read, theirs[0], MIB)
        stream.close()
        stream.close()
        assert (done, read) == ([b"late"], data)
        assert [os.get_blocking(fd) for fd in ours] == [blocking, blocking]


def _connected(kind: str, stack: ExitStack) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return two ends of a connection: for each, what is read from and what is written to."""
    if kind.startswith("pipe"):
        (reading, to_stream), (from_stream, writing) = os.pipe(), os.pipe()
        for fd in (reading, to_stream, from_stream, writing):
            stack.callback(os.close, fd)
        return (reading, writing), (from_stream, to_stream)
    pairs = [socket.socketpair() for _ in range(1 if kind == "socket" else 2)]
    ours, theirs = zip(*[(one.fileno(), other.fileno()) for one, other in pairs], strict=True)
    for sock in (each for pair in pairs for each in pair):
        stack.enter_context(sock)
    return (ours[0], ours[-1]), (theirs[-1], theirs[0])


# --- listeners ----------------------------------------------------------------------------------


@real_time
async def test_a_connection_is_accepted_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        async with trio.open_nursery() as nursery:
            done = await begun(nursery, lambda: accept(listener))
            theirs = socket.create_connection(listener.getsockname())
        sock, address = done[0]
        assert address == theirs.getsockname()
        with sock, theirs:
            sock.sendall(b"x")
            assert theirs.recv(1) == b"x"


@real_time
async def test_an_accept_that_is_cancelled_leaves_the_connection_in_the_queue() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        with socket.create_connection(listener.getsockname()) as theirs:
            with trio.CancelScope() as scope:
                scope.cancel()
                await accept(listener)
            stream, address = await accept(listener)
            stream.close()
            assert address == theirs.getsockname()

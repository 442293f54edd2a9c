"""Byte streams: sockets, TLS, pipes and files, received into the caller's memory.

trio's own streams return a fresh `bytes` for each read; a blob would be copied once more and the
allocator would be busy with megabytes. A `ByteStream` fills a buffer that is used again. Every
operation can be cancelled before it is done; one that need not wait yields to other tasks only if
none has run for a while.

Errors of the operating system stay `OSError`; the callers translate them.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import stat
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio
from trio.lowlevel import (
    checkpoint_if_cancelled,
    wait_readable,
    wait_writable,
)

from imgproxy.errors import closing_on_error
from imgproxy.host.event_loop import yield_to_others

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    _Waitable: TypeAlias = socket.socket | int
    _Wait: TypeAlias = Callable[[_Waitable], Awaitable[None]]

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


class ByteStream(Protocol):
    """A bidirectional stream of bytes.

    `peer` is the address of the server at the other side, empty where it is not known.
    """

    peer: str

    @property
    def sent_bytes(self) -> int:
        """How many bytes have been sent, those included of a `send` that still waits."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and return how many were put at the start of `buffer`, 0 at the end."""

    def receive_now(self, buffer: memoryview) -> int:
        """Do the same without a wait. Raises an `OSError` while nothing has arrived."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data`."""

    async def finish(self, limit: int, patience: float) -> None:
        """End what is sent so that the other side reads end of file and not a reset.

        A socket that is closed with bytes unread, or receives some later, resets the connection;
        up to `limit` bytes are read and discarded, for `patience` seconds.
        """

    async def wait_hung_up(self) -> None:
        """Wait until the other side can no longer receive what is sent."""

    def is_quiet(self) -> bool:
        """Return whether the stream is open and no bytes wait to be received."""

    def close(self) -> None:
        """Close the stream. May be called again."""


class SocketStream:
    """A connected stream socket, which is closed with the stream.

    Its mode is left as it is: other processes may share an inherited socket, and with it the mode.
    """

    # No call waits, in either mode.
    _flags: int = socket.MSG_DONTWAIT

    # How many bytes are sent in one call at most.
    _most = sys.maxsize

    peer = ""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.sent_bytes = 0

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        return await _retried(partial(self.receive_now, buffer), self._socket, wait_readable)

    def receive_now(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        return self._socket.recv_into(buffer, 0, self._flags)

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        sock, rest = self._socket, memoryview(data)
        while rest:
            piece = rest[: self._most]
            count = await _retried(partial(sock.send, piece, self._flags), sock, wait_writable)
            self.sent_bytes += count
            rest = rest[count:]

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`."""
        buffer = memoryview(bytearray(limit))
        with suppress(OSError), trio.move_on_after(patience):
            self._socket.shutdown(socket.SHUT_WR)
            while buffer and (count := await self.receive_into(buffer)):
                buffer = buffer[count:]

    def set_low_water(self, count: int) -> None:
        """Let `wait_arrived` wait for so many bytes; for one at first."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    async def wait_arrived(self) -> None:
        """Wait until bytes have arrived, the end, or an error."""
        await wait_readable(self._socket)

    async def wait_hung_up(self) -> None:
        """See `ByteStream`."""
        await wait_hung_up_of(self._socket.fileno())

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        return not _poll(self._socket.fileno(), select.POLLIN).poll(0)

    def close(self) -> None:
        """See `ByteStream`."""
        self._socket.close()


class TlsStream(SocketStream):
    """A TLS connection after its handshake, on a non-blocking `ssl.SSLSocket`."""

    _flags = 0  # `ssl` takes no others

    # OpenSSL says that bytes have been sent when all of a call have, and a client that reads slowly
    # must not look like one that reads nothing.
    _most = 64 * 1024

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._tls = sock
        self._broken: OSError | None = None

    @property
    def certificate(self) -> dict[str, Any]:
        """The fields of the server's certificate, none where it was not verified."""
        return self._tls.getpeercert() or {}

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`. Receives all records that are there: OpenSSL returns one at a time."""
        if self._broken is not None:
            raise self._broken
        filled = await super().receive_into(buffer)
        try:
            while 0 < filled < len(buffer):
                count = self._socket.recv_into(buffer[filled:])
                if count == 0:
                    break
                filled += count
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._broken = error  # the bytes before it are good and are returned first
        return filled

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`. Says that nothing was cut off: RFC 8446 section 6.1."""
        with suppress(OSError):  # the other side need not answer
            self._tls.unwrap()
        await super().finish(limit, patience)

    def is_quiet(self) -> bool:
        """See `ByteStream`.

        Session tickets are no surplus: OpenSSL takes them without returning bytes.
        """
        try:
            self._socket.recv_into(bytearray(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False


async def start_tls(sock: socket.socket, context: ssl.SSLContext, host: str) -> TlsStream:
    """Perform the handshake on a connected non-blocking socket and return the stream.

    Raises `ssl.SSLError` or another `OSError`, with the socket closed.
    """
    with closing_on_error(sock):
        sock.getpeername()  # `ssl` would not close a socket whose connection has been reset
    tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    with closing_on_error(tls):
        await shake_hands(tls)
    return TlsStream(tls)


class FdStream:
    """Two descriptors, one for each direction: pipes, regular files, what a shell connects.

    Both stay open when the stream is closed, and their mode is left as it is: the processes that
    share them share the mode, and could not handle a change that a killed process leaves behind. A
    pipe is opened once more, with a mode of its own; what cannot be is asked first whether it is
    ready.
    """

    peer = ""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self.sent_bytes = 0
        self._own_read_fd = _reopened(read_fd, os.O_RDONLY)
        self._own_write_fd = _reopened(write_fd, os.O_WRONLY)
        self._readable = _poll(read_fd, select.POLLIN)
        self._writable = _poll(write_fd, select.POLLOUT)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        return await _retried(partial(self.receive_now, buffer), self._read_fd, wait_readable)

    def receive_now(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        if self._own_read_fd is not None:
            return os.readv(self._own_read_fd, [buffer])
        if not self._readable.poll(0):
            raise BlockingIOError
        return os.readv(self._read_fd, [buffer])

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        rest = memoryview(data)
        while rest:
            written = await _retried(partial(self._write, rest), self._write_fd, wait_writable)
            self.sent_bytes += written
            rest = rest[written:]

    def _write(self, data: memoryview) -> int:
        """Write as much as there is room for.

        While a pipe is writable, so many bytes can be written without a wait, and not one more:
        poll(2), pipe(7).
        """
        if self._own_write_fd is not None:
            return os.write(self._own_write_fd, data)
        written = 0
        while written < len(data) and self._writable.poll(0):
            written += os.write(self._write_fd, data[written : written + select.PIPE_BUF])
        if not written:
            raise BlockingIOError
        return written

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`. Pipes and files cannot be reset."""

    async def wait_hung_up(self) -> None:
        """See `ByteStream`. After the end of the requests, responses may still be read."""
        await wait_hung_up_of(self._write_fd)

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        return False

    def close(self) -> None:
        """See `ByteStream`. The descriptors that were given stay open."""
        for fd in (self._own_read_fd, self._own_write_fd):
            if fd is not None:
                os.close(fd)
        self._own_read_fd = self._own_write_fd = None


def _reopened(fd: int, flags: int) -> int | None:
    """Return another descriptor of a pipe, whose calls do not wait, None where there is none."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # it is another user's, for one


def _poll(fd: int, event: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, event)
    return poll


async def _retried(operation: Callable[[], T], fd: _Waitable, ready: _Wait) -> T:
    """Return the result of an operation, tried again each time the descriptor is `ready` for it.

    It can be cancelled only before the operation is done: what was received or accepted is not
    lost.
    """
    await checkpoint_if_cancelled()
    waited = False
    while True:
        try:
            result = operation()
        except ssl.SSLWantReadError:
            await wait_readable(fd)
        except ssl.SSLWantWriteError:
            await wait_writable(fd)
        except BlockingIOError:
            await ready(fd)
        else:
            if not waited:
                await yield_to_others()
            return result
        waited = True


async def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data` to a non-blocking pipe. Raises `OSError`."""
    rest = memoryview(data)
    while rest:
        rest = rest[await _retried(partial(os.write, fd, rest), fd, wait_writable) :]


async def wait_hung_up_of(fd: int) -> None:
    """Wait for a hang-up of `fd`: the other side can neither send nor receive.

    An epoll that is registered for no event reports hang-ups and errors alone, epoll_ctl(2); it is
    itself a descriptor to wait for.
    """
    with select.epoll() as poll:
        try:
            poll.register(fd, 0)
        except PermissionError:  # a regular file, which can be read at any time
            await trio.sleep_forever()
        await wait_readable(poll.fileno())


async def wait_first_byte(sock: socket.socket) -> bytes:
    """Wait for the first byte and return it, nothing at the end; it can still be received."""
    peek = partial(sock.recv, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return await _retried(peek, sock, wait_readable)


async def shake_hands(tls: ssl.SSLSocket) -> None:
    """Perform the handshake of a non-blocking socket. Raises `ssl.SSLError` or `OSError`."""
    await _retried(tls.do_handshake, tls, wait_readable)


async def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Wait for a connection to a non-blocking listener; return it with the peer's address."""
    return await _retried(listener.accept, listener, wait_readable)

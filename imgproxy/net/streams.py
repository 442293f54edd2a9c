"""Byte streams: sockets, TLS, pipes and files, received into the caller's memory.

trio's own streams hand out a fresh `bytes` for each read; a blob would be copied once more and the
allocator would be busy with megabytes. A `ByteStream` fills a buffer that is used again. Every
operation can be cancelled before it is done; one that need not wait lets others go first only if
they have not been let for a while.

Failures of the operating system stay `OSError`; the floor above says what they mean there.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    wait_readable,
    wait_writable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    _Waitable: TypeAlias = socket.socket | int
    _Wait: TypeAlias = Callable[[_Waitable], Awaitable[None]]

# How long tasks may go on, in seconds, while nothing makes them wait. A turn of the event loop for
# each operation would be a twentieth of the processor time of a small reply.
_TURN = 0.001
_last_turn = 0.0

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


class ByteStream(Protocol):
    """A bidirectional stream of bytes."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and give how many were put at the start of `buffer`, 0 at the end."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data`."""

    async def finish(self, limit: int, patience: float) -> None:
        """Let the other side read end of file and not a reset.

        A socket that is closed with bytes unread, or gets some later, resets the connection; up
        to `limit` bytes are read away, for `patience` seconds.
        """

    async def hung_up(self) -> None:
        """Wait until nobody can receive what is sent any more."""

    def is_quiet(self) -> bool:
        """Whether the stream is open and nothing waits to be received."""

    def close(self) -> None:
        """Give the stream back to the system. May be called again."""


class SocketStream:
    """A connected stream socket, which must be non-blocking; closed with the wire."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        sock = self._socket
        return await _retried(partial(sock.recv_into, buffer), sock, wait_readable)

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        sock, rest = self._socket, memoryview(data)
        while rest:
            rest = rest[await _retried(partial(sock.send, rest), sock, wait_writable) :]

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`."""
        buffer = memoryview(bytearray(limit))
        with suppress(OSError), trio.move_on_after(patience):
            self._socket.shutdown(socket.SHUT_WR)
            while buffer and (count := await self.receive_into(buffer)):
                buffer = buffer[count:]

    async def hung_up(self) -> None:
        """See `ByteStream`."""
        await _no_reader(self._socket.fileno())

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """See `ByteStream`."""
        self._socket.close()


class TlsStream(SocketStream):
    """A TLS connection after its handshake, on a non-blocking `ssl.SSLSocket`."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._broken: OSError | None = None

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`. Takes all records that are there: OpenSSL hands them out one by one."""
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
            self._broken = error  # what came before it is good
        return filled

    def is_quiet(self) -> bool:
        """See `ByteStream`.

        Session tickets are no surplus: OpenSSL takes them without giving bytes.
        """
        try:
            self._socket.recv_into(bytearray(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False


async def start_tls(sock: socket.socket, context: ssl.SSLContext, host: str) -> TlsStream:
    """Shake hands on a connected non-blocking socket and give the wire.

    Raises `ssl.SSLError` or another `OSError`, with the socket closed.
    """
    tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        await _retried(tls.do_handshake, tls, wait_readable)
    except BaseException:
        tls.close()
        raise
    return TlsStream(tls)


class FdStream:
    """Two descriptors, one for each direction: pipes, regular files, what a shell connects.

    Both stay open when the wire is closed, and get back the mode that they had: whoever started
    this program may share them.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._blocking = {fd: os.get_blocking(fd) for fd in (read_fd, write_fd)}
        for fd in self._blocking:
            os.set_blocking(fd, False)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        fd = self._read_fd
        return await _retried(partial(os.readv, fd, [buffer]), fd, wait_readable)

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        fd, rest = self._write_fd, memoryview(data)
        while rest:
            rest = rest[await _retried(partial(os.write, fd, rest), fd, wait_writable) :]

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`. Pipes and files cannot be reset."""

    async def hung_up(self) -> None:
        """See `ByteStream`. The end of the requests says nothing about who reads the replies."""
        await _no_reader(self._write_fd)

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        return False

    def close(self) -> None:
        """See `ByteStream`."""
        while self._blocking:
            os.set_blocking(*self._blocking.popitem())


async def _retried(operation: Callable[[], T], fd: _Waitable, ready: _Wait) -> T:
    """Do what the system may ask to be done again later, when the descriptor is `ready`.

    Cancelled only before it is done: what was received or accepted is not lost.
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
                await _take_turns()
            return result
        waited = True


async def _take_turns() -> None:
    """Let other tasks go first, if nobody did so just now."""
    global _last_turn  # noqa: PLW0603  (of all wires: the event loop is one)
    before = _last_turn
    if time.monotonic() - before >= _TURN:
        await cancel_shielded_checkpoint()
        if _last_turn == before:  # or each of many tasks would have as long for itself
            _last_turn = time.monotonic()


async def _no_reader(fd: int) -> None:
    """Wait for a hang-up of `fd`: the other side can neither send nor receive.

    An epoll that was asked for nothing reports nothing else; it is itself a descriptor to wait on.
    """
    with select.epoll() as poll:
        try:
            poll.register(fd, 0)
        except PermissionError:  # a regular file: whoever wants to read it will find it
            await trio.sleep_forever()
        await wait_readable(poll.fileno())


async def accept(listener: socket.socket) -> tuple[SocketStream, Any]:
    """Wait for a connection to a non-blocking listener; give it with the address behind it."""
    sock, address = await _retried(listener.accept, listener, wait_readable)
    sock.setblocking(False)  # noqa: FBT003  (the name says it)
    return SocketStream(sock), address

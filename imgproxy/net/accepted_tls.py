"""The server's side of TLS: an accepted connection, whose client begins with a handshake."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import BadRequestError
from imgproxy.net.streams import SocketStream, TlsStream, shake_hands, wait_first_byte

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from imgproxy.net.streams import Buffer

# Seconds for a handshake, from its first byte on.
HANDSHAKE_LIMIT = 10.0

# What a client that has been refused still sends is read, so that it gets to read why.
_DRAINED = 64 * 1024
_PATIENCE = 1.0

# The first byte of a client's record of a handshake: RFC 8446 section 5.1.
_HANDSHAKE = b"\x16"


async def _always() -> bool:
    """Return that it holds."""
    return True


class AcceptedTls:
    """A `ByteStream` over an accepted socket. The first that is received is the handshake.

    Once `still_holds` returns that what the handshake found of the client does not hold any more,
    nothing is received from it.
    """

    peer = ""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        still_holds: Callable[[], Awaitable[bool]] = _always,
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003  (the name says it)
        self._socket = sock
        self._context: ssl.SSLContext | None = context
        self._stream = SocketStream(sock)
        self._still_holds = still_holds

    @property
    def sent_bytes(self) -> int:
        """See `ByteStream`."""
        return self._stream.sent_bytes

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`. Raises `BadRequestError` for a client that does not speak TLS."""
        if self._context is not None:
            await self._begin(self._context)
            self._context = None
        count = await self._stream.receive_into(buffer)
        return count if count and await self._still_holds() else 0

    def receive_now(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        return self._stream.receive_now(buffer)

    async def _begin(self, context: ssl.SSLContext) -> None:
        first = await wait_first_byte(self._socket)
        if first not in (b"", _HANDSHAKE):  # the answer is in the clear, too
            raise BadRequestError("this port speaks TLS, and the request came without; use https")
        self._socket.getpeername()  # `ssl` would not close a socket whose connection has been reset
        tls = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._stream = TlsStream(tls)
        try:
            with trio.fail_after(HANDSHAKE_LIMIT):
                await shake_hands(tls)
        except (OSError, trio.TooSlowError) as error:
            self._stream = SocketStream(socket.socket(fileno=tls.detach()))
            await self._stream.finish(_DRAINED, _PATIENCE)
            if isinstance(error, trio.TooSlowError):
                raise TimeoutError(f"no handshake in {HANDSHAKE_LIMIT:g} seconds") from None
            raise

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        await self._stream.send(data)

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`."""
        await self._stream.finish(limit, patience)

    async def wait_hung_up(self) -> None:
        """See `ByteStream`."""
        await self._stream.wait_hung_up()

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        return self._stream.is_quiet()

    def close(self) -> None:
        """See `ByteStream`."""
        self._stream.close()

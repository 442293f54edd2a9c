"""TLS inside of another stream, which is that of a proxy that is itself reached over TLS.

OpenSSL reads and writes sockets by itself, but no other stream: bytes are passed through memory.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from imgproxy.errors import closing_on_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.net.streams import Buffer, ByteStream

_SCRATCH = 64 * 1024

T = TypeVar("T")


class NestedTlsStream:
    """A TLS connection in another stream, which is closed with it. See `ByteStream`."""

    peer = ""

    def __init__(self, outer: ByteStream, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=host)
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._broken: OSError | None = None
        self.sent_bytes = 0

    @property
    def certificate(self) -> dict[str, Any]:
        """The fields of the server's certificate, none where it was not verified."""
        return self._tls.getpeercert() or {}

    async def shake_hands(self) -> None:
        """Perform the handshake. Raises `ssl.SSLError` or another `OSError`."""
        await self._retried(self._tls.do_handshake)

    async def _retried(self, operation: Callable[[], T]) -> T:
        """Return the result of an operation, tried again each time that bytes were received."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                count = await self._outer.receive_into(self._scratch)
                if count:
                    self._received.write(self._scratch[:count])
                else:
                    self._received.write_eof()
            except ssl.SSLError:
                with suppress(OSError):
                    await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._to_send.pending:
            await self._outer.send(self._to_send.read())

    async def receive_into(self, buffer: memoryview) -> int:
        """See `ByteStream`. Receives all records that are there: OpenSSL returns one at a time."""
        if self._broken is not None:
            raise self._broken
        filled = await self._retried(lambda: self._read(buffer))
        try:
            while 0 < filled < len(buffer):
                count = self._read(buffer[filled:])
                if count == 0:
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self._broken = error  # the bytes before it are good and are returned first
        return filled

    def receive_now(self, buffer: memoryview) -> int:
        """See `ByteStream`."""
        return self._read(buffer)

    def _read(self, buffer: memoryview) -> int:
        """Return how many bytes were put into the buffer, 0 at the end: as `ssl.SSLSocket` does."""
        try:
            # typeshed has `SSLObject.read` return bytes in any case.
            return self._tls.read(len(buffer), buffer)  # type: ignore[return-value]
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0

    async def send(self, data: Buffer) -> None:
        """See `ByteStream`."""
        self.sent_bytes += len(data)
        await self._retried(lambda: self._tls.write(data))

    async def finish(self, limit: int, patience: float) -> None:
        """See `ByteStream`."""
        await self._outer.finish(limit, patience)

    async def wait_hung_up(self) -> None:
        """See `ByteStream`."""
        await self._outer.wait_hung_up()

    def is_quiet(self) -> bool:
        """See `ByteStream`."""
        return not self._tls.pending() and not self._received.pending and self._outer.is_quiet()

    def close(self) -> None:
        """See `ByteStream`."""
        self._outer.close()


async def start_tls(outer: ByteStream, context: ssl.SSLContext, host: str) -> NestedTlsStream:
    """Perform the handshake in a stream and return the inner one.

    Raises `ssl.SSLError` or another `OSError`, with the stream closed.
    """
    with closing_on_error(outer):
        stream = NestedTlsStream(outer, context, host)
        await stream.shake_hands()
    return stream

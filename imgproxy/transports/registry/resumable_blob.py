"""A blob that is received in spite of broken connections.

A body that is cut off or stalls is continued at the byte reached, at the same location or at
another. Nothing is verified here; what was received stays valid, so that whatever hashes it
continues hashing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from imgproxy.errors import Failure, UnavailableError
from imgproxy.transports.time_limit import TimeLimitError, waiting

if TYPE_CHECKING:
    from imgproxy.transports.registry.blob_part import Part

# A server may send less than it was asked for, and the next part is then asked for without a pause;
# tiny parts count as failures, since each costs a request.
MIN_PART = 64 * 1024


# In seconds: a body that nobody reads for longer than this may be given up by its server, which is
# seen when the bytes on the way have been read, so many at most.
UNREAD = 10.0
MAX_ON_THE_WAY = 16 * 1024 * 1024


class Supply(Protocol):
    """The locations that a blob is received from."""

    @property
    def name(self) -> str:
        """What stands for the blob in messages, with all locations that sent a part of it."""

    async def rest(self, offset: int, failure: Failure | None) -> Part:
        """Return the rest from a byte on; `failure` is why it is needed, None after a part.

        Raises `Failure` when all retries are used up.
        """

    def blame(self) -> None:
        """Count a failure of the location that is sending."""

    def reject(self, failure: Failure) -> bool:
        """Reject the locations that sent a part of the blob; see `Reader.reject`."""


class ResumableBlob:
    """A blob of `length` bytes that is being received, beginning with `part`. See `Reader`.

    `part` begins at byte `offset`; where `stop` is given, it ends before that byte. `size` is that
    of the first response, None where it did not announce one or is not that of the whole blob.
    """

    origin = None

    def __init__(
        self, supply: Supply, length: int, part: Part, offset: int = 0, stop: int | None = None
    ) -> None:
        self.size = part.response.size if offset == 0 and stop is None else None
        self._supply = supply
        self._length = length if stop is None else stop
        self._stop = stop
        self._response, self._promised = part
        self._position = offset
        self._last = trio.current_time()  # when something was received, or was to be
        self._excused = -1  # up to this byte, a connection may end

    @property
    def name(self) -> str:
        """See `Reader`."""
        return self._supply.name

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`. Raises `Failure` only when all retries are used up."""
        if self._stop is not None:
            buffer = buffer[: self._stop - self._position]
            if not buffer:
                return 0
        while True:
            try:
                with waiting(lambda: self.name):
                    count = await self._receive_into(buffer)
            except TimeLimitError:
                self._supply.blame()
                raise
            except Failure as failure:
                if self._position >= self._length:
                    return 0  # all bytes are there; verification compares them
                await self._continue(failure)
                continue
            if count == 0 and self._is_early_end():
                await self._continue(
                    None
                    if self._promised >= MIN_PART
                    else UnavailableError(f"{self.name}: ended after {self._position} bytes")
                )
                continue
            self._position += count
            return count

    async def _receive_into(self, buffer: memoryview) -> int:
        if trio.current_time() - self._last > UNREAD:
            self._excused = self._position + MAX_ON_THE_WAY
        try:
            return await self._response.receive_into(buffer)
        finally:
            self._last = trio.current_time()

    def _is_early_end(self) -> bool:
        """Return whether a part or a connection ended before the blob.

        Any other response that is too short is complete, and does not verify.
        """
        is_part = self._response.status == 206 or self._response.ends_by_close
        return is_part and self._position < self._length

    async def _continue(self, failure: Failure | None) -> None:
        """Replace the response by one with the rest. Raises `Failure`.

        A server that gave up what nobody read for a while has not failed.
        """
        if self._position <= self._excused:
            failure, self._excused = None, -1
        self._response.close()
        self._response, self._promised = await self._supply.rest(self._position, failure)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`."""
        return self._supply.reject(failure)

    def accept(self) -> None:
        """See `Reader`."""

    def close(self) -> None:
        """See `Reader`."""
        self._response.close()

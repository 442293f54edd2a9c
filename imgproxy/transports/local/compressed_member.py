"""Members of a compressed archive, decompressed ahead in threads while they are read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

import trio

from imgproxy.errors import UnavailableError
from imgproxy.host.blocking_calls import Job
from imgproxy.transports.local import decompression
from imgproxy.transports.readers import Content

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer
    from imgproxy.transports.local.decompressed_blocks import DecompressedBlocks
    from imgproxy.transports.local.decompression import Cursor

# What is decompressed in one go. Each reader has two buffers of this length; the more readers an
# archive has, the shorter are those of another one: two hundred have 45 MiB.
_AHEAD = 2 * 1024 * 1024
_FEW = 4
_AHEAD_OF_PART = 512 * 1024
_AHEAD_OF_MANY = 256 * 1024
_AHEAD_OF_CROWD = 64 * 1024

# One is filled while the other is read from.
_BUFFERS = 2


class CompressedMember(Content):
    """A member of a compressed archive: `size` bytes from `position` of what it decompresses to.

    While one buffer is read from, a thread fills the other. The thread needs a cursor, and their
    number is limited: a reader acquires a slot for one, and releases it once nothing is left to
    decompress, when other readers wait, or when it is closed.
    """

    def __init__(self, name: str, blocks: DecompressedBlocks, position: int, size: int) -> None:
        archive = blocks.archive
        super().__init__(name, size, archive.file.state, position)
        self._blocks = blocks
        self._archive = archive
        self._cursor: Cursor | None = None
        self._left = size  # to be decompressed
        self._is_part = False
        archive.readers.add(self)
        self._ahead = self._most_ahead = _ahead(len(archive.readers))
        self._buffers: deque[memoryview] = deque()
        self._ready = memoryview(b"")
        self._job: Job[memoryview] | None = None
        self._is_closed = False

    def between(self, offset: int, stop: int | None) -> Self:
        """See `Content`. Little is done ahead at first: the rest of a part may be unwanted."""
        super().between(offset, stop)
        self._left = self._end - self._position
        if stop is not None:
            self._is_part = True
            self._most_ahead = min(_AHEAD_OF_PART, self._most_ahead)
            self._ahead = min(_AHEAD_OF_MANY, self._most_ahead)
        return self

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        wanted = buffer[: self._end - self._position]
        if not wanted:
            await trio.lowlevel.checkpoint()
            return 0
        if not self._ready:
            if self._job is None:
                await self._archive.acquire_slot(self)
                self._begin()
            assert self._job is not None  # noqa: S101  (it has begun)
            self._ready = await self._job.result()
            self._job = None
            if self._left and self._archive.has_slot(self):
                self._begin()
            else:
                self.park()
        count = min(len(wanted), len(self._ready))
        wanted[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._position += count
        return count

    def _decompress(self) -> memoryview:
        """Return the next bytes, a buffer of them. One thread at a time does this."""
        buffer = self._next_buffer()
        filled = 0
        while filled < len(buffer) and not self._is_closed:
            piece = self._piece(len(buffer) - filled)
            if not piece and not self._is_closed:
                raise UnavailableError(
                    f"{self.name}: the archive has become shorter while it was read"
                )
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._left -= len(piece)
        return buffer

    def _next_buffer(self) -> memoryview:
        count = min(self._ahead, self._left)
        oldest = self._buffers.pop() if len(self._buffers) == _BUFFERS else memoryview(b"")
        self._buffers.appendleft(oldest if len(oldest) >= count else memoryview(bytearray(count)))
        self._ahead = min(2 * self._ahead, self._most_ahead)
        return self._buffers[0][:count]

    def _piece(self, limit: int) -> Buffer:
        """Return some of the next bytes; none at the end of the archive, or after `close`."""
        position = self._start + self._end - self._left
        if self._is_part:
            return self._blocks.read(position, self._is_unwanted)[:limit]
        if self._cursor is None:
            self._cursor = self._archive.cursor(position, self._is_unwanted)
        return self._cursor.read_some(min(limit, decompression.PIECE))

    def _is_unwanted(self) -> bool:
        return self._is_closed

    def _begin(self) -> None:
        self._job = Job(self._decompress, self._pause)

    def _pause(self) -> None:
        """Release the slot if it is not needed or another reader waits; keep what is ready."""
        if self._is_closed or self._archive.is_crowded():
            self.park()

    @property
    def is_idle(self) -> bool:
        """See `decompression.SlotHolder`."""
        return self._job is None or self._job.is_done

    def park(self) -> None:
        """See `decompression.SlotHolder`."""
        if self._is_closed:
            self._job = None  # it leads to this, which holds megabytes
        elif self._cursor is not None:
            self._archive.keep(self._cursor)
        self._cursor = None
        self._archive.release_slot(self)

    def close(self) -> None:
        """Stop the thread, and release the slot as soon as it has stopped. May be called again."""
        self._is_closed = True
        self._archive.readers.discard(self)
        if self.is_idle:
            self.park()


def _ahead(readers: int) -> int:
    """Return the length of the buffers of the last of so many readers of an archive."""
    if readers <= _FEW:
        return _AHEAD
    return _AHEAD_OF_MANY if readers <= decompression.MAX_CURSORS else _AHEAD_OF_CROWD

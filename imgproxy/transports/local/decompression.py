"""Random access to the decompressed content of a file, without a copy of it.

gzip (RFC 1952), Zstandard (RFC 8878), bzip2 and xz. The file is read once from beginning to end,
and on the way points are recorded from which decompression can be resumed. A gzip stream can be
resumed anywhere, with a copy of the decompressor (its window, about 40 KB); the others at the start
of a stream or frame. A decompressor that is no longer used is kept for the next reader that
continues near its position, so that reading in order costs one pass. `decompressed_blocks` reads
parts.

Everything but the slots waits for disk and processor, and is called from worker threads.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakSet

import trio

from imgproxy.errors import InvalidError, UnavailableError, clean
from imgproxy.specs.compression import CompressionError, Gzip, decompress

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.host.files import OpenFile
    from imgproxy.specs.compression import Codec, Decompressor

# Compressed bytes that are handed to the decompressor at once. A stream begins with few, because
# what is too much for it is copied, and a file may be made of nothing but tiny streams.
_MIN_FEED = 4 * 1024
_MAX_FEED = 64 * 1024

# Decompressed bytes that are asked for at once. The C library returns what a thread frees beyond
# 128 KiB to the system, and larger pieces would cost a fourth of the time in page faults.
PIECE = 64 * 1024

# Bytes between points to resume from at first; doubled each time that there are too many points.
# 64 of gzip's take 3 MB, and are a thirtieth of the file apart, or less.
_SPACING = 8 * 1024 * 1024
_MAX_POINTS = 64

# Decompressors that are kept unused; each has its window.
_MAX_IDLE = 2

# Decompressors in use at the same time, each with its window. A reader that comes later gets the
# slot of one that is idle.
MAX_CURSORS = 16

# What an archive may decompress to; as much as may be unpacked of an image. A small file that is a
# gigabyte of zeros is no attack where nothing is written and no more than pieces are kept, and some
# images have such layers. A terabyte would keep a processor busy for hours.
MAX_SIZE = 256 * 1024 * 1024 * 1024


class ResumePoint(NamedTuple):
    """A point to resume from: `position` in the decompressed content, `offset` in the file."""

    position: int
    offset: int
    decompressor: Gzip | None = None


class SlotHolder(Protocol):
    """A reader that holds a slot for a cursor, and can do without it for a while."""

    @property
    def is_idle(self) -> bool:
        """Whether no thread uses the cursor at the moment."""

    def park(self) -> None:
        """Return the cursor and release the slot."""


class CompressedFile:
    """A compressed file, read by cursors.

    The one of `first_pass` must have reached the end before others are asked for. Cursors are used
    in threads; a reader acquires a slot first, so that there are at most `MAX_CURSORS` at a time.
    """

    def __init__(self, file: OpenFile, codec: Codec) -> None:
        self.file = file
        self.codec = codec
        self._points = [ResumePoint(0, 0)]
        self._spacing = _SPACING
        self.slots = trio.CapacityLimiter(MAX_CURSORS)
        self._holders: list[SlotHolder] = []
        self.readers: WeakSet[SlotHolder] = WeakSet()  # those that are not closed
        self._idle: list[Cursor] = []
        self._lock = threading.Lock()

    async def acquire_slot(self, holder: SlotHolder) -> None:
        """Wait until a reader may have a cursor: at most as long as another takes for a piece."""
        if not self.slots.available_tokens:
            idle = next((each for each in self._holders if each.is_idle), None)
            if idle is not None:
                idle.park()
        await self.slots.acquire_on_behalf_of(holder)
        self._holders.append(holder)

    def release_slot(self, holder: SlotHolder) -> None:
        """Release the slot of a reader, if it has one."""
        if holder in self._holders:
            self._holders.remove(holder)
            self.slots.release_on_behalf_of(holder)

    def has_slot(self, holder: SlotHolder) -> bool:
        """Return whether a reader may have a cursor."""
        return holder in self._holders

    def is_crowded(self) -> bool:
        """Return whether a reader waits for a slot."""
        return self.slots.statistics().tasks_waiting > 0

    def first_pass(self) -> Cursor:
        """Return a cursor at the beginning that records resume points on its way."""
        return Cursor(self, self._points[0], self._record)

    def _record(self, point: Callable[[], ResumePoint], position: int) -> None:
        if position < self._points[-1].position + self._spacing:
            return
        self._points.append(point())
        if len(self._points) > _MAX_POINTS:
            self._points = self._points[::2]
            self._spacing *= 2

    def point_before(self, position: int) -> ResumePoint:
        """Return the nearest point to resume from."""
        following = bisect_right(self._points, position, key=lambda point: point.position)
        return self._points[following - 1]

    def cursor(self, position: int, is_unwanted: Callable[[], bool] = lambda: False) -> Cursor:
        """Return a cursor at `position`, resumed from the nearest point before it.

        It is returned before it gets there once `is_unwanted` returns true.
        """
        point = self.point_before(position)
        with self._lock:
            kept = [each for each in self._idle if point.position <= each.position <= position]
            cursor = max(kept, key=lambda each: each.position, default=None)
            if cursor is not None:
                self._idle.remove(cursor)
        if cursor is None:
            cursor = Cursor(self, point)
        while cursor.position < position and not is_unwanted():
            before = cursor.position
            cursor.skip(min(position - before, PIECE))
            if cursor.position == before:
                break
        return cursor

    def keep(self, cursor: Cursor) -> None:
        """Keep a cursor that is no longer used, for the next `cursor` near its position."""
        with self._lock:
            self._idle = [*self._idle, cursor][-_MAX_IDLE:]


class Cursor:
    """A position in the decompressed content of a file, moving forward only.

    Fulfils `tar.Stream`. Raises `InvalidError` for a file that is broken or ends too early.
    """

    def __init__(
        self,
        compressed: CompressedFile,
        point: ResumePoint,
        record: Callable[[Callable[[], ResumePoint], int], None] | None = None,
    ) -> None:
        self.position = point.position
        self._file = compressed.file
        self._codec = compressed.codec
        self._record = record
        self._offset = point.offset
        self._feed = _MIN_FEED
        self._decompressor: Decompressor | None = None
        if point.decompressor is not None:
            self._decompressor = point.decompressor.copy()

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        pieces = []
        while size and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, size: int) -> None:
        """Skip the next `size` bytes, fewer only at the end."""
        end = self.position + size
        self._refuse_beyond(end)
        while self.position < end and self.read_some(min(end - self.position, PIECE)):
            pass

    def read_some(self, limit: int) -> bytes:
        """Return some of the next bytes, `limit` at most; none at the end."""
        while True:
            if self._decompressor is None and not self._begin():
                return b""
            assert self._decompressor is not None  # noqa: S101  (it has begun)
            piece, is_starved = self._decompress(self._decompressor, limit)
            self.position += len(piece)
            if self._decompressor.eof:
                self._decompressor = None
            if piece:
                self._refuse_beyond(self.position)
                if self._record is not None and isinstance(self._decompressor, Gzip):
                    self._record(self._point, self.position)
                return piece
            if is_starved and self._decompressor is not None:
                raise self._broken("it ends in the middle")

    def _decompress(self, decompressor: Decompressor, limit: int) -> tuple[bytes, bool]:
        """Return the next output, and whether it needed input of which there is no more."""
        data, needs_input = b"", decompressor.needs_input
        if needs_input:
            data = self._file.read(self._feed, self._offset)
            self._offset += len(data)
            self._feed = min(2 * self._feed, _MAX_FEED)
        try:
            piece = decompress(decompressor, data, limit, clean(self._file.path))
        except CompressionError as error:
            raise self._broken(str(error)) from None
        self._offset -= len(decompressor.unused_data)
        return piece, needs_input and not data

    def _begin(self) -> bool:
        """Begin the next stream; return whether there is one. Several in a file count as one."""
        if self.position or self._offset:
            self._skip_padding()
        if self._offset >= self._file.size:
            return False
        if self._record is not None:
            self._record(self._point, self.position)
        self._decompressor = self._codec.new()
        self._feed = _MIN_FEED
        return True

    def _skip_padding(self) -> None:
        """Skip the zeros with which tapes and tools fill up the last block."""
        while zeros := self._file.read(_MIN_FEED, self._offset):
            rest = zeros.lstrip(b"\0")
            self._offset += len(zeros) - len(rest)
            if rest:
                return

    def _point(self) -> ResumePoint:
        copy = self._decompressor.copy() if isinstance(self._decompressor, Gzip) else None
        return ResumePoint(self.position, self._offset, copy)

    def _refuse_beyond(self, end: int) -> None:
        if end > MAX_SIZE:
            raise InvalidError(
                f"{clean(self._file.path)}: leads to byte {end} of what it decompresses to, beyond"
                f" the limit of {MAX_SIZE >> 30} GiB",
                code="SIZE_INVALID",
            )

    def _broken(self, reason: str) -> InvalidError | UnavailableError:
        """Return what to raise for a file that is broken, or was changed meanwhile."""
        try:
            self._file.check()
        except UnavailableError as error:
            return error
        return InvalidError(
            f"{clean(self._file.path)}: inflating {self._codec.name} at byte {self._offset}:"
            f" {clean(reason)}",
            code="ARCHIVE_INVALID",
        )

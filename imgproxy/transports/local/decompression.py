"""What a compressed file inflates to, at any offset, without a copy of it.

gzip (RFC 1952), Zstandard (RFC 8878), bzip2 and xz. The file is gone through once from beginning to
end; on the way, places are noted from which inflating can be taken up again. A gzip stream can be
left anywhere, with a copy of the decompressor (its window, about 40 KB); the others at the start of
a stream or frame. What has inflated up to somewhere is kept for whoever goes on from there, so that
reading in order costs one pass.

All of it waits for disk and processor, and is called from worker threads.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from imgproxy.errors import InvalidError, UnavailableError, UnsupportedFormatError, clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.host.files import OpenFile

# Compressed bytes that are handed to the decompressor at once. A stream begins with few, because
# what is too much for it is copied, and a file may be made of nothing but tiny streams.
_MIN_FEED = 4 * 1024
_MAX_FEED = 64 * 1024

# Inflated bytes that are asked for at once. The C library gives what is freed beyond 128 KiB in a
# thread back to the system, and larger pieces would cost a fourth of the time in page faults.
PIECE = 64 * 1024

# Places to take up inflating again: so far apart at first, and twice as far each time that there
# are too many. 64 of gzip's take 3 MB; they are a thirtieth of the file from one another, or less.
_SPACING = 8 * 1024 * 1024
_MAX_POINTS = 64

# Decompressors that nobody uses at the moment; each has its window.
_MAX_IDLE = 2

# Decompressors at the same time, each with its window. Who comes later gets that of a reader which
# nobody reads from at the moment.
MAX_CURSORS = 16

# A file of images inflates to a few times its size. From here on, one that claims to be more than
# so many times as large is a bomb.
_SUSPECT_SIZE = 1024 * 1024 * 1024
_MAX_RATIO = 250

# What zstd calls --long=27, and xz -9 stays below it.
_WINDOW_LOG = 27
_MAX_MEMORY = 1 << _WINDOW_LOG


class Decompressor(Protocol):
    """One stream's, as `bz2.BZ2Decompressor` has it."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream has been reached."""

    @property
    def unused_data(self) -> bytes:
        """What was given and not used up; before the end only if it must be given again."""

    @property
    def needs_input(self) -> bool:
        """Whether more can come out only if more is put in."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Give what comes out next."""


class _Gzip:
    """zlib's object as a `Decompressor` that can be copied."""

    needs_input = True

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(wbits=31)
        self.decompress = self._inner.decompress

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data or self._inner.unconsumed_tail

    def copy(self) -> _Gzip:
        """Give another one in the same state."""
        twin = _Gzip.__new__(_Gzip)
        twin._inner = self._inner.copy()  # noqa: SLF001  (its own kind)
        twin.decompress = twin._inner.decompress  # noqa: SLF001
        return twin


def _bzip2() -> Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _xz() -> Decompressor:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MEMORY)


def _zstd() -> Decompressor:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError:  # the program as one file has no extension modules
            raise UnsupportedFormatError(
                "zstd is read with the module backports.zstd, or by Python 3.14 and newer: install"
                " that for this Python"
            ) from None

    limit = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    return zstd.ZstdDecompressor(options=limit)  # type: ignore[no-any-return,unused-ignore]


class Codec(NamedTuple):
    """A compression: its name in messages, and a decompressor for the next stream."""

    name: str
    new: Callable[[], Decompressor]


_CODECS = {
    b"\x1f\x8b": Codec("gzip", _Gzip),
    b"\x28\xb5\x2f\xfd": Codec("zstd", _zstd),
    b"BZh": Codec("bzip2", _bzip2),
    b"\xfd7zXZ\0": Codec("xz", _xz),
    **{bytes([0x50 + n, 0x2A, 0x4D, 0x18]): Codec("zstd", _zstd) for n in range(16)},
}
_UNREAD = {b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress", b"LZIP": "lzip"}


def codec(path: str, head: bytes) -> Codec | None:
    """Give the compression of a file that begins with these bytes, None for a plain one.

    Raises `UnsupportedFormatError` for one that is not read.
    """
    for magic, name in _UNREAD.items():
        if head.startswith(magic):
            raise UnsupportedFormatError(
                f"{clean(path)} is compressed with {name}, which is not read; gzip, zstd, bzip2"
                " and xz are"
            )
    return next((each for magic, each in _CODECS.items() if head.startswith(magic)), None)


class _Point(NamedTuple):
    """A place to take up inflating: `position` in what comes out, `at` in the file."""

    position: int
    at: int
    decompressor: _Gzip | None = None


class Holder(Protocol):
    """Who has a cursor, and can do without it for a while."""

    @property
    def is_idle(self) -> bool:
        """Whether it does not use the cursor at the moment."""

    def park(self) -> None:
        """Give the cursor back."""


class Inflated:
    """A compressed file that has been gone through once, by the cursor that `first_pass` gives."""

    def __init__(self, file: OpenFile, codec: Codec) -> None:
        self.file = file
        self.codec = codec
        self._points = [_Point(0, 0)]
        self._spacing = _SPACING
        self.places = trio.CapacityLimiter(MAX_CURSORS)
        self._holders: list[Holder] = []
        self._idle: list[Cursor] = []
        self._lock = threading.Lock()

    async def admit(self, holder: Holder) -> None:
        """Wait until a reader may have a cursor, which takes as long as one piece of another's."""
        if not self.places.available_tokens:
            idle = next((each for each in self._holders if each.is_idle), None)
            if idle is not None:
                idle.park()
        await self.places.acquire_on_behalf_of(holder)
        self._holders.append(holder)

    def dismiss(self, holder: Holder) -> None:
        """Take back the place of a reader, if it has one."""
        if holder in self._holders:
            self._holders.remove(holder)
            self.places.release_on_behalf_of(holder)

    def holds(self, holder: Holder) -> bool:
        """Whether a reader may have a cursor."""
        return holder in self._holders

    def is_crowded(self) -> bool:
        """Whether somebody waits to be admitted."""
        return self.places.statistics().tasks_waiting > 0

    def first_pass(self) -> Cursor:
        """Give a cursor at the beginning, which notes on its way where others can begin."""
        return Cursor(self, self._points[0], self._note)

    def _note(self, point: Callable[[], _Point], position: int) -> None:
        if position < self._points[-1].position + self._spacing:
            return
        self._points.append(point())
        if len(self._points) > _MAX_POINTS:
            self._points = self._points[::2]
            self._spacing *= 2

    def cursor(self, position: int, is_unwanted: Callable[[], bool] = lambda: False) -> Cursor:
        """Give a cursor at `position`, from the nearest place before it.

        It does not get there if `is_unwanted` says so on the way.
        """
        at = bisect_right(self._points, position, key=lambda point: point.position)
        point = self._points[at - 1]
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
        """Take back a cursor that nobody uses any more."""
        with self._lock:
            self._idle = [*self._idle, cursor][-_MAX_IDLE:]


class Cursor:
    """A place in what a file inflates to, that goes forward only: a `spec.tar.Stream`.

    Raises `InvalidError` for what is no whole compressed file.
    """

    def __init__(
        self,
        inflated: Inflated,
        point: _Point,
        note: Callable[[Callable[[], _Point], int], None] | None = None,
    ) -> None:
        self.position = point.position
        self._file = inflated.file
        self._codec = inflated.codec
        self._note = note
        self._at = point.at
        self._feed = _MIN_FEED
        self._decompressor: Decompressor | None = None
        if point.decompressor is not None:
            self._decompressor = point.decompressor.copy()

    def read(self, size: int) -> bytes:
        """Give the next bytes, fewer than `size` only at the end."""
        pieces = []
        while size and (piece := self.some(size)):
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, size: int) -> None:
        """Leave bytes out; fewer than `size` at the end."""
        end = self.position + size
        while self.position < end and self.some(min(end - self.position, PIECE)):
            pass

    def some(self, limit: int) -> bytes:
        """Give some of the next bytes, `limit` at most; none at the end."""
        while True:
            if self._decompressor is None and not self._begin():
                return b""
            assert self._decompressor is not None  # noqa: S101  (it has begun)
            piece, is_starved = self._inflate(self._decompressor, limit)
            self.position += len(piece)
            if self._decompressor.eof:
                self._decompressor = None
            if piece:
                self._refuse_bomb()
                if self._note is not None and isinstance(self._decompressor, _Gzip):
                    self._note(self._point, self.position)
                return piece
            if is_starved and self._decompressor is not None:
                raise self._broken("it ends in the middle")

    def _inflate(self, decompressor: Decompressor, limit: int) -> tuple[bytes, bool]:
        """Give what comes out, and whether nothing was left to put in."""
        data, wants_input = b"", decompressor.needs_input
        if wants_input:
            data = self._file.read(self._feed, self._at)
            self._at += len(data)
            self._feed = min(2 * self._feed, _MAX_FEED)
        try:
            piece = decompressor.decompress(data, limit)
        except Exception as error:  # noqa: BLE001  (each library has its own, or the system's)
            raise self._broken(str(error)) from None
        self._at -= len(decompressor.unused_data)
        return piece, wants_input and not data

    def _begin(self) -> bool:
        """Begin the next stream, if there is one: several in a file count as one."""
        if self.position or self._at:
            self._skip_padding()
        if self._at >= self._file.size:
            return False
        if self._note is not None:
            self._note(self._point, self.position)
        self._decompressor = self._codec.new()
        self._feed = _MIN_FEED
        return True

    def _skip_padding(self) -> None:
        """Leave out zeros, with which tapes and tools fill up the last block."""
        while zeros := self._file.read(_MIN_FEED, self._at):
            rest = zeros.lstrip(b"\0")
            self._at += len(zeros) - len(rest)
            if rest:
                return

    def _point(self) -> _Point:
        copy = self._decompressor.copy() if isinstance(self._decompressor, _Gzip) else None
        return _Point(self.position, self._at, copy)

    def _refuse_bomb(self) -> None:
        if self.position > _SUSPECT_SIZE and self.position > _MAX_RATIO * self._at:
            raise InvalidError(
                f"{clean(self._file.path)}: {self._at} compressed bytes inflate to more than"
                f" {_MAX_RATIO} times as many, which no image does",
                code="SIZE_INVALID",
            )

    def _broken(self, reason: str) -> InvalidError | UnavailableError:
        """Give what to raise for a file that does not inflate, or has been changed meanwhile."""
        try:
            self._file.check()
        except UnavailableError as error:
            return error
        if "memory" in reason.lower():
            reason += f"; more than {_MAX_MEMORY >> 20} MiB for a window are refused"
        return InvalidError(
            f"{clean(self._file.path)}: inflating {self._codec.name} at byte {self._at}:"
            f" {clean(reason)}",
            code="ARCHIVE_INVALID",
        )

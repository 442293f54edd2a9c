"""The content of a layer in order, decompressed as it comes: a `tar_fields.Stream`.

The compression is told by the content. Several streams in a row, as parallel compressors write
them, are one, and zeros after the last, with which tapes are filled up, are nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import InvalidError
from imgproxy.specs import compression
from imgproxy.specs.compression import CompressionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.compression import Buffer, Decompressor
    from imgproxy.unpacking.limits import Limits

# Compressed bytes that are handed to a decompressor at once. A stream begins with few, because what
# it does not want is copied, and a layer may be made of nothing but tiny streams.
_MIN_FEED = 4 * 1024
_MAX_FEED = 128 * 1024

# Decompressed bytes that are asked for at once. To hand a piece from one thread to another takes
# some system calls: with pieces of 64 KiB, a large layer takes 4 % more processor time.
PIECE = 256 * 1024


class LayerStream:
    """The decompressed content of a layer. `position` is the offset of the next byte.

    `read_more` returns the next bytes of the blob, none at the end; they are valid until it is
    called again. `name` is that of the layer in messages. `limits` counts what comes out. `watch`,
    if given, is called with all of it, in order. All methods raise `Failure`: `InvalidError` for a
    broken compression or one too many bytes, and what `read_more` raises.
    """

    def __init__(
        self,
        name: str,
        read_more: Callable[[], Buffer],
        limits: Limits,
        watch: Callable[[bytes], object] | None = None,
    ) -> None:
        self.position = 0
        self._name = name
        self._read_more = read_more
        self._limits = limits
        self._watch = watch
        self._raw = memoryview(b"")  # of the blob, from `_used` on not used yet
        self._used = 0
        self._feed = _MIN_FEED
        self._decompressor: Decompressor | None = None
        self._has_begun = False
        self._ahead = b""  # decompressed, and from `_at` on not read yet
        self._at = 0
        self._codec = compression.codec(name, self._head())

    @property
    def compression(self) -> str:
        """The name of the compression, empty for plain content."""
        return self._codec.name if self._codec else ""

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""
        end = self._at + size
        if end <= len(self._ahead):  # of headers, nearly always
            piece = self._ahead[self._at : end]
            self._at = end
            self.position += size
            return piece
        pieces = []
        while size and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, limit: int = PIECE) -> bytes:
        """Return some of the next bytes, `limit` at most; none at the end alone."""
        if self._at == len(self._ahead):
            self._ahead, self._at = self._next(), 0
        piece = self._ahead[self._at : self._at + limit]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def peek(self, size: int) -> bytes:
        """Return the next bytes without moving on, fewer than `size` only at the end."""
        while len(self._ahead) - self._at < size and (piece := self._next()):
            self._ahead, self._at = self._ahead[self._at :] + piece, 0
        return self._ahead[self._at : self._at + size]

    def skip(self, size: int) -> None:
        """Skip bytes, fewer than `size` only at the end."""
        while size and (piece := self.read_some(size)):
            size -= len(piece)

    def drain(self) -> None:
        """Read to the end of the blob, so that all of it has been verified."""
        while self.read_some():
            pass

    def _next(self) -> bytes:
        """Return the next piece of the content, empty at the end."""
        if self._codec is None:
            piece = bytes(self._more(PIECE))
            self._used += len(piece)
        else:
            piece = self._decompressed()
        self._limits.add_bytes(len(piece), self._name)
        if self._watch is not None:
            self._watch(piece)
        return piece

    def _decompressed(self) -> bytes:
        while True:
            if self._decompressor is None and not self._begin():
                return b""
            assert self._decompressor is not None  # noqa: S101  (it has begun)
            needs_input = self._decompressor.needs_input
            data = self._more(self._feed) if needs_input else memoryview(b"")
            try:
                piece = compression.decompress(self._decompressor, data, PIECE, self._name)
            except CompressionError as error:
                raise self._broken(str(error)) from None
            # What it had taken before, and does not want at its end, is that before `_used`.
            self._used += len(data) - len(self._decompressor.unused_data)
            self._feed = min(2 * self._feed, _MAX_FEED)
            if self._decompressor.eof:
                self._decompressor = None
            if piece:
                return piece
            if self._decompressor is not None and needs_input and not data:
                raise self._broken("it ends in the middle")

    def _begin(self) -> bool:
        """Begin the next of the streams in a row; return whether there is one."""
        assert self._codec is not None  # noqa: S101  (there is a compression)
        while self._has_begun and bytes(self._more(1)) == b"\0":
            zeros = bytes(self._more(_MAX_FEED))
            self._used += len(zeros) - len(zeros.lstrip(b"\0"))
        if not self._more(1):
            return False
        self._has_begun = True
        self._decompressor = self._codec.new()
        self._feed = _MIN_FEED
        return True

    def _more(self, limit: int) -> memoryview:
        """Return bytes of the blob that have not been used, none at the end."""
        if self._used == len(self._raw):
            self._raw, self._used = memoryview(self._read_more()), 0
        return self._raw[self._used : self._used + limit]

    def _head(self) -> bytes:
        """Return the first bytes of the blob, without using them."""
        head = b""
        while len(head) < compression.HEAD and (more := self._read_more()):
            head += more
        self._raw = memoryview(head)
        return head[: compression.HEAD]

    def _broken(self, reason: str) -> InvalidError:
        assert self._codec is not None  # noqa: S101  (there is a compression)
        return InvalidError(
            f"{self._name}: inflating {self._codec.name} at byte {self.position} of what comes"
            f" out: {reason}",
            code="ARCHIVE_INVALID",
        )

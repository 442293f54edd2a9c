"""What files are compressed with: gzip (RFC 1952), Zstandard (RFC 8878), bzip2 and xz.

A compression is told by the first bytes, never by a name or a media type. All decompressors have
the same interface, a limit for their memory, and fail in the same way.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from imgproxy.errors import UnsupportedFormatError, clean, shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    Buffer = bytes | bytearray | memoryview

# So many bytes of a file tell how it is compressed.
HEAD = 6

# zstd's --long=27; xz -9 stays below it.
WINDOW_LOG = 27
MAX_MEMORY = 1 << WINDOW_LOG

# How zstd says that the system has no more memory; the other libraries raise `MemoryError`.
_NO_MEMORY = "not enough memory"


class CompressionError(ValueError):
    """The stream is broken, or needs more memory than is allowed."""


class Decompressor(Protocol):
    """A decompressor for one stream, with the interface of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream has been reached."""

    @property
    def unused_data(self) -> bytes:
        """Input that was not consumed; before the end, only input that must be passed again."""

    @property
    def needs_input(self) -> bool:
        """Whether more output needs more input."""

    def decompress(self, data: Buffer, max_length: int) -> bytes:
        """Return the next output, at most `max_length` bytes, after adding `data` to the input."""


class Gzip:
    """zlib's object as a `Decompressor` that can be copied."""

    needs_input = True

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(wbits=31)
        self.decompress = self._inner.decompress

    @property
    def eof(self) -> bool:
        """See `Decompressor`."""
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        """See `Decompressor`."""
        return self._inner.unused_data or self._inner.unconsumed_tail

    def copy(self) -> Gzip:
        """Return another one in the same state."""
        copied = Gzip.__new__(Gzip)
        copied._inner = self._inner.copy()  # noqa: SLF001  (of its own class)
        copied.decompress = copied._inner.decompress  # noqa: SLF001
        return copied


def _bzip2() -> Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _xz() -> Decompressor:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)


def _zstd() -> Decompressor:
    zstd = _zstd_module()
    limit = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return zstd.ZstdDecompressor(options=limit)  # type: ignore[no-any-return]


@cache
def _zstd_module() -> Any:  # noqa: ANN401  (of the standard library, or another one)
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        try:
            from backports import zstd
        except ImportError as error:  # the program as one file has no extension modules
            raise shortage("importing zstd", error) or UnsupportedFormatError(
                "zstd needs the module backports.zstd, or Python 3.14 and newer: install that"
                " module for this Python"
            ) from None
    return zstd


class Codec(NamedTuple):
    """A compression: its name in messages, and a decompressor for the next stream."""

    name: str
    new: Callable[[], Decompressor]


CODECS = {
    b"\x1f\x8b": Codec("gzip", Gzip),
    b"\x28\xb5\x2f\xfd": Codec("zstd", _zstd),
    b"BZh": Codec("bzip2", _bzip2),
    b"\xfd7zXZ\0": Codec("xz", _xz),
    **{bytes([0x50 + n, 0x2A, 0x4D, 0x18]): Codec("zstd", _zstd) for n in range(16)},
}
UNSUPPORTED = {b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress", b"LZIP": "lzip"}


def codec(path: str, head: bytes) -> Codec | None:
    """Return the compression of a file that begins with `head`, None for an uncompressed one.

    Raises `UnsupportedFormatError` for a compression that is not supported.
    """
    for magic, name in UNSUPPORTED.items():
        if head.startswith(magic):
            raise UnsupportedFormatError(
                f"{clean(path)} is compressed with {name}, which is not supported; gzip, zstd,"
                " bzip2 and xz are"
            )
    return next((each for magic, each in CODECS.items() if head.startswith(magic)), None)


def decompress(decompressor: Decompressor, data: Buffer, limit: int, name: str) -> bytes:
    """Return the next output of a stream, at most `limit` bytes, after adding to its input.

    `name` is that of the file in messages. Raises `CompressionError`, `MemoryError` and
    `ShortageError`.
    """
    try:
        return decompressor.decompress(data, limit)
    except Exception as error:  # noqa: BLE001  (each library raises its own, or OSError)
        reason = str(error)
        if reason.endswith(_NO_MEMORY):
            raise MemoryError from None
        short = shortage(name, error)
        if short is not None:
            raise short from None
        if "memory" in reason.lower():
            reason += f"; more than {MAX_MEMORY >> 20} MiB for a window are refused"
        raise CompressionError(reason) from None

"""The content of a layer, decompressed as it comes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support import archives
from support.archives import COMPRESSIONS
from support.effort import some
from support.opened import BROKEN, UNSUPPORTED, refusing

from imgproxy.errors import InvalidError
from imgproxy.unpacking.layer_stream import PIECE, LayerStream
from imgproxy.unpacking.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = b"".join(
    random.Random(n).randbytes(1000) + b"what comes again and again " * 40 for n in range(80)
)
LARGE = 1 << 40


def pieces_of(content: bytes, size: int) -> Callable[[], memoryview]:
    """Return what gives content in pieces, each of which is overwritten when the next is asked."""
    buffer = bytearray(size)

    def give() -> Iterator[memoryview]:
        for at in range(0, len(content), size):
            piece = content[at : at + size]
            buffer[:] = b"\xaa" * size
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
        while True:
            yield memoryview(b"")

    return give().__next__


def stream_of(content: bytes, size: int = 1 << 20, limit: int = LARGE) -> LayerStream:
    return LayerStream("layer", pieces_of(content, size), Limits(limit, 1))


@pytest.mark.parametrize("size", some([5, 1, 2, 100, 4096, 1 << 20]))
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_content_is_what_was_compressed(compression: str, size: int) -> None:
    content = CONTENT[:3000] if size < 100 else CONTENT
    stream = stream_of(COMPRESSIONS[compression](content), size)
    assert stream.compression == ("" if compression == "plain" else compression.partition(" ")[0])
    assert stream.read(10) == content[:10]
    stream.skip(500)
    assert stream.position == 510
    assert stream.read(700) == content[510:1210]
    rest = b"".join(iter(lambda: stream.read_some(999), b""))
    assert rest == content[1210:]
    assert (stream.read(1), stream.position) == (b"", len(content))


@pytest.mark.parametrize("compression", some(["gzip", "bzip2", "xz", "zstd"]))
def test_streams_in_a_row_are_one_and_padding_is_nothing(compression: str) -> None:
    packed = COMPRESSIONS[compression]
    large = CONTENT * 3
    row = packed(b"a") + packed(large) + packed(b"") + bytes(PIECE * 3) + packed(b"b") + bytes(9)
    for size in (777, 1 << 20):
        stream = stream_of(row, size)
        assert stream.read(1 << 30) == b"a" + large + b"b"


def test_what_is_shorter_than_a_mark_is_plain() -> None:
    assert stream_of(b"\x1f").read(9) == b"\x1f"
    assert stream_of(b"").read(9) == b""


@pytest.mark.parametrize("compression", ["gzip", "zstd", "bzip2", "xz"])
def test_what_is_broken_or_cut_is_refused(compression: str) -> None:
    packed = COMPRESSIONS[compression](CONTENT)
    for broken in (packed[:-5], packed[: len(packed) // 2], packed + b"garbage"):
        with refusing(BROKEN, "layer: inflating", compression):
            stream_of(broken).drain()


def test_a_compression_that_is_not_read_is_named() -> None:
    with refusing(UNSUPPORTED, "layer is compressed with lz4"):
        stream_of(archives.lz4_stored(b"x"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_comes_out_is_counted_and_watched(compression: str) -> None:
    packed = COMPRESSIONS[compression](CONTENT)
    seen: list[bytes] = []
    stream = LayerStream("layer", pieces_of(packed, 999), Limits(len(CONTENT), 1), seen.append)
    stream.read(5)
    stream.drain()
    assert b"".join(seen) == CONTENT
    with pytest.raises(InvalidError, match="--max-size"):
        stream_of(packed, limit=len(CONTENT) - 1).drain()


def test_no_more_comes_out_than_the_limit_and_a_piece() -> None:
    """However much it would be."""
    bomb = COMPRESSIONS["gzip"](bytes(4 << 20))
    limits = Limits(1 << 20, 1)
    with pytest.raises(InvalidError, match="more than 1048576 bytes"):
        LayerStream("layer", pieces_of(bomb, 1 << 20), limits).skip(1 << 62)
    assert limits.size <= (1 << 20) + PIECE


def test_tiny_streams_in_a_row_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream does not want is copied, and is little therefore."""
    from imgproxy.specs import compression

    copied = []
    original = compression.decompress

    def watched(decompressor: compression.Decompressor, *rest: object) -> bytes:
        piece = original(decompressor, *rest)  # type: ignore[arg-type]
        copied.append(len(decompressor.unused_data))
        return piece

    monkeypatch.setattr(compression, "decompress", watched)
    stream = stream_of(COMPRESSIONS["gzip"](b"x") * 5000)
    assert stream.read(1 << 20) == b"x" * 5000
    assert max(copied) <= 4096

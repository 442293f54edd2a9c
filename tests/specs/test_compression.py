"""Which compression a file has, and how decompressors fail."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from support import archives
from support.archives import COMPRESSIONS
from support.opened import UNSUPPORTED, refusing

from imgproxy.errors import ShortageError, shortage
from imgproxy.specs import compression
from imgproxy.specs.compression import CompressionError, codec, decompress

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = b"what is compressed, again and again " * 100
COMPRESSED = [each for each in COMPRESSIONS if each != "plain"]


@pytest.mark.parametrize(
    ("compression", "name"),
    [(each, each.partition(" ")[0]) for each in COMPRESSED],
)
def test_a_compression_is_told_by_its_first_bytes(compression: str, name: str) -> None:
    found = codec("/x.tar", COMPRESSIONS[compression](CONTENT)[:16])
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("head", [b"", b"\x1f", b"\0" * 16, b"BZ", b"manifest.json", b"\xfd7zXY\0"])
def test_anything_else_is_plain(head: bytes) -> None:
    assert codec("/x.tar.gz", head) is None


@pytest.mark.parametrize(
    ("head", "name"),
    [(archives.lz4_stored(b"x"), "lz4"), (b"\x1f\x9d\x90", "compress"), (b"LZIP\1", "lzip")],
    ids=["lz4", "compress", "lzip"],
)
def test_a_compression_that_is_not_read_is_named(head: bytes, name: str) -> None:
    with refusing(UNSUPPORTED, "/x\\y.tar is compressed with", name, "gzip, zstd, bzip2 and xz"):
        codec("/x\\y.tar", head)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2", "xz"])
def test_all_have_the_same_interface(name: str) -> None:
    packed = COMPRESSIONS[name](CONTENT)
    found = codec("x", packed[: compression.HEAD])
    assert found is not None
    decompressor, output = found.new(), b""
    data = packed + b"rest"
    while not decompressor.eof:
        needs_input = decompressor.needs_input
        output += decompress(decompressor, data if needs_input else b"", 1000, "x")
        if needs_input:
            data = decompressor.unused_data
    assert output == CONTENT
    assert decompressor.unused_data == b"rest"


def test_gzip_can_be_copied_in_the_middle() -> None:
    packed = COMPRESSIONS["gzip"](CONTENT)
    first = compression.Gzip()
    head = first.decompress(packed, 10)
    second = first.copy()
    rest = first.unused_data
    assert head + first.decompress(rest, 0) == CONTENT
    assert head + second.decompress(rest, 0) == CONTENT


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "gzip": archives.gzipped,
    "zstd": archives.zstd_compressed,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_a_failure_of_one_kind(name: str) -> None:
    packed = BROKEN[name](CONTENT)
    packed = packed[:6] + b"\xff" * len(packed)
    found = codec("x", packed[:6])
    assert found is not None
    with pytest.raises(CompressionError):
        decompress(found.new(), packed, 1 << 20, "x")


class Failing:
    """A decompressor that fails."""

    eof, unused_data, needs_input = False, b"", True

    def __init__(self, error: Exception) -> None:
        self._error = error

    def decompress(self, *_: object) -> bytes:
        raise self._error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("Unable to decompress: Allocation error : not enough memory"), MemoryError),
        (MemoryError(), ShortageError),
        (zlib.error("Error -3 while decompressing data"), CompressionError),
    ],
)
def test_a_shortage_of_memory_is_no_broken_file(error: Exception, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        decompress(Failing(error), b"", 1, "x")


def test_a_window_that_is_too_large_is_refused_with_the_limit() -> None:
    with pytest.raises(CompressionError, match="more than 128 MiB for a window are refused"):
        decompress(Failing(lzma.LZMAError("Memory usage limit exceeded")), b"", 1, "x")


def test_without_a_library_for_zstd_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program as one file has no extension modules."""
    for module in ("compression", "backports", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    compression._zstd_module.cache_clear()
    with refusing(UNSUPPORTED, "install", "backports.zstd", "3.14"):
        compression._zstd()


def test_a_library_for_zstd_that_cannot_be_loaded_for_want_of_descriptors_is_not_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith(("compression", "backports.zstd")):
                raise ImportError("_zstd.so: cannot open shared object file: Too many open files")

    for name in [each for each in sys.modules if each.startswith(("compression", "backports"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    compression._zstd_module.cache_clear()
    with pytest.raises(ImportError) as raised:
        compression._zstd()
    assert shortage("", raised.value) is not None

"""Decompressed content from any position; broken and incomplete files; limits."""

from __future__ import annotations

import bz2
import itertools
import lzma
import random
import sys
import threading
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import archives
from support.archives import COMPRESSIONS
from support.opened import BROKEN, CHANGED, TOO_LARGE, Watched, refusing

from imgproxy.errors import ShortageError, shortage
from imgproxy.specs import compression
from imgproxy.specs.compression import codec
from imgproxy.transports.local import decompression
from imgproxy.transports.local.decompression import CompressedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from imgproxy.transports.local.decompression import Cursor

# Half of it compresses and half does not, so that positions in it differ.
CONTENT = b"".join(
    random.Random(n).randbytes(1000) + b"what comes again and again " * 40 for n in range(80)
)
COMPRESSED = [each for each in COMPRESSIONS if each != "plain"]

# Of each library one, as a file of one stream.
LIBRARIES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": archives.gzipped,
    "zstd": archives.zstd_compressed,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
# As many streams as there are pieces.
STREAMS = ["gzip in members", "zstd in frames", "bzip2 in streams", "xz in streams"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make little content have many resume points."""
    monkeypatch.setattr(decompression, "_MIN_FEED", 256)
    monkeypatch.setattr(decompression, "_MAX_FEED", 1024)
    monkeypatch.setattr(decompression, "_SPACING", 4096)


def opened(path: Path, content: bytes | None = None) -> tuple[CompressedFile, Watched]:
    """Write a file if there is content for it; return it before anything is read."""
    if content is not None:
        path.write_bytes(content)
    file = Watched(str(path))
    found = codec(str(path), file.read(16, 0))
    assert found is not None
    file.reads.clear()
    return CompressedFile(file, found), file


def rest_of(cursor: Cursor, step: int = 10_000) -> bytes:
    return b"".join(iter(lambda: cursor.read(step), b""))


def gone_through(path: Path, content: bytes | None = None) -> tuple[CompressedFile, Watched]:
    """Return the file after the first pass."""
    compressed, file = opened(path, content)
    rest_of(compressed.first_pass())
    file.reads.clear()
    return compressed, file


# --- what comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [777, 1 << 20])
@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_file_inflates_to_what_was_compressed(path: Path, compression: str, step: int) -> None:
    compressed, _ = opened(path, COMPRESSIONS[compression](CONTENT))
    cursor = compressed.first_pass()
    assert rest_of(cursor, step) == CONTENT
    assert cursor.position == len(CONTENT)
    assert cursor.read(1) == b""


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_file_can_be_gone_into_anywhere(path: Path, compression: str) -> None:
    compressed, _ = gone_through(path, COMPRESSIONS[compression](CONTENT))
    for position in (0, 1, 60_000, 59_999, 130_000, len(CONTENT) - 1, len(CONTENT), 4096, 5):
        cursor = compressed.cursor(position)
        assert cursor.position == position
        assert cursor.read(500) == CONTENT[position : position + 500]
        assert cursor.position == min(position + 500, len(CONTENT))


@pytest.mark.parametrize("compression", COMPRESSED)
def test_an_empty_content_is_empty(path: Path, compression: str) -> None:
    compressed, _ = opened(path, COMPRESSIONS[compression](b""))
    assert compressed.first_pass().read(1) == b""


@pytest.mark.parametrize("library", LIBRARIES)
def test_many_tiny_streams_are_one_content(path: Path, library: str) -> None:
    compress = LIBRARIES[library]
    pieces = [b"%d," % n for n in range(1000)]
    content = b"".join(map(compress, pieces)) + compress(b"") * 3
    compressed, _ = opened(path, content)
    assert rest_of(compressed.first_pass()) == b"".join(pieces)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_left_out_has_been_read(path: Path, library: str) -> None:
    compressed, _ = opened(path, LIBRARIES[library](CONTENT))
    cursor = compressed.first_pass()
    cursor.skip(0)
    assert cursor.position == 0
    cursor.skip(73_456)
    assert (cursor.position, cursor.read(10)) == (73_456, CONTENT[73_456:73_466])
    cursor.skip(1 << 37)
    assert cursor.position == len(CONTENT)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("limit", [1, 100, 65_536])
def test_no_more_is_given_at_once_than_was_asked_for(path: Path, library: str, limit: int) -> None:
    content = bytes(60_000 if limit > 1 else 500)
    compressed, _ = opened(path, LIBRARIES[library](content))
    cursor = compressed.first_pass()
    pieces = list(iter(lambda: cursor.read_some(limit), b""))
    assert max(map(len, pieces)) <= limit
    assert b"".join(pieces) == content


# --- what is not whole --------------------------------------------------------------------------

BROKEN_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    **{
        f"truncated-{name}": (
            lambda content, compress=compress: archives.truncated(compress(content)),
            "it ends in the middle",
        )
        for name, compress in LIBRARIES.items()
    },
    "checksum": (archives.gzip_bad_checksum, "incorrect data check"),
    "size": (archives.gzip_bad_size, "incorrect length check"),
    "garbage": (archives.gzip_then_garbage, "incorrect header check"),
    "garbage after zeros": (
        lambda content: archives.gzip_padded(content) + b"x",
        "it ends in the middle",
    ),
    "half a second member": (
        lambda content: archives.gzipped(content) + archives.gzipped(content)[:30],
        "it ends in the middle",
    ),
    "another compression behind": (
        lambda content: archives.gzipped(content) + archives.zstd_compressed(content),
        "incorrect header check",
    ),
    "window-of-256-MiB": (lambda content: archives.zstd_with_window(content, 28), ""),
    "window-of-2-GiB": (lambda content: archives.zstd_with_window(content, 31), ""),
    "dictionary": (archives.zstd_with_dictionary, "ictionary"),
    "a skippable frame that ends": (
        lambda content: archives.zstd_compressed(content) + archives.skippable_frame(b"xx")[:-1],
        "it ends in the middle",
    ),
    "nothing but a magic": (lambda _: b"\x1f\x8b", "it ends in the middle"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_what_does_not_inflate_is_refused_with_its_place(path: Path, case: str) -> None:
    make, words = BROKEN_FILES[case]
    name = {b"\x1f": "gzip", b"\x28": "zstd", b"B": "bzip2", b"\xfd": "xz"}
    content = make(CONTENT)
    compressed, _ = opened(path, content)
    with refusing(BROKEN, f"{path}: inflating {name[content[:1]]} at byte ", words) as raised:
        rest_of(compressed.first_pass())
    at = int(raised.value.message.partition(" at byte ")[2].partition(":")[0])
    assert 0 <= at <= len(content)


@pytest.mark.parametrize("library", ["gzip", "bzip2", "xz"])
def test_damage_is_never_taken_for_content(path: Path, library: str) -> None:
    whole = LIBRARIES[library](CONTENT[:15_000])
    for at in range(20, len(whole) - 40, len(whole) // 40):
        content = bytearray(whole)
        content[at] ^= 0x10
        compressed, _ = opened(path, bytes(content))
        with refusing(BROKEN, f"inflating {library} at byte"):
            rest_of(compressed.first_pass())


def test_a_window_of_128_mib_is_within_the_limit(path: Path) -> None:
    compressed, _ = opened(path, archives.zstd_with_window(CONTENT, 27))
    assert rest_of(compressed.first_pass()) == CONTENT


def test_xz_that_wants_too_much_memory_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_MEMORY", 1 << 20)  # and it needs eight times as much
    compressed, _ = opened(path, lzma.compress(CONTENT))
    with refusing(BROKEN, "Memory usage limit exceeded"):
        rest_of(compressed.first_pass())


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_more_than_the_limit_is_refused(
    path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "MAX_SIZE", 3 << 20)
    compressed, _ = opened(path, LIBRARIES[library](bytes(8 << 20)))
    cursor = compressed.first_pass()
    with refusing(TOO_LARGE, str(path), "decompresses to, beyond the limit of"):
        rest_of(cursor)
    assert 3 << 20 < cursor.position <= 4 << 20


def test_what_leads_beyond_the_limit_is_refused_before_it_is_decompressed(path: Path) -> None:
    """A member that claims a terabyte would keep a processor busy for hours."""
    compressed, file = opened(path, archives.zstd_compressed(bytes(64 << 20)) * 20)
    cursor = compressed.first_pass()
    with refusing(TOO_LARGE, str(path), "256 GiB"):
        cursor.skip(1 << 40)
    assert cursor.position == 0
    assert file.reads == []


def test_a_gigabyte_of_zeros_is_decompressed_and_never_held(path: Path) -> None:
    """A layer of zeros is a true one, and no ratio tells it from an attack."""
    piece = archives.zstd_compressed(bytes(64 << 20))
    compressed, _ = opened(path, piece * 20)  # 1.3 GB of zeros in 40 KB
    cursor = compressed.first_pass()
    tracemalloc.start()
    try:
        cursor.skip(20 * (64 << 20))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert cursor.position == 20 * (64 << 20)
    assert cursor.read(1) == b""


# --- resume points ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("compression", ["gzip", "gzip with flushes", *STREAMS])
def test_decompression_is_resumed_near_the_wanted_position(path: Path, compression: str) -> None:
    content = COMPRESSIONS[compression](CONTENT)
    compressed, file = gone_through(path, content)
    position = len(CONTENT) * 9 // 10
    cursor = compressed.cursor(position)
    assert cursor.read(100) == CONTENT[position : position + 100]
    is_gzip = compression.startswith("gzip")
    assert file.reads[0][0] >= len(content) * (0.85 if is_gzip else 0.6)
    assert sum(count for _, count in file.reads) < len(content) * (0.1 if is_gzip else 0.4)


@pytest.mark.usefixtures("small_steps")
def test_resume_points_become_rarer_as_there_are_more_of_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "_MAX_POINTS", 8)
    compressed, _ = opened(path, archives.gzipped(CONTENT))
    cursor, most = compressed.first_pass(), 0
    while cursor.read_some(1000):
        most = max(most, len(compressed._points))
    assert 4 <= most <= 8
    positions = [point.position for point in compressed._points]
    assert positions[0] == 0
    assert positions == sorted(set(positions))
    gaps = [later - earlier for earlier, later in itertools.pairwise(positions)]
    assert min(gaps) >= len(CONTENT) / 8 / 4  # they are spread, not crowded at one end
    for position in (*positions, len(CONTENT) // 2):
        assert compressed.cursor(position).read(10) == CONTENT[position : position + 10]


def test_the_memory_for_resume_points_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "_SPACING", 1)
    monkeypatch.setattr(decompression, "_MAX_POINTS", 16)
    compressed, _ = opened(path, b"".join(map(archives.gzipped, [b"x" * 500] * 5000)))
    rest_of(compressed.first_pass(), 100)
    assert 8 <= len(compressed._points) <= 16


@pytest.mark.usefixtures("small_steps")
def test_only_the_first_pass_records_resume_points(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    before = list(compressed._points)
    assert len(before) > 20
    rest_of(compressed.cursor(0))
    rest_of(compressed.cursor(60_000))
    assert compressed._points == before


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_cursor_that_is_unwanted_stops_on_the_way(path: Path, library: str, pieces: int) -> None:
    compressed, _ = gone_through(path, LIBRARIES[library](CONTENT))
    asked = iter([False] * pieces + [True])
    cursor = compressed.cursor(len(CONTENT), lambda: next(asked))
    assert cursor.position == pieces * decompression.PIECE
    assert compressed.cursor(len(CONTENT), lambda: False).position == len(CONTENT)


def test_a_cursor_cannot_be_behind_the_end(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    assert compressed.cursor(len(CONTENT) + 1).position == len(CONTENT)


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_reads_in_order_goes_on_where_the_last_one_was(path: Path, library: str) -> None:
    compressed, file = gone_through(path, LIBRARIES[library](CONTENT))
    first = compressed.cursor(0)
    first.read(60_000)
    compressed.keep(first)
    file.reads.clear()
    second = compressed.cursor(60_000)
    assert file.reads == []
    assert rest_of(second) == CONTENT[60_000:]


def test_a_cursor_is_not_taken_back_in_the_file(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    ahead = compressed.cursor(120_000)
    compressed.keep(ahead)
    behind = compressed.cursor(60_000)
    assert behind is not ahead
    assert behind.read(10) == CONTENT[60_000:60_010]
    assert compressed.cursor(120_005).read(10) == CONTENT[120_005:120_015]


@pytest.mark.usefixtures("small_steps")
def test_a_place_beats_a_cursor_that_is_farther_away(path: Path) -> None:
    compressed, file = gone_through(path, archives.gzipped(CONTENT))
    compressed.keep(compressed.cursor(10))
    file.reads.clear()
    assert compressed.cursor(120_000).read(10) == CONTENT[120_000:120_010]
    assert file.reads[0][0] > 50_000


def test_a_cursor_that_is_in_use_is_nobody_elses(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    compressed.keep(compressed.cursor(1000))
    one, other = compressed.cursor(1000), compressed.cursor(1000)
    for at in range(1000, 120_000, 10_000):
        for cursor in (one, other):
            assert cursor.read(10_000) == CONTENT[at : at + 10_000]


def test_few_cursors_are_kept(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    cursors = [compressed.cursor(position) for position in range(0, 60_000, 10_000)]
    for cursor in cursors:
        compressed.keep(cursor)
    assert len(compressed._idle) <= 2


@contextmanager
def often_interrupted() -> Iterator[None]:
    """Make threads switch as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_readers_in_several_threads_do_not_disturb_each_other(path: Path) -> None:
    compressed, _ = gone_through(path, archives.gzipped(CONTENT))
    troubles: list[str] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(500):
                position = chance.randrange(3000)
                cursor = compressed.cursor(position)
                if cursor.read(100) != CONTENT[position : position + 100]:
                    troubles.append(f"other bytes at {position}")
                compressed.keep(cursor)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is to be shown)
            troubles.append(repr(error))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    with often_interrupted():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert troubles == []


# --- files that change --------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_file_that_is_truncated_meanwhile_is_worth_another_try(path: Path, library: str) -> None:
    compressed, _ = gone_through(path, LIBRARIES[library](CONTENT))
    cursor = compressed.cursor(0)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 10)
    with refusing(CHANGED, f"{path} has been changed"):
        rest_of(cursor)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_file_that_is_overwritten_meanwhile_is_worth_another_try(
    path: Path, library: str
) -> None:
    compressed, _ = gone_through(path, LIBRARIES[library](CONTENT))
    size = path.stat().st_size
    cursor = compressed.cursor(0)
    path.write_bytes(random.Random(0).randbytes(size + 1))
    with refusing(CHANGED, f"{path} has been changed or replaced since it was opened"):
        rest_of(cursor)


class Short:
    """A decompressor that the system has no memory for."""

    eof, unused_data, needs_input = False, b"", True

    def __init__(self, error: Exception) -> None:
        self._error = error

    def decompress(self, *_: object) -> bytes:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("Unable to decompress: Allocation error : not enough memory")],
    ids=["memory", "the words of zstd"],
)
def test_a_shortage_of_memory_is_no_broken_file(
    error: Exception, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(LIBRARIES["gzip"](CONTENT))
    for head in compression.CODECS:
        made = compression.Codec("gzip", lambda: Short(error))
        monkeypatch.setitem(compression.CODECS, head, made)
    opened_, _ = opened(path)
    with pytest.raises((MemoryError, ShortageError)) as raised:
        rest_of(opened_.cursor(0))
    assert shortage("", raised.value) is not None

"""Sparse members: the maps of all formats, and those that are refused."""

from __future__ import annotations

import pytest
from support.tars import BLOCK, END, GNU, Tape, base_256, extended, header, octal, padded, record

from imgproxy.specs.oci import tar_layers as layers
from imgproxy.specs.oci import tar_sparse as sparse
from imgproxy.specs.oci.tar_fields import TarError

MALFORMED = "has a malformed map of holes"


def file_of(archive: bytes) -> bytes:
    """Return the only file of an archive, with zeros in its holes."""
    tape = Tape([archive + END])
    (found,) = [(each, expanded(tape, each)) for each in layers.members(tape)]
    return found[1]


def expanded(tape: Tape, member: layers.Member) -> bytes:
    assert member.holes is not None
    content = bytearray(min(member.holes.size, 100_000))
    for offset, length in sparse.regions(tape, member.holes, member.size, member.at):
        content[offset : offset + length] = tape.read(length)
    return bytes(content)


def refusal(archive: bytes) -> str:
    with pytest.raises(TarError) as caught:
        file_of(archive)
    return str(caught.value)


def old(size: int | bytes, *pairs: tuple[int, int], content: bytes = b"") -> bytes:
    """Return a member in the old format, its map in as many headers as it takes."""
    raw = [octal(offset, 11) + octal(length, 11) for offset, length in pairs]
    first, rest = raw[:4], raw[4:]
    blocks = []
    while rest:
        part, rest = rest[:21], rest[21:]
        blocks.append(
            (b"".join(part).ljust(504, b"\0") + (b"\1" if rest else b"")).ljust(BLOCK, b"\0")
        )
    real = octal(size, 11) if isinstance(size, int) else size
    more = {386: b"".join(first).ljust(96, b"\0") + (b"\1" if blocks else b"\0") + real}
    return (
        header(kind=b"S", size=len(content), magic=GNU, more=more)
        + b"".join(blocks)
        + padded(content)
    )


def new(*records: tuple[str, object], content: bytes = b"") -> bytes:
    said = [record(b"GNU.sparse." + key.encode(), str(value).encode()) for key, value in records]
    return extended(*said) + header(size=len(content)) + padded(content)


def in_content(text: str, content: bytes = b"", *, size: int = 100) -> bytes:
    whole = padded(text.encode()) + content
    return new(("major", 1), ("minor", 0), ("realsize", size), content=whole)


WANTED = b"ab" + bytes(8) + b"cd" + bytes(8)


@pytest.mark.parametrize(
    "archive",
    [
        old(20, (0, 2), (10, 2), content=b"abcd"),
        old(20, (0, 2), (10, 2), (20, 0), content=b"abcd"),
        new(
            *(("size", 20), ("numblocks", 2)),
            *(("offset", 0), ("numbytes", 2), ("offset", 10), ("numbytes", 2)),
            content=b"abcd",
        ),
        new(("size", 20), ("numblocks", 2), ("map", "0,2,10,2"), content=b"abcd"),
        new(("major", 0), ("minor", 1), ("size", 20), ("map", "0,2,10,2"), content=b"abcd"),
        in_content("2\n0\n2\n10\n2\n", b"abcd", size=20),
        in_content("3\n0\n2\n10\n2\n20\n0\n", b"abcd", size=20),
    ],
)
def test_content_is_where_it_belongs(archive: bytes) -> None:
    assert file_of(archive) == WANTED


@pytest.mark.parametrize(
    "archive",
    [
        old(9),
        new(("size", 9), ("map", "")),
        new(("realsize", 9), ("numblocks", 0)),
        in_content("0\n", size=9),
    ],
)
def test_a_file_may_be_one_hole(archive: bytes) -> None:
    assert file_of(archive) == bytes(9)


@pytest.mark.parametrize("count", [4, 5, 25, 26, 100])
def test_maps_may_be_long(count: int) -> None:
    pairs = [(10 * n, 1) for n in range(count)]
    lines = "".join(f"{offset}\n{length}\n" for offset, length in pairs)
    wanted = (b"x" + bytes(9)) * count
    assert file_of(old(10 * count, *pairs, content=b"x" * count)) == wanted
    assert file_of(in_content(f"{count}\n{lines}", b"x" * count, size=10 * count)) == wanted


@pytest.mark.parametrize(
    ("size", "pairs", "content"),
    [
        (10, [(2, 2), (0, 2)], b"abcd"),
        (10, [(0, 3), (2, 1)], b"abcd"),
        (10, [(9, 2)], b"ab"),
        (10, [(11, 0)], b""),
        (10, [(0, 2)], b"abc"),
        (10, [(0, 2)], b"a"),
        (2**62 - 1, [(0, 2**62 - 1)], b"a"),
    ],
    ids=["descending", "overlapping", "beyond", "an empty one", "more", "less", "much"],
)
def test_a_map_that_contradicts_the_file_is_refused(
    size: int, pairs: list[tuple[int, int]], content: bytes
) -> None:
    lines = "".join(f"{offset}\n{length}\n" for offset, length in pairs)
    assert (
        refusal(in_content(f"{len(pairs)}\n{lines}", content, size=size)).endswith(MALFORMED)
        or size > 10**18
    )
    if size < 8**11:
        assert refusal(old(size, *pairs, content=content)).endswith(MALFORMED)
    numbers = ",".join(f"{offset},{length}" for offset, length in pairs)
    assert refusal(new(("size", size), ("map", numbers), content=content)).endswith(MALFORMED)


@pytest.mark.parametrize(
    "text",
    ["", "x\n", "-1\n", "1\n0\n", "1\n0\nx\n", "1" * 19 + "\n", "1\n" + "1" * 1100, "2\n0\n1\n"],
)
def test_a_map_in_the_content_that_is_none_is_refused(text: str) -> None:
    assert refusal(in_content(text, b"" if len(text) < BLOCK else bytes(BLOCK))).endswith(MALFORMED)


@pytest.mark.parametrize(
    "records",
    [
        [("map", "0,1")],
        [("size", "x"), ("map", "0,1")],
        [("size", "-9"), ("map", "0,1")],
        [("size", 9), ("map", "0")],
        [("size", 9), ("map", "0,,1")],
        [("size", 9), ("map", "0,1,")],
        [("size", 9), ("offset", 0)],
        [("size", 9), ("numbytes", 1), ("offset", 0)],
        [("size", 9), ("offset", 0), ("offset", 0), ("numbytes", 1), ("numbytes", 0)],
        [("major", 1), ("minor", 0)],
    ],
)
def test_records_that_are_no_map_are_refused(records: list[tuple[str, object]]) -> None:
    assert refusal(new(*records, content=b"x")).endswith(MALFORMED)


def test_a_format_that_is_not_known_is_refused() -> None:
    archive = new(("major", 1), ("minor", 1), ("realsize", 9), content=b"x")
    assert refusal(archive).endswith("has holes in a format that is not known")


@pytest.mark.parametrize("field", [b"99", base_256(2**62), base_256(2**80)])
def test_numbers_of_the_old_format_are_limited(field: bytes) -> None:
    assert "malformed" in refusal(old(field))
    more = {386: field.ljust(12, b"\0") + octal(0, 11), 483: octal(9, 11)}
    assert "malformed" in refusal(header(kind=b"S", magic=GNU, more=more))


def test_a_map_of_the_old_format_that_is_cut_is_refused() -> None:
    whole = old(100, *[(10 * n, 0) for n in range(10)])
    with pytest.raises(TarError, match="ends at byte 600, in the middle of a header"):
        list(layers.members(Tape([whole[:600]])))


def test_maps_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "MAX_REGIONS", 50)
    words = "has more than 50 regions between holes"
    pairs = [(10 * n, 0) for n in range(100)]
    assert refusal(old(1000, *pairs)).endswith(words)
    assert refusal(in_content("51\n")).endswith(words)
    assert file_of(old(1000, *pairs[:50])) == bytes(1000)

"""Tar archives: those of tarfile are read correctly, and damage raises only one kind of error."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import attempt
from support.tars import (
    BLOCK,
    END,
    contents,
    extended,
    header,
    long_name,
    member,
    padded,
    read,
    record,
)

from imgproxy.specs.oci.tar import TarError, is_header, normalise

if TYPE_CHECKING:
    from imgproxy.specs.oci.tar import Entry

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "other",
    tarfile.CHRTYPE: "other",
}
WITH_CONTENTS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
DIALECTS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])

# Parts of paths, some with a special meaning, some too long for headers.
PARTS = st.sampled_from(
    ["", ".", "..", "a", "b", "a b", "manifest.json", "ä", "x" * 60, "y" * 150]
) | st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=8)
PATHS = st.lists(PARTS, max_size=5).map("/".join)
NAMES = PATHS.filter(lambda path: path.strip("/"))


class Member(NamedTuple):
    name: str
    kind: bytes
    content: bytes
    target: str
    owner: int


def is_old_directory(name: str, kind: bytes) -> bool:
    return kind == tarfile.AREGTYPE and name.endswith("/")


MEMBERS = st.builds(
    lambda name, kind, content, target, owner: Member(
        name,
        kind,
        b"" if kind not in WITH_CONTENTS or is_old_directory(name, kind) else content,
        target if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else "",
        owner,
    ),
    NAMES,
    st.sampled_from(sorted(KINDS)),
    st.binary(max_size=20) | st.sampled_from([511, 512, 513, 1500]).map(bytes),
    NAMES,
    st.sampled_from([0, 1000, 2**21, 2**32]),
)


def write(members: list[Member], dialect: int) -> list[tuple[Member, bytes]]:
    """Return the members that the dialect supports, each with the bytes that tarfile writes."""
    written = []
    for each in members:
        info = tarfile.TarInfo(each.name)
        info.type, info.linkname, info.uid = each.kind, each.target, each.owner
        info.size = len(each.content)
        try:
            head = info.tobuf(dialect)
        except ValueError:  # too long, or too large, for ustar
            continue
        written.append((each, head + each.content + bytes(-len(each.content) % BLOCK)))
    return written


@given(st.lists(MEMBERS, max_size=6), DIALECTS)
def test_what_tarfile_writes_is_read_as_it_was_meant(members: list[Member], dialect: int) -> None:
    written = write(members, dialect)
    found = list(contents(b"".join(raw for _, raw in written) + END))
    assert [(entry.name, entry.target, content) for entry, content in found] == [
        (normalise(each.name), each.target, each.content) for each, _ in written
    ]
    for (entry, _), (each, _) in zip(found, written, strict=True):
        is_old = is_old_directory(each.name, each.kind)
        assert entry.kind == ("directory" if is_old else KINDS[each.kind])


@given(st.lists(MEMBERS, max_size=6), DIALECTS)
def test_what_tarfile_writes_is_read_as_tarfile_reads_it(
    members: list[Member], dialect: int
) -> None:
    archive = b"".join(raw for _, raw in write(members, dialect)) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as theirs:
        wanted = theirs.getmembers()
    ours = read(archive)
    assert [(each.offset, each.size) for each in ours] == [
        (each.offset_data, each.size) for each in wanted
    ]
    assert [each.name for each in ours] == [normalise(each.name) for each in wanted]


@given(PATHS)
def test_a_path_has_one_spelling_that_stays_inside(path: str) -> None:
    inside = normalise(path)
    if inside is not None:
        assert not {"", ".", ".."} & set(inside.split("/")) or inside == ""
        assert normalise(inside) == inside
        assert normalise(f"/{path}") == normalise(f"./{path}/") == inside


@given(PATHS, PATHS)
def test_whatever_leads_out_is_none_and_nothing_behind_it_leads_back(first: str, rest: str) -> None:
    depth, lowest = 0, 0
    for part in first.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        lowest = min(lowest, depth)
    assert (normalise(first) is None) == (lowest < 0)
    if lowest < 0:
        assert normalise(f"{first}/{rest}") is None


# --- damage -------------------------------------------------------------------------------------

WHOLE = (
    extended(record(b"comment", b"of all"), kind=b"g")
    + extended(record(b"path", b"p" * 120), record(b"size", b"700"))
    + member(b"x" * 700)
    + long_name(b"n" * 130)
    + long_name(b"t" * 130, b"K")
    + member(kind=b"2")
    + member(kind=b"5", name=b"d/")
    + extended(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.name", b"s"))
    + member(b"1\n0\n1\n")
    + header(kind=b"S", size=3, more={482: b"\1"})
    + bytes(BLOCK)
    + padded(b"abc")
    + member(b"last")
    + END
)


def sound(archive: bytes) -> list[Entry]:
    """Read an archive that may be broken; entries must be inside of it and in order."""
    found = attempt(read, archive, expected=TarError)
    if isinstance(found, TarError):
        assert str(found)
        return []
    position = 0
    for entry in found:
        assert position + BLOCK <= entry.offset
        assert entry.size >= 0
        position = entry.offset + entry.size
    assert position <= len(archive)
    return found


CHANGES = st.lists(
    st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
)


def changed(archive: bytes, changes: list[tuple[int, int]], *, mends: bool) -> bytes:
    """Return the archive with other bytes, and with correct checksums."""
    raw = bytearray(archive)
    for at, value in changes:
        raw[at] = value
        block = raw[at - at % BLOCK :][:BLOCK]
        if mends and not 148 <= at % BLOCK < 156:
            block[148:156] = b" " * 8
            start = at - at % BLOCK + 148
            raw[start : start + 8] = b"%06o\0 " % sum(block)
    return bytes(raw)


@given(CHANGES, st.booleans())
def test_a_damaged_archive_is_refused_or_sound(changes: list[tuple[int, int]], mends: bool) -> None:  # noqa: FBT001  (drawn)
    sound(changed(WHOLE, changes, mends=mends))


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
def test_an_archive_in_another_order_is_refused_or_sound(first: int, second: int, to: int) -> None:
    cut, rest = WHOLE[first:second], WHOLE[:first] + WHOLE[max(first, second) :]
    sound(rest[:to] + cut + rest[to:])
    sound(WHOLE[: first - first % BLOCK] + WHOLE[second - second % BLOCK :])


@given(st.binary(max_size=2000), st.binary(max_size=30))
def test_any_bytes_are_refused_or_sound(raw: bytes, said: bytes) -> None:
    sound(raw)
    assert is_header(raw[:BLOCK].ljust(BLOCK, b"\1")) in (True, False)
    for kind in (b"x", b"g", b"L", b"K"):
        sound(member(said, kind=kind) + member(raw) + END)
    sound(header(size=said[:12].ljust(12, b"\0")) + raw + END)


def test_the_whole_archive_is_read_whole() -> None:
    """The archives that are damaged above are valid before."""
    assert [entry.kind for entry in sound(WHOLE)] == [
        *("file", "symlink", "directory", "sparse", "sparse", "file")
    ]

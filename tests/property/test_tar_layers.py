"""Layers: what tarfile and GNU tar write is read as it was meant; damage raises one error."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.effort import rounds
from support.servers import require
from support.strategies import attempt
from support.tars import END, Tape, extended, long_name, member, record

from imgproxy.specs.oci import tar_layers as layers
from imgproxy.specs.oci import tar_sparse as sparse
from imgproxy.specs.oci.tar_fields import TarError

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.specs.oci.tar_layers import Member

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
}
NAMES = st.sampled_from(["a", "b/c", "x" * 150, "ä" * 90, "\udcff", "y" * 250 + "/z"])
IDS = st.sampled_from([0, 1000, 2**21 - 1, 2**21, 2**32 - 2])
TIMES = st.integers(0, 2**33) | st.integers(2**33, 2**40)
XATTRS = st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.text(min_size=1, max_size=9))


@st.composite
def infos(draw: st.DrawFn) -> tarfile.TarInfo:
    """Return what tarfile has of a member."""
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(st.sampled_from(sorted(KINDS)))
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        info.linkname = draw(NAMES)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20)))
    info.uid, info.gid, info.mode = draw(IDS), draw(IDS), draw(st.integers(0, 0o7777))
    info.mtime = draw(TIMES)
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in draw(XATTRS).items()}
    info.size = draw(st.sampled_from([0, 1, 511, 512])) if info.type == tarfile.REGTYPE else 0
    return info


def raw(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


@given(st.lists(infos(), max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_what_tarfile_writes_is_read_as_it_was_meant(
    infos: list[tarfile.TarInfo], dialect: int
) -> None:
    archive = b"".join(
        each.tobuf(dialect, errors="surrogateescape") + bytes(-(-each.size // 512) * 512)
        for each in infos
    )
    found = list(layers.members(Tape([archive + END])))
    assert len(found) == len(infos)
    for ours, info in zip(found, infos, strict=True):
        assert (ours.name.rstrip(b"/"), ours.target) == (raw(info.name), raw(info.linkname))
        assert (ours.kind, ours.size) == (KINDS[info.type], info.size)
        assert (ours.mode, ours.uid, ours.gid) == (info.mode, info.uid, info.gid)
        assert ours.mtime == info.mtime * 10**9
        assert ours.device == (info.devmajor, info.devminor)
        if dialect == tarfile.PAX_FORMAT:
            said = {f"SCHILY.xattr.{k.decode()}": v.decode() for k, v in ours.xattrs.items()}
            assert said == info.pax_headers


# --- GNU tar ------------------------------------------------------------------------------------


def tree(root: Path) -> Path:
    """Make files of all kinds that anybody may make."""
    (root / "d/empty").mkdir(parents=True)
    (root / "d/file").write_bytes(b"content")
    (root / "d/file").chmod(0o6751)
    os.link(root / "d/file", root / "linked")
    (root / "symlink").symlink_to("/absolute/" + "t" * 120)
    (root / ("long" * 40)).write_bytes(b"x" * 600)
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"no utf-8 \xff")).write_bytes(b"")
    with (root / "sparse").open("wb") as file:
        for n in range(40):
            file.seek(n * 200_000)
            file.write(b"%d" % n * 5000)
        file.truncate(9_000_001)
    for n, each in enumerate(sorted(root.rglob("*"))):
        os.utime(each, ns=(0, 1_600_000_000_123_456_789 + n), follow_symlinks=False)
    return root


FORMATS = {
    "gnu": ("--format=gnu",),
    "pax 0.0": ("--format=pax", "--sparse-version=0.0"),
    "pax 0.1": ("--format=pax", "--sparse-version=0.1"),
    "pax 1.0": ("--format=pax", "--sparse-version=1.0"),
}


def content(tape: Tape, member: Member) -> bytes:
    if member.holes is None:
        return tape.read(member.size)
    whole = bytearray(member.holes.size)
    for offset, length in sparse.regions(tape, member.holes, member.size, member.at):
        whole[offset : offset + length] = tape.read(length)
    return bytes(whole)


@pytest.mark.parametrize("how", FORMATS)
def test_what_gnu_tar_writes_is_what_the_files_are(how: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    command = [require("tar"), "-C", root, "-c", "--sparse", *FORMATS[how], "."]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(archive) < 3_000_000  # it is sparse
    tape, found = Tape([archive]), {}
    for each in layers.members(tape):
        found[each.name.removeprefix(b"./").rstrip(b"/")] = each, content(tape, each)
    files = [root, *root.rglob("*")]
    assert set(found) == {b"" if p == root else os.fsencode(p.relative_to(root)) for p in files}
    for path in files:
        ours, inside = found[b"" if path == root else os.fsencode(path.relative_to(root))]
        state = path.lstat()
        unit = 1 if how != "gnu" else 10**9  # the old format has whole seconds
        assert (ours.mtime // unit, ours.uid) == (state.st_mtime_ns // unit, state.st_uid)
        if ours.kind == "link":
            assert (root / os.fsdecode(ours.target)).samefile(path)
        elif ours.kind == "symlink":
            assert ours.target == os.fsencode(path.readlink())
        elif ours.kind == "file":
            assert inside == path.read_bytes()
        if ours.kind != "symlink":
            assert ours.mode == state.st_mode & 0o7777
    kinds = {each.kind for each, _ in found.values()}
    assert kinds == {"file", "directory", "link", "symlink", "fifo"}


# --- damage -------------------------------------------------------------------------------------

WHOLE = (
    extended(record(b"comment", b"of all"), kind=b"g")
    + extended(
        *(record(b"path", b"p" * 120), record(b"size", b"700"), record(b"mtime", b"1.5")),
        *(record(b"uid", b"7"), record(b"SCHILY.xattr.user.a", b"\0b")),
    )
    + member(b"x" * 700)
    + long_name(b"n" * 130)
    + long_name(b"t" * 130, b"K")
    + member(kind=b"2")
    + member(kind=b"3", name=b"device", more={329: b"7\0", 337: b"5\0"})
    + extended(record(b"GNU.sparse.size", b"9"), record(b"GNU.sparse.map", b"0,1,5,2"))
    + member(b"abc")
    + extended(
        *(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")),
        record(b"GNU.sparse.realsize", b"9"),
    )
    + member(b"1\n0\n1\n".ljust(512, b"\0") + b"x")
    + member(b"last")
    + END
)


def read(archive: bytes) -> list[tuple[Member, bytes]]:
    tape = Tape([archive])
    found = []
    for each in layers.members(tape):
        if each.holes is not None and each.holes.size > 10**6:
            raise TarError("larger than this test")
        found.append((each, content(tape, each)))
    return found


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4),
    st.booleans(),
)
def test_a_damaged_layer_is_refused_or_read(changes: list[tuple[int, int]], mends: bool) -> None:  # noqa: FBT001  (drawn)
    archive = bytearray(WHOLE)
    for at, value in changes:
        archive[at] = value
        block = archive[at - at % 512 :][:512]
        if mends:
            block[148:156] = b" " * 8
            archive[at - at % 512 + 148 :][:8] = b"%06o\0 " % sum(block)
    attempt(read, bytes(archive), expected=TarError)


def test_a_layer_that_was_cut_and_mixed_is_refused_or_read() -> None:
    outcomes = {"refused": 0, "read": 0}
    for seed in range(rounds("IMGPROXY_FUZZ_TARS", slow=3000, quick=300)):
        chance = random.Random(seed)
        archive = bytearray(WHOLE)
        for _ in range(chance.choice([1, 1, 2])):
            begin, end, to = sorted(512 * chance.randrange(len(WHOLE) // 512) for _ in range(3))
            archive[to:to] = archive[begin:end]
            if chance.random() < 0.3:
                del archive[chance.randrange(len(archive)) :]
        refused = isinstance(attempt(read, bytes(archive), expected=TarError), TarError)
        outcomes["refused" if refused else "read"] += 1
    assert min(outcomes.values()) > 10


def test_the_archive_that_is_damaged_is_valid_before() -> None:
    assert [len(inside) for _, inside in read(WHOLE)] == [700, 0, 0, 9, 9, 4]

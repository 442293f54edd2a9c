"""Tar archives: members by name, through links; their bytes; archives that change."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.archives import (
    COMPRESSIONS,
    LARGE,
    SMALL,
    Member,
    directory,
    gzipped,
    hard_link,
    lz4_stored,
    pack,
    plain,
    symlink,
    truncated,
    write_archive,
    write_file,
    zstd_compressed,
    zstd_frames,
)
from support.opened import (
    BROKEN,
    CHANGED,
    NOT_FOUND,
    TOO_LARGE,
    UNSUPPORTED,
    content_of,
    drained,
    open_descriptors,
    refusing,
)
from support.streams import real_time

from imgproxy.host.files import OpenFile
from imgproxy.specs.oci import tar
from imgproxy.transports import file_tree
from imgproxy.transports.local import tar_archive
from imgproxy.transports.local.tar_archive import Archive, open_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


async def opened(path: Path, *members: Member) -> Archive:
    return await open_archive(write_archive(path, *members))


# --- members ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@real_time
async def test_members_are_read_where_they_lie(path: Path, compression: str) -> None:
    members = [Member("a", SMALL), Member("b", LARGE), Member("c"), Member("d", LARGE[::-1])]
    tree = await open_archive(write_archive(path, *members, compress=COMPRESSIONS[compression]))
    for step in (100_000, 8191):
        for member in (*members, *reversed(members)):
            reader = await tree.open(member.name, "it")
            assert (reader.size, reader.name) == (len(member.content), "it")
            assert await drained(reader, step) == member.content
    tree.close()


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd", "bzip2", "xz"])
@real_time
async def test_members_are_read_at_the_same_time(path: Path, compression: str) -> None:
    members = [Member(f"{n}", LARGE[n * 1000 :]) for n in range(4)]
    tree = await open_archive(write_archive(path, *members, compress=COMPRESSIONS[compression]))
    contents: dict[str, bytes] = {}

    async def read(name: str, step: int) -> None:
        contents[name] = await content_of(tree, name, step)

    async with trio.open_nursery() as nursery:
        for n, member in enumerate(members):
            nursery.start_soon(read, member.name, 20_000 + 1000 * n)
    assert contents == {member.name: member.content for member in members}
    tree.close()


@pytest.mark.parametrize("compress", [plain, gzipped])
@real_time
async def test_the_end_of_a_member_is_its_end(
    path: Path, compress: Callable[[bytes], bytes]
) -> None:
    tree = await open_archive(
        write_archive(path, Member("a", LARGE), Member("b", b"x" * 512), compress=compress)
    )
    reader = await tree.open("a", "a")
    buffer = memoryview(bytearray(len(LARGE) + 4096))
    filled = 0
    while count := await reader.receive_into(buffer[filled:]):
        filled += count
    assert (filled, bytes(buffer[:filled])) == (len(LARGE), LARGE)
    assert await reader.receive_into(buffer) == 0
    reader.close()
    reader.close()
    tree.close()


NAMES = {
    "dot": "./manifest.json",
    "slash-behind": "manifest.json/",
    "slashes": ".//manifest.json",
    "absolute": "/manifest.json",
    "up and down": "x/../manifest.json",
}


@pytest.mark.parametrize("case", NAMES)
@real_time
async def test_a_name_has_one_spelling(path: Path, case: str) -> None:
    tree = await opened(path, Member(NAMES[case], SMALL))
    assert "manifest.json" in tree
    for name in ("manifest.json", *NAMES.values()):
        assert await content_of(tree, name) == SMALL


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@real_time
async def test_long_names_and_large_owners_are_read(path: Path, dialect: int) -> None:
    name, target = "d/" * 150 + "member", "t/" * 200 + "target"
    members = [Member(target, SMALL, uid=1 << 30), symlink("link", target), Member(name, LARGE)]
    tree = await open_archive(write_file(path, pack(members, dialect)))
    assert await content_of(tree, name) == LARGE
    assert await content_of(tree, "link") == SMALL
    tree.close()


@real_time
async def test_what_is_outside_of_the_archive_is_no_member(path: Path) -> None:
    tree = await opened(path, Member("../manifest.json", SMALL), Member("a/../../b", SMALL))
    assert tree.names == "nothing"
    for name in ("manifest.json", "b"):
        with refusing(NOT_FOUND, f"{path}: {name} is not there"):
            tree.find(name)


@real_time
async def test_a_message_names_some_members(path: Path) -> None:
    tree = await opened(path, Member("\x1b[31m"), *(Member(f"m{n}") for n in range(20)))
    assert tree.names == "[31m, m0, m1, m2, m3, m4, m5, m6, m7, m8, …"


# --- links --------------------------------------------------------------------------------------

LINKS: dict[str, list[Member]] = {
    "beside": [symlink("a/layer.tar", "../x/layer.tar")],
    "chain": [
        symlink("a/layer.tar", "../b/layer.tar"),
        symlink("b/layer.tar", "./../c/l"),
        symlink("c/l", "../x/layer.tar"),
    ],
    "forward-and-back": [symlink("a/layer.tar", "../a/../x/./layer.tar")],
    "hard-link": [hard_link("a/layer.tar", "x/layer.tar")],
    "hard-link-absolute": [hard_link("a/layer.tar", "/x/layer.tar")],
    "hard-link-to-a-link": [
        hard_link("a/layer.tar", "b/layer.tar"),
        symlink("b/layer.tar", "../x/layer.tar"),
    ],
    "a chain of 40": [
        symlink("a/layer.tar", "1"),
        *(symlink(f"a/{n}", f"{n + 1}") for n in range(1, 39)),
        symlink("a/39", "../x/layer.tar"),
    ],
}


@pytest.mark.parametrize("compress", [plain, gzipped])
@pytest.mark.parametrize("case", LINKS)
@pytest.mark.parametrize("is_before", [True, False])
@real_time
async def test_links_are_followed_in_the_archive(
    path: Path, case: str, compress: Callable[[bytes], bytes], *, is_before: bool
) -> None:
    target = [Member("x/layer.tar", LARGE)]
    members = target + LINKS[case] if is_before else LINKS[case] + target
    tree = await open_archive(write_archive(path, *members, compress=compress))
    assert await content_of(tree, "a/layer.tar") == LARGE
    tree.close()


LOST_LINKS: dict[str, tuple[list[Member], str]] = {
    "itself": ([symlink("a/l", "l")], "is a link that leads to itself"),
    "loop": (
        [symlink("a/l", "../b/l"), symlink("b/l", "../a/l")],
        "is a link that leads to itself",
    ),
    "loop-of-hard-links": (
        [hard_link("a/l", "b/l"), hard_link("b/l", "a/l")],
        "is a link that leads to itself",
    ),
    "41": (
        [
            symlink("a/l", "1"),
            *(symlink(f"a/{n}", f"{n + 1}") for n in range(1, 41)),
            Member("a/41"),
        ],
        "is a link that leads to itself",
    ),
    "dangling": ([symlink("a/l", "../x/gone")], "is a link to x/gone, which is not there"),
    "absolute": ([symlink("a/l", "/etc/passwd"), Member("etc/passwd")], "leads out"),
    "absolute-that-exists": ([symlink("a/l", "/a/x"), Member("a/x")], "leads out"),
    "outside": ([symlink("a/l", "../../etc/passwd")], "leads out of the archive"),
    "out-and-in-again": ([symlink("a/l", "../../a/x"), Member("a/x")], "leads out"),
    "hard-link-outside": ([hard_link("a/l", "../a/x"), Member("a/x")], "leads out of the archive"),
    "hard-link-beside": (
        [hard_link("a/l", "x"), Member("a/x")],
        "is a link to x, which is not there",
    ),
    "a directory": ([directory("a/l/")], "is not a file but of the kind: directory"),
    "a link to a directory": ([symlink("a/l", "d"), directory("a/d")], "of the kind: directory"),
    "nowhere": ([symlink("a/l", "..")], "is not there"),
    "a FIFO": ([Member("a/l", kind=tarfile.FIFOTYPE)], "of the kind: other"),
    "a device": ([Member("a/l", kind=tarfile.CHRTYPE)], "of the kind: other"),
    "sparse": ([Member("a/l", b"x" * 10, kind=tarfile.GNUTYPE_SPARSE)], "of the kind: sparse"),
}


@pytest.mark.parametrize("case", LOST_LINKS)
@real_time
async def test_a_path_that_leads_to_no_file_is_refused(path: Path, case: str) -> None:
    members, words = LOST_LINKS[case]
    tree = await opened(path, Member("manifest.json"), *members)
    with refusing(BROKEN, f"{path}: a/l ", words):
        await tree.open("a/l", "it")
    tree.close()


@real_time
async def test_a_file_with_holes_by_pax_is_refused(path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as written:
        entry = tarfile.TarInfo("GNUSparseFile.0/layer.tar")
        entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a/layer.tar"}
        entry.size = 512
        written.addfile(entry, io.BytesIO(bytes(512)))
    tree = await open_archive(write_file(path, file.getvalue()))
    with refusing(BROKEN, "a/layer.tar is not a file but of the kind: sparse"):
        tree.find("a/layer.tar")


@pytest.mark.parametrize("name", ["a", "..", "../a", "/", "", "a/b/../../.."])
@real_time
async def test_a_path_to_nothing_is_not_there(path: Path, name: str) -> None:
    tree = await opened(path, Member("x"))
    is_outside = ".." in name
    with refusing(BROKEN if is_outside else NOT_FOUND, str(path)):
        tree.find(name)


# --- names that are there twice -----------------------------------------------------------------


@pytest.mark.parametrize("compress", [plain, zstd_compressed])
@pytest.mark.parametrize("other", ["{}", "./{}", "{}/", "x/../{}"])
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "oci-layout", "repositories"])
@real_time
async def test_a_control_file_that_stands_twice_is_refused(
    path: Path, name: str, other: str, compress: Callable[[bytes], bytes]
) -> None:
    members = [Member(name, b"[]"), Member("x"), Member(other.format(name), b"[]")]
    with refusing(BROKEN, f"{path}: {name} is in the archive 2 times, and readers differ"):
        await open_archive(write_archive(path, *members, compress=compress))


@real_time
async def test_a_control_file_and_a_link_of_its_name_are_two(path: Path) -> None:
    members = [Member("manifest.json", b"[]"), symlink("manifest.json", "x"), Member("x")]
    with refusing(BROKEN, "manifest.json is in the archive 2 times"):
        await opened(path, *members)


@real_time
async def test_of_other_members_the_last_of_a_name_counts(path: Path) -> None:
    tree = await opened(path, Member("a", b"1"), Member("a", b"2"), Member("a", b"3"))
    assert await content_of(tree, "a") == b"3"
    with refusing(BROKEN, f"{path}: a is in the archive 3 times"):
        await tree.open("a", "a", sole=True)


@real_time
async def test_what_decides_must_not_stand_twice_behind_a_link_either(path: Path) -> None:
    tree = await opened(path, symlink("config", "a"), Member("a", b"1"), Member("a", b"2"))
    with refusing(BROKEN, "is in the archive 2 times"):
        await tree.open("config", "config", sole=True)
    assert await content_of(tree, "config") == b"2"


# --- files that are not archives ----------------------------------------------------------------

NO_ARCHIVES: dict[str, tuple[bytes, tuple[int, str], str]] = {
    "empty": (b"", UNSUPPORTED, "is not a tar archive"),
    "text": (b"hello\n" * 200, UNSUPPORTED, "is not a tar archive, plain or compressed"),
    "short": (pack([Member("a")])[:511], UNSUPPORTED, "is not a tar archive"),
    "lz4": (
        lz4_stored(pack([])),
        UNSUPPORTED,
        "compressed with lz4, which is not supported",
    ),
    "a truncated member": (pack([Member("a", LARGE)])[:100_000], BROKEN, "in the middle of a"),
    "a truncated header": (pack([Member("a"), Member("b")])[:700], BROKEN, "middle of a header"),
    "truncated": (truncated(gzipped(pack([Member("a", LARGE)]))), BROKEN, "in the middle"),
    "truncated-behind-the-tar": (truncated(gzipped(pack([])), 1), BROKEN, "in the middle"),
    "garbage": (gzipped(pack([])) + b"garbage" * 9, BROKEN, "inflating gzip at byte"),
    "compressed and truncated": (gzipped(pack([Member("a", LARGE)])[:9999]), BROKEN, "ends at"),
}


@pytest.mark.parametrize("case", NO_ARCHIVES)
@real_time
async def test_what_is_no_archive_is_refused(path: Path, case: str) -> None:
    content, wanted, words = NO_ARCHIVES[case]
    write_file(path, content)
    before = open_descriptors()
    with refusing(wanted, str(path), words):
        await open_archive(str(path))
    assert open_descriptors() == before


PLACES: dict[str, tuple[Callable[[Path], object], tuple[int, str], str]] = {
    "missing": (lambda _: None, NOT_FOUND, "No such file or directory"),
    "fifo": (os.mkfifo, UNSUPPORTED, "is a FIFO, not a regular file"),
    "directory": (os.mkdir, UNSUPPORTED, "is a directory, not a regular file"),
    "device": (
        lambda path: path.symlink_to("/dev/zero"),
        UNSUPPORTED,
        "is a character device, not a regular file",
    ),
    "a loop": (lambda path: path.symlink_to(path), (422, "PATH_INVALID"), "Too many levels"),
}


@pytest.mark.parametrize("case", PLACES)
@real_time
async def test_what_is_no_file_is_refused(path: Path, case: str) -> None:
    make, wanted, words = PLACES[case]
    make(path)
    with refusing(wanted, str(path), words):
        await open_archive(str(path))


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [plain, gzipped])
@real_time
async def test_a_million_members_are_refused(
    path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 100)
    members = [Member(f"{n}") for n in range(101)]
    (await open_archive(write_archive(path, *members[:100], compress=compress))).close()
    with refusing(BROKEN, f"{path}: the tar archive: more than 100 members"):
        await open_archive(write_archive(path, *members, compress=compress))


@pytest.mark.parametrize("compress", [plain, gzipped])
@real_time
async def test_a_control_file_that_is_huge_is_not_read(
    path: Path, compress: Callable[[bytes], bytes]
) -> None:
    members = [Member("manifest.json", b" " * 300_001)]
    opened = await open_archive(write_archive(path, *members, compress=compress))
    assert len(await file_tree.read(opened, "manifest.json", 300_001)) == 300_001
    with refusing(TOO_LARGE, f"{path}: manifest.json: 300001 bytes are more than the limit"):
        await file_tree.read(opened, "manifest.json", 300_000)
    opened.close()


@real_time
async def test_small_members_are_kept_within_a_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_archive, "_MAX_KEPT", 10_000)
    members = [Member(f"{n}", bytes([n]) * 999) for n in range(50)]
    opened = await open_archive(write_archive(path, Member("x", LARGE), *members, compress=gzipped))
    kept = [each.content for each in opened._members.values() if each.content]
    assert 9 <= len(kept) <= 10
    for member in members:
        assert await content_of(opened, member.name) == member.content
    opened.close()


@real_time
async def test_nothing_of_a_plain_archive_is_kept(path: Path) -> None:
    opened = await open_archive(write_archive(path, Member("a", SMALL), Member("b", LARGE)))
    assert [each.content for each in opened._members.values()] == [None, None]
    assert {len(each.head) for each in opened._members.values()} == {5, 16}


@real_time
async def test_of_a_plain_archive_headers_alone_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = OpenFile.read

    def count(file: OpenFile, size: int, offset: int) -> bytes:
        reads.append(size)
        return read(file, size, offset)

    monkeypatch.setattr(OpenFile, "read", count)
    members = [Member(f"{n}", LARGE) for n in range(5)]
    opened = await open_archive(write_archive(path, *members))
    assert sum(reads) < 20 * 512
    opened.close()


# --- archives that change -----------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda path: path.write_bytes(path.read_bytes() + bytes(512)),
    "truncated": lambda path: os.truncate(path, 1000),
    "overwritten": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "replaced": lambda path: (
        path.with_name("new").write_bytes(path.read_bytes()),
        path.with_name("new").rename(path),
    ),
}


@pytest.mark.parametrize("compress", [plain, gzipped, zstd_frames])
@pytest.mark.parametrize("case", CHANGES)
@real_time
async def test_a_member_of_an_archive_that_has_changed_is_not_read(
    path: Path, case: str, compress: Callable[[bytes], bytes]
) -> None:
    members = [Member("a", SMALL), Member("b", LARGE)]
    tree = await open_archive(write_archive(path, *members, compress=compress))
    CHANGES[case](path)
    for name in ("a", "b"):
        with refusing(CHANGED, f"{path} has been changed or replaced since it was opened"):
            await tree.open(name, name)
    tree.close()


@pytest.mark.parametrize("compress", [plain, gzipped])
@real_time
async def test_an_archive_that_is_deleted_is_what_it_was(
    path: Path, compress: Callable[[bytes], bytes]
) -> None:
    tree = await open_archive(
        write_archive(path, Member("a", SMALL), Member("b", LARGE), compress=compress)
    )
    os.unlink(path)
    assert await content_of(tree, "a") == SMALL
    assert await content_of(tree, "b") == LARGE
    tree.close()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("compression", ["plain", "gzip in members", "zstd in frames"])
@real_time
async def test_a_member_that_is_cut_off_while_it_is_read_is_no_whole_one(
    path: Path, compression: str
) -> None:
    content = os.urandom(3 << 20)
    tree = await open_archive(
        write_archive(path, Member("a", content), compress=COMPRESSIONS[compression])
    )
    reader = await tree.open("a", "member a")
    buffer = memoryview(bytearray(1000))
    got = bytes(buffer[: await reader.receive_into(buffer)])
    os.truncate(path, 1 << 20)
    with refusing(CHANGED, "changed" if compression != "plain" else "member a: the archive"):
        while count := await reader.receive_into(buffer):
            got += buffer[:count]
    assert content.startswith(got)
    assert len(got) < len(content)
    reader.close()
    tree.close()


@pytest.mark.usefixtures("small_steps")
@real_time
async def test_a_reader_raises_the_same_failure_again(path: Path) -> None:
    tree = await open_archive(
        write_archive(path, Member("a", os.urandom(1 << 20)), compress=gzipped)
    )
    reader = await tree.open("a", "a")
    os.truncate(path, 1000)
    buffer = memoryview(bytearray(1000))
    for _ in range(3):
        with refusing(CHANGED, f"{path} has been changed"):
            while await reader.receive_into(buffer):
                pass
    reader.close()
    tree.close()


@real_time
async def test_an_archive_that_is_being_written_is_worth_another_try(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gzipped(pack([Member("a", LARGE)]))
    write_file(path, whole[:1000])
    read = OpenFile.read

    def meanwhile(file: OpenFile, size: int, offset: int) -> bytes:
        content = read(file, size, offset)
        if offset + len(content) == 1000:
            write_file(path, whole)
        return content

    monkeypatch.setattr(OpenFile, "read", meanwhile)
    with refusing(CHANGED, f"{path} has been changed"):
        await open_archive(str(path))

"""Layers on each other: what becomes of their members, and which cannot be applied.

`test_layer_application` of the property tests has sequences of all kinds.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from support.tars import END, GNU, header, octal
from support.unpacking import (
    IMPLIED,
    IS_ROOT,
    directory,
    entry,
    link,
    member,
    names,
    symlink,
    tree,
    unpack,
)

from imgproxy.errors import InvalidError
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import layer_application, layer_links, places
from imgproxy.unpacking.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may do this")


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "tree"


def refusal(at: Path, *layers: bytes, **settings: int) -> str:
    with pytest.raises(InvalidError) as caught:
        unpack(at, *layers, **settings)
    assert os.listdir(at.parent) == []
    return caught.value.message


# --- members ------------------------------------------------------------------------------------


def test_all_kinds_are_made(at: Path) -> None:
    members = [
        directory("d/", mode=0o2750, mtime=10**9 + 1),
        entry("d/f", b"content", mode=0o6711, mtime=2 * 10**9 + 2),
        symlink("l", "/absolute/" + "x" * 300, mtime=3 * 10**9 + 3),
        link("d/h", "d/f"),
        entry("p", kind="fifo", mode=0o600, mtime=4 * 10**9 + 4),
        entry(b"\xff\n", b"", mode=0),
    ]
    done = unpack(at, b"".join(members))
    assert done.files == 6
    found = tree(at)
    assert found["d"] == ("directory", 0o2750, b"", 10**9 + 1)
    assert found["d/f"] == ("file", 0o6711, b"content", 2 * 10**9 + 2)
    assert found["l"] == ("symlink", 0, b"/absolute/" + b"x" * 300, 3 * 10**9 + 3)
    assert found["p"] == ("fifo", 0o600, b"", 4 * 10**9 + 4)
    assert found["\udcff\n"][:2] == ("file", 0)
    assert (at / "d/h").samefile(at / "d/f")


def test_the_top_has_what_its_member_says(at: Path) -> None:
    unpack(at, directory("./", mode=0o711, mtime=5 * 10**9) + entry("a"))
    state = at.stat()
    assert stat.S_IMODE(state.st_mode) == (0o711 if IS_ROOT else 0o700)
    assert state.st_mtime_ns == 5 * 10**9


def test_directories_that_no_layer_describes_have_attributes_all_the_same(at: Path) -> None:
    unpack(at, entry("a/b/c"))
    assert (at.stat().st_mtime_ns, at.stat().st_atime_ns) == (0, 0)
    found = tree(at)
    assert found["a"] == found["a/b"] == (*IMPLIED, b"", 0)


def test_a_later_layer_may_describe_directories_and_nothing_else_of_them_changes(at: Path) -> None:
    unpack(at, entry("a/b/c"), directory("a", mode=0o700, mtime=7), entry("a/b/d"))
    found = tree(at)
    assert found["a"] == ("directory", 0o700, b"", 7)
    assert found["a/b"] == (*IMPLIED, b"", 0)


def test_closed_directories_can_be_filled(at: Path) -> None:
    unpack(at, directory("d", mode=0) + directory("d/e", mode=0) + entry("d/e/f", mode=0))
    if not IS_ROOT:
        (at / "d").chmod(0o700)
        (at / "d/e").chmod(0o700)
    assert stat.S_IMODE((at / "d/e/f").stat().st_mode) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (first, second)
        for first in (
            entry("x", b"1"),
            directory("x"),
            symlink("x", "gone"),
            entry("x", kind="fifo"),
        )
        for second in (entry("x", b"2"), directory("x"), symlink("x", "y"), entry("x", kind="fifo"))
    ],
)
def test_kinds_may_change(at: Path, first: bytes, second: bytes) -> None:
    unpack(at, second)
    wanted = tree(at)
    for number, layers in enumerate([(first + second,), (first, second)]):
        unpack(at.with_name(str(number)), *layers)
        assert tree(at.with_name(str(number))) == wanted


def test_what_was_in_a_directory_goes_with_it(at: Path) -> None:
    unpack(at, entry("d/e/f") + entry("d/g"), entry("d", b"a file"))
    assert names(at) == ["d"]
    unpack(at.with_name("2"), entry("d/e/f"), entry("d", b"a file"), entry("d/h"))
    assert names(at.with_name("2")) == ["d", "d/h"]


def test_times_of_what_is_out_of_range_are_those_of_nothing(at: Path) -> None:
    late = member(name=b"late", more={136: b"\x80" + (2**60).to_bytes(11, "big")})
    early = member(name=b"early", more={136: (2**96 - 2**60).to_bytes(12, "big")})
    old = member(name=b"old", more={136: (2**96 - 5).to_bytes(12, "big")})
    unpack(at, late + early + old)
    times = {name: file.mtime for name, file in tree(at).items()}
    assert times == {"late": 0, "early": 0, "old": -5 * 10**9}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (entry("a/../b"), 'a/../b: a path with ".." in it'),
        (entry("a", kind="8"), "a: of a type that is not known"),
        (entry("."), "the top of the tree as a file"),
        (symlink("./", "/srv"), "the top of the tree as a symlink"),
        (symlink("a", ""), "a symbolic link to nothing"),
        (entry(".imgproxy-incomplete"), "a name that this program uses itself"),
        (entry("a", uid=2**32 - 1), "a: no file can belong to 4294967295:0"),
        (entry("c", kind="character"), "a whiteout of overlayfs"),
        (entry("c", kind="block", device=(4096, 0)), "a device with the numbers 4096:0"),
        (entry("c", kind="character", device=(1, 2**20)), "a device with the numbers 1:1048576"),
        (symlink("a", "b") + symlink("b", "a") + entry("a/x"), "a: leads too far"),
        (directory("a/" * 200) + symlink("s", "a/" * 200) + entry("s/" + "b/" * 60), "too far"),
        (b"x" * 512, "the tar archive: the header at byte 0 has a malformed number"),
    ],
)
def test_what_no_tree_can_have_is_refused(at: Path, raw: bytes, words: str) -> None:
    message = refusal(at, raw)
    assert words in message
    assert message.startswith("layer 0 (sha256:")


# --- paths through links ------------------------------------------------------------------------


def test_links_on_the_way_are_followed_inside_of_the_tree(at: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    layer = (
        directory("usr/lib")
        + symlink("lib", "usr/lib")
        + entry("lib/a")
        + symlink("abs", outside.as_posix())
    )
    unpack(at, layer + entry("abs/b") + symlink("up", "../../usr") + entry("up/lib/c"))
    assert not outside.exists()
    inside = outside.as_posix().lstrip("/")
    assert {"usr/lib/a", "usr/lib/c", f"{inside}/b"} < set(names(at))
    assert (at / "lib").is_symlink()


def test_a_link_that_is_replaced_is_followed_no_longer(at: Path) -> None:
    layer = directory("a") + directory("b") + symlink("l", "a") + entry("l/1")
    unpack(at, layer + symlink("l", "b") + entry("l/2") + directory("l") + entry("l/3"))
    assert names(at) == ["a", "a/1", "b", "b/2", "l", "l/3"]


def test_a_link_to_a_file_is_no_directory(at: Path) -> None:
    unpack(at, entry("f") + symlink("l", "f") + entry("l/x"))
    assert names(at) == ["f", "f/x", "l"]


# --- hard links ---------------------------------------------------------------------------------


def test_hard_links_may_lead_to_lower_layers_forward_and_to_links(at: Path) -> None:
    lower = entry("low", b"low") + symlink("s", "nowhere")
    upper = (
        link("h", "low")
        + link("t", "s")
        + link("f2", "f1")
        + link("f1", "later")
        + entry("later", b"later")
    )
    unpack(at, lower, upper)
    assert (at / "h").samefile(at / "low")
    assert (at / "t").readlink() == (at / "s").readlink()
    assert (at / "t").lstat().st_ino == (at / "s").lstat().st_ino
    assert (at / "f1").samefile(at / "later")
    assert (at / "f2").samefile(at / "later")


def test_a_link_breaks_when_its_name_gets_something_else(at: Path) -> None:
    unpack(at, entry("a", b"old") + link("h", "a"), entry("h", b"new"))
    assert (at / "a").read_bytes() == b"old"
    assert (at / "h").read_bytes() == b"new"


def test_a_link_to_itself_is_nothing(at: Path) -> None:
    unpack(at, entry("a", b"1") + link("a", "./a"))
    assert (at / "a").read_bytes() == b"1"


def test_what_comes_later_takes_the_place_of_a_link_that_waits(at: Path) -> None:
    unpack(at, link("a", "z") + link("d/b", "z") + entry("a", b"a") + entry("d", b"d") + entry("z"))
    assert (at / "a").read_bytes() == b"a"
    assert (at / "d").read_bytes() == b"d"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (link("h", "nothing"), "h: a hard link to nothing, which is not there"),
        (link("h", "d/nothing"), "a hard link to d/nothing, which is not there"),
        (link("h", ".wh..wh.plnk/1"), "which is not there"),
        (directory("d") + link("h", "d"), "a hard link to a directory"),
        (link("h", "d") + directory("d"), "a hard link to a directory"),
        (link("h", "."), "a hard link to the top"),
        (link("h", "../x"), '".." in it'),
        (entry("d/f") + link("d", "d/f"), "in its own place"),
        (link("a", "b") + link("b", "a"), "which is not there"),
    ],
)
def test_hard_links_to_what_can_be_no_target_are_refused(at: Path, raw: bytes, words: str) -> None:
    assert words in refusal(at, raw)


def test_links_that_wait_have_a_limit(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_links, "MAX_WAITING", 3)
    links = [link(f"h{n}", "z") for n in range(4)]
    assert "one of more than 3 hard links" in refusal(at, b"".join(links) + entry("z"))
    unpack(at, b"".join(links[:3]) + entry("z"))
    assert names(at) == ["h0", "h1", "h2", "z"]


# --- what is kept in memory ---------------------------------------------------------------------


def test_directories_have_a_limit(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_DIRECTORIES", 3)
    assert "c/x: one of more than 3 directories" in refusal(at, directory("a/b") + entry("c/x/y"))
    unpack(at, directory("a/b") + entry("c/x"), directory("a", mode=0o700))


def test_members_in_lower_directories_have_a_limit(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MAX_NAMES", 2)
    lower = directory("d")
    own = entry("new/1") + entry("new/2") + entry("new/3")
    many = entry("d/1") + entry("d/2") + entry("d/3")
    assert "3: one of more than 2 in directories of lower layers" in refusal(at, lower, many)
    unpack(at, lower + many, entry("d/1") + own + entry("d/2"), entry("d/1") + entry("d/2"))


def test_attributes_of_directories_have_a_limit(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_application, "MAX_KEPT", 20)
    large = {"user.x": b"x" * 5}
    layer = directory("a", xattrs=large) + directory("b", xattrs=large)
    assert "b: with it, more than 20 bytes of attributes" in refusal(at, layer)
    assert "with it, more than 20 bytes" in refusal(
        at, directory(".", xattrs={"user.x": b"x" * 15})
    )
    unpack(at, directory("a", xattrs=large) + entry("f", xattrs={"user.x": b"x" * 500}))


# --- sparse files -------------------------------------------------------------------------------


def test_holes_stay_holes(at: Path) -> None:
    size = 1 << 20
    more = {386: octal(size - 4096, 11) + octal(5, 11), 483: octal(size, 11)}
    sparse = header(b"s", b"S", 5, magic=GNU, more=more) + b"hello" + bytes(507)
    unpack(at, sparse + entry("next"))
    assert (at / "s").read_bytes() == bytes(size - 4096) + b"hello" + bytes(4091)
    assert (at / "s").stat().st_blocks * 512 < size


def test_what_a_file_says_that_it_has_counts(at: Path) -> None:
    more = {483: b"\x80" + (2**60).to_bytes(11, "big")}
    sparse = header(b"s", b"S", 0, magic=GNU, more=more)
    assert "more than" in refusal(at, sparse)


# --- the system ---------------------------------------------------------------------------------


@needs_root
def test_owners_are_kept(at: Path) -> None:
    layer = (
        entry("f", uid=5, gid=7, mode=0o4755)
        + directory("d", uid=5, gid=7)
        + symlink("l", "f", uid=3)
    )
    unpack(
        at, layer + entry("d/x", uid=2**32 - 2, gid=0) + directory(".", uid=9, gid=9), owner="keep"
    )
    owners = {p.name: (p.lstat().st_uid, p.lstat().st_gid) for p in (at, *at.rglob("*"))}
    wanted = {"tree": (9, 9), "f": (5, 7), "d": (5, 7), "l": (3, 0), "x": (2**32 - 2, 0)}
    assert owners == wanted
    assert stat.S_IMODE((at / "f").stat().st_mode) == 0o4755


@needs_root
def test_owners_may_be_mapped(at: Path) -> None:
    unpack(at, entry("f", uid=5, gid=0), owner="map=0:1000:1,1:2000:10")
    assert ((at / "f").stat().st_uid, (at / "f").stat().st_gid) == (2004, 1000)
    with pytest.raises(InvalidError, match="f: --owner map has no range with 11"):
        unpack(at.with_name("2"), entry("f", uid=11), owner="map=0:1000:1,1:2000:10")


@needs_root
def test_devices_are_made(at: Path) -> None:
    unpack(at, entry("null", kind="character", device=(1, 3), mode=0o666), owner="keep")
    assert (at / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE((at / "null").stat().st_mode) == 0o666


def test_devices_that_may_not_be_made_are_counted(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_node(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(Tree, "make_node", make_node)
    done = unpack(
        at, entry("a", kind="block", device=(8, 0)) + entry("b", kind="character", device=(1, 3))
    )
    assert done.lost == {"devices": 2}
    assert names(at) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "f: No space left on device"),
        (errno.EPERM, "f: Operation not permitted; owners can be set by root alone"),
        (errno.EINVAL, r"subuid\(5\)"),
    ],
)
def test_what_the_system_refuses_is_told_with_the_file(
    at: Path, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_file(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Tree, "create_file", create_file)
    with pytest.raises(DestinationError, match=words):
        unpack(at, entry("f"), owner="keep" if IS_ROOT else "map=0:0:1")
    assert os.listdir(at.parent) == []


def test_a_name_that_is_too_long_there_is_the_layer_s_fault(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_file(*_: object) -> int:
        raise OSError(errno.ENAMETOOLONG, "too long")

    monkeypatch.setattr(Tree, "create_file", create_file)
    assert "f: too long a name" in refusal(at, entry("f"))


def test_nothing_after_the_end_of_the_archive_is_a_file(at: Path) -> None:
    unpack(at, entry("a") + END + entry("smuggled"))
    assert names(at) == ["a"]

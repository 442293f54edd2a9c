"""A tree of files: what is made, changed and removed in it, and that nothing leads out of it."""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from imgproxy.unpacking import resolution
from imgproxy.unpacking import tree as trees
from imgproxy.unpacking.tree import Attributes, Scope, Tree, change_open

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND = 10**9


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "top").mkdir()
    return tmp_path / "top"


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest) -> resolution.Opener:
    found: resolution.Opener = getattr(resolution, request.param)
    return found


@pytest.fixture(params=list(Scope), ids=lambda scope: scope.name)
def tree(top: Path, way: resolution.Opener, request: pytest.FixtureRequest) -> Iterator[Tree]:
    root = os.open(top, os.O_PATH)
    tree = Tree(root, request.param, way)
    yield tree
    tree.close()
    os.close(root)


def write(tree: Tree, path: bytes, content: bytes) -> None:
    fd = tree.create_file(path)
    os.write(fd, content)
    os.close(fd)


def test_files_and_directories_are_made_for_their_owner_alone(top: Path, tree: Tree) -> None:
    assert tree.make_parents(b"a/b/c") == [b"a", b"a/b"]
    write(tree, b"a/b/c", b"x")
    assert (top / "a/b/c").read_text() == "x"
    assert stat.S_IMODE((top / "a/b/c").stat().st_mode) == 0o600
    assert stat.S_IMODE((top / "a").stat().st_mode) == 0o700
    assert tree.make_parents(b"a/b/d") == []
    assert tree.names(b"a/b") == [b"c"]
    assert tree.names(b"") == [b"a"]


def test_names_are_bytes(top: Path, tree: Tree) -> None:
    for name in (b"\xff\xfe", b"..\\x", b"C:\\x", b"a\nb", b"*", b"-rf"):
        write(tree, name, b"")
    assert {b"\xff\xfe", b"a\nb"} < set(os.listdir(os.fsencode(top)))
    assert set(tree.names(b"")) == set(os.listdir(os.fsencode(top)))


def test_nothing_that_is_there_is_replaced(tree: Tree) -> None:
    tree.make_symlink(b"x", b"y")
    for make in (
        lambda: tree.create_file(b"x"),
        lambda: tree.make_directory(b"x"),
        lambda: tree.make_symlink(b"x", b"z"),
        lambda: tree.make_link(b"x", b"x"),
        lambda: tree.make_node(b"x", stat.S_IFIFO | 0o600),
        lambda: tree.make_parents(b"x/y"),
    ):
        with pytest.raises(FileExistsError):
            make()
    write(tree, b"f", b"")
    with pytest.raises(NotADirectoryError):
        tree.make_parents(b"f/y")


def test_status_is_that_of_a_link_itself(tree: Tree) -> None:
    tree.make_symlink(b"l", b"nothing")
    status = tree.status(b"l")
    assert status is not None
    assert stat.S_ISLNK(status.st_mode)
    write(tree, b"f", b"")
    assert [tree.status(each) for each in (b"x", b"x/y", b"f/y")] == [None] * 3
    assert tree.status(b"") is not None


def test_a_link_leads_outside_by_whatever_way(tree: Tree) -> None:
    tree.make_parents(b"a/b/c")
    for name, target in {
        b"absolute": b"/a",
        b"dotdot": b"../x",
        b"a/up": b"..",
        b"beyond": b"a/up/..",
        b"fine": b"a/b/../b",
        b"nothing": b"missing",
        b"loop": b"loop",
    }.items():
        tree.make_symlink(name, target)
    found = {name for name in tree.names(b"") if tree.leads_outside(name)}
    assert found == {b"absolute", b"dotdot", b"beyond"}


def test_a_hard_link_to_a_symbolic_link_is_one_to_itself(top: Path, tree: Tree) -> None:
    tree.make_symlink(b"s", b"/etc/passwd")
    tree.make_directory(b"d")
    tree.make_link(b"d/h", b"s")
    assert os.readlink(top / "d/h") == "/etc/passwd"
    with pytest.raises(FileNotFoundError):
        tree.make_link(b"n", b"nothing")
    with pytest.raises(PermissionError):
        tree.make_link(b"n", b"d")


def test_a_file_is_moved_and_replaces_another_only_if_it_may(top: Path, tree: Tree) -> None:
    tree.make_parents(b"d/x")
    for name in (b"a", b"b", b"d/c"):
        write(tree, name, name)
    tree.move(b"a", tree, b"d/a", replace=False)
    with pytest.raises(FileExistsError):
        tree.move(b"b", tree, b"d/c", replace=False)
    tree.move(b"b", tree, b"d/c", replace=True)
    assert {each.name: each.read_bytes() for each in (top / "d").iterdir()} == {
        "a": b"a",
        "c": b"b",
    }
    assert os.listdir(top) == ["d"]


def test_what_is_removed_is_gone_with_all_that_is_in_it(top: Path, tree: Tree) -> None:
    tree.make_parents(b"d/e/f/g")
    write(tree, b"d/e/f/g", b"")
    tree.make_symlink(b"l", b"d")
    write(tree, b"file", b"")
    for name in (b"l", b"file", b"d"):
        tree.remove(name)
    assert os.listdir(top) == []
    with pytest.raises(FileNotFoundError):
        tree.remove(b"d")


def test_no_way_through_what_was_removed_is_known(top: Path, tree: Tree) -> None:
    tree.make_parents(b"a/b/c")
    tree.make_symlink(b"l", b"a/b")
    write(tree, b"l/x", b"")
    tree.remove(b"a")
    tree.make_parents(b"a/b/c")
    write(tree, b"l/y", b"")
    assert os.listdir(top / "a/b") == ["y"]
    tree.remove(b"l")
    tree.make_symlink(b"l", b"a")
    write(tree, b"l/z", b"")
    assert sorted(os.listdir(top / "a")) == ["b", "z"]


def test_a_deep_tree_is_made_and_removed(top: Path, tree: Tree) -> None:
    path = b"d"
    tree.make_directory(path)
    for _ in range(40):
        path += b"/d"
        tree.make_directory(path)
    assert len(os.listdir("/proc/self/fd")) < 2 * trees.MAX_KEPT
    tree.remove(b"d")
    assert os.listdir(top) == []


def test_few_directories_are_kept_open(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what the process may have open, so that there is room for all else."""
    root = os.open(top, os.O_PATH)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (80, 80))  # pytest may have more open
    tree = Tree(root, Scope.BENEATH)
    before = len(os.listdir("/proc/self/fd"))
    for n in range(70):
        tree.make_directory(b"%d" % n)
        write(tree, b"%d/f" % n, b"")
    assert len(os.listdir("/proc/self/fd")) == before + 20
    write(tree, b"0/g", b"")
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)


def test_attributes_are_given_to_what_is_there(top: Path, tree: Tree) -> None:
    """Of a link, they are not its target's."""
    write(tree, b"victim", b"")
    tree.make_symlink(b"l", b"victim")
    tree.make_directory(b"d")
    tree.make_node(b"p", stat.S_IFIFO | 0o600)
    wanted = Attributes((os.getuid(), os.getgid()), 0o751, (), 5 * SECOND + 7)
    for name in (b"d", b"p", b"l", b"victim"):
        if name == b"victim":
            assert (top / "victim").stat().st_mtime_ns != wanted.modified
            assert stat.S_IMODE((top / "victim").stat().st_mode) == 0o600
        assert tree.change(name, wanted) == []
        status = os.lstat(top / os.fsdecode(name))
        assert (status.st_mtime_ns, status.st_atime_ns) == (wanted.modified, wanted.modified)
        assert stat.S_IMODE(status.st_mode) == (0o777 if name == b"l" else 0o751)
    tree.change(b"", Attributes(mode=0o711))
    assert stat.S_IMODE(top.stat().st_mode) == 0o711
    tree.change(b"victim", Attributes())
    tree.change(b"l", Attributes())


def test_extended_attributes_are_set_and_cleared(top: Path, tree: Tree) -> None:
    fd = tree.create_file(b"f")
    failed = change_open(fd, Attributes(mode=0o644, xattrs=((b"user.a", b"1"), (b"bad", b"2"))))
    os.close(fd)
    assert [name for name, _ in failed] == [b"bad"]
    assert os.getxattr(top / "f", "user.a") == b"1"
    tree.make_directory(b"d")
    tree.change(b"d", Attributes(xattrs=((b"user.a", b"1"),)))
    tree.clear_xattrs(b"d")
    assert os.listxattr(top / "d") == []
    tree.make_symlink(b"l", b"f")
    assert [name for name, _ in tree.change(b"l", Attributes(xattrs=((b"user.b", b"1"),)))]
    assert os.listxattr(top / "f") == ["user.a"]


def test_nothing_leads_out_of_the_tree(tmp_path: Path, top: Path, tree: Tree) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/f").write_text("mine")
    tree.make_symlink(b"up", b"../victim")
    tree.make_symlink(b"absolute", os.fsencode(tmp_path / "victim"))
    for link in (b"up", b"absolute"):
        for act in (
            lambda path: tree.create_file(path + b"/new"),
            lambda path: tree.make_parents(path + b"/a/b"),
            lambda path: tree.make_link(b"h", path + b"/f"),
            lambda path: tree.remove(path + b"/f"),
            lambda path: tree.change(path + b"/f", Attributes(mode=0)),
            tree.names,
        ):
            with suppress(OSError):
                act(link)
                pytest.fail("there is nothing of this name in the tree")
        tree.change(link, Attributes(modified=SECOND))
    assert (tmp_path / "victim").stat().st_mtime_ns != SECOND
    assert os.listdir(tmp_path / "victim") == ["f"]
    assert (tmp_path / "victim/f").read_text() == "mine"
    assert sorted(os.listdir(top)) == ["absolute", "up"]


def test_this_system_s_way_is_the_default(top: Path) -> None:
    root = os.open(top, os.O_PATH)
    tree = Tree(root, Scope.BENEATH)
    with pytest.raises(OSError, match="cross-device"):
        tree.directory(b"..")
    os.close(root)

"""Whiteouts hide what is below their layer, wherever they stand in it, and nothing else."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from support.unpacking import IMPLIED, directory, entry, names, symlink, tree, unpack

from imgproxy.unpacking.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "tree"


def in_any_order(*members: bytes) -> list[bytes]:
    return [b"".join(each) for each in itertools.permutations(members)]


@pytest.mark.parametrize("upper", in_any_order(entry(".wh.x"), entry("x", b"new")))
def test_a_whiteout_hides_what_is_below_and_not_beside(at: Path, upper: bytes) -> None:
    unpack(at, entry("x", b"old") + entry("y"), upper)
    assert names(at) == ["x", "y"]
    assert (at / "x").read_bytes() == b"new"


@pytest.mark.parametrize(
    "upper",
    in_any_order(entry("d/.wh..wh..opq"), entry("d/s/n"), directory("d", mode=0o711)),
)
def test_an_opaque_directory_keeps_what_its_layer_has(at: Path, upper: bytes) -> None:
    """The directory `d/s`, which has no member of its own, is one of these."""
    lower = (
        directory("d", mode=0o700) + entry("d/a") + directory("d/s", mode=0o700) + entry("d/s/o")
    )
    unpack(at, lower, upper)
    assert names(at) == ["d", "d/s", "d/s/n"]
    found = tree(at)
    assert found["d"].mode == 0o711
    assert found["d/s"].shape == IMPLIED


@pytest.mark.parametrize("upper", in_any_order(entry(".wh.d"), entry("d/s/n")))
def test_a_directory_that_is_hidden_and_has_something_new_begins_anew(
    at: Path, upper: bytes
) -> None:
    lower = directory("d", mode=0o700) + entry("d/a") + directory("d/s", mode=0o700)
    unpack(at, lower, upper)
    found = tree(at)
    assert sorted(found) == ["d", "d/s", "d/s/n"]
    assert found["d"].shape == found["d/s"].shape == IMPLIED


@pytest.mark.parametrize("upper", in_any_order(entry(".wh.d"), directory("d", mode=0o711)))
def test_a_directory_that_is_hidden_and_described_is_empty(at: Path, upper: bytes) -> None:
    unpack(at, directory("d", mode=0o700) + entry("d/a/b"), upper)
    assert {name: file.shape for name, file in tree(at).items()} == {"d": ("directory", 0o711)}


def test_an_opaque_directory_that_is_not_described_keeps_its_attributes(at: Path) -> None:
    unpack(at, directory("d", mode=0o700) + entry("d/a"), entry("d/.wh..wh..opq"))
    assert {name: file.shape for name, file in tree(at).items()} == {"d": ("directory", 0o700)}


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo", "link"])
def test_a_whiteout_may_be_of_any_kind(at: Path, kind: str) -> None:
    upper = entry(".wh.x", b"content" if kind == "file" else b"", kind, target="y")
    unpack(at, entry("x") + entry("y"), upper)
    assert names(at) == ["y"]


@pytest.mark.parametrize(
    "marker",
    [".wh.nothing", "d/.wh.nothing", "no/.wh.x", "f/.wh.x", "no/.wh..wh..opq", "f/.wh..wh..opq"],
)
def test_a_whiteout_of_nothing_is_nothing(at: Path, marker: str) -> None:
    lower = directory("d") + entry("f")
    unpack(at, lower, entry(marker))
    assert names(at) == ["d", "f"]


def test_in_the_lowest_layer_there_is_nothing_to_hide(at: Path) -> None:
    unpack(at, entry("d/x") + entry("d/.wh.x") + entry("d/.wh..wh..opq") + entry(".wh.d"))
    assert names(at) == ["d", "d/x"]


def test_whiteouts_hold_for_all_layers_below_and_no_later_one(at: Path) -> None:
    layers = [
        entry("a/1"),
        entry("a/2"),
        entry("a/.wh..wh..opq"),
        entry("a/3"),
        entry("b"),
        entry(".wh.b"),
    ]
    unpack(at, *layers, entry("b", b"again"))
    assert names(at) == ["a", "a/3", "b"]


def test_at_the_top_everything_may_be_hidden_but_the_mark(at: Path) -> None:
    at.mkdir()
    upper = entry(".wh..wh..opq") + entry(".wh..imgproxy-incomplete") + entry("b")
    unpack(at, entry("a/x") + entry("f"), upper)
    assert names(at) == ["b"]


def test_links_are_hidden_themselves_and_followed_on_the_way(at: Path, tmp_path: Path) -> None:
    victim = tmp_path / "out/victim"
    victim.parent.mkdir()
    victim.write_bytes(b"")
    lower = symlink("l", victim.parent.as_posix()) + symlink("m", "d") + entry("d/x") + entry("d/y")
    upper = entry(".wh.l") + entry("m/.wh.x") + entry("l/.wh.victim") + entry("l/.wh..wh..opq")
    unpack(at, lower, upper)
    assert names(at) == ["d", "d/y", "m"]
    unpack(at.with_name("2"), lower, entry("l/.wh.victim") + entry("l/.wh..wh..opq"))
    assert victim.exists()


def test_what_is_hidden_is_looked_for_once(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of the same markers would otherwise take a pass over the directory each."""
    passes = []
    names_of = Tree.names

    def counted(tree: Tree, path: bytes) -> list[bytes]:
        passes.append(path)
        return names_of(tree, path)

    monkeypatch.setattr(Tree, "names", counted)
    upper = b"".join(entry(f"d/n{n}") + entry("d/.wh..wh..opq") for n in range(50))
    unpack(at, entry("d/old"), upper, entry("d/.wh..wh..opq") * 2)
    assert passes == [b"d", b"d"]
    assert names(at) == ["d"]


def test_names_of_aufs_are_omitted_with_all_below(at: Path) -> None:
    layer = (
        entry(".wh..wh.aufs") + directory(".wh..wh.plnk") + entry(".wh..wh.plnk/1.2") + entry("a")
    )
    done = unpack(at, layer, entry("d/.wh..wh.orph/x/y"))
    assert names(at) == ["a"]
    assert done.lost == {"reserved": 4}


def test_deep_trees_are_hidden_like_others(at: Path) -> None:
    deep = "d/" * 255
    upper = entry(f"{deep}new") + entry(".wh.d")
    unpack(at, entry(f"{deep}old") + entry("d/" * 200 + "f"), upper, directory("d", mode=0o711))
    assert len(names(at)) == 256
    assert names(at)[-1] == f"{deep}new"

"""`unpack` of layers that attack: nothing outside of DIR is made, changed or linked to."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from support import forked
from support.attacks import Link
from support.canary import SECRET, Canary
from support.images import Layout, named
from support.parent import INSECURE
from support.unpack_attacks import DEVICE, forbidden_xattrs, unpackings
from support.unpacking import public_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.attacks import Tree

NAMES = list(unpackings(b"/outside"))
# One for each way out: by a link, by a lower layer's link, at the top, by hard links and whiteouts.
QUICK = (
    *("symlink-absolute", "symlink-of-lower-layer", "symlink-in-place-of-directory"),
    *("root-symlink-d", "hardlink-behind-symlink", "opaque-through-symlink", "root-whiteout-0"),
    *("special-owner-minus-one", "special-device", "name-in-the-mark-through-a-link"),
)


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory() as path:
        yield path


@pytest.fixture
def canary(place: Path) -> Canary:
    return Canary(place / "canary")


def tree_at(path: Path) -> Tree:
    """Return what is in a directory, by root, who may look everywhere."""
    found: Tree = {}
    top = os.fsencode(path)
    left = [top]
    while left:
        place = left.pop()
        for name in os.listdir(place):
            inner = os.path.join(place, name)
            assert not forbidden_xattrs(inner)
            mode = os.lstat(inner).st_mode
            shown = inner.removeprefix(top + b"/")
            if stat.S_ISDIR(mode):
                os.chmod(inner, 0o700)
                left.append(inner)
                found[shown] = None
            elif stat.S_ISLNK(mode):
                found[shown] = Link(os.readlink(inner))
            elif stat.S_ISREG(mode):
                os.chmod(inner, 0o600)
                with open(inner, "rb") as file:
                    found[shown] = file.read()
            else:
                assert stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
                found[shown] = DEVICE
    return found


def users() -> list[object]:
    root = pytest.mark.skipif(os.geteuid() != 0, reason="root can become anybody")
    return [
        pytest.param(None, id="self"),
        pytest.param(forked.NOBODY, id="nobody", marks=root),
    ]


@pytest.mark.parametrize("uid", users())
@pytest.mark.parametrize(
    "name",
    [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in NAMES],
)
def test_nothing_outside_is_touched(
    name: str, uid: int | None, place: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, wanted = unpackings(os.fsencode(canary.path))[name]
    layout = Layout(place / "layout")
    layout.save(named(layout.image(*layers), "v1"))
    work = place / "work"
    (work / "in-place").mkdir(parents=True)
    if uid is not None:
        for each in (work, work / "in-place"):
            os.chown(each, uid, uid)
    is_root = (os.geteuid() if uid is None else uid) == 0
    monkeypatch.chdir(canary.path)  # what is relative to it must not be found there
    for at in ("absent", "in-place"):
        done = forked.run("unpack", INSECURE, f"oci:{layout.path}:v1", str(work / at), uid=uid)
        canary.check()
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr
        if wanted is None:
            assert done.status == 4, done.stderr
            assert os.listdir(work) == ["in-place"]
            assert os.listdir(work / "in-place") == []
        else:
            assert done.status == 0, done.stderr
            tree = tree_at(work / at)
            assert tree == {
                path: file for path, file in wanted.items() if is_root or file != DEVICE
            }
            assert SECRET not in tree.values()


def test_the_quick_cases_are_among_all() -> None:
    assert set(QUICK) < set(NAMES)

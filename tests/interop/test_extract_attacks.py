"""`extract` of layers that attack: nothing outside of DIR is made, changed or linked to."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import forked
from support.attacks import Link, attacks
from support.canary import SECRET, Canary
from support.images import Layout, named
from support.parent import INSECURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.attacks import Tree

NAMES = list(attacks(b"/outside"))
# One for each way out: by name, at the top, by links, by a hard link; and one that is none.
QUICK = (
    *("name-dotdot", "root-symlink-d", "symlink-beyond-path-max", "hardlink-behind-symlink"),
    "closed-directories",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that other users reach, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


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
            mode = os.lstat(inner).st_mode
            shown = inner.removeprefix(top + b"/")
            if stat.S_ISDIR(mode):
                os.chmod(inner, 0o700)
                left.append(inner)
                found[shown] = None
            elif stat.S_ISLNK(mode):
                found[shown] = Link(os.readlink(inner))
            else:
                assert stat.S_ISREG(mode)
                assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
                os.chmod(inner, 0o600)
                with open(inner, "rb") as file:
                    found[shown] = file.read()
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
    attack = attacks(os.fsencode(canary.path))[name]
    layout = Layout(place / "layout")
    layout.save(named(layout.image(*attack.layers), "v1"))
    work = place / "work"
    work.mkdir()
    (work / "in-place").mkdir()
    if uid is not None:
        for each in (work, work / "in-place"):
            os.chown(each, uid, uid)
    monkeypatch.chdir(canary.path)  # what is relative to it must not be found there
    for out in (work / "absent", work / "in-place"):
        done = forked.run("extract", INSECURE, f"oci:{layout.path}:v1", str(out), uid=uid)
        canary.check()
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr
        if attack.extracted is None:
            assert done.status in {3, 4}, done.stderr
            assert os.listdir(work) == ["in-place"]
            assert os.listdir(work / "in-place") == []
        else:
            assert done.status == 0, done.stderr
            tree = tree_at(out)
            assert tree == attack.extracted
            assert SECRET not in tree.values()

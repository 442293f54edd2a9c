"""`extract` of layers that attack: nothing outside of DIR is made, changed or linked to."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.attacked import USERS, nothing_is_left, runs, tree_at
from support.attacks import attacks
from support.canary import SECRET, Canary

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def check_mode(_: bytes, mode: int) -> None:
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX) or stat.S_ISDIR(mode)


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize(
    "name",
    [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in NAMES],
)
def test_nothing_outside_is_touched(
    name: str, uid: int | None, place: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attacks(os.fsencode(canary.path))[name]
    monkeypatch.chdir(canary.path)  # what is relative to it must not be found there
    for out, done in runs("extract", attack.layers, place, uid):
        canary.check()
        if attack.extracted is None:
            assert done.status in {3, 4}, done.stderr
            assert nothing_is_left(out)
        else:
            assert done.status == 0, done.stderr
            tree = tree_at(out, check_mode)
            assert tree == attack.extracted
            assert SECRET not in tree.values()

"""`unpack` of layers that attack: nothing outside of DIR is made, changed or linked to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.attacked import DEVICE, USERS, nothing_is_left, runs, tree_at
from support.canary import SECRET, Canary
from support.unpack_attacks import forbidden_xattrs, unpackings
from support.unpacking import public_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def check_xattrs(path: bytes, _: int) -> None:
    assert not forbidden_xattrs(path)


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize(
    "name",
    [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in NAMES],
)
def test_nothing_outside_is_touched(
    name: str, uid: int | None, place: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, wanted = unpackings(os.fsencode(canary.path))[name]
    is_root = (os.geteuid() if uid is None else uid) == 0
    monkeypatch.chdir(canary.path)  # what is relative to it must not be found there
    for out, done in runs("unpack", layers, place, uid):
        canary.check()
        if wanted is None:
            assert done.status == 4, done.stderr
            assert nothing_is_left(out)
        else:
            assert done.status == 0, done.stderr
            tree = tree_at(out, check_xattrs)
            assert tree == {
                path: file for path, file in wanted.items() if is_root or file != DEVICE
            }
            assert SECRET not in tree.values()


def test_the_quick_cases_are_among_all() -> None:
    assert set(QUICK) < set(NAMES)

"""A command that unpacks layers which attack it, as this user and as nobody."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from support import forked
from support.attacks import Link
from support.images import Layout, named
from support.parent import INSECURE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from support.attacks import Tree
    from support.commands import Done

# A device, in a tree.
DEVICE = Link(b"a device")

USERS = [
    pytest.param(None, id="self"),
    pytest.param(
        forked.NOBODY,
        id="nobody",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="root can become anybody"),
    ),
]


def runs(
    command: str, layers: Sequence[bytes], place: Path, uid: int | None
) -> Iterator[tuple[Path, Done]]:
    """Run a command on layers, into a directory that is absent, and into an empty one.

    Yields each directory with what the command said.
    """
    layout = Layout(place / "layout")
    layout.save(named(layout.image(*layers), "v1"))
    work = place / "work"
    (work / "in-place").mkdir(parents=True)
    if uid is not None:
        for each in (work, work / "in-place"):
            os.chown(each, uid, uid)
    for out in (work / "absent", work / "in-place"):
        done = forked.run(command, INSECURE, f"oci:{layout.path}:v1", str(out), uid=uid)
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr
        yield out, done


def nothing_is_left(out: Path) -> bool:
    """Return whether a command that has failed left both directories as they were."""
    work = out.parent
    return os.listdir(work) == ["in-place"] and os.listdir(work / "in-place") == []


def tree_at(path: Path, check: Callable[[bytes, int], object]) -> Tree:
    """Return what is in a directory, by root, who may look everywhere.

    `check` is called with each path, and its mode.
    """
    found: Tree = {}
    top = os.fsencode(path)
    left = [top]
    while left:
        place = left.pop()
        for name in os.listdir(place):
            inner = os.path.join(place, name)
            mode = os.lstat(inner).st_mode
            check(inner, mode)
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

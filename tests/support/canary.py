"""A directory outside of where files are written, and whether anything happened to it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b"what nobody may have"


class Canary:
    """A directory with a file `victim`, a file `secret` and a directory `dir`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "dir").mkdir(parents=True)
        (path / "victim").write_bytes(b"mine")
        (path / "secret").write_bytes(SECRET)
        for name in ("", "dir", "victim", "secret"):
            (path / name).chmod(0o777)  # whoever gets here may do everything
        self._before = snapshot(path)

    def check(self) -> None:
        """Fail if anything has been made, changed or linked to."""
        assert snapshot(self.path) == self._before


def snapshot(path: Path) -> dict[bytes, Any]:
    """Return all that can be told of a tree; ctime tells even of what has been undone."""
    found: dict[bytes, Any] = {}
    left = [os.fsencode(path)]
    while left:
        place = left.pop()
        status = os.lstat(place)
        content: bytes | None = None
        if stat.S_ISDIR(status.st_mode):
            left += [os.path.join(place, name) for name in os.listdir(place)]
        elif stat.S_ISREG(status.st_mode):
            with open(place, "rb") as file:
                content = file.read()
        found[place] = (status.st_mode, status.st_ino, status.st_nlink, status.st_ctime_ns, content)
    return found

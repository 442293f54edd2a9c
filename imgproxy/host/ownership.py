"""Who may change what this program gives to others: inode(7), path_resolution(7).

A file that another user may change or replace is that user's word, and not the administrator's.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

# Links in one path; the system has the same limit.
_MAX_LINKS = 40


# Answers for directories.
Known = dict[str, str | None]


def changeable_by_others(
    path: str, known: Known | None = None, status: os.stat_result | None = None
) -> str | None:
    """Return why others than root and this user may change what is at a path, None if they may not.

    Every directory and every link on the way counts. `known` has the answers for directories that
    were looked at just now, and receives others: it is for one look at many files. `status` is that
    of the path itself, no link followed. Raises `OSError`.
    """
    directory, name = os.path.split(path)
    if known is not None and directory not in ("", path) and name not in ("", ".", ".."):
        if directory not in known:
            known[directory] = changeable_by_others(directory, known)
        status = status or os.lstat(path)
        if not stat.S_ISLNK(status.st_mode) and _reason(path, status) is None:
            return known[directory]
    reasons = (_reason(step, status) for step, status in _steps(path))
    return next((each for each in reasons if each is not None), None)


def _reason(step: str, status: os.stat_result) -> str | None:
    """Return why others may change what is in one place on the way to a path."""
    if status.st_uid not in (0, os.geteuid()):
        return f"{clean(step)} belongs to the user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return None  # its mode means nothing
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None  # nobody may replace there what is another one's
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write {clean(step)}"
    return None


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what the system looks at on the way to a path, as it is there itself."""
    # Not `abspath`: it takes `link/..` for the directory that the link is in.
    left, where, links = os.path.join(os.getcwd(), path).split("/")[::-1], "/", 0
    yield where, os.lstat(where)
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            where = os.path.dirname(where)
            continue
        step = os.path.join(where, name)
        status = os.lstat(step)
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            where = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step)
        left += target.split("/")[::-1]
        where = "/" if target.startswith("/") else where

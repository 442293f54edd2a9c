"""Locks on files that end with their process: flock(2).

A lock belongs to an open file, so that the tasks of one process exclude each other as well. A file
that is locked may have been removed or renamed meanwhile; whoever needs the one at a path looks
again after the lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import UnavailableError, clean

if TYPE_CHECKING:
    from typing import Self

# In seconds: how often a lock that another process has is tried, and one that it has for moments.
INTERVAL = 0.1
_SHORT_INTERVAL = 0.01

# In seconds: for how long. Who has the lock may be syncing a slow disk, or have been stopped.
LIMIT = 300.0

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX


class LockedFile:
    """A file that is open and locked; close it to give the lock up."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def is_at(self, path: str) -> bool:
        """Return whether this file is the one at a path. Raises `OSError`."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file, and with it the lock. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def try_lock(path: str, kind: int, *, create: bool = True) -> LockedFile | None:
    """Open and lock the file at a path, which is made if it is not there.

    Returns None where another one has the lock. Raises `OSError`.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        file = LockedFile(os.open(path, flags, 0o600))
        try:
            fcntl.flock(file.fd, kind | fcntl.LOCK_NB)
            if file.is_at(path):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()  # it was removed or renamed before it was locked


def is_locked(path: str) -> bool:
    """Return whether another one has the lock of a file. Raises `OSError` where there is none."""
    file = try_lock(path, EXCLUSIVE, create=False)
    if file is not None:
        file.close()
    return file is None


def wait_lock(path: str, kind: int) -> LockedFile:
    """Open and lock the file at a path, whose lock others have for moments: the thread waits.

    Raises `UnavailableError` where one has it for `LIMIT` seconds.
    """
    end = time.monotonic() + LIMIT
    while True:
        file = try_lock(path, kind)
        if file is not None:
            return file
        if time.monotonic() >= end:
            raise _held(path)
        time.sleep(_SHORT_INTERVAL)


def _held(path: str) -> UnavailableError:
    return UnavailableError(
        f"{clean(path)}: another process has had the lock for {LIMIT:g} s; if one is stopped,"
        " continue or end it (fuser and lslocks tell which)"
    )


async def lock(path: str, kind: int) -> LockedFile:
    """Open and lock the file at a path, after whoever has the lock. Raises `OSError`.

    Raises `UnavailableError` where one has it for `LIMIT` seconds.
    """
    end = trio.current_time() + LIMIT
    while True:
        await trio.lowlevel.checkpoint()
        file = try_lock(path, kind)
        if file is not None:
            return file
        if trio.current_time() >= end:
            raise _held(path)
        await trio.sleep(INTERVAL)

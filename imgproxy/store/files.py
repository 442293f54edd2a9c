"""Files of a store, written so that a killed process leaves the old content or the new one."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from imgproxy.errors import Failure, clean, shortage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.net.streams import Buffer

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


# A full disk is the destination's: who serves can do without, and who writes cannot.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DestinationError(Failure):
    """What is to be written to exists already, is full or broken, or is not permitted."""

    status = 507
    default_code = "DESTINATION"


class NotRegularError(OSError):
    """What is to be read is a directory, a FIFO or the like, which may have no end."""


# What a file is called that is not whole yet: its own name, and this.
TEMPORARY = r"\.imgproxy-[0-9]+-[0-9]+\Z"


@contextmanager
def using(path: str, passing: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Translate errors of the operating system on a path of the store into `Failure`.

    Those of the classes `passing` are the caller's.
    """
    try:
        yield
    except passing:
        raise
    except OSError as error:
        # Of a renaming, the second name is the one that people know.
        names = (error.filename2, error.filename, path)
        where = clean(next(each for each in names if isinstance(each, str)))
        failure = None if error.errno in _FULL else shortage(where, error)
        raise failure or DestinationError(f"{where}: {error.strerror or error}") from None


def read(path: str, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the content of a file and its status when it was read.

    Content that is longer than `limit` bytes is cut a byte later.
    Raises `OSError`; `NotRegularError` for what is not a regular file.
    """
    with open(path, "rb", opener=_opened) as file:
        return file.read(limit + 1), os.fstat(file.fileno())


def _opened(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NONBLOCK)  # a FIFO may have no writer
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError(errno.EINVAL, "not a regular file", path)
    return fd


def write(path: str, content: bytes, mode: int, *, replace: bool = True) -> None:
    """Write a file that is whole, or as it was before, after a crash.

    Its name is on the disk after `sync_directory`. Raises `OSError`; `FileExistsError` where it is
    there and is not to be replaced.
    """
    beside = f"{path}.imgproxy-{os.getpid()}-{threading.get_native_id()}"
    with suppress(FileNotFoundError):
        os.unlink(beside)  # of a process that had this number and was killed
    try:
        fd = os.open(beside, _NEW, mode)
    except OSError as error:
        error.filename = path  # the name that people know
        raise
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        if replace:
            os.rename(beside, path)
        else:
            os.link(beside, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def write_all(fd: int, content: Buffer) -> None:
    """Write content to a descriptor. Raises `OSError`."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_directory(path: str) -> None:
    """Write the names in a directory to the disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that need it not
            raise
    finally:
        os.close(fd)

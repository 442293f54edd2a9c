"""Remove trees, however deep they are and whatever modes are inside, by descriptors alone."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from itertools import count

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# What a directory cannot be renamed to: one that is not empty, or something else.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def names_in(fd: int) -> list[bytes]:
    """Return the names in a directory, whose descriptor may be of any kind. Raises `OSError`."""
    opened = os.open(b".", os.O_RDONLY | _DIRECTORY, dir_fd=fd)
    try:
        return [os.fsencode(name) for name in os.listdir(opened)]
    finally:
        os.close(opened)


def remove(name: bytes, parent: int) -> None:
    """Remove what a directory has under a name, with all that is in it. Raises `OSError`."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        fd = _open_writable(name, parent)
        try:
            empty(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)


def empty(top: int) -> None:
    """Remove all that a directory holds. Raises `OSError`.

    What is deeper is moved up into `top`, so that two descriptors are enough for any depth.
    """
    numbers = count()
    while names := names_in(top):
        for name in names:
            try:
                os.unlink(name, dir_fd=top)
            except IsADirectoryError:
                fd = _open_writable(name, top)
                try:
                    _move_up_all(fd, top, numbers)
                finally:
                    os.close(fd)
                os.rmdir(name, dir_fd=top)


def _move_up_all(fd: int, top: int, numbers: count[int]) -> None:
    """Remove what a directory holds, but for directories with content, which are moved."""
    for name in names_in(fd):
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            with suppress(OSError):
                os.rmdir(name, dir_fd=fd)
                continue
            os.close(_open_writable(name, fd))  # only then its owner may move it
            _move_up(name, fd, top, numbers)


def _move_up(name: bytes, fd: int, top: int, numbers: count[int]) -> None:
    for number in numbers:
        try:
            os.rename(name, b"%d" % number, src_dir_fd=fd, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return


def _open_writable(name: bytes, parent: int) -> int:
    """Return a descriptor of a directory, in which its owner may do everything from now on."""
    fd = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
    except BaseException:
        os.close(fd)
        raise
    return fd

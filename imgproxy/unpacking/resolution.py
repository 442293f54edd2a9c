"""Open what a path names below a directory, and never anything outside of it.

openat2(2) does that in the kernel, from Linux 5.6 on. Elsewhere, and in sandboxes that have not
heard of it, `walk` opens one component after the other, follows symbolic links itself, and has a
stack of descriptors in place of the kernel's `..`. Both open with `O_PATH`, which waits for no
FIFO and needs no permission on what is opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes the descriptor of the directory, the path, the scope, and `O_DIRECTORY` where it must
    # name a directory, else 0; returns a new descriptor.
    Opener = Callable[[int, bytes, "Scope", int], int]

_OPENAT2 = 437  # on every architecture
_NO_MAGIC_LINKS = 0x02
_FLAGS = os.O_PATH | os.O_CLOEXEC

# The error for what is outside of the scope.
OUTSIDE = errno.EXDEV

# The errors for paths that lead nowhere: through files, too many links, or links to nothing.
NO_PLACE = (errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)

# How often the kernel may be disturbed by what is renamed meanwhile, and how many symbolic links
# one path may lead through, as in the kernel.
_MAX_TRIES = 128
_MAX_LINKS = 40


class Scope(IntEnum):
    """What becomes of links that lead outside; the values are those of `struct open_how`."""

    # They are an error, `OUTSIDE`: those to absolute paths, and `..` at the top.
    BENEATH = 0x08
    # The directory is what `/` means, as with chroot(2), and `..` at the top is the top.
    IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


_libc = ctypes.CDLL(None, use_errno=True)


def opener(root: int) -> Opener:
    """Return the way to open paths that this system has. Raises `OSError`."""
    try:
        os.close(openat2(root, b".", Scope.BENEATH, os.O_DIRECTORY))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # the latter of sandboxes
            raise
        return walk
    return openat2


def openat2(root: int, path: bytes, scope: Scope, flags: int) -> int:
    """Return a descriptor of what a path names, symbolic links followed. Raises `OSError`."""
    how = _OpenHow(_FLAGS | flags, 0, scope | _NO_MAGIC_LINKS)
    number = errno.EAGAIN
    for _ in range(_MAX_TRIES):
        fd: int = _libc.syscall(
            _OPENAT2, root, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            break
    raise _error(number, path)


def walk(root: int, path: bytes, scope: Scope, flags: int) -> int:
    """Do what `openat2` does, without the system call of this name."""
    left = path.split(b"/")[::-1]
    way = _Way(root, path, scope)
    links = 0
    try:
        while left:
            target = way.go(left.pop())
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise _error(errno.ELOOP, path)
                left += target.split(b"/")[::-1]
        if flags & os.O_DIRECTORY:
            way.expect_directory()
        return way.fds.pop()
    finally:
        way.cut(0)


class _Way:
    """The way from the top to where a walk is: `fds` are the descriptors of all that is on it."""

    def __init__(self, root: int, path: bytes, scope: Scope) -> None:
        self._path = path
        self._scope = scope
        self.fds = [os.open(b".", _FLAGS | os.O_DIRECTORY, dir_fd=root)]

    def go(self, part: bytes) -> bytes | None:
        """Go on by one component; return the target where it is a symbolic link."""
        if part in (b"", b"."):
            self.expect_directory()
        elif part == b"..":
            self.expect_directory()
            if len(self.fds) == 1 and self._scope is Scope.BENEATH:
                raise _error(OUTSIDE, self._path)
            self.cut(max(1, len(self.fds) - 1))
        else:
            self.fds.append(os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=self.fds[-1]))
            if stat.S_ISLNK(os.fstat(self.fds[-1]).st_mode):
                target = os.readlink(b"", dir_fd=self.fds[-1])
                self.cut(len(self.fds) - 1)
                if target.startswith(b"/"):
                    if self._scope is Scope.BENEATH:
                        raise _error(OUTSIDE, self._path)
                    self.cut(1)
                return target
        return None

    def expect_directory(self) -> None:
        """Raise `NotADirectoryError` where it has come to something else."""
        if not stat.S_ISDIR(os.fstat(self.fds[-1]).st_mode):
            raise _error(errno.ENOTDIR, self._path)

    def cut(self, length: int) -> None:
        """Go back until the way has this length."""
        while len(self.fds) > length:
            os.close(self.fds.pop())


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))

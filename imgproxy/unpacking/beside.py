"""A directory beside others in which something is made, until it gets its place.

It is locked as long as it is in use, so that what a killed process has left is told from it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
from contextlib import suppress

from imgproxy.unpacking import removal

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_RENAME_NOREPLACE = 1
_PRIVATE = 0o700

# What renameat2(2) fails with where the kernel or the file system does not have it.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL)

# What flock(2) fails with on file systems that do not have it for directories, such as NFS.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


class Beside:
    """A directory of mode 0700 and a name of its own in the directory `parent`, for work.

    The name begins with `prefix`. `fd` is its descriptor. Those of the same prefix that a killed
    process of this user has left are removed. All methods raise `OSError`.
    """

    def __init__(self, parent: int, prefix: bytes) -> None:
        self._parent = parent
        prefix += b"imgproxy-"
        _remove_left(parent, re.compile(re.escape(prefix) + rb"[0-9a-f]{8}\Z"))
        while True:
            self.name = prefix + secrets.token_hex(4).encode()
            try:
                os.mkdir(self.name, _PRIVATE, dir_fd=parent)
            except FileExistsError:
                continue
            fd = _locked(self.name, parent, is_new=True)
            if fd is not None:  # else another process took it for left, and removes it
                self.fd = fd
                return

    def close(self, *, keep: bool = False) -> None:
        """Remove the directory, unless it has another name by now and is kept.

        One that somebody else has moved or removed is theirs.
        """
        try:
            if not keep:
                with suppress(FileNotFoundError):
                    removal.remove(self.name, self._parent)
        finally:
            os.close(self.fd)


def _remove_left(parent: int, pattern: re.Pattern[bytes]) -> None:
    """Remove the directories of this user with such a name that no process has locked."""
    for name in removal.names_in(parent):
        if pattern.match(name):
            with suppress(OSError):  # it is in nobody's way
                fd = _locked(name, parent)
                if fd is not None:
                    try:
                        removal.remove(name, parent)
                    finally:
                        os.close(fd)


def _locked(name: bytes, parent: int, *, is_new: bool = False) -> int | None:
    """Return a descriptor of a directory that nobody else has locked; it is locked from now on.

    None where another process has, or has removed it, or where it is another user's. On a file
    system without such locks, one that `is_new` is not locked, and any other may be in use.
    """
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    try:
        may_be_ours = _lock(fd, is_new=is_new)
        status = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    if may_be_ours and status.st_nlink and status.st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def _lock(fd: int, *, is_new: bool) -> bool:
    """Lock a directory, and return whether nobody else uses it; see `_locked`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return is_new
    return True


def rename_new(old: bytes, old_parent: int, new: bytes, new_parent: int) -> None:
    """Rename something to a name that must not exist. Raises `OSError`, `FileExistsError` if so."""
    if _libc.renameat2(old_parent, old, new_parent, new, _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number), os.fsdecode(new))
    if _is_there(new, new_parent):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(new))
    os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)


def _is_there(name: bytes, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def sync(fd: int) -> None:
    """Write the whole file system that a directory lies in to the disk. Raises `OSError`."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

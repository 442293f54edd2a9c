"""A directory that appears whole, or not at all.

One that is absent is built beside its place and renamed. An empty one, a mount point say, is filled
in place, has a file `.imgproxy-incomplete` as long as it is not whole, and is emptied again where
that fails. Anything else is left alone, and is an error.

    with closing(Destination(path)) as destination:
        ... fill destination.fd ...
        destination.finish()

What a killed process leaves beside DIR is removed by the next one with the same DIR: it is locked
as long as it is in use.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from imgproxy.errors import clean, closing_on_error
from imgproxy.store.files import DestinationError, using
from imgproxy.unpacking import removal, resolution
from imgproxy.unpacking.tree import Attributes, Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The mark of what is filled in place and not whole. Nothing else may have this name at the top.
INCOMPLETE = b".imgproxy-incomplete"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARK = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_RENAME_NOREPLACE = 1
_PRIVATE = 0o700

# What renameat2(2) fails with where the kernel or the file system does not have it.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL)

# Of the name of DIR: with what follows, no longer than a name may be.
_MAX_NAME = 200

_libc = ctypes.CDLL(None, use_errno=True)


class Destination:
    """A directory to fill. `fd` is its descriptor; what is made in it is not to be seen as DIR yet.

    All methods raise `DestinationError`. Close it in any case: without `finish` before, nothing is
    left of what was made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._finished = False
        with using(path):
            base, self._name = os.path.split(os.fsencode(path).rstrip(b"/") or b"/")
            self._parent = os.open(base or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._beside: Beside | None = None
                existing = self._open_existing()
                if existing is None:
                    self._beside = Beside(self._parent, b".%s." % self._name[:_MAX_NAME])
                    self.fd = self._beside.fd
                else:
                    self.fd = existing
            except BaseException:
                os.close(self._parent)
                raise

    def _open_existing(self) -> int | None:
        """Return a descriptor of DIR if it is there and empty, marked; None if it is absent."""
        try:
            fd = os.open(self._name or b".", _DIRECTORY, dir_fd=self._parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise self._refusal("exists, and is not a directory") from None
        try:
            self._mark(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _mark(self, fd: int) -> None:
        """Mark an empty directory as one that is being filled."""
        names = removal.names_in(fd)
        if INCOMPLETE in names:
            raise self._refusal(
                "is not whole: it is being filled, or whoever did that was killed. Remove what is"
                f" in it, {os.fsdecode(INCOMPLETE)} as well, and try again"
            )
        if names:
            raise self._refusal("exists, and is not empty")
        try:
            os.close(os.open(INCOMPLETE, _MARK, 0o600, dir_fd=fd))
        except FileExistsError:
            raise self._refusal("is being filled by another process") from None

    def _refusal(self, what: str) -> DestinationError:
        return DestinationError(f"{clean(self.path)} {what}")

    def finish(self, settle: Callable[[int], None] = lambda _: None) -> None:
        """Write everything to the disk and let the directory appear.

        `settle` gives the directory at the top, by its descriptor, what attributes it shall have;
        nothing is made in it afterwards.
        """
        with using(self.path):
            if self._beside is None:
                _sync(self.fd)
                os.unlink(INCOMPLETE, dir_fd=self.fd)
            settle(self.fd)
            _sync(self.fd)
            if self._beside is not None:
                try:
                    rename_new(self._beside.name, self._parent, self._name, self._parent)
                except FileExistsError:
                    raise self._refusal("exists by now") from None
                os.fsync(self._parent)
            self._finished = True

    @property
    def is_new(self) -> bool:
        """Whether the directory was absent, so that its attributes are not those of another."""
        return self._beside is not None

    def empty(self) -> None:
        """Remove what has been made, to begin anew."""
        with using(self.path):
            _empty(self.fd)

    def close(self) -> None:
        """Close the directory; without `finish` before, take it away or empty it."""
        try:
            if self._beside is not None:
                self._beside.close(keep=self._finished)
                return
            try:
                if not self._finished:
                    self.empty()
                    with using(self.path), suppress(FileNotFoundError):
                        os.unlink(INCOMPLETE, dir_fd=self.fd)
            finally:
                os.close(self.fd)
        finally:
            os.close(self._parent)


def _empty(fd: int) -> None:
    """Remove what is in a directory, but for the mark."""
    for name in removal.names_in(fd):
        if name != INCOMPLETE:
            removal.remove(name, fd)


def is_filled(path: str) -> bool:
    """Return whether a path is that of a directory that is not empty."""
    try:
        return bool(os.listdir(path))
    except OSError:  # it is said at the next step, if it matters
        return False


class Additions:
    """Files for a directory that has others, made beside them: see `Destination`.

    `fd` is the descriptor of the directory that they are made in; `finish` moves them. Those that
    the directory has of the same names are replaced, one by one, and nothing else is removed.
    """

    is_new = False

    def __init__(self, path: str) -> None:
        self.path = path
        self._beside: Beside | None = None
        with using(path):
            self._place = os.open(os.fsencode(path).rstrip(b"/") or b"/", _DIRECTORY)
            with closing_on_error(self):
                self._begin()

    def _begin(self) -> None:
        if INCOMPLETE in removal.names_in(self._place):
            raise DestinationError(f"{clean(self.path)} is not whole, and nothing is added to it")
        self._beside = Beside(self._place, b".")
        self.fd = self._beside.fd

    def empty(self) -> None:
        """See `Destination`."""
        with using(self.path):
            _empty(self.fd)

    def finish(self, paths: Sequence[bytes], directory_mode: int) -> None:
        """Write everything to the disk, and move the files to these paths, which they have here.

        Where one of the paths cannot be had, none is moved. `directory_mode` is that of new
        directories.
        """
        with (
            using(self.path),
            closing(Tree(self.fd, Scope.BENEATH)) as made,
            closing(Tree(self._place, Scope.BENEATH)) as tree,
        ):
            _sync(self.fd)
            for path in paths:
                self._make_room(tree, path, directory_mode)
            for path in paths:
                made.move(path, tree, path)
            _sync(self._place)

    def _make_room(self, tree: Tree, path: bytes, directory_mode: int) -> None:
        """Make sure that a path can be had."""
        where = f"{clean(self.path)}: {clean(os.fsdecode(path))}"
        try:
            for each in tree.make_parents(path):
                tree.change(each, Attributes(mode=directory_mode))
            status = tree.status(path)
        except OSError as error:
            if error.errno != resolution.OUTSIDE:
                raise
            raise DestinationError(f"{where} leads out of it, by a symbolic link") from None
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise DestinationError(f"{where} is a directory there")

    def close(self) -> None:
        """Close the directory, and take away what was not moved."""
        try:
            if self._beside is not None:
                with using(self.path):
                    self._beside.close()
        finally:
            os.close(self._place)


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
            fd = _locked(self.name, parent)
            if fd is not None:  # else another process took it for left, and removes it
                self.fd = fd
                return

    def close(self, *, keep: bool = False) -> None:
        """Remove the directory, unless it has another name by now and is kept."""
        try:
            if not keep:
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


def _locked(name: bytes, parent: int) -> int | None:
    """Return a descriptor of a directory that nobody else has locked; it is locked from now on.

    None where another process has, or has removed it, or where it is another user's.
    """
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_nlink and status.st_uid == os.geteuid():
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


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


def _sync(fd: int) -> None:
    """Write the whole file system that a directory lies in to the disk. Raises `OSError`."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""A tree of files that is made from names which nobody may be trusted with.

Everything is done relative to the descriptor of a directory, with a last component that has no
slash and is never followed; what stands before it is opened by `resolution`, so that no name and no
symbolic link leads out of the tree. An existing file is never opened for writing.

A path is `bytes`: components with one `/` between them, none of which is empty, `.` or `..`. The
caller makes sure of that; `b""` is the top, and stands for itself in `change` and `status` alone.
All methods raise `OSError`.
"""

from __future__ import annotations

import os
import resource
import stat
from collections import OrderedDict
from typing import NamedTuple

from imgproxy.unpacking import removal, resolution
from imgproxy.unpacking.beside import rename_new
from imgproxy.unpacking.resolution import Scope

__all__ = ["Attributes", "Scope", "Tree", "change_open"]

# Directories that are kept open, and which part of what a process may have open that is at most.
# Those who write archives sort them, so that few are enough.
MAX_KEPT = 256
_PART = 4

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What a new file and a new directory may be done with until they have the mode they shall have.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


class Attributes(NamedTuple):
    """What a file is given besides its content; None, or no extended attributes: left as it is.

    `owner` are the numbers of user and group, `modified` is in nanoseconds and becomes the time of
    the last access as well.
    """

    owner: tuple[int, int] | None = None
    mode: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    modified: int | None = None


class Tree:
    """What is below a directory. Close it in the end; `root` stays the caller's.

    `root` is a descriptor of the directory. `open_path` is the way to open paths, by default that
    of this system.
    """

    def __init__(self, root: int, scope: Scope, open_path: resolution.Opener | None = None) -> None:
        self.root = root
        self._scope = scope
        self._open_path = open_path or resolution.opener(root)
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_kept = MAX_KEPT if soft < 0 else min(MAX_KEPT, soft // _PART)

    def close(self) -> None:
        """Close the directories that are kept open."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def directory(self, path: bytes) -> int:
        """Return a descriptor (`O_PATH`) of a directory, symbolic links followed.

        It is kept here, and valid until something is removed or many others were asked for.
        """
        if not path:
            return self.root
        fd = self._kept.get(path)
        if fd is not None:
            self._kept.move_to_end(path)
            return fd
        fd = self._open_path(self.root, path, self._scope, os.O_DIRECTORY)
        self._kept[path] = fd
        if len(self._kept) > self._max_kept:
            os.close(self._kept.popitem(last=False)[1])
        return fd

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """Return the directory that a path is in, and its name there."""
        parent, _, name = path.rpartition(b"/")
        return self.directory(parent), name

    def make_parents(self, path: bytes) -> list[bytes]:
        """Make the directories before the last component that are missing, and return their paths.

        They come from the top down, with mode 0700. Raises `NotADirectoryError` where there is
        something else, and `FileExistsError` where there is a link to nothing.
        """
        missing: list[bytes] = []
        parent = path.rpartition(b"/")[0]
        while parent:
            try:
                self.directory(parent)
                break
            except FileNotFoundError:
                missing.append(parent)
                parent = parent.rpartition(b"/")[0]
        missing.reverse()
        for each in missing:
            self.make_directory(each)
        return missing

    def status(self, path: bytes) -> os.stat_result | None:
        """Return the status of what is there, itself if it is a link; None for nothing."""
        if not path:
            return os.fstat(self.root)
        try:
            parent, name = self._place(path)
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def link_target(self, path: bytes) -> bytes:
        """Return the target of a symbolic link, as it was made."""
        parent, name = self._place(path)
        return os.readlink(name, dir_fd=parent)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in a directory, in no order."""
        return removal.names_in(self.directory(path))

    def leads_outside(self, path: bytes) -> bool:
        """Return whether a link leads outside, by whatever way, as far as it leads anywhere."""
        try:
            os.close(self._open_path(self.root, path, Scope.BENEATH, 0))
        except OSError as error:
            return error.errno == resolution.OUTSIDE
        return False

    def open_file(self, path: bytes) -> int:
        """Return a descriptor of a regular file, or of what has no content, for reading."""
        parent, name = self._place(path)
        return os.open(name, _FILE, dir_fd=parent)

    # Each of these makes something new, and raises `FileExistsError` where there is anything.

    def create_file(self, path: bytes) -> int:
        """Return a descriptor of a new file, for writing and `change_open`. Its mode is 0600."""
        parent, name = self._place(path)
        return os.open(name, _NEW, _FILE_MODE, dir_fd=parent)

    def make_directory(self, path: bytes) -> None:
        """Make a directory of mode 0700: what is put into it needs no more and no less."""
        parent, name = self._place(path)
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)

    def make_symlink(self, path: bytes, target: bytes) -> None:
        """Make a symbolic link; whatever the target is, it is not looked at."""
        parent, name = self._place(path)
        os.symlink(target, name, dir_fd=parent)

    def make_link(self, path: bytes, target: bytes) -> None:
        """Make another name of the file at the path `target`; a symbolic link is linked itself."""
        source, old = self._place(target)
        parent, name = self._place(path)
        os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def move(self, path: bytes, other: Tree, new: bytes, *, replace: bool) -> None:
        """Move what is there to a path in another tree, or in this one.

        A file there may be replaced, or is an error, `FileExistsError`. A directory is not to be
        moved: what is known of it is not forgotten.
        """
        parent, name = self._place(path)
        new_parent, new_name = other._place(new)
        if replace:
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)
        else:
            rename_new(name, parent, new_name, new_parent)

    def make_node(self, path: bytes, mode: int, device: int = 0) -> None:
        """Make a FIFO or a device: `mode` has the kind, and the permissions."""
        parent, name = self._place(path)
        os.mknod(name, mode, device, dir_fd=parent)

    def remove(self, path: bytes) -> None:
        """Remove what is there, with all that is in it."""
        parent, name = self._place(path)
        if stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        parent = os.dup(parent)
        try:
            self.close()  # nothing that led through what is removed may be known any longer
            removal.remove(name, parent)
        finally:
            os.close(parent)

    def change(self, path: bytes, attributes: Attributes) -> list[tuple[bytes, OSError]]:
        """Give attributes to what is there, itself if it is a link.

        Returns the extended attributes that could not be set, with the reason. A mode is not for
        symbolic links.
        """
        if not path:
            return self._change_by_descriptor(b".", self.root, _DIRECTORY, attributes)
        parent, name = self._place(path)
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return self._change_by_descriptor(name, parent, _DIRECTORY, attributes)
        if stat.S_ISREG(mode):
            return self._change_by_descriptor(name, parent, _FILE, attributes)
        if attributes.owner is not None:
            os.chown(name, *attributes.owner, dir_fd=parent, follow_symlinks=False)
        if attributes.mode is not None and not stat.S_ISLNK(mode):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{fd}", attributes.mode)
            finally:
                os.close(fd)
        place = f"/proc/self/fd/{parent}/".encode() + name
        failed = _set_xattrs(place, attributes, follow_symlinks=False)
        if attributes.modified is not None:
            times = (attributes.modified, attributes.modified)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
        return failed

    @staticmethod
    def _change_by_descriptor(
        name: bytes, parent: int, flags: int, attributes: Attributes
    ) -> list[tuple[bytes, OSError]]:
        fd = os.open(name, flags, dir_fd=parent)
        try:
            return change_open(fd, attributes)
        finally:
            os.close(fd)

    def clear_xattrs(self, path: bytes) -> None:
        """Remove what extended attributes a directory has, as far as that is allowed."""
        fd = os.open(b".", _DIRECTORY, dir_fd=self.directory(path))
        try:
            for name in os.listxattr(fd):
                if not name.startswith("security."):
                    os.removexattr(fd, name)
        finally:
            os.close(fd)


def change_open(fd: int, attributes: Attributes) -> list[tuple[bytes, OSError]]:
    """Give attributes to an open file or directory, not opened with `O_PATH`: see `Tree.change`.

    In this order: a new owner takes the setuid bit away, and `security.capability`.
    """
    if attributes.owner is not None:
        os.chown(fd, *attributes.owner)
    if attributes.mode is not None:
        os.chmod(fd, attributes.mode)
    failed = _set_xattrs(fd, attributes, follow_symlinks=True)
    if attributes.modified is not None:
        os.utime(fd, ns=(attributes.modified, attributes.modified))
    return failed


def _set_xattrs(
    place: int | bytes, attributes: Attributes, *, follow_symlinks: bool
) -> list[tuple[bytes, OSError]]:
    failed = []
    for name, value in attributes.xattrs:
        try:
            os.setxattr(place, name, value, follow_symlinks=follow_symlinks)
        except OSError as error:
            failed.append((name, error))
    return failed

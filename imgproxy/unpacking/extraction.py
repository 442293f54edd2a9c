"""Archives in layers, merged into one tree: files, directories, and links that stay inside.

Unlike the layers of a root file system, those of an artifact belong to whoever unpacks them: they
get no owner, no special bits and no extended attributes, and no name in them is a whiteout.
"""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import AmbiguousError, InvalidError, UnsupportedFormatError, clean
from imgproxy.specs.oci import tar_fields, tar_layers, tar_sparse
from imgproxy.specs.oci.tar_fields import TarError
from imgproxy.store.files import DestinationError, write_all
from imgproxy.unpacking import paths, resolution
from imgproxy.unpacking.destination import INCOMPLETE
from imgproxy.unpacking.tree import Attributes, change_open

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.tar_layers import Member
    from imgproxy.unpacking.layer_stream import LayerStream
    from imgproxy.unpacking.limits import Limits
    from imgproxy.unpacking.tree import Tree

# Those of all directories and links together are kept in memory until the end.
MAX_NAMES = 32 * 1024 * 1024

_PERMISSIONS = 0o777

# What file systems have in common: 1970, and beyond what fits, as the epoch. In nanoseconds.
_TIMES = range(-(2**31) * 10**9, (2**34 - 2**31) * 10**9)

# What other archives begin with; a path from a layer may be anything else.
_ZIP = b"PK\x03\x04"


class Rules(NamedTuple):
    """What is taken of the archives, and how.

    `strip` is how many directories are taken off the front of each name; what has no more than
    those is left out. `include` are patterns, one of which a name must fit, or a directory that it
    is in. `later_wins`: of one name in two layers the later counts, which is an error otherwise.
    `directory_mode` is that of directories that no archive describes.
    """

    strip: int = 0
    include: tuple[bytes, ...] = ()
    later_wins: bool = False
    directory_mode: int = 0o755


class Extraction:
    """The extraction of layers, one after the other, into one tree.

    All methods raise `Failure`, and `OSError` of the destination. After one, the tree is to be
    thrown away.
    """

    def __init__(self, tree: Tree, limits: Limits, rules: Rules) -> None:
        self._tree = tree
        self._limits = limits
        self._rules = rules
        self._is_included = lru_cache(1024)(self._fits)
        self._name = ""  # of the layer
        self._own: set[int] = set()  # the inodes that this layer has made
        self._waiting: list[tuple[bytes, bytes]] = []  # hard links to what is not there yet
        self._directories: dict[bytes, Attributes] = {}
        self._symlinks: set[bytes] = set()
        self._length = 0
        self.files = 0

    def add(self, stream: LayerStream, name: str) -> int:
        """Extract a layer, which is called `name` in messages; return how many files that made.

        The blob is read to its end.
        """
        self._name = name
        self._own.clear()
        before = self.files
        begin = stream.peek(tar_fields.BLOCK)
        if not tar_fields.is_header(begin):
            what = "a zip archive" if begin.startswith(_ZIP) else "no tar archive"
            raise UnsupportedFormatError(
                f"{name} is {what}, and tar alone is extracted; copy writes it as a file, --layer"
                " chooses others"
            )
        try:
            for member in tar_layers.members(stream):
                self._add(member, stream)
        except TarError as error:
            raise InvalidError(f"{name}: {clean(str(error))}", code="ARCHIVE_INVALID") from None
        self._link_waiting()
        stream.drain()
        return self.files - before

    def finish(self) -> None:
        """Check where links lead, and give directories their attributes."""
        for path in self._symlinks:
            if self._tree.leads_outside(path):
                raise self._outside(path, "a path through other links")
        # The deepest come first: what is done in a directory changes its time.
        for path in sorted(self._directories, key=lambda path: path.count(b"/"), reverse=True):
            self._settle(path, self._directories[path])

    def _settle(self, path: bytes, attributes: Attributes) -> None:
        """Give a directory its attributes, unless there is something else by now."""
        try:
            status = self._tree.status(path)
        except OSError as error:
            if error.errno not in resolution.NO_PLACE:
                raise
            return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._tree.change(path, attributes)

    def _add(self, member: Member, stream: LayerStream) -> None:
        """Extract a member, whose content is the next in the stream."""
        path = self._path(member.name, "name")
        if not path:
            if member.kind != "directory":
                raise InvalidError(
                    f"{self._name}: its top is a {member.kind}, and no directory",
                    code="ARCHIVE_INVALID",
                )
            return
        if self._rules.include and not self._is_included(path):
            return
        stripped = self._stripped(path)
        if stripped is None:
            return
        if stripped.partition(b"/")[0] == INCOMPLETE:
            raise self._refused(path, "its name has a meaning here")
        make = self._MAKERS.get(member.kind)
        if make is None:
            raise UnsupportedFormatError(
                f"{self._name}: {_shown(path)} is of the kind {member.kind}; files, directories"
                " and links alone are extracted. --include chooses what is; unpack makes root file"
                " systems"
            )
        self.files += 1
        self._limits.add_file(self._name)
        try:
            make(self, stripped, member, stream)
        except OSError as error:
            raise self._translated(error, path) from None

    def _file(self, path: bytes, member: Member, stream: LayerStream) -> None:
        fd = self._made(path, self._tree.create_file)
        try:
            self._own.add(os.fstat(fd).st_ino)
            if member.holes is None:
                _copy(stream, member.size, fd)
            else:
                self._fill(fd, member, stream)
            mode = member.mode & _PERMISSIONS
            change_open(fd, Attributes(mode=mode, modified=_time(member)))
        finally:
            os.close(fd)

    def _fill(self, fd: int, member: Member, stream: LayerStream) -> None:
        """Write a file with holes."""
        holes = member.holes
        assert holes is not None  # noqa: S101  (the caller has looked)
        self._limits.add_bytes(holes.size, self._name)
        for offset, size in tar_sparse.regions(stream, holes, member.size, member.at):
            os.lseek(fd, offset, os.SEEK_SET)
            _copy(stream, size, fd)
        os.ftruncate(fd, holes.size)

    def _directory(self, path: bytes, member: Member, _: LayerStream) -> None:
        status = self._tree.status(path)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._made(path, self._tree.make_directory)
            self._note_inode(path)
        mode = member.mode & _PERMISSIONS
        self._keep(path, Attributes(mode=mode, modified=_time(member)))

    def _symlink(self, path: bytes, member: Member, _: LayerStream) -> None:
        target = member.target
        if not target or b"\0" in target:
            raise self._refused(path, "it is a symbolic link to an impossible name")
        if paths.leads_outside(path, target):
            raise self._outside(path, _shown(target))
        self._made(path, lambda path: self._tree.make_symlink(path, target))
        self._note_inode(path)
        self._tree.change(path, Attributes(modified=_time(member)))
        self._symlinks.add(path)
        self._count_name(path)

    def _hard_link(self, path: bytes, member: Member, _: LayerStream) -> None:
        target = self._stripped(self._path(member.target, "target"))
        if not target:
            raise self._refused(path, "it is a link to a directory that is not extracted")
        if target == path:
            return
        if self._tree.status(target) is None:
            self._count_name(path + target)
            self._waiting.append((path, target))
            return
        self._link(path, target)

    def _link_waiting(self) -> None:
        """Make the links that waited, those to others of them after these."""
        by_target: dict[bytes, list[bytes]] = {}
        for path, target in dict(self._waiting).items():  # of one path, the last
            by_target.setdefault(target, []).append(path)
        self._waiting.clear()
        ready = [target for target in by_target if self._tree.status(target) is not None]
        while ready:
            target = ready.pop()
            made = by_target.pop(target, [])
            for path in made:
                self._link(path, target)
            ready += made
        for target, missing in by_target.items():
            self._link(missing[0], target)  # which tells that it is not there

    def _link(self, path: bytes, target: bytes) -> None:
        status = self._tree.status(target)
        if status is None:
            raise self._refused(
                path, f"it is a link to {_shown(target)}, which is not extracted; include that too"
            )
        if stat.S_ISDIR(status.st_mode):
            raise self._refused(path, f"it is a hard link to the directory {_shown(target)}")
        existing = self._tree.status(path)
        if existing is not None and existing.st_ino == status.st_ino:
            return
        self._made(path, lambda path: self._tree.make_link(path, target))
        if stat.S_ISLNK(status.st_mode):
            # In another place, it leads elsewhere.
            self._symlinks.add(path)
            self._count_name(path)

    _MAKERS = {  # noqa: RUF012  (of functions)
        "file": _file,
        "directory": _directory,
        "symlink": _symlink,
        "link": _hard_link,
    }

    def _made(self, path: bytes, make: Callable[[bytes], int | None]) -> int:
        """Make something in place of what may be there; return what `make` does."""
        for _ in range(3):
            try:
                return make(path) or 0
            except FileNotFoundError:
                self._make_parents(path)
            except FileExistsError:
                self._make_room(path)
        raise DestinationError(f"{self._name}: {_shown(path)} is changed by another process")

    def _make_parents(self, path: bytes) -> None:
        for each in self._tree.make_parents(path):
            self._limits.add_file(self._name)
            self._note_inode(each)
            self._keep(each, Attributes(mode=self._rules.directory_mode))

    def _make_room(self, path: bytes) -> None:
        """Remove what is there, if it may be replaced."""
        status = self._tree.status(path)
        if status is None:
            return
        if status.st_ino not in self._own and not self._rules.later_wins:
            raise AmbiguousError(
                f"{self._name}: {_shown(path)} is in a layer before it as well; --merge=later"
                " takes the later one, --layer-per-dir makes a directory for each"
            )
        self._own.discard(status.st_ino)
        self._tree.remove(path)

    def _note_inode(self, path: bytes) -> None:
        status = self._tree.status(path)
        if status is not None:
            self._own.add(status.st_ino)

    def _keep(self, path: bytes, attributes: Attributes) -> None:
        if path not in self._directories:
            self._count_name(path)
        self._directories[path] = attributes

    def _count_name(self, path: bytes) -> None:
        self._length += len(path)
        if self._length > MAX_NAMES:
            raise InvalidError(
                f"{self._name}: the names of directories and links have more than"
                f" {MAX_NAMES >> 20} MiB",
                code="SIZE_INVALID",
            )

    def _path(self, name: bytes, what: str) -> bytes:
        try:
            return paths.inside(name)
        except ValueError as error:
            raise InvalidError(
                f"{self._name}: the {what} {_shown(name)}: {error}", code="ARCHIVE_INVALID"
            ) from None

    def _fits(self, path: bytes) -> bool:
        """Return whether a path or a directory that it is in fits one of the patterns."""
        if any(fnmatchcase(path, pattern) for pattern in self._rules.include):
            return True
        parent = path.rpartition(b"/")[0]
        return bool(parent) and self._is_included(parent)

    def _stripped(self, path: bytes) -> bytes | None:
        """Return a path without its first directories, None where it has no more than those."""
        parts = path.split(b"/", self._rules.strip)
        return parts[-1] if len(parts) > self._rules.strip else None

    def _refused(self, path: bytes, reason: str) -> InvalidError:
        return InvalidError(f"{self._name}: {_shown(path)}: {reason}", code="ARCHIVE_INVALID")

    def _outside(self, path: bytes, target: str) -> InvalidError:
        return self._refused(
            path,
            f"it is a symbolic link to {target}, outside of what is extracted; --include chooses"
            " what is, unpack makes root file systems",
        )

    def _translated(self, error: OSError, path: bytes) -> Exception:
        """Return what to raise where the tree has no such place, which is the archive's fault."""
        if error.errno == resolution.OUTSIDE:
            return self._refused(path, "it lies behind a symbolic link that leads outside")
        if error.errno in resolution.NO_PLACE:
            return self._refused(path, f"there is no such place: {error.strerror}")
        return error


def _copy(stream: LayerStream, size: int, fd: int) -> None:
    """Write the next bytes of the stream to a file. Raises `TarError` where there are fewer."""
    while size:
        piece = stream.read_some(size)
        if not piece:
            raise TarError(f"ends at byte {stream.position}, in the middle of a file")
        write_all(fd, piece)
        size -= len(piece)


def _time(member: Member) -> int:
    return member.mtime if member.mtime in _TIMES else 0


def _shown(path: bytes) -> str:
    return clean(path.decode(errors="backslashreplace"))

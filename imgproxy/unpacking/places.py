"""Where in a tree a path leads that a layer has, and the directories on the way.

A path is followed as it would be with the tree as root directory: symbolic links inside of it, and
absolute ones from its top. What comes back has none left in it.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.unpacking.destination import INCOMPLETE
from imgproxy.unpacking.directories import Directory
from imgproxy.unpacking.entry_names import MAX_DEPTH, invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.unpacking.tree import Attributes, Tree

# Symbolic links on the way of one path; the kernel has the same limit (path_resolution(7)).
_MAX_LINKS = 40

# So that each path in the tree can be said to the kernel (PATH_MAX), its last component as well.
_MAX_PATH = 4096 - 256 - 1

# What is kept in memory: directories, of all layers together, and members of the layer in hand in
# directories of lower ones. No image has as many; at their longest, these take half a gigabyte.
MAX_DIRECTORIES = 1_000_000
MAX_NAMES = 1_000_000


class Place(NamedTuple):
    """A directory, by its path without symbolic links."""

    path: bytes
    directory: Directory

    def __truediv__(self, name: bytes) -> bytes:
        """Return the path of a name in the directory.

        Raises `MemberError` for that of the mark, which is in the tree and not of it.
        """
        if self.path:
            return self.path + b"/" + name
        if name == INCOMPLETE:
            raise invalid(name, "a name that this program uses itself")
        return name


class Places:
    """The directories of a tree, which is empty at first. `layer` is the number of that in hand.

    `implied` are the attributes of directories that no layer has a member for.
    """

    def __init__(self, tree: Tree, implied: Attributes) -> None:
        self.layer = 1
        self.implied = implied
        self._tree = tree
        self.top = Place(b"", Directory(implied, self.layer))
        self._last: tuple[Sequence[bytes], Place] | None = None
        self._directories = 0
        self._names = 0

    def begin_layer(self, number: int) -> None:
        """Begin to apply another layer."""
        self.layer = number
        self._last = None
        self._names = 0

    def add(self, place: Place, name: bytes) -> None:
        """Note a member of the layer in hand. Raises `MemberError` for one too many."""
        if place.directory.whole == self.layer:
            return
        self._names += 1
        if self._names > MAX_NAMES:
            raise invalid(name, f"one of more than {MAX_NAMES} in directories of lower layers")
        place.directory.add(name)

    def find(self, parts: Sequence[bytes]) -> Place | None:
        """Return the directory that a path leads to, None where it leads to none."""
        return self._follow(parts, make=False)

    def make(self, parts: Sequence[bytes]) -> Place:
        """Return the directory that a path leads to, with what is missing of it.

        What is in the way of a directory is removed. All directories on the way are touched.
        Raises `MemberError` for paths without an end, or too long ones.
        """
        if self._last is not None and self._last[0] == parts:
            return self._last[1]
        place = self._follow(parts, make=True)
        assert place is not None  # noqa: S101  (it was made)
        self._last = parts, place
        return place

    def _follow(self, parts: Sequence[bytes], *, make: bool) -> Place | None:
        way = [self.top]
        left = list(reversed(parts))
        links = 0
        while left:
            part = left.pop()
            if part == b"..":  # of a link
                way = way[: max(1, len(way) - 1)]
            elif part not in (b"", b"."):
                step = self._step(way[-1], part, make=make)
                if step is None:
                    return None
                if isinstance(step, bytes):
                    links += 1
                    way = [self.top] if step.startswith(b"/") else way
                    left += reversed(step.split(b"/"))
                else:
                    way.append(step)
            if links > _MAX_LINKS or len(way) > MAX_DEPTH or len(way[-1].path) > _MAX_PATH:
                raise invalid(b"/".join(parts), "leads too far, by links or by its length")
        if make:
            for place in way:
                place.directory.touch(self.layer)
        return way[-1]

    def _step(self, place: Place, name: bytes, *, make: bool) -> Place | bytes | None:
        """Return the directory of a name in another, or where the symbolic link there leads."""
        child = place.directory.children.get(name)
        path = place / name
        if child is None:
            status = self._tree.status(path)
            if status is not None and stat.S_ISLNK(status.st_mode):
                return self._tree.link_target(path)
            if not make:
                return None
            child = self.make_directory(place, name, self.implied)
        return Place(path, child)

    def make_directory(self, place: Place, name: bytes, attributes: Attributes) -> Directory:
        """Make a directory in place of whatever there is by its name.

        Raises `MemberError` for one too many.
        """
        self._directories += 1
        if self._directories > MAX_DIRECTORIES:
            raise invalid(place / name, f"one of more than {MAX_DIRECTORIES} directories")
        try:
            self._tree.make_directory(place / name)
        except FileExistsError:
            self.remove(place, name)
            self._tree.make_directory(place / name)
        child = place.directory.children[name] = Directory(attributes, self.layer)
        return child

    def remove(self, place: Place, name: bytes) -> None:
        """Remove what is there by a name in a directory, with all that is in it."""
        self._last = None
        self._tree.remove(place / name)
        place.directory.children.pop(name, None)

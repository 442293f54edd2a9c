"""Apply layers to a tree: image-spec, layer.md, "Applying Changesets".

The members of a layer are applied in their order; a later one takes the place of an earlier one,
and of what lower layers have, but for directories, which stay and get other attributes. Those are
given in the end, so that nothing in the way changes them, and closed directories can be filled.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import tar_layers, tar_sparse
from imgproxy.specs.oci.tar_fields import Stream, TarError
from imgproxy.store.files import using, write_all
from imgproxy.unpacking import entry_names, whiteouts
from imgproxy.unpacking.destination import INCOMPLETE
from imgproxy.unpacking.entry_names import OPAQUE, MemberError, invalid, shown
from imgproxy.unpacking.layer_links import LayerLinks
from imgproxy.unpacking.places import Place, Places
from imgproxy.unpacking.tree import change_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgproxy.specs.oci.tar_layers import Member
    from imgproxy.unpacking.entry_names import Name
    from imgproxy.unpacking.limits import Limits
    from imgproxy.unpacking.metadata import Metadata
    from imgproxy.unpacking.tree import Attributes, Tree

T = TypeVar("T")

# What Linux has room for in the numbers of a device, and glibc in what it passes on.
_MAX_MAJOR = 1 << 12
_MAX_MINOR = 1 << 20

# Extended attributes of directories are kept in memory until the end. Hardly any have some.
MAX_KEPT = 32 * 1024 * 1024

_NODES = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}


class Content(Stream, Protocol):
    """The content of a layer."""

    def read_some(self, limit: int) -> bytes | memoryview:
        """Return some of the next bytes, `limit` at most; none at the end alone."""


class LayerApplication:
    """Layers that are applied to an empty tree, the lowest first.

    `limits` counts the members, and what files hold. All methods raise `InvalidError` for what no
    tree can have, and `DestinationError`.
    """

    def __init__(self, tree: Tree, metadata: Metadata, limits: Limits) -> None:
        self._tree = tree
        self._metadata = metadata
        self._limits = limits
        self._places = Places(tree, metadata.implied)
        self._links = LayerLinks(tree, self._places)
        self._name = ""  # of the layer, in messages
        self._count = 0
        self._kept = 0

    def apply(self, name: str, content: Content) -> None:
        """Apply the next layer; `name` stands for it in messages."""
        self._count += 1
        self._name = name
        self._places.begin_layer(self._count)
        try:
            for member in tar_layers.members(content):
                self._apply(member, content)
            with self._failing(b""):
                self._links.finish()
        except TarError as error:
            raise InvalidError(
                f"{name}: the tar archive: {error}", code="ARCHIVE_INVALID"
            ) from None

    def settle(self) -> None:
        """Give all directories below the top their attributes. Nothing can be applied then."""
        self._settle(self._places.top)

    @property
    def top(self) -> Attributes:
        """The attributes of the directory at the top."""
        return self._places.top.directory.attributes

    def _settle(self, place: Place) -> None:
        for name, child in place.directory.children.items():
            self._settle(Place(place / name, child))
        if place.path:
            with self._failing(place.path):
                self._change(place.path, place.directory.attributes)

    def _apply(self, member: Member, content: Content) -> None:
        self._limits.add_file(self._name)
        with self._failing(member.name):
            name = entry_names.parse(member.name)
            if name.hides:
                self._hide(name)
            elif name.is_reserved:
                self._metadata.lose(
                    "reserved", f"{shown(member.name)}: a name of AUFS's is omitted"
                )
            elif not name.last:
                self._apply_top(member)
            else:
                self._make(member, name, content)

    @contextmanager
    def _failing(self, name: bytes) -> Iterator[None]:
        """Tell which member of which layer something fails at."""
        try:
            yield
        except MemberError as error:
            raise MemberError(f"{self._name}: {error.message}") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise MemberError(f"{self._name}: {shown(name)}: too long a name") from None
            is_refused = error.errno in (errno.EPERM, errno.EINVAL)
            hint = self._metadata.hint if is_refused else ""
            with using(f"{self._name}: {shown(name)}"):
                raise OSError(error.errno, f"{error.strerror}{hint}") from None

    def _hide(self, name: Name) -> None:
        place = self._places.find(name.parents)
        if place is None:
            return
        if name.hides == OPAQUE:
            whiteouts.hide_all(self._tree, self._places, place)
        elif name.hides != INCOMPLETE or place.path:
            whiteouts.hide(self._tree, self._places, place, name.hides)

    def _apply_top(self, member: Member) -> None:
        if member.kind != "directory":
            raise invalid(member.name, f"the top of the tree as a {member.kind}")
        self._places.top.directory.attributes = self._attributes_of_directory(member)

    def _make(self, member: Member, name: Name, content: Content) -> None:
        place = self._places.make(name.parents)
        if member.kind == "file":
            self._make_file(member, place, name.last, content)
        elif member.kind == "directory":
            self._make_directory(member, place, name.last)
        elif member.kind == "symlink":
            self._make_symlink(member, place, name.last)
        elif member.kind == "link":
            self._links.add(member, name.parents, place, name.last)
        elif member.kind in _NODES:
            self._make_node(member, place, name.last)
        else:
            raise invalid(member.name, "of a type that is not known")
        self._places.add(place, name.last)

    def _make_directory(self, member: Member, place: Place, name: bytes) -> None:
        attributes = self._attributes_of_directory(member)
        child = place.directory.children.get(name)
        if child is None:
            child = self._places.make_directory(place, name, attributes)
        child.attributes = attributes

    def _attributes_of_directory(self, member: Member) -> Attributes:
        """Return attributes that are kept until the end."""
        attributes = self._metadata.of(member)
        self._kept += sum(len(name) + len(value) for name, value in attributes.xattrs)
        if self._kept > MAX_KEPT:
            raise invalid(
                member.name, f"with it, more than {MAX_KEPT} bytes of attributes of directories"
            )
        return attributes

    def _replacing(self, make: Callable[[], T], place: Place, name: bytes) -> T:
        """Make something in place of whatever there is."""
        try:
            return make()
        except FileExistsError:
            self._places.remove(place, name)
            return make()

    def _make_file(self, member: Member, place: Place, name: bytes, content: Content) -> None:
        attributes = self._metadata.of(member)
        path = place / name
        fd = self._replacing(partial(self._tree.create_file, path), place, name)
        try:
            if member.holes is None:
                self._limits.add_bytes(member.size, self._name)
                _copy(content, fd, member.size)
            else:
                self._limits.add_bytes(member.holes.size, self._name)
                os.ftruncate(fd, member.holes.size)
                for offset, length in tar_sparse.regions(
                    content, member.holes, member.size, member.at
                ):
                    os.lseek(fd, offset, os.SEEK_SET)
                    _copy(content, fd, length)
            failed = change_open(fd, attributes)
        finally:
            os.close(fd)
        if failed:
            self._metadata.note(path, failed)

    def _make_symlink(self, member: Member, place: Place, name: bytes) -> None:
        if not member.target or b"\0" in member.target:
            raise invalid(member.name, "a symbolic link to nothing")
        path = place / name
        self._replacing(partial(self._tree.make_symlink, path, member.target), place, name)
        self._change(path, self._metadata.of(member))

    def _make_node(self, member: Member, place: Place, name: bytes) -> None:
        major, minor = member.device
        if major >= _MAX_MAJOR or minor >= _MAX_MINOR:
            raise invalid(member.name, f"a device with the numbers {major}:{minor}")
        if member.kind == "character" and member.device == (0, 0):
            raise invalid(member.name, "a whiteout of overlayfs, which layers have not")
        attributes = self._metadata.of(member)
        path, kind = place / name, _NODES[member.kind]
        device = 0 if member.kind == "fifo" else os.makedev(major, minor)
        try:
            make = partial(self._tree.make_node, path, kind | 0o600, device)
            self._replacing(make, place, name)
        except PermissionError:
            self._metadata.lose(
                "devices", f"{shown(member.name)}: only root can make devices; omitted"
            )
        else:
            self._change(path, attributes)

    def _change(self, path: bytes, attributes: Attributes) -> None:
        failed = self._tree.change(path, attributes)
        if failed:
            self._metadata.note(path, failed)


def _copy(content: Content, fd: int, size: int) -> None:
    """Write the next bytes of a layer to a file."""
    while size and (piece := content.read_some(size)):
        write_all(fd, piece)
        size -= len(piece)

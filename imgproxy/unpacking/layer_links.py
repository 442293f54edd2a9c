"""Hard links in layers, also those to files that come later, or from a lower layer."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.unpacking import entry_names
from imgproxy.unpacking.entry_names import invalid

if TYPE_CHECKING:
    from imgproxy.specs.oci.tar_layers import Member
    from imgproxy.unpacking.places import Place, Places
    from imgproxy.unpacking.tree import Tree

# Those that wait are kept in memory, with names of up to 8 KiB. Hardly any writer has some.
MAX_WAITING = 4096


class _Waiting(NamedTuple):
    """A link: its own name and its target as the archive has them, and where it belongs."""

    own: bytes
    target: bytes
    parents: tuple[bytes, ...]
    place: Place


class LayerLinks:
    """The hard links of the layer in hand whose targets are not there yet."""

    def __init__(self, tree: Tree, places: Places) -> None:
        self._tree = tree
        self._places = places
        self._waiting: dict[bytes, _Waiting] = {}

    def add(self, member: Member, parents: tuple[bytes, ...], place: Place, name: bytes) -> None:
        """Make a link, now or later.

        Raises `MemberError` for a target that can be none.
        """
        path, target = place / name, self._target(member.name, member.target)
        if target == path:
            return
        if target is not None and target.startswith(path + b"/"):
            raise invalid(member.name, "a hard link to what is in its own place")
        if self._is_there(member.name, target):
            self._remove(place, name)
            self._tree.make_link(path, target or b"")
            return
        if len(self._waiting) == MAX_WAITING:
            raise invalid(member.name, f"one of more than {MAX_WAITING} hard links to what follows")
        self._remove(place, name)
        self._waiting[path] = _Waiting(member.name, member.target, parents, place)

    def finish(self) -> None:
        """Make the links that wait. Raises `MemberError` for one that leads to nothing."""
        by_target: dict[bytes | None, list[bytes]] = {}
        ready: list[bytes] = []
        targets: dict[bytes, bytes | None] = {}
        waiting, self._waiting = self._waiting, {}
        for path, (own, written, parents, place) in waiting.items():
            if self._places.find(parents) != place or self._tree.status(path) is not None:
                continue  # something else has come in its place, or in that of its directory
            targets[path] = target = self._target(own, written)
            if self._is_there(own, target):
                ready.append(path)
            else:
                by_target.setdefault(target, []).append(path)
        while ready:
            path = ready.pop()
            self._tree.make_link(path, targets[path] or b"")
            ready += by_target.pop(path, [])
        for paths in by_target.values():
            own, written, *_ = waiting[paths[0]]
            raise invalid(own, f"a hard link to {entry_names.shown(written)}, which is not there")

    def _target(self, own: bytes, target: bytes) -> bytes | None:
        """Return the path of a link's target, None where its directory is not there."""
        parts = entry_names.components(target)
        if not parts:
            raise invalid(own, "a hard link to the top")
        place = self._places.find(parts[:-1])
        return None if place is None else place / parts[-1]

    def _is_there(self, own: bytes, target: bytes | None) -> bool:
        status = None if target is None else self._tree.status(target)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise invalid(own, "a hard link to a directory")
        return status is not None

    def _remove(self, place: Place, name: bytes) -> None:
        if self._tree.status(place / name) is not None:
            self._places.remove(place, name)

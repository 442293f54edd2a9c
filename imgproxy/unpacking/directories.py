"""What is known of the directories in a tree that layers are applied to.

All of them are made by the same process, so that nothing has to be looked up: which names are
directories, what attributes they get in the end, and what in them is of the layer in hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgproxy.unpacking.tree import Attributes


class Directory:
    """A directory, with the directories in it as `children`.

    `attributes` are those that it gets in the end: until then, it is open to its owner. `whole` is
    the number of the layer that all of its content is of, if it is of one. `upper` is that of the
    last layer with anything in it, however deep; `names` are those of that layer's members in it,
    as long as it is not `whole`.
    """

    __slots__ = ("attributes", "children", "names", "upper", "whole")

    def __init__(self, attributes: Attributes, layer: int) -> None:
        self.attributes = attributes
        self.children: dict[bytes, Directory] = {}
        self.names: set[bytes] | None = None
        self.upper = self.whole = layer

    def touch(self, layer: int) -> None:
        """Note that a layer has something in this directory."""
        if self.upper != layer:
            self.upper = layer
            self.names = None

    def add(self, name: bytes) -> None:
        """Note that the layer that has touched the directory last has a member of this name."""
        if self.names is None:
            self.names = set()
        self.names.add(name)

    def has(self, name: bytes, layer: int) -> bool:
        """Return whether a layer has a member of this name in the directory."""
        return self.upper == layer and self.names is not None and name in self.names

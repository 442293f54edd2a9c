"""What a layer hides of those below it: image-spec, layer.md, "Whiteouts".

It hides nothing of its own, wherever the whiteout stands in it. A directory that the layer has
something in stays, without what others had there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.unpacking.destination import INCOMPLETE
from imgproxy.unpacking.places import Place

if TYPE_CHECKING:
    from imgproxy.unpacking.places import Places
    from imgproxy.unpacking.tree import Tree


def hide(tree: Tree, places: Places, place: Place, name: bytes) -> None:
    """Remove what lower layers have by a name in a directory."""
    layer, directory = places.layer, place.directory
    if directory.whole == layer:
        return
    child = directory.children.get(name)
    is_own = directory.has(name, layer)
    if child is not None and (is_own or child.upper == layer):
        if child.whole != layer and not is_own:
            child.attributes = places.implied
        hide_all(tree, places, Place(place / name, child))
    elif not is_own:
        with suppress(FileNotFoundError):
            places.remove(place, name)


def hide_all(tree: Tree, places: Places, place: Place) -> None:
    """Remove all that lower layers have in a directory."""
    directory = place.directory
    if directory.whole == places.layer:
        return
    directory.touch(places.layer)
    for name in tree.names(place.path):
        if name != INCOMPLETE or place.path:
            hide(tree, places, place, name)
    directory.whole = places.layer  # so that this is done once for each layer

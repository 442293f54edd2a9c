"""Any sequence of members in any layers makes the tree that a model of the rules makes.

In the model, a layer first hides what is below it, all at once, and then its members are applied in
their order. The program does both in the order of the archive.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tars import END, Tape
from support.unpacking import entry, tree

from imgproxy.errors import InvalidError
from imgproxy.unpacking import ownership
from imgproxy.unpacking.layer_application import LayerApplication
from imgproxy.unpacking.limits import Limits
from imgproxy.unpacking.metadata import Metadata
from imgproxy.unpacking.tree import Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

Layer = list["Item"]


class Item(NamedTuple):
    path: tuple[str, ...]
    kind: str
    content: str
    number: int

    @property
    def raw(self) -> bytes:
        name = "/".join(self.path)
        fields: dict[str, Any] = {
            "mode": 0o700 | self.number % 64,
            "mtime": self.number * 10**9 + 7,
        }
        if self.kind == "whiteout":
            name = "/".join((*self.path[:-1], f".wh.{self.path[-1]}"))
            return entry(name)
        if self.kind == "opaque":
            return entry(f"{name}/.wh..wh..opq")
        if self.kind in ("link", "symlink"):
            return entry(name, kind=self.kind, target=self.content, **fields)
        content = self.content.encode() if self.kind == "file" else b""
        return entry(name, content, self.kind, **fields)


# Directories have other names than symbolic links, so that no path leads through one of these.
INNER = st.sampled_from(["a", "b"])
LAST = st.sampled_from(["a", "b", "x"])
PATHS = st.builds(lambda above, last: (*above, last), st.lists(INNER, max_size=2), LAST)
KINDS = st.sampled_from(["file", "file", "directory", "link", "whiteout", "opaque", "fifo"])
ITEMS = st.builds(
    lambda path, kind, target, number: Item(
        path, kind, "/".join(target) if kind == "link" else f"content {number}", number
    ),
    *(PATHS, KINDS, PATHS, st.integers(1, 10**6)),
) | st.builds(
    lambda path, number: Item((*path[:-1], "s"), "symlink", f"to {number}", number),
    PATHS,
    st.integers(1, 10**6),
)
LAYERS = st.lists(st.lists(ITEMS, max_size=8), min_size=1, max_size=4)


class Node:
    """A file of the model; `inside` are the files in a directory, None for what is none."""

    def __init__(self, item: Item | None) -> None:
        self.item = item
        is_directory = item is None or item.kind == "directory"
        self.inside: dict[str, Node] | None = {} if is_directory else None


class RefusedError(Exception):
    """The model refuses the layer."""


class Model:
    """The tree as the model has it."""

    def __init__(self) -> None:
        self.top = Node(None)

    def find(self, path: tuple[str, ...]) -> Node | None:
        node: Node | None = self.top
        for part in path:
            node = None if node is None or node.inside is None else node.inside.get(part)
        return node

    def place(self, path: tuple[str, ...]) -> dict[str, Node]:
        """Return the directory that a path is in, made where it is missing."""
        node = self.top
        for part in path[:-1]:
            assert node.inside is not None
            child = node.inside.get(part)
            if child is None or child.inside is None:
                child = node.inside[part] = Node(None)
            node = child
        assert node.inside is not None
        return node.inside

    def apply(self, layer: Layer) -> None:
        hidden = [item for item in layer if item.kind in ("whiteout", "opaque")]
        for item in hidden:
            self._hide(item)
        waiting: dict[tuple[str, ...], tuple[dict[str, Node], tuple[str, ...]]] = {}
        for item in layer:
            if item not in hidden:
                self._make(item, waiting)
        while waiting:
            for path, (place, target) in waiting.items():
                if self.place_of(path) is not place or path[-1] in place:
                    break  # something else has come
                found = self.find(target)
                if found is not None:
                    if found.inside is not None:
                        raise RefusedError
                    place[path[-1]] = found
                    break
            else:
                raise RefusedError
            del waiting[path]

    def place_of(self, path: tuple[str, ...]) -> dict[str, Node] | None:
        node = self.find(path[:-1])
        return None if node is None else node.inside

    def _hide(self, item: Item) -> None:
        node = self.find(item.path if item.kind == "opaque" else item.path[:-1])
        if node is None or node.inside is None:
            return
        if item.kind == "opaque":
            node.inside.clear()
        else:
            node.inside.pop(item.path[-1], None)

    def _make(self, item: Item, waiting: dict[Any, Any]) -> None:
        place, last = self.place(item.path), item.path[-1]
        waiting.pop(item.path, None)
        if item.kind == "link":
            target = tuple(item.content.split("/"))
            if target == item.path:
                return
            if target[: len(item.path)] == item.path and self.place_of(target) is not None:
                raise RefusedError
            found = self.find(target)
            if found is not None and found.inside is not None:
                raise RefusedError
            place.pop(last, None)
            if found is None:
                waiting[item.path] = place, target
            else:
                place[last] = found
        elif item.kind == "directory" and last in place and place[last].inside is not None:
            place[last].item = item
        else:
            place[last] = Node(item)

    def files(self) -> Iterator[tuple[str, Node]]:
        below = [("", self.top)]
        while below:
            path, node = below.pop()
            for name, child in (node.inside or {}).items():
                below.append((f"{path}/{name}" if path else name, child))
                yield below[-1]


def hides_targets(layers: list[Layer]) -> bool:
    """Return whether a link leads to what its own layer may hide: the order would matter."""
    for layer in layers:
        hidden = ["/".join(each.path) for each in layer if each.kind in ("whiteout", "opaque")]
        targets = [each.content for each in layer if each.kind == "link"]
        if any(f"{target}/".startswith(f"{path}/") for target in targets for path in hidden):
            return True
    return False


def apply(layers: list[Layer], root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        with closing(Tree(fd, Scope.IN_ROOT)) as made:
            metadata = Metadata(ownership.parse("me"), pytest.fail, is_privileged=False)
            application = LayerApplication(made, metadata, Limits(10**9, 10**6))
            for layer in layers:
                archive = b"".join(item.raw for item in layer) + END
                application.apply("a layer", Pieces([archive]))
            application.settle()
    finally:
        os.close(fd)


class Pieces(Tape):
    """A `layer_application.Content`."""

    def read_some(self, limit: int) -> bytes:
        return self.read(min(limit, 7))


@given(LAYERS)
def test_layers_make_the_tree_of_the_model(layers: list[Layer]) -> None:
    assume(not hides_targets(layers))
    model = Model()
    is_refused = False
    try:
        for layer in layers:
            model.apply(layer)
    except RefusedError:
        is_refused = True
    with tempfile.TemporaryDirectory() as directory:
        if is_refused:
            with pytest.raises(InvalidError):
                apply(layers, Path(directory))
            return
        apply(layers, Path(directory))
        found = tree(Path(directory))
        wanted = dict(model.files())
        assert set(found) == set(wanted)
        for path, node in wanted.items():
            ours, item = found[path], node.item
            if item is None:
                assert (ours.kind, ours.mode, ours.mtime) == ("directory", 0o755, 0)
                continue
            assert (ours.kind, ours.mtime) == (item.kind, item.number * 10**9 + 7)
            if item.kind in ("file", "symlink"):
                assert ours.content == item.content.encode()
            if item.kind != "symlink":
                assert ours.mode == 0o700 | item.number % 64
        inodes: dict[int, set[int]] = {}
        for path, node in wanted.items():
            inode = Path(directory, path).lstat().st_ino
            inodes.setdefault(inode, set()).add(id(node))
        assert all(len(nodes) == 1 for nodes in inodes.values())
        assert len(inodes) == len({id(node) for node in wanted.values()})

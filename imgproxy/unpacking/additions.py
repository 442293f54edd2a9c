"""Files for a directory that has others already."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING

from imgproxy.errors import clean, closing_on_error
from imgproxy.store.files import DestinationError, using
from imgproxy.unpacking import removal, resolution
from imgproxy.unpacking.beside import Beside, sync
from imgproxy.unpacking.destination import INCOMPLETE
from imgproxy.unpacking.tree import Attributes, Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
            removal.empty(self.fd)

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
            sync(self.fd)
            for path in paths:
                self._make_room(tree, path, directory_mode)
            for path in paths:
                made.move(path, tree, path, replace=True)
            sync(self._place)

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

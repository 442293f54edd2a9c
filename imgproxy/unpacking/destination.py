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

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import clean
from imgproxy.store.files import DestinationError, using
from imgproxy.unpacking import removal
from imgproxy.unpacking.beside import Beside, rename_new, sync
from imgproxy.unpacking.entry_names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

# The mark of what is filled in place and not whole. Nothing else may have this name at the top.
INCOMPLETE = b".imgproxy-incomplete"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARK = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# Of the name of DIR: with what follows, no longer than a name may be.
_MAX_NAME = 200


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
            # By its text, so that it is what a message names.
            parent = os.fsdecode(base) or "."
            self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
            what = "a symbolic link" if os.path.islink(self.path.rstrip("/")) else "not a directory"
            raise self._refusal(f"exists, and is {what}") from None
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
            more = " and more" * (len(names) > 1)
            raise self._refusal(f"exists, and is not empty: it has {shown(min(names))}{more}")
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
                sync(self.fd)
                os.unlink(INCOMPLETE, dir_fd=self.fd)
            settle(self.fd)
            sync(self.fd)
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
            for name in removal.names_in(self.fd):
                if name != INCOMPLETE:
                    removal.remove(name, self.fd)

    def close(self) -> None:
        """Close the directory; without `finish` before, take it away or empty it."""
        try:
            if self._beside is not None:
                with using(self.path):
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

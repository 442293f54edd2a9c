"""A file that appears whole or not at all, and takes no other one's place."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import clean
from imgproxy.store.files import DestinationError, sync_directory, using, write_all

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

# What link(2) fails with on file systems without hard links, such as those of memory sticks.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class NewFile:
    """A file on its way to `path`, written beside it. All methods raise `DestinationError`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._beside = f"{path}.imgproxy-{os.getpid()}"
        if os.path.lexists(path):
            raise DestinationError(f"{clean(path)} exists; it is not replaced")
        with using(path):
            with suppress(FileNotFoundError):
                os.unlink(self._beside)  # of a process that had this number and was killed
            self._fd = os.open(self._beside, _NEW, 0o666)

    def write(self, content: Buffer) -> None:
        """Add content."""
        with using(self._path):
            write_all(self._fd, content)

    def finish(self) -> None:
        """Give the file its name, once it is on the disk."""
        with using(self._path):
            os.fsync(self._fd)
            try:
                os.link(self._beside, self._path)
            except FileExistsError:
                raise DestinationError(f"{clean(self._path)} exists by now") from None
            except OSError as error:
                if error.errno not in _NO_LINKS or os.path.lexists(self._path):
                    raise
                os.rename(self._beside, self._path)
            sync_directory(os.path.dirname(self._path) or ".")

    def close(self) -> None:
        """Remove what is beside; without `finish` before, that is all there is."""
        os.close(self._fd)
        with suppress(FileNotFoundError):
            os.unlink(self._beside)


class Output:
    """A stream that is written in place of a file: a pipe, say. See `NewFile`."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    def write(self, content: Buffer) -> None:
        """See `NewFile`."""
        with using(self._name):
            write_all(self._fd, content)

    def finish(self) -> None:
        """See `NewFile`."""

    def close(self) -> None:
        """See `NewFile`."""

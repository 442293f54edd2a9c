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
_NAMELESS = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC

# What open(2) fails with on file systems that have no files without a name, and link(2) on those
# that have no hard links, such as those of memory sticks.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EPERM, errno.ENOSYS})


class NewFile:
    """A file on its way to `path`. All methods raise `DestinationError`.

    It has no name until it is whole, so that nothing is left of a killed process; where the file
    system does not have that, it has one beside `path`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory = os.path.dirname(path) or "."
        self._beside: str | None = None
        if os.path.lexists(path):
            raise DestinationError(f"{clean(path)} exists; it is not replaced")
        with using(path):
            try:
                self._fd = os.open(self._directory, _NAMELESS, 0o666)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._fd = self._open_beside()

    def _open_beside(self) -> int:
        self._beside = f"{self._path}.imgproxy-{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(self._beside)  # of a process that had this number and was killed
        return os.open(self._beside, _NEW, 0o666)

    def write(self, content: Buffer) -> None:
        """Add content."""
        with using(self._path):
            write_all(self._fd, content)

    def finish(self) -> None:
        """Give the file its name, once it is on the disk."""
        with using(self._path):
            os.fsync(self._fd)
            try:
                self._link()
            except FileExistsError:
                raise DestinationError(f"{clean(self._path)} exists by now") from None
            sync_directory(self._directory)

    def _link(self) -> None:
        """Give the file its name unless another one has it. Raises `OSError`."""
        if self._beside is None:
            # With a descriptor, which the path is not relative to, Python calls linkat(2).
            source = f"/proc/self/fd/{self._fd}"
            os.link(source, self._path, src_dir_fd=self._fd, follow_symlinks=True)
            return
        try:
            os.link(self._beside, self._path)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or os.path.lexists(self._path):
                raise
            os.rename(self._beside, self._path)

    def close(self) -> None:
        """Close the file; without `finish` before, nothing is left of it."""
        os.close(self._fd)
        if self._beside is not None:
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

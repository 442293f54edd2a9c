"""Local files, opened once and only when they are regular.

What lies at a path is found out with O_PATH before it is opened for reading, because opening a
FIFO waits for a writer and opening a device may do anything. The descriptor is then opened again
through /proc, so that what was looked at is what is read.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

import trio

from imgproxy.errors import (
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    ReplacedError,
    UnavailableError,
    UnsupportedFormatError,
    clean,
)
from imgproxy.host.environment import kind_of


def failure(path: str, error: OSError) -> Failure:
    """Give what a failure of the operating system on `path` means to a parent."""
    message = f"{clean(path)}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeniedError(message)
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return InvalidError(message, code="PATH_INVALID")
    return UnavailableError(message)


class OpenFile:
    """A regular file, open for reading at any offset. `size` is in bytes, taken at the opening.

    `name` is given for one that has no path of its own, and stands for it in messages. Raises what
    `failure` makes of the system's complaints, and `UnsupportedFormatError` for what is no regular
    file.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self.path = name or path
        self._has_path = not name
        try:
            self._fd, self._status = _open(path)
        except OSError as error:
            raise failure(self.path, error) from None
        self.size = self._status.st_size

    async def receive_into(self, buffer: memoryview, offset: int) -> int:
        """Put the bytes from `offset` on at the start of `buffer`; give how many, 0 at the end.

        Reads what the system has in memory at once, anything else in a thread: a slow disk
        delays this file and nobody else.
        """
        await trio.lowlevel.checkpoint()
        try:
            try:
                return os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                return await self._read_in_thread(buffer, offset)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                return await self._read_in_thread(buffer, offset)
        except OSError as error:
            raise failure(self.path, error) from None

    async def _read_in_thread(self, buffer: memoryview, offset: int) -> int:
        # A disk that hangs must not keep the conversation; nobody looks at the buffer afterwards.
        return await trio.to_thread.run_sync(
            os.preadv, self._fd, [buffer], offset, abandon_on_cancel=True
        )

    def read(self, size: int, offset: int) -> bytes:
        """Give bytes from `offset` on, fewer than `size` at the end; waits for the disk."""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise failure(self.path, error) from None

    @property
    def true_path(self) -> str | None:
        """Where the file lies that is open, whatever links led there; None for one without a path.

        A link may lead elsewhere by now, so only the descriptor knows.
        """
        return os.readlink(f"/proc/self/fd/{self._fd}") if self._has_path else None

    def check(self) -> None:
        """Raise `ReplacedError` if the file is not the one any more that was opened.

        One that is gone from its path is still what it was; another in its place means that the
        image is another one.
        """
        there = [os.fstat(self._fd)]
        with suppress(OSError):
            if self._has_path:
                there.append(os.stat(self.path))
        if any(_stamp(each) != _stamp(self._status) for each in there):
            raise ReplacedError(
                f"{clean(self.path)} has been changed or replaced since it was opened;"
                " ask for the manifest again to have what is there now"
            )

    def close(self) -> None:
        """Give the descriptor back. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open(path: str) -> tuple[int, os.stat_result]:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedFormatError(
                f"{clean(path)} is {kind_of(status.st_mode)}, not a regular file"
            )
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC), status
    finally:
        os.close(handle)

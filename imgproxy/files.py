"""Local files, opened once and only when they are regular.

What lies at a path is found out with O_PATH before it is opened for reading, because opening a
FIFO waits for a writer and opening a device may do anything. The descriptor is then opened again
through /proc, so that what was looked at is what is read.
"""

from __future__ import annotations

import errno
import os
import stat

import trio

from imgproxy.errors import (
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
    clean,
)
from imgproxy.system import kind_of


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


class LocalFile:
    """A regular file being read from its beginning. `size` is in bytes, taken at the opening.

    `name` stands for it in messages, if it has one other than its path.
    Raises what `failure` makes of the system's complaints, and `UnsupportedFormatError` for what
    is no regular file.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self.name = name or clean(path)
        self.size: int | None
        self._path = path
        self._position = 0
        try:
            self._fd, self.size = _open(path)
        except OSError as error:
            raise failure(path, error) from None

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end.

        Reads what the system has in memory at once, anything else in a thread: a slow disk
        delays this file and nobody else.
        """
        await trio.lowlevel.checkpoint()
        try:
            try:
                count = os.preadv(self._fd, [buffer], self._position, os.RWF_NOWAIT)
            except BlockingIOError:
                count = await self._read_in_thread(buffer)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                count = await self._read_in_thread(buffer)
        except OSError as error:
            raise failure(self._path, error) from None
        self._position += count
        return count

    async def _read_in_thread(self, buffer: memoryview) -> int:
        # A disk that hangs must not keep the conversation; nobody looks at the buffer afterwards.
        return await trio.to_thread.run_sync(
            os.preadv, self._fd, [buffer], self._position, abandon_on_cancel=True
        )

    async def read(self, limit: int) -> bytes:
        """Give the whole content.

        Raises `InvalidError` where it has more than `limit` bytes.
        """
        size = self.size or 0
        if size > limit:
            raise InvalidError(
                f"{clean(self._path)}: {size} bytes are more than the limit of {limit}",
                code="SIZE_INVALID",
            )
        content = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            count = await self.receive_into(content[filled:])
            if count == 0:
                break
            filled += count
        return bytes(content[:filled])

    def condemn(self, _: Failure) -> bool:
        """Whatever is wrong with a file, there is no other in its place."""
        return False

    def close(self) -> None:
        """Give the descriptor back. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> tuple[int, int]:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedFormatError(
                f"{clean(path)} is {kind_of(status.st_mode)}, not a regular file"
            )
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC), status.st_size
    finally:
        os.close(handle)


async def read_file(path: str, limit: int) -> bytes:
    """Give the whole content of a regular file of at most `limit` bytes; see `LocalFile`."""
    file = LocalFile(path)
    try:
        return await file.read(limit)
    finally:
        file.close()

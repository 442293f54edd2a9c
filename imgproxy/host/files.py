"""Local files, opened once and only if they are regular.

A path is opened with O_PATH first and its type checked, because opening a FIFO for reading waits
for a writer and opening a device may have any effect. That descriptor is then opened for reading
through /proc, so that the file that is read is the one that was checked.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from trio.lowlevel import checkpoint_if_cancelled

from imgproxy.errors import (
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    ReplacedError,
    UnavailableError,
    UnsupportedFormatError,
    clean,
    shortage,
)
from imgproxy.host import blocking_calls, mounts
from imgproxy.host.environment import kind_of
from imgproxy.host.event_loop import yield_to_others

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


# In nanoseconds: FAT tells two seconds apart.
_TICK = 2_000_000_000


def failure(path: str, error: OSError) -> Failure:
    """Return the failure that stands for an error of the operating system on `path`."""
    message = f"{clean(path)}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeniedError(message)
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return InvalidError(message, code="PATH_INVALID")
    return shortage(clean(path), error) or UnavailableError(message)


class FileState(NamedTuple):
    """Which file was looked at, and what it was then: another state is that of other content."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state that a status shows."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    @property
    def is_settled(self) -> bool:
        """Whether a change from now on shows: one in the same tick of the clock does not."""
        return time.time_ns() - max(self.modified_ns, self.changed_ns) >= _TICK


class OpenFile:
    """A regular file, open for reading at any offset. `size` is in bytes, from when it was opened.

    `name` is given for a file that has no path of its own, and stands for it in messages.
    `may_hang` is the file system it is on, if that may hang; see `mounts`. Raises what `failure`
    returns for errors of the system, and `UnsupportedFormatError` for anything but a regular file.
    """

    def __init__(self, path: str, name: str = "", may_hang: int | None = None) -> None:
        self._may_hang = may_hang
        self.path = name or path
        self._has_path = not name
        try:
            self._fd, self._status = _open(path)
        except OSError as error:
            raise failure(self.path, error) from None
        self.size = self._status.st_size

    async def receive_into(self, buffer: memoryview, offset: int) -> int:
        """Write the bytes from `offset` to the start of `buffer`; return how many, 0 at the end.

        What the system has in memory is read at once, anything else in a thread: a slow disk delays
        the readers of this file only. File systems in memory cannot tell, and need not.
        """
        await checkpoint_if_cancelled()
        await yield_to_others()
        try:
            try:
                return os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                return await self._read_in_thread(buffer, offset)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                if mounts.is_in_memory(self._status.st_dev):
                    return os.preadv(self._fd, [buffer], offset)
                return await self._read_in_thread(buffer, offset)
        except OSError as error:
            raise failure(self.path, error) from None

    async def _read_in_thread(self, buffer: memoryview, offset: int) -> int:
        # After a cancellation, which no disk that hangs delays, the buffer is not used again.
        return await self.in_thread(os.preadv, self._fd, [buffer], offset)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
        """Call a function that reads the file in a thread, of those for its file system."""
        return await blocking_calls.in_thread(self._status.st_dev, function, *arguments)

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes from `offset`, fewer than `size` only at the end. Blocks on the disk."""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise failure(self.path, error) from None

    @property
    def state(self) -> FileState:
        """Which file it is, and its state from when it was opened."""
        now = self._status
        return FileState.of(now)

    @property
    def true_path(self) -> str | None:
        """The path of the open file with all links resolved, None for a file without a path.

        It is read from the descriptor, because a link may lead elsewhere by now.
        """
        return os.readlink(f"/proc/self/fd/{self._fd}") if self._has_path else None

    def check(self) -> None:
        """Raise `ReplacedError` if the file has changed, or another one is at its path.

        A file that was only deleted is still what it was.
        """
        current = [os.fstat(self._fd)]
        with suppress(OSError):
            if self._has_path:
                current.append(os.stat(self.path))
        if any(_stamp(each) != _stamp(self._status) for each in current):
            raise ReplacedError(
                f"{clean(self.path)} has been changed or replaced since it was opened;"
                " ask for the manifest again to have what is there now"
            )

    async def confirm(self) -> None:
        """Do what `check` does, without a wait for a file system that may hang."""
        path = self.path if self._has_path else "/"
        await blocking_calls.on(self._may_hang or mounts.may_hang(path), self.check)

    def close(self) -> None:
        """Close the descriptor. May be called again."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._may_hang is None:
            os.close(fd)
        else:
            blocking_calls.close_behind(fd)


async def open_file(path: str, name: str = "") -> OpenFile:
    """Open a file; see `OpenFile`. What may hang is waited for in a thread."""
    device = mounts.may_hang(path)
    if device is None:
        return OpenFile(path, name)
    return (await blocking_calls.in_thread(device, _Opened, path, name, device)).taken()


class _Opened:
    """A file that a thread has opened; it is closed if no task waits for it any more."""

    _file: OpenFile | None = None

    def __init__(self, path: str, name: str, device: int) -> None:
        self._file = OpenFile(path, name, device)

    def taken(self) -> OpenFile:
        file, self._file = self._file, None
        assert file is not None  # noqa: S101  (it is taken once)
        return file

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


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

"""A blob on its way into a store.

Its file has a name of its own until the blob has been verified, and is locked by whoever fetches
it. What a killed process has left of it is the beginning for the next one, whose bytes are hashed
again.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import UnavailableError, clean
from imgproxy.store import locks
from imgproxy.store.files import DestinationError, using

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer
    from imgproxy.store.locks import LockedFile

_READ_ONLY = 0o444

# How often the patience for a pause makes that for the whole.
_PATIENCES = 12


class PartialBlob:
    """The file at `path` for a blob of `total` bytes, locked until it is closed.

    `size` is the number of bytes that are there, from the beginning. `target` is where the blob
    belongs when it is whole. All methods raise `Failure`.
    """

    def __init__(self, path: str, target: str, total: int, file: LockedFile) -> None:
        self._path = path
        self._target = target
        self._total = total
        self._file = file
        self.size = os.fstat(file.fd).st_size

    def check_room(self) -> None:
        """Raise `DestinationError` where the disk has no room for what is missing."""
        with using(self._path):
            disk = os.fstatvfs(self._file.fd)
        missing, free = self._total - self.size, disk.f_bavail * disk.f_frsize
        if missing > free:
            raise DestinationError(
                f"{clean(self._target)}: {missing} bytes are missing, and the disk has room for"
                f" {free}"
            )

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Write bytes from `offset` on to the start of `buffer`; return how many, 0 at the end."""
        with using(self._path):
            return os.preadv(self._file.fd, [buffer], offset)

    def append(self, content: Buffer) -> None:
        """Add bytes to those that are there."""
        rest = memoryview(content)
        with using(self._path):
            while rest:
                written = os.pwrite(self._file.fd, rest, self.size)
                self.size += written
                rest = rest[written:]

    def truncate(self) -> None:
        """Remove all bytes: they are not those of the blob. This may be found out after `close`.

        Whoever has opened it again meanwhile finds out as well.
        """
        is_closed = self._file.fd < 0
        with using(self._path):
            if is_closed:
                file = locks.try_lock(self._path, locks.EXCLUSIVE)
                if file is None:
                    return
                self._file = file
            os.ftruncate(self._file.fd, 0)
        self.size = 0
        if is_closed:
            self.close()

    def commit(self) -> None:
        """Give the blob its name. It has been verified, and is on the disk first."""
        with using(self._path):
            os.fchmod(self._file.fd, _READ_ONLY)
            os.fdatasync(self._file.fd)
            os.makedirs(os.path.dirname(self._target), 0o700, exist_ok=True)
            os.rename(self._path, self._target)
        self.close()

    def close(self) -> None:
        """Give the lock up; what is there stays, but for a file without bytes."""
        if self.size == 0 and self._file.fd >= 0:
            with suppress(OSError):
                if self._file.is_at(self._path):
                    os.unlink(self._path)
        self._file.close()


class BusyError(UnavailableError):
    """Another task or process has a blob under way, and it does not get on."""


async def open_partial(
    path: str, target: str, total: int, patience: float = math.inf
) -> PartialBlob:
    """Open the file of a blob, after whoever has it. Raises `Failure`.

    The blob may have become whole meanwhile: look there again. `patience` is in seconds: raises
    `BusyError` where nothing was added for so long, or where it takes more than `_PATIENCES` times
    as long in all.
    """
    with using(path):
        file = await _lock_while_growing(path, patience)
        partial = PartialBlob(path, target, total, file)
        if partial.size > total:
            partial.truncate()
    return partial


async def _lock_while_growing(path: str, patience: float) -> LockedFile:
    began = grown = trio.current_time()
    size = -1
    while True:
        await trio.lowlevel.checkpoint()
        file = locks.try_lock(path, locks.EXCLUSIVE)
        if file is not None:
            return file
        now, before = trio.current_time(), size
        with suppress(FileNotFoundError):  # it was renamed just now
            size = os.stat(path).st_size
        if size != before:
            grown = now
        if now - grown >= patience or now - began >= _PATIENCES * patience:
            raise BusyError(
                f"{clean(path)}: another process has been receiving this blob for"
                f" {now - began:.0f} s, and has added nothing for {now - grown:.0f} s; if it is"
                " stopped, continue or end it (fuser and lslocks tell which)"
            )
        await trio.sleep(locks.INTERVAL)

"""Archives from an inherited pipe or socket, spooled to a file so that they can be read anywhere.

That is `docker-archive:/dev/fd/N` and the like. A pipe can be read only once and in order; an
archive is read at any offset, and opened anew after a failure.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import (
    ConfigurationError,
    Failure,
    InvalidError,
    ShortageError,
    clean,
    shortage,
)
from imgproxy.host import blocking_calls, environment
from imgproxy.host.blocking_calls import Job
from imgproxy.host.files import open_file

if TYPE_CHECKING:
    from typing import IO

    from imgproxy.host.files import OpenFile

# What is taken from a pipe in one go.
_PIECE = 2 * 1024 * 1024


async def open_spooled(fd: int, path: str) -> OpenFile:
    """Open the file with what comes from a pipe, once it has all come; `path` is its name.

    Raises `ShortageError` where it cannot be kept for now, `ConfigurationError` where that lasts
    as long as the directory is not another, and `InvalidError` where it can no longer be read.
    """
    spool = _spools.get(fd)
    if spool is None:
        where = environment.temporary_directory()
        try:
            file = await blocking_calls.call(where, environment.temporary_file)
        except OSError as error:
            raise _unkept(path, error, 0) from None
        spool = _spools.setdefault(fd, _Spool(fd, path, file))
    return await open_file(await spool.filled(), path)


class _Spool:
    """A file without a name for the content of a pipe; filling it can be interrupted."""

    def __init__(self, fd: int, path: str, file: IO[bytes]) -> None:
        self._fd = fd
        self._path = path
        self._file = file
        self._size = 0
        self._is_whole = False
        self._broken: Failure | None = None
        self._piece = memoryview(b"")  # was read, which cannot be done again, and is to be written
        self._writing: Job[int] | None = None

    async def filled(self) -> str:
        """Return a path of the file when all is in it. Raises `Failure`."""
        while not self._is_whole:
            while self._piece:
                await self._write()
            if self._broken is not None:
                raise self._broken.copy()
            await trio.lowlevel.wait_readable(self._fd)
            self._read()
        return f"/proc/self/fd/{self._file.fileno()}"

    async def _write(self) -> None:
        """Write some of the piece. A write goes on after a cancellation."""
        if self._writing is None:
            self._writing = Job(partial(self._file.write, self._piece))
        try:
            written = await self._writing.result()
        except OSError as error:
            self._writing = None
            raise _unkept(self._path, error, self._size) from None
        self._writing = None
        self._piece = self._piece[written:]
        self._size += written

    def _read(self) -> None:
        try:
            with suppress(BlockingIOError):
                self._piece = memoryview(os.read(self._fd, _PIECE))
                self._is_whole = not self._piece
        except OSError as error:
            # A socket that was reset would be at its end at the next try, as if that were all.
            self._broken = InvalidError(
                f"reading the archive that comes through {clean(self._path)}: {error.strerror}"
                f" after {self._size} bytes; what has been read cannot be read again, so that"
                " another try does not help",
                code="ARCHIVE_INVALID",
            )


def _unkept(path: str, error: OSError, kept: int) -> Failure:
    """Return the failure to keep more than the `kept` bytes of an archive from a pipe."""
    message = (
        f"keeping what comes through {clean(path)} in a file in"
        f" {clean(environment.temporary_directory())}, since an archive is not read in order:"
        f" {error.strerror} after {kept} bytes"
    )
    if shortage(path, error):
        return ShortageError(f"{message}; another try may help, and continues there")
    return ConfigurationError(
        f"{message}; another try does not help, another directory in TMPDIR does",
        variable="TMPDIR",
    )


# By descriptor. Kept for the process and not for a source: an inherited descriptor belongs to the
# process, what has been read from it cannot be read again, and every opening needs all of it.
_spools: dict[int, _Spool] = {}

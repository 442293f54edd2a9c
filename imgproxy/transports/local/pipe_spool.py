"""Archives from an inherited pipe or socket, spooled to a file so that they can be read anywhere.

That is `docker-archive:/dev/fd/N` and the like. A pipe can be read only once and in order; an
archive is read at any offset, and opened anew after a failure.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio

from imgproxy.errors import UnavailableError
from imgproxy.host import environment
from imgproxy.host.files import OpenFile

# What is taken from a pipe in one go.
_PIECE = 2 * 1024 * 1024


async def open_spooled(fd: int, path: str) -> OpenFile:
    """Open the file with what comes from a pipe, once it has all come; `path` is its name.

    Raises `UnavailableError` where it cannot be kept.
    """
    try:
        spool = _spools.get(fd) or _spools.setdefault(fd, _Spool(fd))
        return OpenFile(await spool.filled(), path)
    except OSError as error:
        raise UnavailableError(f"keeping what comes through {path}: {error}") from None


class _Spool:
    """A file without a name for the content of a pipe; filling it can be interrupted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = environment.temporary_file()
        self._is_whole = False
        self._piece = memoryview(b"")  # was read, which cannot be done again, and is to be written

    async def filled(self) -> str:
        """Return a path of the file when all is in it. Raises `OSError`."""
        while not self._is_whole:
            while self._piece:
                with trio.CancelScope(shield=True):
                    written = await trio.to_thread.run_sync(self._file.write, self._piece)
                self._piece = self._piece[written:]
            await trio.lowlevel.wait_readable(self._fd)
            with suppress(BlockingIOError):
                self._piece = memoryview(os.read(self._fd, _PIECE))
                self._is_whole = not self._piece
        return f"/proc/self/fd/{self._file.fileno()}"


# By descriptor. Kept for the process and not for a source: an inherited descriptor belongs to the
# process, what has been read from it cannot be read again, and every opening needs all of it.
_spools: dict[int, _Spool] = {}

"""Pipes that a client is handed to read content from: pipe(7).

The client's end blocks, as programs expect; this end does not. The pipe is the back pressure: no
more is pulled than was written.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import shortage
from imgproxy.net.streams import wait_hung_up_of, write_all

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer

# In bytes. What fits into a new pipe without a reader, and into an enlarged one: larger pipes cost
# reader and writer fewer turns.
CAPACITY = 64 * 1024
LARGE_CAPACITY = 1024 * 1024

_CLOSED = -1


class Pipe:
    """A pipe. `read_fd` is the client's end, to be closed here as soon as it has been passed on.

    Raises `ShortageError` where there are no more descriptors.
    """

    def __init__(self) -> None:
        try:
            self.read_fd, self._write_fd = os.pipe()
        except OSError as error:
            raise shortage("making a pipe", error) or error from None
        os.set_blocking(self._write_fd, False)
        self.is_large = False

    def enlarge(self) -> None:
        """Make room for more bytes at once, if the system allows it."""
        with suppress(OSError):
            fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, LARGE_CAPACITY)
            self.is_large = True

    def fill(self, content: memoryview) -> memoryview:
        """Write what there is room for, and return the rest. Raises `OSError`."""
        with suppress(BlockingIOError):
            content = content[os.write(self._write_fd, content) :]
        return content

    async def write(self, content: Buffer) -> None:
        """Write all of `content`. Raises `BrokenPipeError` where nobody can read it any more."""
        await write_all(self._write_fd, content)

    async def wait_hung_up(self) -> None:
        """Wait until nobody can read from the pipe any more."""
        await wait_hung_up_of(self._write_fd)

    def close_read_end(self) -> None:
        """Close the client's end in this process. May be called again."""
        if self.read_fd != _CLOSED:
            os.close(self.read_fd)
            self.read_fd = _CLOSED

    def close_write_end(self) -> None:
        """Close this end: the client reads the end of the content then. May be called again."""
        if self._write_fd != _CLOSED:
            os.close(self._write_fd)
            self._write_fd = _CLOSED

    def close(self) -> None:
        """Close both ends. May be called again."""
        self.close_read_end()
        self.close_write_end()

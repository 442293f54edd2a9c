"""The preparation of a child: its command line, its sockets and its standard error.

Nothing here blocks: the two variants of the library wait.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = (sys.executable, "-m", "imgproxy")

# In seconds: how long the child may send nothing. It waits for the network for 14 minutes at most
# before a reply, and reads a compressed archive once as a whole.
TIMEOUT = 900.0

# In seconds: how long a child whose sockets are all closed may take to end by itself. It needs a
# second at most, and is killed after this.
GRACE = 5.0

# In seconds: how long to wait for the end of a child that has closed one of several sockets: if
# that was because it died, its exit status is available by then.
MOMENT = 0.25

# A blob that is closed before its end is read to its end if at most so many bytes are missing and
# arrive within so many seconds; its socket is closed otherwise.
DISCARD = 1024 * 1024
DISCARD_TIME = 1.0

CHUNK = 64 * 1024

# Each request results in one line at most.
_LINES = 100

# The capacity of a pipe in chunks: reading ends even if the child does not stop writing.
_READS = 64


class Diagnostics:
    """The child's standard error: a pipe that is emptied at each use.

    A full pipe never blocks the child, which drops lines that do not fit.
    """

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._lock = threading.RLock()
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._part = b""

    def lines(self) -> tuple[str, ...]:
        """Return the last lines so far."""
        with self._lock:
            self._read()
            part = [clean(self._part.decode(errors="replace"), CHUNK)] if self._part else []
            return (*self._lines, *part)

    def _read(self) -> None:
        for _ in range(_READS if self._read_fd >= 0 else 0):
            try:
                data = os.read(self._read_fd, CHUNK)
            except BlockingIOError:
                return
            if not data:
                return
            *whole, part = (self._part + data).split(b"\n")
            self._lines += [clean(line.decode(errors="replace"), CHUNK) for line in whole]
            self._part = part[-CHUNK:]

    def close(self) -> None:
        """Read the rest, and close the pipe."""
        with self._lock:
            if self._read_fd >= 0:
                self._read()
                os.close(self._read_fd)
                self._read_fd = -1


class Plan(NamedTuple):
    """A command to start: `arguments`, `fds` to be inherited, and our halves of the sockets."""

    arguments: list[str]
    fds: list[int]
    sockets: list[socket.socket]
    diagnostics: Diagnostics


@contextmanager
def prepare(
    image: str,
    options: Sequence[str],
    sockets: int,
    command: Sequence[str],
    pass_fds: Sequence[int],
) -> Iterator[Plan]:
    """Create sockets and a pipe; the child's ends are closed at the end of the block.

    Ours are closed too if the block fails.
    """
    if sockets < 1:
        raise ValueError(f"sockets={sockets}: a child needs at least one")
    with ExitStack() as ours, ExitStack() as theirs:
        diagnostics = Diagnostics()
        ours.callback(diagnostics.close)
        theirs.callback(os.close, diagnostics.write_fd)
        halves, fds = [], []
        for _ in range(sockets):
            half, other = socket.socketpair()
            halves.append(ours.enter_context(half))
            fds.append(theirs.enter_context(other).fileno())
        numbers = [f"--sockfd={fd}" for fd in fds]
        # After `--`, an image that begins with a hyphen is not an option.
        arguments = [*command, *numbers, *options, "--", image]
        yield Plan(arguments, [*fds, *pass_fds], halves, diagnostics)
        ours.pop_all()

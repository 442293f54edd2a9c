"""A file system that hangs: a directory served through FUSE by a program that can be told to.

The kernel then waits for it as for any server that does not answer. Mounting takes
root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.servers import skip

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = Path(__file__).with_name("fuse_server.py")

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


class HangingMount:
    """A mounted directory at `path`, with what is in `content`, until it hangs."""

    def __init__(self, path: Path, content: Path, server: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.content = content
        self._server = server

    def hang(self) -> None:
        """Let every call from now on wait."""
        self._tell()

    def go_on(self) -> None:
        """Answer again, also what has been waiting."""
        self._tell()

    def _tell(self) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(b".")
        assert self._server.stdout.read(1) == b"."


@contextmanager
def hanging_mount(directory: Path) -> Iterator[HangingMount]:
    """Mount a file system below a directory; leave when nothing waits for it any more."""
    content, path = directory / "content", directory / "mount"
    content.mkdir(parents=True)
    path.mkdir()
    try:
        fd = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        skip(f"/dev/fuse cannot be opened: {error.strerror}")
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if _LIBC.mount(b"hanging", bytes(path), b"fuse.hanging", 0, options):
        os.close(fd)
        skip(f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        server = subprocess.Popen(
            [sys.executable, str(_SERVER), str(fd), str(content)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        os.close(fd)  # the server has the only one: with its end, calls fail and wait no more
        try:
            os.listdir(path)  # until the server has begun, everything waits
            yield HangingMount(path, content, server)
        finally:
            server.kill()
            server.communicate()
    finally:
        _LIBC.umount2(bytes(path), _MNT_DETACH)

"""The program as root of a user namespace, in a child of this process: see `forked`."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support import forked

from imgproxy import __main__

if TYPE_CHECKING:
    from support.commands import Done

_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)

# The status of a child that could not have a namespace.
UNAVAILABLE = 121


def run(*arguments: str, first: int, count: int) -> Done:
    """Run the program in a namespace whose users and groups are `count` from `first` on."""

    def main() -> int:
        if not _enter(f"0 {first} {count}"):
            return UNAVAILABLE
        sys.argv = ["imgproxy", *arguments]
        return __main__.main()

    return forked.call(main)


def _enter(ranges: str) -> bool:
    """Enter a namespace; a child that stays outside of it, as root, says what is in it."""
    ready, begin = os.pipe()
    inside, helper = os.getpid(), os.fork()
    if not helper:
        os.close(begin)
        if os.read(ready, 1):
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{inside}/{name}").write_text(ranges)
        os._exit(0)
    os.close(ready)
    entered = _libc.unshare(_CLONE_NEWUSER) == 0
    if entered:
        os.write(begin, b"x")
    os.close(begin)
    os.waitpid(helper, 0)
    if entered:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    return entered

"""Commands of the program in a child of this process, as another user where that is asked for.

The child has all modules already: another user may not be allowed to read them.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import trio
from support.commands import Done

import imgproxy
from imgproxy import __main__

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534


def call(function: Callable[[], int], uid: int | None = None) -> Done:
    """Call a function in a child, and return what it returned and said.

    `uid` is the number of the user, and of the group, that the child becomes.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            status = 120
            try:
                for fd, file in ((1, stdout), (2, stderr)):
                    os.dup2(file.fileno(), fd)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                if uid is not None:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                status = function()
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        said = []
        for file in (stdout, stderr):
            file.seek(0)
            said.append(file.read().decode())
        return Done(os.waitstatus_to_exitcode(status), *said)


@cache
def load() -> None:
    """Load whatever a command may import when it runs."""
    for each in pkgutil.walk_packages(imgproxy.__path__, "imgproxy."):
        if ".parent" not in each.name and not each.name.endswith("__main__"):
            import_module(each.name)
    for name in ("bz2", "contextvars", "lzma", "zlib", "backports.zstd", "compression.zstd"):
        with suppress(ImportError):
            import_module(name)
    trio.run(trio.to_thread.run_sync, lambda: None)


def run(*arguments: str, uid: int | None = None) -> Done:
    """Run the program with these arguments."""
    load()

    def main() -> int:
        sys.argv = ["imgproxy", *arguments]
        return __main__.main()

    return call(main, uid)

"""The program under strace: what it opens, and that it does not change the file system."""

from __future__ import annotations

import functools
import re
import socket
import subprocess
import sys
from typing import IO, TYPE_CHECKING, NamedTuple

from support.parent import INSECURE, ROOT, Child, Client, command
from support.servers import require, skip

if TYPE_CHECKING:
    from pathlib import Path

    from support.home import Home

_CALL = re.compile(r'(\w+)\([^"]*"((?:[^"\\]|\\.)*)"(.*)')
_OPENED = frozenset({"open", "openat", "openat2", "creat"})

# These change nothing.
_HARMLESS = frozenset(
    {
        *("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink"),
        *("readlinkat", "getcwd", "chdir", "execve", "statfs", "getxattr", "lgetxattr"),
    }
)
_WRITING = re.compile("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")

# Files of the interpreter and of the C library.
_INTERPRETER = (
    *(sys.prefix, sys.base_prefix, str(ROOT)),
    *("/lib/", "/lib64/", "/usr/lib", "/usr/local/lib", "/usr/share/locale", "/usr/share/zoneinfo"),
    *("/proc/", "/sys/", "/etc/ld.so.", "/etc/localtime", "/dev/null", "/dev/urandom"),
    *("/etc/containers/", "/usr/share/containers/", "/pyvenv.cfg"),
)


class Call(NamedTuple):
    """A system call with a path."""

    name: str
    path: str
    rest: str

    @property
    def opens(self) -> bool:
        return self.name in _OPENED

    @property
    def reads(self) -> bool:
        """Return whether the path was opened for reading."""
        return self.opens and "O_PATH" not in self.rest

    @property
    def writes(self) -> bool:
        """Return whether the file system may have been changed, also by opening for writing."""
        if self.opens:
            return self.path != "/dev/null" and bool(_WRITING.search(self.rest))
        return self.name not in _HARMLESS


@functools.cache
def strace() -> str:
    """Return the program's path; skip the test where tracing is not permitted."""
    program = require("strace")
    result = subprocess.run([program, "-f", "true"], capture_output=True, check=False, timeout=10)
    if result.returncode:
        skip("strace is not allowed here")
    return program


def recording(file: Path) -> list[str]:
    """Return what a command line begins with whose calls with paths are to be recorded."""
    return [
        *(strace(), "-f", "-qq", "--seccomp-bpf", "-s", "4096"),
        *("-e", "trace=%file", "-e", "signal=none", "-o", str(file)),
    ]


class Recorded:
    """The system calls of a program that has ended."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def calls(self) -> list[Call]:
        """Return the calls with paths, but for files of the interpreter."""
        lines = self._file.read_text().splitlines()
        found = [Call(*match.groups()) for match in map(_CALL.search, lines) if match]
        assert any(call.path.endswith("imgproxy/__main__.py") for call in found), "nothing traced"
        return [call for call in found if call.writes or not call.path.startswith(_INTERPRETER)]

    @property
    def read(self) -> set[str]:
        """Return the paths that have been opened for reading."""
        return {call.path for call in self.calls if call.reads and "ENOENT" not in call.rest}

    @property
    def touched(self) -> set[str]:
        """Return the paths of all calls that succeeded."""
        return {call.path for call in self.calls if "= -1 " not in call.rest}

    @property
    def written(self) -> list[Call]:
        return [call for call in self.calls if call.writes]


class Trace(Recorded):
    """A program whose system calls are recorded, and read when it has ended."""

    def __init__(
        self,
        file: Path,
        home: Home,
        image: str,
        *options: str,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        **environment: str,
    ) -> None:
        super().__init__(file)
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.child = Child(
                [
                    *recording(file),
                    *command(image, INSECURE, *options, fds=[fd]),
                ],
                pass_fds=[fd],
                stdin=stdin,
                # neither compiled modules nor the coverage of this very run are to be written
                env=home.environment(
                    PYTHONDONTWRITEBYTECODE="1", COVERAGE_PROCESS_START=None, **environment
                ),
            )
        self.child.clients.append(Client(ours))

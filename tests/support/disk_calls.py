"""Commands of the program in processes that are forked, and what they do to the disk.

A command may be killed right after any of its calls that change the disk, or such a call may fail.
The process that forks has imported everything, so that a command takes some milliseconds, and a
campaign of hundreds of kills some seconds. `main` is what runs in it; `Forks` is the test's side.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

# The functions of `os` that change the disk, as the program uses it. That there are no others is
# tested with strace, whose names of the same calls are these.
CALLS = {
    "rename": ("rename",),
    "link": ("linkat", "link"),
    "unlink": ("unlink",),
    "mkdir": ("mkdir",),
    "open": ("openat",),
    "write": ("write",),
    "pwrite": ("pwrite64",),
    "ftruncate": ("ftruncate",),
    "fsync": ("fsync",),
    "fdatasync": ("fdatasync",),
    "fchmod": ("fchmod",),
}


class Ended(NamedTuple):
    """How a command has ended. `status` is negative for a signal; `calls` have their counts."""

    status: int
    stdout: str
    stderr: str
    calls: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        """Return the document on standard output."""
        return json.loads(self.stdout)


class Forks:
    """A process that forks commands."""

    def __init__(self, directory: Path) -> None:
        self._out = directory / "said"
        self._out.mkdir(parents=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        )

    def run(self, *arguments: str, kill: int = 0, fail: int = 0, errno: int = 0) -> Ended:
        """Run a command; after the call with the number `kill` it is killed.

        The call with the number `fail`, and each after it, fails with `errno`.
        """
        task = {"arguments": arguments, "kill": kill, "fail": fail, "errno": errno}
        task |= {"out": str(self._out)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        said = [(self._out / name).read_text() for name in ("stdout", "stderr", "calls")]
        return Ended(status, said[0], said[1], json.loads(said[2] or "{}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


class Watch:
    """The calls that change the disk, from now on, in this process."""

    def __init__(self, kill: int, fail: int, errno: int) -> None:
        self.counts: Counter[str] = Counter()
        self._kill = kill
        self._fail = fail
        self._errno = errno
        self._lock = threading.Lock()
        for name in CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            if not changes_the_disk(name, arguments):
                return function(*arguments, **options)
            with self._lock:
                number = self.counts.total() + 1
                if self._fail and number >= self._fail:
                    raise OSError(self._errno, os.strerror(self._errno))
                try:
                    return function(*arguments, **options)
                finally:
                    self.counts[name] += 1
                    if number == self._kill:
                        os.kill(os.getpid(), signal.SIGKILL)

        return call


def changes_the_disk(name: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether a call does, by its arguments."""
    if name == "open":
        return bool(arguments[1] & os.O_CREAT)
    if name == "write":
        return arguments[0] > 2 and stat.S_ISREG(os.fstat(arguments[0]).st_mode)
    return True


def main() -> None:
    """Fork a command for each line of standard input, and say how it has ended."""
    from imgproxy.cli import gc, pull, rm, tag, verify  # noqa: F401
    from imgproxy.transports.local import oci_layout  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            run(task)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(task: dict[str, Any]) -> None:
    """Run a command, and end the process."""
    from imgproxy.__main__ import main as program

    out = Path(task["out"])
    (out / "calls").write_text("")
    for fd, name in ((1, "stdout"), (2, "stderr")):
        to = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, fd)
    status = 1
    try:
        sys.argv = ["imgproxy", *task["arguments"]]
        watch = Watch(task["kill"], task["fail"], task["errno"])
        status = program()
        sys.stdout.flush()
        (out / "calls").write_text(json.dumps(watch.counts))
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()

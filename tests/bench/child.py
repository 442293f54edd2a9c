"""Children: started alike, limited in time, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType, TracebackType

# Where `-m imgproxy` finds the package. Every child starts here, so that none has a longer search.
ROOT = Path(__file__).resolve().parents[2]

REAPING = 10.0  # seconds until a killed child must be gone


class BenchError(Exception):
    """A contender, or a program that stages one, did not do its part."""


# What another program's misbehaviour looks like from here: it, the system, or its JSON.
FAULTS = (BenchError, OSError, subprocess.SubprocessError, ValueError, LookupError)


def describe(error: BaseException) -> str:
    """Give the error in one line, with what the child said about it."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)
    return " · ".join([text, *getattr(error, "__notes__", [])])


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `BenchError` in whatever waits when the time is over.

    A signal ends every blocking call alike, and costs the loops that are measured nothing: a
    timeout on the socket would be one more system call for each read.
    """

    def over(_signal: int, _frame: FrameType | None) -> None:
        raise BenchError(f"no end within {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass(frozen=True)
class Usage:
    """What one child took from its start to its end, in seconds."""

    wall: float
    cpu: float


class Child:
    """A program that runs. Leaving the `with` block ends it if it still does."""

    def __init__(
        self, argv: Sequence[str], *, fds: Sequence[int] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.argv = argv
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=fds,
            cwd=ROOT,
            env=None if env is None else {**os.environ, **env},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait(REAPING)
        if error is not None and (complaint := self._complaint()):
            error.add_note(complaint)
        self._stderr.close()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def peak_memory(self) -> int:
        """Give the most memory the child has held until now, in bytes.

        Not `ru_maxrss` of the reaped child: Linux carries that over from before `exec`, so that a
        small child is charged with what this process has held. The high-water mark belongs to
        the program itself, but can be read only while it runs.
        """
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def finish(self, expected: int = 0) -> Usage:
        """Await the end; refuse another exit status than the expected one."""
        _, status, usage = os.wait4(self._process.pid, 0)
        wall = time.perf_counter() - self._begun
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode != expected:
            raise BenchError(f"exit status {self._process.returncode}")
        return Usage(wall, usage.ru_utime + usage.ru_stime)

    def _complaint(self) -> str:
        """Give the last line the child wrote to standard error."""
        self._stderr.seek(0)
        return _last_line(self._stderr.read().decode(errors="replace"))


def run(argv: Sequence[str], *, expected: int = 0) -> Usage:
    """Run a program from start to end."""
    with Child(argv) as child:
        return child.finish(expected)


def capture(argv: Sequence[str], seconds: float) -> str:
    """Run a program that is not measured; give what it wrote."""
    with time_limit(seconds):
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False
        )
    if done.returncode:
        raise BenchError(f"{Path(argv[0]).name}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")

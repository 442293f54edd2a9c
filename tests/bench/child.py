"""Children: started alike, limited in time, always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType, TracebackType

# The directory in which `-m imgproxy` finds the package. Every child starts here, so that the
# search is equally long for all.
ROOT = Path(__file__).resolve().parents[2]

WATCHING = 0.005  # seconds between looks at a child's memory
REAPING = 10.0  # seconds until a killed child must be gone


class BenchError(Exception):
    """A contender, or a program that stages one, failed."""


# The exceptions that another program's failure causes: of the bench, the system, or JSON.
FAULTS = (BenchError, OSError, subprocess.SubprocessError, ValueError, LookupError)


def describe(error: BaseException) -> str:
    """Return the error in one line, with the child's own message."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)
    return " · ".join([text, *getattr(error, "__notes__", [])])


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `BenchError` in any blocking call when the time is over.

    A signal ends every blocking call, and costs the measured loops nothing: a timeout on the
    socket would be one more system call for each read.
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
    """The times of one child from its start to its end, in seconds."""

    wall: float
    cpu: float


class Child:
    """A running program. The end of the `with` block ends it."""

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
        """Return the peak memory of the child until now, in bytes.

        It is not `ru_maxrss` of the reaped child: Linux keeps that from before `exec`, so that a
        small child would be charged with the memory of this process. The high-water mark belongs
        to the program itself, but can be read only while it runs.
        """
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def processor_time(self) -> float:
        """Return the processor time of the child until now, in seconds."""
        after_name = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        user, system = map(int, after_name.split()[11:13])
        return (user + system) / os.sysconf("SC_CLK_TCK")

    def watched_peak(self) -> int:
        """Wait for the end, and return the peak memory as it was shortly before, in bytes."""
        peak = 0
        while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with suppress(KeyError, FileNotFoundError):  # it ends
                peak = self.peak_memory()
            time.sleep(WATCHING)
        return peak

    def finish(self, expected: int = 0) -> Usage:
        """Wait for the end; raise for another exit status than the expected one."""
        _, status, usage = os.wait4(self._process.pid, 0)
        wall = time.perf_counter() - self._begun
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode != expected:
            raise BenchError(f"exit status {self._process.returncode}")
        return Usage(wall, usage.ru_utime + usage.ru_stime)

    def _complaint(self) -> str:
        """Return the last line that the child wrote to standard error."""
        self._stderr.seek(0)
        return _last_line(self._stderr.read().decode(errors="replace"))


def run(argv: Sequence[str], *, expected: int = 0) -> Usage:
    """Run a program from start to end."""
    with Child(argv) as child:
        return child.finish(expected)


def capture(argv: Sequence[str], seconds: float) -> str:
    """Run a program that is not measured, and return its output."""
    with time_limit(seconds):
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, check=False
        )
    if done.returncode:
        raise BenchError(f"{Path(argv[0]).name}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")

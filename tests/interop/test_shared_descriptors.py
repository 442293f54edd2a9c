"""Descriptors that other processes share with the program, and use when it has ended.

As in `(imgproxy …; cat FILE) | reader`: the mode of a pipe or socket is shared too, and programs
such as cat take a full pipe for an error if it has been made non-blocking. What is killed cannot
restore a mode.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.parent import COMMAND, INSECURE, Child, command, environment

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Keep, Sample

REQUEST = b"GET /manifest HTTP/1.1\r\nHost: localhost\r\n\r\n"

# More than a pipe or socket keeps, so that whoever writes it has to wait for the reader.
REST = os.urandom(3_000_000)


def converse(asking: int, reading: int) -> None:
    os.write(asking, REQUEST)
    assert os.read(reading, 1 << 16).startswith(b"HTTP/1.1 200 ")


def assert_blocking(*fds: int) -> None:
    assert [os.get_blocking(fd) for fd in fds] == [True] * len(fds)


def copied(output: int, reading: int, file: Path) -> bytes:
    """Return what a reader, slower than cat, gets of a file that cat writes."""
    file.write_bytes(REST)
    with subprocess.Popen(["cat", file], stdout=output, env=environment()) as cat:
        received = bytearray()

        def read() -> None:
            while len(received) < len(REST):
                time.sleep(0.002)
                received.extend(os.read(reading, 1 << 16))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert cat.wait(20) == 0
        reader.join(20)
    return bytes(received)


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_pipes_are_left_as_they_were(
    number: int, sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        (stdin, asking), (reading, stdout), (errors, stderr) = (os.pipe() for _ in range(3))
        for fd in (stdin, reading, stdout, errors, stderr):
            stack.callback(os.close, fd)
        program = [*COMMAND, INSECURE, sample.name]
        child = keep(Child(program, stdin=stdin, stdout=stdout, stderr=stderr))
        converse(asking, reading)
        assert_blocking(stdin, stdout, stderr)
        if number:
            child.process.send_signal(number)
        os.close(asking)
        assert child.wait() == -number
        assert_blocking(stdin, stdout, stderr)
        assert copied(stdout, reading, tmp_path / "file") == REST


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("how", ["sockfd", "super-server"])
def test_sockets_are_left_as_they_were(
    how: str, number: int, sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        if how == "sockfd":
            child = keep(Child(command(sample.name, INSECURE, fds=[fd]), pass_fds=[fd]))
        else:
            program = [*COMMAND, INSECURE, sample.name]
            child = keep(Child(program, stdin=fd, stdout=fd, stderr=fd))
        converse(ours.fileno(), ours.fileno())
        child.process.send_signal(number)
        assert child.wait() == -number
        assert_blocking(fd)
        assert copied(fd, ours.fileno(), tmp_path / "file") == REST

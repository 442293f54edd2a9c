"""Diagnostics: standard error that never blocks."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.host import diagnostics as module
from imgproxy.host.diagnostics import Diagnostics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Seconds; nothing here waits that long when it works.
LIMIT = 10.0


class Stderr:
    """A pipe in place of standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read_fd, self.write_fd = os.pipe()
        monkeypatch.setattr(module, "_STDERR", self.write_fd)

    def fill(self) -> int:
        """Fill the pipe; return how many bytes that took."""
        os.set_blocking(self.write_fd, False)
        written = 0
        for size in (4096, 1):
            try:
                while True:
                    written += os.write(self.write_fd, bytes(size))
            except BlockingIOError:
                pass
        os.set_blocking(self.write_fd, True)
        return written

    def content(self) -> bytes:
        """Return what is in the pipe; nothing can be written after that."""
        self.close_writing()
        with open(self.read_fd, "rb", closefd=False) as file:
            return file.read()

    def close_writing(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close_reading(self) -> None:
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def close(self) -> None:
        self.close_reading()
        self.close_writing()


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stderr]:
    with closing(Stderr(monkeypatch)) as pipe:
        yield pipe


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, b"imgproxy: failure\n"),
        ({"debug": True}, b"imgproxy: failure\nimgproxy: detail\n"),
        ({"quiet": True}, b""),
        ({"quiet": True, "debug": True}, b""),
    ],
    ids=["plain", "debug", "quiet", "quiet-and-debug"],
)
def test_a_failure_is_a_line_and_a_detail_one_with_debug(
    stderr: Stderr, options: dict[str, bool], lines: bytes
) -> None:
    diagnostics = Diagnostics(**options)
    diagnostics.failure("failure")
    diagnostics.debug("detail")
    assert stderr.content() == lines


@pytest.mark.parametrize(
    ("message", "line"),
    [
        pytest.param("a\nb\x1b[31m", b"imgproxy: a b [31m\n", id="controls"),
        pytest.param("ä", "imgproxy: ä\n".encode(), id="text"),
        pytest.param("a\udcff", b"imgproxy: a\n", id="no-text"),
    ],
)
def test_a_message_is_one_line_of_text(stderr: Stderr, message: str, line: bytes) -> None:
    Diagnostics().failure(message)
    assert stderr.content() == line


@pytest.mark.parametrize("letter", ["a", "ä", "🐳"])
def test_a_long_message_is_cut_to_what_a_pipe_takes_at_once(stderr: Stderr, letter: str) -> None:
    Diagnostics().failure(letter * 10_000)
    content = stderr.content()
    assert 4000 < len(content) <= 4096
    assert content.startswith(f"imgproxy: {letter}{letter}".encode())
    assert content.endswith(b"\n")
    assert content.decode().count("\n") == 1


def test_a_line_is_dropped_and_not_waited_for(stderr: Stderr) -> None:
    filled = stderr.fill()
    diagnostics = Diagnostics()
    thread = threading.Thread(target=diagnostics.failure, args=("lost",), daemon=True)
    thread.start()
    thread.join(LIMIT)
    blocked = thread.is_alive()
    assert os.read(stderr.read_fd, filled) == bytes(filled)  # which would wake it
    assert not blocked
    diagnostics.failure("there is room again")
    assert stderr.content() == b"imgproxy: there is room again\n"


def test_nobody_there_to_read_is_no_failure(stderr: Stderr) -> None:
    diagnostics = Diagnostics(debug=True)
    stderr.close_reading()
    diagnostics.failure("lost")
    diagnostics.debug("lost as well")


def test_what_takes_the_number_of_a_closed_descriptor_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch, stderr: Stderr
) -> None:
    number = os.dup(stderr.write_fd)
    os.close(number)
    monkeypatch.setattr(module, "_STDERR", number)
    diagnostics = Diagnostics(debug=True)
    os.dup2(stderr.write_fd, number)
    diagnostics.failure("lost")
    diagnostics.debug("lost as well")
    os.close(number)
    assert stderr.content() == b""


def test_a_regular_file_takes_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    monkeypatch.setattr(module, "_STDERR", fd)
    try:
        diagnostics = Diagnostics()
        diagnostics.failure("one")
        diagnostics.failure("two")
    finally:
        os.close(fd)
    assert path.read_text() == "imgproxy: one\nimgproxy: two\n"


def test_secrets_are_masked_in_every_line(stderr: Stderr) -> None:
    """A server may quote the password in its error, which goes into logs that many may read."""
    diagnostics = Diagnostics(debug=True)
    diagnostics.hide(["", "hunter2"])
    diagnostics.failure("it said: hunter2 unknown")
    diagnostics.debug("GET /hunter%32")
    with pytest.raises(ValueError, match="hunter2") as caught:
        int("hunter2")
    diagnostics.defect("GET /manifest", caught.value)
    lines = stderr.content().decode().splitlines()
    assert lines[:3] == [
        "imgproxy: it said: *** unknown",
        "imgproxy: GET /***",
        'imgproxy: GET /manifest: a defect of this program: ValueError("invalid literal for int()'
        " with base 10: '***'\")",
    ]
    assert "Traceback" in lines[3]
    assert lines[-1] == "imgproxy: ValueError: invalid literal for int() with base 10: '***'"


def test_a_secret_is_masked_before_a_line_is_cut(stderr: Stderr) -> None:
    diagnostics = Diagnostics()
    diagnostics.hide(["hunter2"])
    diagnostics.failure("hunter2" * 1000)
    assert stderr.content() == b"imgproxy: ***\n"

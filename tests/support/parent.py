"""A parent of `imgproxy` for the tests: it starts the program and shows all of what comes back.

`Client` is an HTTP/1.1 client of its own, so that a mistake of a library shared with the program
cannot cancel itself; it insists on well-formed replies and shows how connections end. `Child` is
a started program. No wait here is longer than `LIMIT`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Tells a hang from an answer; nothing that works comes near it.
LIMIT = 10.0

COMMAND = (sys.executable, "-m", "imgproxy")
ROOT = Path(__file__).resolve().parents[2]
INSECURE = "--insecure-policy"

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\x20-\x7e]*)")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\t]*)")
_CODE = re.compile("[A-Z][A-Z_]*")

# What a client that never reads again will let the kernel keep.
_CHUNK = 1 << 16

Ending = Literal["open", "end", "reset"]


class Incomplete(Exception):
    """The connection ended where more had to come; `part` came before."""

    def __init__(self, part: bytes, ending: Ending) -> None:
        super().__init__(f"{ending} after {part[:200]!r}")
        self.part = part
        self.ending = ending


@dataclass
class Reply:
    """What came back for one request."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    ending: Ending = "open"
    interim: list[int] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """Return the field's value; a field given twice is no well-formed reply of ours."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} given {len(values)} times"
        return values[0] if values else None

    @property
    def length(self) -> int | None:
        value = self.get("Content-Length")
        return None if value is None else int(value)

    @property
    def chunked(self) -> bool:
        return (self.get("Transfer-Encoding") or "").lower() == "chunked"

    @property
    def complete(self) -> bool:
        return self.length == len(self.body)

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Return the one error of the body, which has the contract's shape."""
        assert self.status >= 400, self
        assert (self.get("Content-Type") or "").partition(";")[0] == "application/json", self
        document = self.json()
        assert list(document) == ["errors"], document
        (error,) = document["errors"]
        assert set(error) == {"code", "message", "detail"}, error
        assert _CODE.fullmatch(error["code"]), error
        assert error["message"], error
        assert error["message"].isprintable(), error
        assert isinstance(error["detail"]["retryable"], bool), error
        assert isinstance(error, dict)
        return error

    @property
    def code(self) -> str:
        return str(self.error["code"])

    @property
    def message(self) -> str:
        return str(self.error["message"])


def parse_head(head: bytes) -> Reply:
    """Take a reply's head apart; whatever is not RFC 9112 to the letter fails."""
    start, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(start)
    assert status, f"not a status line: {start!r}"
    matches = [_FIELD_LINE.fullmatch(line) for line in lines]
    assert all(matches), f"not field lines: {lines!r}"
    fields = [(m[1].decode(), m[2].decode().strip()) for m in matches if m]
    return Reply(int(status[1]), status[2].decode(), fields)


class Client:
    """The parent's end of one conversation."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(LIMIT)
        self._buffer = b""
        self._ended: Ending = "open"

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def stop_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def ask(self, method: str, target: str, *fields: str, body: bytes = b"") -> None:
        """Send a request; `fields` are whole lines."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def request(self, method: str, target: str, *fields: str, body: bytes = b"") -> Reply:
        self.ask(method, target, *fields, body=body)
        return self.reply(method)

    def get(self, target: str) -> Reply:
        return self.request("GET", target)

    def quit(self) -> Reply:
        return self.request("POST", "/quit")

    def head(self) -> Reply:
        """Read the head of the next final reply; the body is left for `read`."""
        interim: list[int] = []
        while True:
            while b"\r\n\r\n" not in self._buffer:
                self._receive()
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            reply = parse_head(head)
            if reply.status >= 200:
                reply.interim = interim
                return reply
            interim.append(reply.status)

    def reply(self, method: str = "GET") -> Reply:
        """Read the next reply, body and all; one that breaks off is marked by its `ending`."""
        reply = self.head()
        if method == "HEAD" or reply.status in {204, 304}:
            return reply
        try:
            if reply.chunked:
                reply.body = self._chunks()
            else:
                assert reply.length is not None, "neither Content-Length nor chunked"
                reply.body = self.read(reply.length)
        except Incomplete as stop:
            reply.body = stop.part
            reply.ending = stop.ending
        return reply

    def read(self, count: int) -> bytes:
        """Read so many bytes of a body; raise `Incomplete` with fewer."""
        parts = [self._buffer[:count]]
        self._buffer = self._buffer[count:]
        left = count - len(parts[0])
        while left:
            try:
                data = self._receive_some(min(left, 16 * _CHUNK))
            except Incomplete as stop:
                raise Incomplete(b"".join(parts), stop.ending) from None
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def read_to_end(self) -> tuple[bytes, Ending]:
        """Read all that comes, and how it ends."""
        try:
            while True:
                self._receive()
        except Incomplete as stop:
            return stop.part, stop.ending

    def ending(self) -> Ending:
        """Wait for the connection's end; surplus bytes fail."""
        surplus, ending = self.read_to_end()
        assert not surplus, f"surplus: {surplus[:200]!r}"
        return ending

    def silent_for(self, seconds: float) -> bool:
        """Return whether nothing comes for so long: neither bytes nor an end."""
        self.socket.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        except Incomplete:
            return False
        else:
            return False
        finally:
            self.socket.settimeout(LIMIT)

    def _chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                self._receive()
            size, _, self._buffer = self._buffer.partition(b"\r\n")
            data = self.read(int(size, 16))
            assert self.read(2) == b"\r\n"
            if not data:
                return body
            body += data

    def _receive(self) -> None:
        self._buffer += self._receive_some(_CHUNK)

    def _receive_some(self, most: int) -> bytes:
        if self._ended == "open":
            try:
                data = self.socket.recv(most)
            except ConnectionResetError:
                self._ended = "reset"
            else:
                if data:
                    return data
                self._ended = "end"
        raise Incomplete(self._buffer, self._ended)


def environment(**changes: str | None) -> dict[str, str]:
    """Return an environment that finds the program and has nothing else that could matter."""
    keep = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_START")
    values = {name: os.environ[name] for name in keep if name in os.environ}
    merged = {**values, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in merged.items() if value is not None}


class Child:
    """A started program, the files its output goes to, and the conversations with it."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.clients: list[Client] = []
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            arguments,
            pass_fds=pass_fds,
            stdin=stdin,
            stdout=self._out if stdout is None else stdout,
            stderr=self._err if stderr is None else stderr,
            env=environment() if env is None else env,
        )

    @property
    def client(self) -> Client:
        return self.clients[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return _content(self._out)

    @property
    def stderr(self) -> str:
        return _content(self._err)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def connect(self, address: str | tuple[str, int]) -> Client:
        """Open another conversation with a listener of the program's."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        client = Client(socket.socket(family, socket.SOCK_STREAM))
        self.clients.append(client)
        client.socket.connect(address)
        return client

    def hang_up(self) -> None:
        for client in self.clients:
            client.close()

    def wait(self, limit: float = LIMIT) -> int:
        """Return the exit status; a program that goes on fails the test."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit} s: {self.stderr}") from None

    def finish(self) -> int:
        """Hang up, and return the exit status."""
        self.hang_up()
        return self.wait()

    def stop(self) -> int:
        """End a program that listens, as an administrator would."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.01)
        self.process.kill()
        self.process.wait()
        self._out.close()
        self._err.close()


def _content(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode()


def command(image: str, *options: str, fds: Sequence[int] = ()) -> list[str]:
    """Return the command line that serves the image on these descriptors."""
    sockets = [word for fd in fds for word in ("--sockfd", str(fd))]
    return [*COMMAND, *sockets, *options, image]


def start(
    image: str,
    *options: str,
    sockets: int = 1,
    policy: str | None = INSECURE,
    env: Mapping[str, str] | None = None,
    files: Sequence[int] = (),
    around: Sequence[str] = (),
) -> Child:
    """Start the program as a parent does: one socket pair a conversation, one half inherited.

    `files` are descriptors that it inherits besides, `around` what its command line begins with.
    """
    pairs = [socket.socketpair() for _ in range(sockets)]
    theirs = [pair[1] for pair in pairs]
    fds = [half.fileno() for half in theirs]
    if policy is not None:
        options = (policy, *options)
    try:
        arguments = [*around, *command(image, *options, fds=fds)]
        child = Child(arguments, pass_fds=[*fds, *files], env=env)
    finally:
        for half in theirs:
            half.close()
    child.clients += [Client(pair[0]) for pair in pairs]
    return child


def listen(image: str, *options: str, listener: socket.socket) -> Child:
    """Start the program on a listening socket, which becomes its own."""
    fd = listener.fileno()
    try:
        return Child(command(image, INSECURE, *options, fds=[fd]), pass_fds=[fd])
    finally:
        listener.close()


def listener_at(path: Path) -> socket.socket:
    """Return a listening unix socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


@contextmanager
def closing(child: Child) -> Iterator[Child]:
    """Leave nothing of the child behind, and look at what it left on standard error."""
    try:
        yield child
        assert "Traceback" not in child.stderr, child.stderr
    finally:
        child.close()


def eventually(condition: Callable[[], bool], limit: float = LIMIT) -> bool:
    """Return whether the condition holds within the limit."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def listens(path: Path) -> bool:
    """Return whether a socket at the path accepts connections, without making one."""
    # "00010000" is what the kernel calls __SO_ACCEPTCON.
    rows = [row.split() for row in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()]
    return any(row[3] == "00010000" and row[-1] == str(path) for row in rows)


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match, status
    return int(match[1]) * 1024

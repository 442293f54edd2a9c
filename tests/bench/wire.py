"""The two parents, with the least possible work: read into one buffer, count, discard.

`HttpParent` is for imgproxy: HTTP/1.1 on a kept connection. `PipeParent` is for skopeo: JSON over a
sequential-packet socket, content through a pipe that arrives with the reply, see
skopeo-experimental-image-proxy(1). The parent uses the same two processors as the contender, so
both read 1 MiB at a time, without a copy.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from .child import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    from support.images import Json

BUFFER = 1 << 20
MESSAGE = 32 << 10  # skopeo's own limit for a message
HEAD_END = b"\r\n\r\n"

_buffer = bytearray(
    BUFFER
)  # one for all: contenders run in turn, and most send one request at a time
_view = memoryview(_buffer)


class HttpParent:
    """One conversation with imgproxy, or with a registry over HTTP."""

    def __init__(self, sock: socket.socket, buffer: bytearray = _buffer) -> None:
        self._sock = sock
        self._buffer = buffer
        self._view = memoryview(buffer)

    def fetch(self, path: str) -> bytes:
        """GET a small body and keep it."""
        length, start = self._ask("GET", path)
        body = bytearray(start)
        while len(body) < length:
            body += self._view[: self._receive(0)]
        return bytes(body)

    def blob(self, repository: str, descriptor: Json) -> None:
        """GET a blob and discard it. Paths below `/blobs/` are the same here and in a registry."""
        path, size = f"{repository}/blobs/{descriptor['digest']}", descriptor["size"]
        length, start = self._ask("GET", path)
        if length != size:
            raise BenchError(f"{path}: {length} bytes announced, expected {size}")
        left = length - len(start)
        while left > 0:
            left -= self._receive(0)
        if left:
            raise BenchError(f"{path}: {-left} bytes too many")

    def blobs(self, descriptors: Sequence[Json]) -> None:
        """GET blobs, all requests at once, and discard them as they come."""
        paths = [f"/blobs/{each['digest']}" for each in descriptors]
        self._sock.sendall("".join(_request("GET", path) for path in paths).encode())
        begin = filled = 0
        for path, descriptor in zip(paths, descriptors, strict=True):
            while (end := self._buffer.find(HEAD_END, begin, filled)) < 0:
                self._view[: filled - begin] = bytes(self._view[begin:filled])
                begin, filled = 0, filled - begin
                filled += self._receive(filled)
            status, length = parse_head(bytes(self._view[begin:end]))
            if (status, length) != (200, descriptor["size"]):
                raise BenchError(f"{path}: status {status} with {length} bytes")
            begin = end + len(HEAD_END)
            taken = min(length, filled - begin)
            begin += taken
            while taken < length:
                taken += self._sock.recv_into(self._view, min(BUFFER, length - taken)) or _ended()

    def first_byte(self, repository: str, descriptor: Json) -> None:
        """GET a blob and wait for its first byte; no request is possible after that."""
        _, start = self._ask("GET", f"{repository}/blobs/{descriptor['digest']}")
        if not start:
            self._receive(0)

    def head(self, path: str, media_type: str) -> None:
        """HEAD something of this type, without which some registries have no manifest."""
        self._ask("HEAD", path, f"Accept: {media_type}\r\n")

    def quit(self) -> None:
        self._ask("POST", "/quit")

    def _ask(self, method: str, path: str, fields: str = "") -> tuple[int, memoryview]:
        """Send a request and read the head; return the body's length and its first bytes."""
        self._sock.sendall(_request(method, path, fields).encode())
        filled = 0
        while (end := self._buffer.find(HEAD_END, 0, filled)) < 0:
            filled += self._receive(filled)
        status, length = parse_head(bytes(self._view[:end]))
        start = self._view[end + len(HEAD_END) : filled]
        if status != 200:
            raise BenchError(f"{method} {path}: status {status}: {bytes(start[:500])!r}")
        return length, start

    def _receive(self, offset: int) -> int:
        received = self._sock.recv_into(self._view[offset:])
        return received or _ended()


def _request(method: str, path: str, fields: str = "") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"


def _ended() -> NoReturn:
    raise BenchError("the connection ended early")


def parse_head(head: bytes) -> tuple[int, int]:
    """Return status and length in a reply's head."""
    status_line, *lines = head.decode("ascii").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    if not status_line.startswith("HTTP/1.1 ") or "content-length" not in fields:
        raise BenchError(f"not a reply with a Content-Length: {status_line!r}")
    return int(status_line.split()[1]), int(fields["content-length"])


class _Reply(NamedTuple):
    pipes: list[int]
    number: int


class PipeParent:
    """One conversation with skopeo's proxy."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.call("Initialize")

    def call(self, method: str, *args: Any) -> Any:  # noqa: ANN401  (JSON is any)
        """Call a method whose answer is a value."""
        self._send(method, *args)
        return self._reply(method)[0]

    def fetch(self, method: str, *args: Any) -> bytes:  # noqa: ANN401  (JSON is any)
        """Call a method whose answer has content; return that."""
        return b"".join(map(bytes, self._content(method, *args)))

    def discard(self, size: int, method: str, *args: Any) -> None:  # noqa: ANN401  (JSON is any)
        """Call a method whose answer has content of this size; discard that."""
        received = sum(map(len, self._content(method, *args)))
        if received != size:
            raise BenchError(f"{method}: {received} bytes, expected {size}")

    def first_byte(self, method: str, *args: Any) -> None:  # noqa: ANN401  (JSON is any)
        """Call a method whose answer has content, and wait for its first byte."""
        next(self._content(method, *args))

    def quit(self) -> None:
        """End skopeo, which sends no reply."""
        self._send("Shutdown")

    def _content(self, method: str, *args: Any) -> Iterator[memoryview]:  # noqa: ANN401
        """Yield the content in pieces, each valid until the next.

        The proxy closes its end of the pipe after the request to finish, which is sent at once.
        Its answer comes after the last byte, with the result of the verification.
        """
        self._send(method, *args)
        _, (pipes, number) = self._reply(method)
        try:
            [pipe] = pipes
            self._send("FinishPipe", number)
            while received := os.readv(pipe, [_buffer]):
                yield _view[:received]
        finally:
            for pipe in pipes:
                os.close(pipe)
        self._reply("FinishPipe")

    def _send(self, method: str, *args: Any) -> None:  # noqa: ANN401  (JSON is any)
        self._sock.send(json.dumps({"method": method, "args": args}).encode())

    def _reply(self, method: str) -> tuple[Any, _Reply]:
        message, pipes, _, _ = socket.recv_fds(self._sock, MESSAGE, 1)
        if not message:
            raise BenchError(f"{method}: the connection ended early")
        reply = json.loads(message)
        if not reply["success"]:
            raise BenchError(f"{method}: {reply['error']}")
        return reply["value"], _Reply(pipes, reply["pipeid"])

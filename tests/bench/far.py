"""A distant registry: TLS, a line with a long round trip, and tokens if they are required.

The line delays every byte by half of a round trip, and the first one of a connection by a whole one
more, as TCP's handshake would; this needs no privilege, unlike netem. At its end TLS is terminated,
and requests are counted and forwarded to the registry of the stage.
"""

from __future__ import annotations

import json
import queue
import socket
import socketserver
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOPBACK = "127.0.0.1"
ROUND_TRIP = 0.05  # seconds
PIECE = 1 << 16
TOKEN = "a-token-of-the-bench"
ANSWERING = 10.0  # seconds for the registry behind


@dataclass
class Counts:
    """The counts of connections, round trips and requests at the far end until now."""

    connections: int = 0
    requests: int = 0
    # One for TCP, one or two for TLS, and one for each request, since each is sent only after the
    # previous answer.
    round_trips: int = 0

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.connections - before.connections,
            self.requests - before.requests,
            self.round_trips - before.round_trips,
        )


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__((LOOPBACK, 0), handler)
        self.port: int = self.server_address[1]

    def handle_error(self, *_: object) -> None:
        """Ignore errors of clients that disconnect."""


class _Line(_Server):
    def __init__(self, target: int) -> None:
        super().__init__(_Delayed)
        self.target = target


class _Delayed(socketserver.BaseRequestHandler):
    """One connection through the line."""

    server: _Line
    request: socket.socket

    def handle(self) -> None:
        connected = time.monotonic() + ROUND_TRIP
        with socket.create_connection((LOOPBACK, self.server.target)) as far:
            ends = self.request, far
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threads = [
                thread for pair in (ends, ends[::-1]) for thread in _one_way(*pair, connected)
            ]
            for thread in threads:
                thread.join()


def _one_way(source: socket.socket, target: socket.socket, begin: float) -> list[threading.Thread]:
    """Transport bytes to the other end, each half of a round trip after it arrived."""
    on_the_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def take() -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(PIECE)
            except OSError:
                data = b""
            on_the_way.put((max(time.monotonic(), begin) + ROUND_TRIP / 2, data))

    def give() -> None:
        with suppress(OSError):
            while True:
                due, data = on_the_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    threads = [threading.Thread(target=each, daemon=True) for each in (take, give)]
    for thread in threads:
        thread.start()
    return threads


class _Front(_Server):
    """The far end: TLS, tokens, and the counts."""

    def __init__(self, registry: int, files: tuple[Path, Path]) -> None:
        super().__init__(_Conversation)
        self.registry = registry
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*files)
        self.challenge = ""
        self.counts = Counts()
        self.lock = threading.Lock()

    def count(self, **more: int) -> None:
        with self.lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one piece
    server: _Front

    def setup(self) -> None:
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        is_short = self.request.version() == "TLSv1.3"
        self.server.count(connections=1, round_trips=2 if is_short else 3)
        super().setup()

    def log_message(self, *_: Any) -> None:  # noqa: ANN401  (as its base has it)
        """Write nothing to standard error."""

    def do_GET(self) -> None:
        self.server.count(requests=1, round_trips=1)
        if self.path.startswith("/token?"):
            body = json.dumps({"token": TOKEN, "expires_in": 300}).encode()
            self._answer(200, body, {"Content-Type": "application/json"})
        elif self.server.challenge and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, b"", {"WWW-Authenticate": self.server.challenge})
        else:
            self._answer(*self._passed_on())

    do_HEAD = do_GET  # noqa: N815  (its name)

    def _passed_on(self) -> tuple[int, bytes, dict[str, str]]:
        registry = HTTPConnection(LOOPBACK, self.server.registry, timeout=ANSWERING)
        try:
            accept = ", ".join(self.headers.get_all("Accept", ["*/*"]))
            registry.request("GET", self.path, headers={"Accept": accept})
            reply = registry.getresponse()
            wanted = ("Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version")
            fields = {name: reply.headers[name] for name in wanted if name in reply.headers}
            return reply.status, reply.read(), fields
        finally:
            registry.close()

    def _answer(self, status: int, body: bytes, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


class Far:
    """The registry behind its line, at `port` of this host, with its certificate."""

    def __init__(self, front: _Front, port: int, authority: Path) -> None:
        self.port = port
        self.authority = authority
        self._front = front

    def counts(self) -> Counts:
        with self._front.lock:
            return Counts(**vars(self._front.counts))


@contextmanager
def far_away(registry: int, files: tuple[Path, Path], *, guarded: bool) -> Iterator[Far]:
    """Put a line before the registry at a port; `files` are a certificate and its key.

    A guarded one requires tokens, which are issued at another address.
    """
    front = _Front(registry, files)
    line, to_tokens = _Line(front.port), _Line(front.port)
    if guarded:
        realm = f'realm="https://{LOOPBACK}:{to_tokens.port}/token"'
        front.challenge = f'Bearer {realm},service="bench"'
    servers = (front, line, to_tokens)
    threads = [threading.Thread(target=each.serve_forever, args=(0.02,)) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield Far(front, line.port, files[0])
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

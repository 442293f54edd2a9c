"""Relays between a program and a server that break connections, and proxies; all on loopback.

Each is a context manager, like those of `servers`; requests that pass are kept for the test.
"""

from __future__ import annotations

import math
import select
import socket
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from support.servers import RESET_ON_CLOSE, STARTING, Fate, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 16


class Asked(NamedTuple):
    """The head of a request."""

    method: str
    target: str
    fields: dict[str, str]

    @property
    def range(self) -> str:
        """Return the `Range` field, empty if there is none."""
        return self.fields.get("range", "")

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


class Cut(NamedTuple):
    """What happens, once, to a connection after so many bytes from the server.

    With "die" it is reset, and the line is dead from then on.
    """

    after: int
    fate: Fate | Literal["die"]


def _take_heads(buffer: bytearray) -> list[Asked]:
    """Remove the whole heads at the start of the buffer, and return them; requests have no bodies.

    Bytes that are not HTTP, such as TLS to a server without it, are no requests.
    """
    asked: list[Asked] = []
    while not buffer.startswith(b"\x16") and b"\r\n\r\n" in buffer:
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        buffer[:] = rest
        start, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ")
        fields = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        asked.append(Asked(method, target, fields))
    return asked


@dataclass
class Line:
    """A relay to a server: requests through it, bytes that came back, cuts that are to come.

    Once `dead`, it resets every connection; once `silent`, it keeps all without a word. `rate` is
    in bytes per second from the server, of all connections together, and `burst` what comes at
    once. `refusals` has the statuses that requests are answered with in the server's place, by a
    part of method, target and range.
    """

    target: str
    cuts: list[Cut]
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    passed: int = 0
    broken: int = 0
    dead: bool = False
    silent: bool = False
    rate: float = math.inf
    refusals: dict[str, int] = field(default_factory=dict)
    burst: int = _CHUNK
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._since = 0
        self._lock = threading.Lock()
        self._free = 0.0  # when the line has sent what it has to send

    def room(self) -> int:
        """Return how many bytes may pass before the next cut."""
        return min(self.burst, self.cuts[0].after - self._since) if self.cuts else self.burst

    def count(self, passed: int) -> Fate | None:
        """Count bytes that passed; return the fate of their connection, None if it goes on."""
        self.passed += passed
        self._since += passed
        if self.cuts and self._since >= self.cuts[0].after:
            self._since = 0
            self.broken += 1
            fate = self.cuts.pop(0).fate
            if fate == "die":
                self.dead = True
                return "reset"
            return fate
        return None

    def pace(self, passed: int) -> None:
        """Wait as long as a line of this rate takes for so many bytes."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + passed / self.rate
            wait = self._free - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def refusal(self, asked: list[Asked]) -> bytes:
        """Return what requests are answered with in the server's place, nothing for its own."""
        found = [
            status
            for part, status in self.refusals.items()
            if any(part in f"{each} {each.range}" for each in asked)
        ]
        if not found:
            return b""
        status = found[0]
        return f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    def paths(self, kind: str = "/v2/") -> list[str]:
        """Return the targets of requests that contain `kind`."""
        return [each.target for each in self.asked if kind in each.target]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64
    line: Line


class _Connection(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        line = self.server.line
        line.connections += 1
        if line.silent:
            line.ended.wait()
        if line.dead or line.silent:
            return
        host, port = line.target.split(":")
        with (
            suppress(OSError),
            socket.create_connection((host, int(port)), timeout=STARTING) as upstream,
        ):
            fate = _pass_on(self.request, upstream, line)
            if fate == "stall":
                line.ended.wait()
            elif fate == "reset":
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                self.request.close()


def _pass_on(client: socket.socket, upstream: socket.socket, line: Line) -> Fate | None:
    """Relay bytes both ways until either side ends or a cut is due; return the fate of the cut."""
    heads = bytearray()
    while True:
        for source in select.select([client, upstream], [], [], STARTING)[0]:
            data = source.recv(_CHUNK if source is client else line.room())
            if not data:
                return None
            if line.silent:
                return "stall"
            if line.dead:
                return "reset"
            if source is client:
                heads += data
                asked = _take_heads(heads)
                line.asked += asked
                if refusal := line.refusal(asked):
                    client.sendall(refusal)
                    return None
                upstream.sendall(data)
            else:
                line.pace(len(data))
                client.sendall(data)
                # The answer to TLS by a server without it is not counted.
                fate = None if heads else line.count(len(data))
                if fate is not None:
                    return fate


@contextmanager
def line_to(target: str, *cuts: Cut, host: str = "127.0.0.1") -> Iterator[Line]:
    """Run a relay at `host` to a server, with cuts in this order."""
    line = Line(target, list(cuts))
    server = _Server((host, 0), _Connection)
    server.line = line
    line.address = f"{host}:{server.server_address[1]}"
    with in_thread(server):
        try:
            yield line
        finally:
            line.ended.set()


@dataclass
class Proxy:
    """A forward proxy: the servers that it connects to, and the requests that it got.

    `places` are addresses by `host:port`; any other is answered with 502. `authorization` is the
    value of `Proxy-Authorization` that it requires, empty for none.
    """

    places: dict[str, str]
    authorization: str = ""
    address: str = ""
    asked: list[Asked] = field(default_factory=list)


class _ProxyServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    proxy: Proxy


class _ProxyConnection(socketserver.BaseRequestHandler):
    server: _ProxyServer
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError):
            self._handle()

    def _handle(self) -> None:
        proxy = self.server.proxy
        head = bytearray()
        while b"\r\n\r\n" not in head:
            data = self.request.recv(_CHUNK)
            if not data:
                return
            head += data
        received = bytes(head)
        asked = _take_heads(head)
        proxy.asked += asked
        request = asked[0]
        if proxy.authorization and request.fields.get("proxy-authorization") != proxy.authorization:
            self._answer("407 Proxy Authentication Required")
            return
        tunnel = request.method == "CONNECT"
        authority = request.target if tunnel else request.target.split("/")[2]
        address = proxy.places.get(authority if ":" in authority else f"{authority}:80")
        if address is None:
            self._answer("502 Bad Gateway")
            return
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=STARTING) as upstream:
            if tunnel:
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                _pass_on(self.request, upstream, Line(address, []))
            else:
                # One request a connection: further ones would have to be parsed as well.
                relative = received.replace(f"http://{authority}".encode(), b"", 1)
                upstream.sendall(relative.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                while data := upstream.recv(_CHUNK):
                    self.request.sendall(data)

    def _answer(self, status: str) -> None:
        self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


@contextmanager
def forward_proxy(places: dict[str, str], authorization: str = "") -> Iterator[Proxy]:
    """Run a proxy for CONNECT and for plain http in absolute form."""
    proxy = Proxy(places, authorization)
    server = _ProxyServer(("127.0.0.1", 0), _ProxyConnection)
    server.proxy = proxy
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    with in_thread(server):
        yield proxy

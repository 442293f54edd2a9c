"""A distant registry: TLS, a line with a long round trip, and tokens if they are required.

Its blobs may be at a host of their own, to which it redirects, as those of public registries are.
At the end of each line TLS is terminated and requests are counted; manifests come from the registry
of the stage, blobs from its layout. All of this is in a process of its own, so that the parent that
is measured shares no interpreter with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import ssl
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .child import BenchError
from .line import Line, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

# The registry, what issues tokens, and what has the blobs: a certificate names all of them.
LOOPBACK, TOKENS, BLOBS = HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
PIECE = 1 << 20
TOKEN = "a-token-of-the-bench"
ANSWERING = 10.0  # seconds for the registry behind
SWITCHING = 0.0005  # seconds that a thread may keep others waiting


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


class _Front(Server):
    """The far end: TLS, tokens, blobs, and the counts.

    `blobs` is the layout whose blobs are at `cdn`, an address; without it the registry has them.
    """

    def __init__(self, registry: int, files: tuple[Path, Path], blobs: Path | None) -> None:
        super().__init__(_Conversation, LOOPBACK)
        self.registry = registry
        self.blobs = blobs
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*files)
        self.challenge = self.cdn = ""
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
        elif self.path.startswith("/blobs/"):
            self._answer_file(self.path.removeprefix("/blobs/sha256:"))
        elif self.server.challenge and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, b"", {"WWW-Authenticate": self.server.challenge})
        elif self.server.blobs is not None and "/blobs/" in self.path:
            place = self.path.partition("/blobs/")[2]
            self._answer(307, b"", {"Location": f"{self.server.cdn}/blobs/{place}"})
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

    def _answer_file(self, name: str) -> None:
        assert self.server.blobs is not None
        path = self.server.blobs / "blobs/sha256" / name
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                self.wfile.write(piece)
        self.wfile.flush()


class Far:
    """The registry behind its line, at `port` of this host, with its certificate."""

    def __init__(self, pipe: Connection, authority: Path) -> None:
        self.authority = authority
        self._pipe = pipe
        self.port: int = self._ask("port")

    def counts(self) -> Counts:
        return Counts(**self._ask("counts"))

    def _ask(self, what: str) -> Any:  # noqa: ANN401  (what comes depends on it)
        self._pipe.send(what)
        if not self._pipe.poll(ANSWERING):
            raise BenchError("the distant registry does not answer")
        return self._pipe.recv()


@contextmanager
def far_away(
    registry: int,
    files: tuple[Path, Path],
    *,
    guarded: bool,
    blobs: Path | None = None,
    rate: float = 0.0,
) -> Iterator[Far]:
    """Put a line before the registry at a port; `files` are a certificate and its key.

    A guarded one requires tokens, which are issued at another address. With `blobs`, a layout, the
    blobs are at an address of their own as well. `rate` is in bytes per second and connection.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    front = _Front(registry, files, blobs)
    serve = partial(_serve, ours, theirs, front, guarded=guarded, rate=rate)
    process = context.Process(target=serve, daemon=True)
    process.start()
    theirs.close()
    try:
        yield Far(ours, files[0])
    finally:
        ours.close()
        process.kill()
        process.join()
        front.server_close()


def _serve(
    ours: Connection, pipe: Connection, front: _Front, *, guarded: bool, rate: float
) -> None:
    """Serve, and answer the bench, until it ends."""
    ours.close()
    sys.setswitchinterval(SWITCHING)
    target = (LOOPBACK, front.port)
    line, to_tokens, to_blobs = (Line(host, target, rate) for host in HOSTS)
    front.cdn = f"https://{BLOBS}:{to_blobs.port}"
    if guarded:
        realm = f'realm="https://{TOKENS}:{to_tokens.port}/token"'
        front.challenge = f'Bearer {realm},service="bench"'
    for server in (front, line, to_tokens, to_blobs):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        while True:
            asked = pipe.recv()
            with front.lock:
                pipe.send({"port": line.port, "counts": vars(front.counts)}[asked])
    except EOFError:
        os._exit(0)  # whatever the threads are doing

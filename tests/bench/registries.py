"""Registries on this host behind one interface, and the clients that read from them.

Each is started anew for each attempt, so that its first readers find it cold. The clients cost
little: one thread reads from all connections, and lets the kernel drop what has arrived (tcp(7),
MSG_TRUNC), so that nothing of it is copied.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from support.images import OCI_MANIFEST

from .child import ROOT, BenchError, Child
from .stage import LOOPBACK, REPOSITORY, TAG, await_listener, free_port
from .wire import HEAD_END, HttpParent, parse_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from .contenders import Imgproxy
    from .stage import Image, Stage

DISTRIBUTION, CRANE = "docker-registry", "crane registry"
NAMES = (DISTRIBUTION, CRANE)
CLIENTS = ROOT / "build/clients/bin"  # where .ci/clients builds crane
NO_CRANE = "No crane, which `.ci/clients` builds: no registry of it."

_PIECE = 1 << 20
_buffer = bytearray(_PIECE)


class Server(NamedTuple):
    """A registry that listens."""

    child: Child
    port: int


class Registry(Protocol):
    """A program that serves an image that is staged. `name` is the head of its column."""

    @property
    def name(self) -> str: ...

    def serving(self, image: Image) -> AbstractContextManager[Server]:
        """Start it for the block."""


@dataclass(frozen=True)
class Ours:
    """The program of this repository, over the layout."""

    command: Sequence[str]
    name: str

    @contextmanager
    def serving(self, image: Image) -> Iterator[Server]:
        options = ["--insecure-policy", "--quiet", "--images", str(image.layout)]
        with _listening([*self.command, "registry", *options, "--listen"]) as server:
            yield server


@dataclass(frozen=True)
class Distribution:
    """Debian's docker-registry, over its own storage, which the stage has filled."""

    stage: Stage
    name: str = DISTRIBUTION

    @contextmanager
    def serving(self, image: Image) -> Iterator[Server]:  # noqa: ARG002  (there is only one)
        with self.stage.another_registry() as (child, port):
            yield Server(child, port)


@dataclass(frozen=True)
class Crane:
    """The registry of go-containerregistry. Its blobs are on disk, its manifests in memory."""

    stage: Stage
    program: str
    folder: Path
    name: str = CRANE

    @contextmanager
    def serving(self, image: Image) -> Iterator[Server]:
        words = [self.program, "registry", "serve", "--disk", str(self.folder), "--address"]
        with _listening(words) as server:
            self.stage.copy(image, server.port)
            yield server


@contextmanager
def _listening(words: Sequence[str]) -> Iterator[Server]:
    port = free_port()
    with Child([*words, f"{LOOPBACK}:{port}"]) as child:
        await_listener(port, child)
        yield Server(child, port)


def registries(ours: Sequence[Imgproxy], stage: Stage, folder: Path) -> Iterator[Registry]:
    """Yield those that are there; note the others. `folder` is for what one has to store."""
    for each in ours:
        yield Ours(each.command, each.name)
    if "http" in stage.sources:  # otherwise that is noted already
        yield Distribution(stage)
        path = os.pathsep.join((str(CLIENTS), os.environ["PATH"]))
        crane = shutil.which("crane", path=path)
        if crane is not None:
            yield Crane(stage, crane, folder)
        elif NO_CRANE not in stage.notes:
            stage.notes.append(NO_CRANE)


# --- clients --------------------------------------------------------------------------------------


def read_at_once(port: int, image: Image, clients: int) -> float:
    """Read the first layer over so many connections at once; return the seconds it took."""
    layer = image.layers[0]
    request = _request(f"/v2/{REPOSITORY}/blobs/{layer['digest']}")
    readers: dict[int, _Reader] = {}
    poll = select.poll()
    begun = time.perf_counter()
    try:
        for _ in range(clients):
            sock = socket.create_connection((LOOPBACK, port))
            readers[sock.fileno()] = _Reader(sock, layer["size"])
            poll.register(sock, select.POLLIN)
            sock.sendall(request)
        left = clients
        while left:
            for fd, _ in poll.poll():
                if readers[fd].read():
                    poll.unregister(fd)
                    left -= 1
        return time.perf_counter() - begun
    finally:
        for each in readers.values():
            each.sock.close()


class _Reader:
    """One client: the head of a reply, and then so many bytes."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock = sock
        self._size = self._left = size
        self._head = b""

    def read(self) -> bool:
        """Read what has arrived; return whether that is all."""
        if HEAD_END in self._head:
            count = self.sock.recv_into(_buffer, min(_PIECE, self._left), socket.MSG_TRUNC)
            self._left -= count
        else:
            start = self.sock.recv(4096)
            count = len(start)
            self._head += start
            head, end, body = self._head.partition(HEAD_END)
            if end:
                self._check(head)
                self._left -= len(body)
        if not count:
            raise BenchError(f"the connection ended {self._left} bytes early")
        return self._left == 0

    def _check(self, head: bytes) -> None:
        status, length = parse_head(head)
        if (status, length) != (200, self._size):
            raise BenchError(f"status {status} with {length} bytes, expected {self._size}")


def ask_for_heads(port: int, count: int) -> float:
    """Ask for the head of the manifest's tag, one after the other; return how many a second."""
    with socket.create_connection((LOOPBACK, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parent, path = HttpParent(sock), f"/v2/{REPOSITORY}/manifests/{TAG}"
        parent.head(path, OCI_MANIFEST)
        begun = time.perf_counter()
        for _ in range(count):
            parent.head(path, OCI_MANIFEST)
        return count / (time.perf_counter() - begun)


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

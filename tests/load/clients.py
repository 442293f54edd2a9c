"""Clients of a registry in threads: each pulls images whole, or hangs up in the middle.

A client pulls as runtimes do: the manifest by its tag, then each blob on a connection of its own.
It compares every digest. Of some blobs it reads a part and hangs up, by a FIN or a RST.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING

from support.images import Layout, digest_of, named
from support.registry_doors import REGISTRY, Door, blob, manifest
from support.servers import RESET_ON_CLOSE

if TYPE_CHECKING:
    from pathlib import Path

IMAGES, BLOBS = 4, 3
PIECE = 1 << 16

# A client that waits for longer than this is starved.
PATIENCE = 60.0

# Refusals that ask to come again: short of places or memory.
BUSY = 503


class WrongContentError(Exception):
    """What arrived whole has another digest."""


def write_images(directory: Path, size: int) -> Layout:
    """Write images of `BLOBS` layers each, none of which is in two of them."""
    layout = Layout(directory)
    chance = random.Random(7)
    images = [
        layout.image(*(chance.randbytes(size + n) for n in range(BLOBS))) for _ in range(IMAGES)
    ]
    layout.save(*(named(each, f"{REGISTRY}/load:{n}") for n, each in enumerate(images)))
    return layout


@dataclass
class Tally:
    """What clients have seen: counts by kind, and failures in words."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, took: float = 0.0) -> None:
        with self.lock:
            self.counts[kind] += 1
            self.slowest = max(self.slowest, took)

    def fail(self, failure: str) -> None:
        with self.lock:
            self.failures.append(failure)


class Client:
    """One of many; `hang_ups` is the part of the blobs at which it hangs up."""

    def __init__(
        self, door: Door, layout: Layout, tally: Tally, seed: int, hang_ups: float
    ) -> None:
        self._door = door
        self._layout = layout
        self._tally = tally
        self._chance = random.Random(seed)
        self._hang_ups = hang_ups

    def pull(self) -> None:
        """Pull one image; whatever goes wrong is in the tally."""
        tag = self._chance.randrange(IMAGES)
        try:
            document = self._whole(manifest(f"{REGISTRY}/load", tag))
            if document is not None:
                digests = self._digests(document)
                for digest in self._chance.sample(digests, len(digests)):
                    self._blob(digest)
        except (OSError, HTTPException, WrongContentError) as error:
            self._tally.fail(f"{type(error).__name__}: {error}")

    def _digests(self, document: bytes) -> list[str]:
        return [each["digest"] for each in self._layout.layers({"digest": digest_of(document)})]

    def _blob(self, digest: str) -> None:
        target = blob(f"{REGISTRY}/load", digest)
        if self._chance.random() < self._hang_ups:
            self._hang_up(target)
            return
        content = self._whole(target)
        if content is not None and digest_of(content) != digest:
            raise WrongContentError(digest)

    def _whole(self, target: str) -> bytes | None:
        """Return the body of a reply, None where the client is to come again."""
        began = time.monotonic()
        connection, response = self._ask(target)
        try:
            content = response.read()
        finally:
            connection.close()
        if response.status == BUSY and response.headers["Retry-After"]:
            self._tally.count("come again")
            return None
        if response.status != 200:
            raise HTTPException(f"{target}: {response.status} {content[:200]!r}")
        self._tally.count("whole", time.monotonic() - began)
        return content

    def _hang_up(self, target: str) -> None:
        connection, response = self._ask(target)
        for _ in range(self._chance.randrange(8)):
            response.read(PIECE)
        if self._chance.random() < 0.5 and connection.sock is not None:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection.close()
        response.close()
        self._tally.count("hung up")

    def _ask(self, target: str) -> tuple[HTTPConnection, HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self._door.port, timeout=PATIENCE)
        connection.request("GET", target)
        return connection, connection.getresponse()


def run(
    door: Door, layout: Layout, *, clients: int, seconds: float, hang_ups: float = 0.2
) -> Tally:
    """Run clients until the time is over; each pulls once at least."""
    tally, deadline = Tally(), time.monotonic() + seconds

    def loop(seed: int) -> None:
        client = Client(door, layout, tally, seed, hang_ups)
        client.pull()
        while time.monotonic() < deadline and not tally.failures:
            client.pull()

    threads = [threading.Thread(target=loop, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally

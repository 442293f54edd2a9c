"""Thousands of mutated packets of skopeo's protocol to one real process.

IMGPROXY_FUZZ_PACKETS=1000000 makes a long campaign, IMGPROXY_FUZZ_SEED another one. A failing
packet is shown as the bytes that were sent.
"""

from __future__ import annotations

import json
import os
import random
import select
from typing import TYPE_CHECKING, Any

from support.effort import rounds
from support.filled import noise
from support.images import digest_of
from support.parent import LIMIT, descriptors, eventually
from support.skopeo_client import MAX_PACKET, Client, Ended, Reply, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Converse
    from support.images import Layout

PACKETS = rounds("IMGPROXY_FUZZ_PACKETS", slow=6000, quick=300)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

# At most so many read ends are kept open; the others are closed, read or not.
MAX_KEPT = 40

# What the content of the image is: fitting into a pipe, and not.
LAYERS = (b"small" * 1000, b"", noise(300_000), noise(1_500_000))

METHODS = [
    "OpenImage",
    "OpenImageOptional",
    "CloseImage",
    "GetManifest",
    "GetFullConfig",
    "GetConfig",
    "GetLayerInfo",
    "GetLayerInfoPiped",
    "GetBlob",
    "GetRawBlob",
    "FinishPipe",
]
STRANGE = ["Initialize", "Shutdown", "initialize", "", "OpenVarlinkSocket", "GetBlob\0", None, 7]

TOKENS = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-1",
    b"1e999",
    b"0.5",
    b"9" * 400,
    b"9007199254740992",
    b"\\ud800",
    b"\\u0000",
    b"\0",
    b"\xff",
    b"\xf0\x9f\x92\xa9",
    b"[" * 200,
    b'{"a":' * 200,
    b'"method"',
    b'"args"',
    b'"method":"Shutdown",',
    b'"args":[1],',
]


class Mutator:
    """A source of packets, valid ones and mutated ones; the same seed yields the same ones."""

    def __init__(self, seed: int, references: list[str], blobs: dict[str, int]) -> None:
        self.chance = random.Random(seed)
        self.references = references
        self.blobs = blobs
        self.images = [1]
        self.pipes: list[int] = []

    def next(self) -> bytes:
        packet = self.request()
        if self.chance.random() < 0.5:
            return packet
        if self.chance.random() < 0.05:
            return self.chance.choice((b" ", b"\0", b"\n")) * self.chance.choice(
                (1, 100, MAX_PACKET - 1, MAX_PACKET, MAX_PACKET + 1, 100_000)
            )
        for _ in range(self.chance.choice((1, 1, 2, 4))):
            packet = self.chance.choice((self.change, self.delete, self.insert, self.repeat))(
                packet
            )
        if self.chance.random() < 0.03:
            packet = packet.ljust(MAX_PACKET + self.chance.choice((-1, 0, 1, 5000)))
        return packet

    def request(self) -> bytes:
        method = self.chance.choice(METHODS if self.chance.random() < 0.95 else STRANGE)
        arguments = self.arguments(str(method))
        if self.chance.random() < 0.1:
            self.chance.shuffle(arguments)
        if self.chance.random() < 0.1:
            arguments.append(self.value())
        if self.chance.random() < 0.1:
            arguments = arguments[:-1]
        if method is None or isinstance(method, int):
            return json.dumps({"method": method, "args": arguments}).encode()
        return encode(method, *arguments)

    def arguments(self, method: str) -> list[Any]:
        digest = self.chance.choice(list(self.blobs))
        if method.startswith("OpenImage"):
            return [self.mostly(self.chance.choice(self.references))]
        if method == "FinishPipe":
            return [self.mostly(self.chance.choice(self.pipes or [1]))]
        if method in {"Initialize", "Shutdown"}:
            return []
        image = self.mostly(self.chance.choice(self.images or [1]))
        if method == "GetBlob":
            return [image, self.mostly(digest), self.mostly(self.blobs[digest])]
        if method == "GetRawBlob":
            return [image, self.mostly(digest)]
        return [image]

    def mostly(self, value: object) -> object:
        return value if self.chance.random() < 0.9 else self.value()

    def value(self) -> object:
        number = self.chance.choice((0, 1, 5, 2**31, 2**32, 2**53 - 1, 2**53, 10**40))
        return self.chance.choice(
            (
                number,
                -number,
                self.chance.random() * 10,
                1.0,
                1e300,
                True,
                None,
                "",
                "sha256:" + "0" * 64,
                "oci:/nowhere:\u202e\ud800",
                "x" * 500,
                [],
                [[]],
                {},
                {"a": 1},
            )
        )

    def place(self, data: bytes) -> tuple[int, int]:
        """Return the bounds of a part, most often a short one."""
        start = self.chance.randrange(len(data) + 1)
        return start, min(start + 1 + int(self.chance.expovariate(0.2)), len(data))

    def change(self, data: bytes) -> bytes:
        start, _ = self.place(data)
        return data[:start] + self.chance.randbytes(1) + data[start + 1 :]

    def delete(self, data: bytes) -> bytes:
        start, end = self.place(data)
        return data[:start] + data[end:]

    def insert(self, data: bytes) -> bytes:
        start, _ = self.place(data)
        return data[:start] + self.chance.choice(TOKENS) + data[start:]

    def repeat(self, data: bytes) -> bytes:
        start, end = self.place(data)
        return data[:end] + data[start:end] * self.chance.choice((1, 2, 50)) + data[end:]


class Reader:
    """What reads the pipes of a conversation, as much as it is needed and no more."""

    def __init__(self, chance: random.Random) -> None:
        self.fds: list[int] = []
        self._chance = chance

    def take(self, fds: tuple[int, ...]) -> None:
        """Keep read ends, or close them."""
        for fd in fds:
            if self._chance.random() < 0.3:
                os.close(fd)
            else:
                self.fds.append(fd)
        while len(self.fds) > MAX_KEPT:
            os.close(self.fds.pop(0))

    def answer(self, client: Client) -> Reply:
        """Return the next reply; FinishPipe may wait for what is in the pipes to be read."""
        while True:
            poll = select.poll()
            for fd in (client.socket.fileno(), *self.fds):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(LIMIT * 1000)]
            assert ready, "neither a reply nor content"
            if client.socket.fileno() in ready:
                return client.receive()
            for fd in ready:
                if not os.read(fd, 1 << 20):
                    self.fds.remove(fd)
                    os.close(fd)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def asks_for_the_end(packet: bytes) -> bool:
    """Return whether a packet is one that ends a conversation."""
    if not packet:
        return True
    try:
        document = json.loads(packet[:MAX_PACKET].decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("method") == "Shutdown"


class Campaign:
    """A conversation, begun anew where a packet has ended it."""

    def __init__(self, start: Callable[[], Client], mutator: Mutator) -> None:
        self._start = start
        self._mutator = mutator
        self._marks = 0
        self.words: set[str] = set()
        self.successes = 0
        self.client: Client
        self.reader: Reader
        self.begin()

    def begin(self) -> None:
        self.client = self._start()
        self.client.initialize()
        self.reader = Reader(self._mutator.chance)
        self._mutator.images = [self.client.open(self._mutator.references[0])]
        self._mutator.pipes = []
        self._before = descriptors(self.client.child.pid)

    def send(self, packet: bytes) -> None:
        """Send a packet, and a request behind it: the packet has one reply, and no other."""
        self._marks += 1
        client = self.client
        client.send(packet)
        if asks_for_the_end(packet):
            assert client.is_over()
            assert client.child.wait() == 0
            self.look()
            self.begin()
            return
        client.ask("CloseImage", 10**12 + self._marks)
        self.note(self.reader.answer(client))
        reply = self.reader.answer(client)
        assert reply.words == f"no image {10**12 + self._marks}", "more than one reply"

    def note(self, reply: Reply) -> None:
        self.reader.take(reply.fds)
        self.successes += reply.success
        self.words.add(reply.words.partition(" ")[0])
        if reply.pipe:
            self._mutator.pipes = [*self._mutator.pipes[-20:], reply.pipe]
        elif type(reply.value) is int and not reply.fds:
            self._mutator.images = [*self._mutator.images[-10:], reply.value]

    def end(self) -> None:
        """End it as a client that closes all that it has opened: nothing may be left."""
        client = self.client
        last_image, last_pipe = client.open(self._mutator.references[0]), 0
        reply = client.get("GetManifest", last_image)
        self.reader.take(reply.fds)
        last_pipe = reply.pipe
        self.reader.close()
        for pipe in range(1, last_pipe + 1):
            client.finish(pipe)
        for image in range(2, last_image + 1):
            client.call("CloseImage", image)
        assert eventually(lambda: descriptors(client.child.pid) <= self._before, 5)
        assert client.shut_down() == 0
        self.look()

    def look(self) -> None:
        """Look at what the program has said."""
        self.reader.close()
        lines = self.client.child.stderr.splitlines()
        assert all(line.startswith("imgproxy: ") and line.isprintable() for line in lines)
        assert not [line for line in lines if "defect" in line or "Error(" in line]


def test_mutated_packets_do_no_harm(layout: Layout, converse: Converse) -> None:
    layout.save_image(*LAYERS)
    name = f"oci:{layout.path}"
    references = [name, f"{name}:@0", f"{name}:none", f"{name}:@1", "oci:/nowhere", "oci-archive:-"]
    blobs = {digest_of(each): len(each) for each in LAYERS}
    mutator = Mutator(SEED, references, blobs)
    campaign = Campaign(lambda: converse("--offline"), mutator)
    for _ in range(PACKETS):
        packet = mutator.next()
        try:
            campaign.send(packet)
        except (AssertionError, TimeoutError, Ended, OSError) as failure:
            raise AssertionError(f"{failure!r} for {packet!r}") from failure
    campaign.end()
    assert campaign.successes > PACKETS // 10, "the mutations reach everything"
    assert {"expecting", "finishpipe:", "invalid", "no", "unknown"} <= campaign.words

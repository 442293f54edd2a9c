"""Mutated requests by the thousand against one real process.

IMGPROXY_FUZZ_REQUESTS=1000000 makes a long campaign of it, IMGPROXY_FUZZ_SEED another one. What
fails is shown as the bytes that were sent.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from support.effort import rounds
from support.images import digest_of
from support.parent import Child, Client, Reply, descriptors, eventually, listener_at, parse_head

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Listen, Sample

REQUESTS = rounds("IMGPROXY_FUZZ_REQUESTS", slow=3000, quick=800)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

# No mutation makes a 500 right; none of these requests reaches an error of the image's own.
STATUSES = {200, 400, 403, 404, 405, 413, 431, 501, 505}

# What is left unread beyond this is a reset to the sender.
DRAINED = 64 * 1024

TOKENS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"%",
    b"%00",
    b"%2f",
    b"%252f",
    b"..",
    b"//",
    b"?",
    b"#",
    b"\xff",
    b"\xc5\xbf",
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: miracles\r\n",
    b"Origin: http://evil.example\r\n",
    b"Range: bytes=0-0\r\n",
    b" folded\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"5;extension=\r\nhello\r\n",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\n",
    b"http://localhost/manifest",
    b"A" * 300,
    b"X-Long: " + b"a" * 20_000 + b"\r\n",
    b"X-Many: 1\r\n" * 300,
]


def request(method: str, path: str, *fields: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def valid_requests(sample: Sample) -> list[bytes]:
    layer = digest_of(sample.layers[0])
    return [
        request("GET", "/manifest"),
        request("HEAD", "/config"),
        request("GET", f"/blobs/{layer}", "Connection: close"),
        request("GET", f"/manifests/{sample.descriptor['digest']}", "Accept: */*"),
        request("GET", "/config", "Content-Length: 5", body=b"hello"),
        request("GET", "/config", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        request("GET", "/manifest", "Expect: 100-continue", "Content-Length: 2", body=b"ok"),
        request("DELETE", "/manifest"),
        request("GET", f"http://localhost/blobs/{layer}"),
        b"GET /manifest HTTP/1.0\r\n\r\n",
    ]


class Mutator:
    """A source of requests that were valid once; the same seed gives the same ones."""

    def __init__(self, seed: int, requests: list[bytes]) -> None:
        self.chance = random.Random(seed)
        self.requests = requests

    def next(self) -> bytes:
        count = self.chance.choice((1, 1, 1, 2, 3))
        data = b"".join(self.chance.choices(self.requests, k=count))
        for _ in range(self.chance.choice((1, 1, 2, 3, 8))):
            mutation = self.chance.choice(
                (self.change, self.delete, self.insert, self.repeat, self.move, self.cut)
            )
            data = mutation(data) or b"\r\n"
        return data

    def place(self, data: bytes) -> tuple[int, int]:
        """Give the bounds of a part, most often a short one."""
        start = self.chance.randrange(len(data))
        return start, start + min(1 + int(self.chance.expovariate(0.2)), len(data) - start)

    def change(self, data: bytes) -> bytes:
        start, _ = self.place(data)
        return data[:start] + self.chance.randbytes(1) + data[start + 1 :]

    def delete(self, data: bytes) -> bytes:
        start, end = self.place(data)
        return data[:start] + data[end:]

    def insert(self, data: bytes) -> bytes:
        start = self.chance.choice((self.place(data)[0], data.find(b"\r\n") + 2))
        return data[:start] + self.chance.choice(TOKENS) + data[start:]

    def repeat(self, data: bytes) -> bytes:
        start, end = self.place(data)
        return data[:end] + data[start:end] * self.chance.choice((1, 2, 50)) + data[end:]

    def move(self, data: bytes) -> bytes:
        start, end = self.place(data)
        rest = data[:start] + data[end:]
        to = self.chance.randrange(len(rest) + 1)
        return rest[:to] + data[start:end] + rest[to:]

    def cut(self, data: bytes) -> bytes:
        return data[: self.place(data)[1]] if self.chance.random() < 0.3 else data


def replies_in(received: bytes) -> list[Reply]:
    """Take a stream of replies apart to its last byte; only the last may be cut off."""
    replies = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator, f"no whole head: {head!r}"
        reply = parse_head(head)
        if reply.status >= 200:
            assert reply.length is not None, f"no length: {head!r}"
            replies.append(reply)
            if not received or received.startswith(b"HTTP/1.1 "):
                continue  # to a HEAD, or without a body
            reply.body, received = received[: reply.length], received[reply.length :]
            assert reply.complete, f"cut off: {reply}"
    return replies


def exchange(client: Client, data: bytes) -> list[Reply]:
    """Send the bytes and an end of file; give what comes back, all of it well formed."""
    with suppress(BrokenPipeError, ConnectionResetError):
        client.send(data)
        client.stop_sending()
    received, ending = client.read_to_end()
    assert ending == "end" or len(data) > DRAINED, ending
    replies = replies_in(received)
    for reply in replies:
        assert reply.status in STATUSES, reply
        assert reply.reason, reply
        if reply.status >= 400 and reply.body:
            assert reply.error
    closing = [reply.get("Connection") == "close" for reply in replies]
    assert not any(closing[:-1]), "a reply after the last one"
    return replies


def asked(child: Child, path: str, data: bytes) -> list[Reply]:
    client = child.connect(path)
    try:
        return exchange(client, data)
    except (AssertionError, TimeoutError) as failure:
        raise AssertionError(f"{failure!r} for {data!r}") from failure
    finally:
        client.close()
        child.clients.remove(client)


def test_mutated_requests_do_no_harm(sample: Sample, listen: Listen, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    requests = valid_requests(sample)
    for data in requests:
        assert asked(child, path, data), data
    before = descriptors(child.pid)
    mutator = Mutator(SEED, requests)
    seen: set[int] = set()
    for _ in range(REQUESTS):
        replies = asked(child, path, mutator.next())
        seen.update(reply.status for reply in replies)
    assert {200, 400, 404, 405} <= seen, "the mutations reach everything"
    assert asked(child, path, requests[0])[0].body == sample.manifest
    assert eventually(lambda: descriptors(child.pid) <= before, 3)
    assert asked(child, path, request("POST", "/quit"))[0].status == 200
    assert child.wait() == 0, "a task that is left over would keep it"
    lines = child.stderr.splitlines()
    assert all(line.startswith("imgproxy: ") and line.isprintable() for line in lines)


def test_valid_requests_in_any_pieces_get_the_same_replies(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    # HEAD, and what closes the connection, would leave nothing to compare
    stream = b"".join(data for data in valid_requests(sample)[:6] if b"close" not in data)
    whole = asked(child, path, stream)
    assert len(whole) == 5
    chance = random.Random(SEED)
    for _ in range(40):
        client = child.connect(path)
        rest = stream
        while rest:
            size = 1 + int(chance.expovariate(0.1))
            client.send(rest[:size])
            rest = rest[size:]
        assert without_dates(exchange(client, b"")) == without_dates(whole)
        client.close()


def without_dates(replies: list[Reply]) -> list[object]:
    return [
        (reply.status, [field for field in reply.fields if field[0] != "Date"], reply.body)
        for reply in replies
    ]


def test_a_flood_of_one_byte_is_answered_or_cut_off(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    for byte in (b"A", b"\r\n", b"\0", b" ", b":"):
        for size in (65_000, 70_000, 1 << 20):
            statuses = {reply.status for reply in asked(child, path, byte * size)}
            assert statuses <= {400, 431}, (byte, size)
    assert asked(child, path, request("GET", "/manifest"))[0].status == 200

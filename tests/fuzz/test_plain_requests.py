"""The plainest requests, which are read without h11: that nothing else is different.

IMGPROXY_FUZZ_PLAIN=1000000 makes a long campaign, IMGPROXY_FUZZ_SEED another one. A failing request
is shown as the bytes that were received.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import h11
import pytest
from support.effort import rounds

from imgproxy.errors import Failure
from imgproxy.server.request_reader import MAX_HEAD, PlainRequest, RequestReader

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = rounds("IMGPROXY_FUZZ_PLAIN", slow=60_000, quick=6_000)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

DIGEST = b"sha256:" + b"0" * 64
PLAIN = [
    b"GET /blobs/%b HTTP/1.1\r\nHost: x\r\n\r\n" % DIGEST,
    b"GET /manifest HTTP/1.1\r\nhost:localhost\r\nUser-Agent: a/1 (b; c)\r\nAccept: */*\r\n\r\n",
    b"HEAD /layers?x=%20 HTTP/1.1\r\nAccept-Encoding: gzip, br\r\nHOST: a:80\r\n\r\n",
]
OTHERS = [
    b"GET /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /quit HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
]
PARTS = [
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\x0b"),
    *(b"\r\n\r\n", b"\n\n", b"\r\n ", b"Host: y\r\n", b"HOST:y\r\n", b"Host : y\r\n", b"Host:\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"Accept: a\r\n b\r\n", b"Accept: \r\n"),
    *(
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/1.1",
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"get ",
        b"abc",
        b"x" * 99,
    ),
]


def mutated(choice: random.Random) -> bytes:
    """Return a request or several, changed in some places or in none."""
    received = b"".join(choice.choices([*PLAIN * 3, *OTHERS], k=choice.randint(1, 3)))
    for _ in range(choice.choice([0, 1, 1, 1, 2, 3])):
        begin = choice.randrange(len(received) + 1)
        end = begin + choice.choice([0, 0, 1, 2, 20])
        received = received[:begin] + choice.choice([b"", *PARTS]) + received[end:]
    return received


class Reading:
    """What is read off bytes that arrive in pieces of these sizes, in `found`.

    `was_plain`: some of it was read without h11.
    """

    def __init__(self, received: bytes, sizes: Sequence[int] = (), *, reads_plain: bool) -> None:
        self.reader = RequestReader(reads_plain=reads_plain)
        self.found: list[object] = []
        self.was_plain = False
        self.pieces = []
        for size in sizes:
            self.pieces.append(received[:size])
            received = received[size:]
        self.pieces += [received, b""]
        try:
            while self.goes_on(self.reader.next_event()):
                pass
        except Failure as failure:
            self.found.append((type(failure), failure.message))

    def goes_on(self, event: object) -> bool:
        """Note an event, and what the reader says then; return whether another may follow."""
        reader = self.reader
        self.found.append((reader.is_begun, reader.is_whole, reader.room, reader.upcoming(9)))
        if event is h11.NEED_DATA:
            self.found.append(reader.continuation())
            if self.pieces:
                reader.receive(self.pieces.pop(0))
                return True
        elif isinstance(event, h11.Request | PlainRequest):
            self.was_plain |= isinstance(event, PlainRequest)
            self.found += [event.method, event.target, [*event.headers], event.http_version]
            reader.check_host(event)
            return True
        elif isinstance(event, h11.Data):
            self.found.append(bytes(event.data))
            return True
        elif isinstance(event, h11.EndOfMessage):
            reader.start_next()
            return True
        return False


def test_requests_are_the_same_read_plainly() -> None:
    choice, plain = random.Random(SEED), 0
    for _ in range(ROUNDS):
        received = mutated(choice)
        sizes = [choice.randint(1, 200) for _ in range(choice.choice([0, 0, 1, 3]))]
        plainly = Reading(received, sizes, reads_plain=True)
        assert plainly.found == Reading(received, sizes, reads_plain=False).found, received
        plain += plainly.was_plain
    assert ROUNDS / 4 < plain < ROUNDS * 0.95


@pytest.mark.parametrize("received", PLAIN)
def test_the_plainest_are_read_plainly(received: bytes) -> None:
    assert Reading(received, reads_plain=True).was_plain
    assert not Reading(received, reads_plain=False).was_plain


@pytest.mark.parametrize("received", OTHERS)
def test_others_are_read_by_h11(received: bytes) -> None:
    assert not Reading(received, reads_plain=True).was_plain


@pytest.mark.parametrize("more", range(-1, 2))
def test_a_head_may_have_as_many_bytes_as_by_h11(more: int) -> None:
    start, end = b"GET /", b" HTTP/1.1\r\nHost: x\r\n\r\n"
    received = start + b"x" * (MAX_HEAD + more - len(start + end)) + end
    plainly = Reading(received, reads_plain=True)
    assert plainly.found == Reading(received, reads_plain=False).found
    assert plainly.was_plain == (more <= 0)

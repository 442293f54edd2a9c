"""The server's side of TLS over socket pairs, with clients that do not do their part."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing

import pytest
import trio
import trustme
from support.streams import real_time
from trio.testing import MockClock, wait_all_tasks_blocked

from imgproxy.errors import BadRequestError
from imgproxy.net.accepted_tls import HANDSHAKE_LIMIT, AcceptedTls
from imgproxy.net.streams import shake_hands

AUTHORITY = trustme.CA()
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
AUTHORITY.issue_cert("registry.test").configure_cert(SERVER)
CLIENT = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT)

ALERT = b"\x15"
BEGINNING = b"\x16\x03\x01\x02\x00\x01"  # of a record that is longer


def pair() -> tuple[AcceptedTls, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    return AcceptedTls(ours, SERVER), theirs


async def received(stream: AcceptedTls) -> bytes:
    buffer = memoryview(bytearray(100))
    return bytes(buffer[: await stream.receive_into(buffer)])


@real_time
async def test_nothing_is_received_when_the_handshake_does_not_hold_any_more() -> None:
    answers = [True, False]

    async def still_holds() -> bool:
        return answers.pop(0)

    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    stream = AcceptedTls(ours, SERVER, still_holds)
    tls = CLIENT.wrap_socket(theirs, server_hostname="registry.test", do_handshake_on_connect=False)
    with closing(stream), tls:

        async def ask() -> None:
            await shake_hands(tls)
            tls.send(b"first")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await received(stream) == b"first"
        tls.send(b"second")
        assert await received(stream) == b""


@real_time
async def test_what_is_received_begins_after_the_handshake() -> None:
    stream, theirs = pair()
    tls = CLIENT.wrap_socket(theirs, server_hostname="registry.test", do_handshake_on_connect=False)
    with closing(stream), tls:

        async def ask() -> None:
            await shake_hands(tls)
            tls.send(b"a question")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await received(stream) == b"a question"
        await stream.send(b"an answer")
        assert stream.sent_bytes == len(b"an answer")
        assert tls.recv(100) == b"an answer"
        await stream.finish(100, 0.01)
        assert tls.recv(100) == b"", "the end is said, and no error"


@real_time
async def test_what_is_not_tls_is_answered_in_the_clear() -> None:
    stream, theirs = pair()
    with closing(stream), theirs:
        theirs.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(BadRequestError, match="https"):
            await received(stream)
        await stream.send(b"a refusal")
        assert theirs.recv(100) == b"a refusal"


@pytest.mark.parametrize("sent", [b"", b"\x16", BEGINNING])
@real_time
async def test_a_client_that_leaves(sent: bytes) -> None:
    stream, theirs = pair()
    with closing(stream), theirs:
        theirs.send(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match=r"(?i)eof"):
            await received(stream)
        assert theirs.recv(100)[:1] == ALERT
        assert theirs.recv(100) == b""


def test_a_client_that_stops_in_the_handshake() -> None:
    """Time goes on when everything waits, and the first byte has been received."""

    async def main() -> None:
        stream, theirs = pair()
        with closing(stream), theirs:
            theirs.send(BEGINNING)
            before = trio.current_time()
            with pytest.raises(TimeoutError, match="no handshake in 10 seconds"):
                await received(stream)
            assert trio.current_time() - before >= HANDSHAKE_LIMIT
            assert theirs.recv(100) == b"", "it is told"

    trio.run(main, clock=MockClock(autojump_threshold=0.01))


@real_time
async def test_a_handshake_that_is_cancelled_leaves_nothing_open() -> None:
    stream, theirs = pair()
    with theirs:
        theirs.send(BEGINNING)
        with trio.move_on_after(0.01):
            await received(stream)
        stream.close()
        assert theirs.recv(100) == b""


@real_time
async def test_a_slow_reader_is_seen_to_read() -> None:
    stream, theirs = pair()
    tls = CLIENT.wrap_socket(theirs, server_hostname="registry.test", do_handshake_on_connect=False)
    with closing(stream), tls:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(received, stream)
            await shake_hands(tls)
            tls.send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(4 << 20))
            await wait_all_tasks_blocked()
            before = stream.sent_bytes
            assert 0 < before < 4 << 20
            left = 1 << 20
            while left > 0:
                try:
                    left -= len(tls.recv(1 << 16))
                except ssl.SSLWantReadError:
                    await wait_all_tasks_blocked()
            await wait_all_tasks_blocked(0.01)
            assert stream.sent_bytes > before
            nursery.cancel_scope.cancel()

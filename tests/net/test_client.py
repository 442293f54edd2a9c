"""Requests and streamed responses, over connections whose faults are scripted."""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import h11
import pytest
import trio
from support.streams import (
    END,
    SILENCE,
    MemoryStream,
    Notes,
    Script,
    ScriptedStream,
    Step,
    answer,
    asked,
    chunked,
    elapsing,
    head,
    refused,
    scripted,
    virtual_time,
)

from imgproxy.errors import Failure
from imgproxy.net import request
from imgproxy.net import response as responses
from imgproxy.net.client import KEPT_TIMEOUT, Client
from imgproxy.net.connection_pool import MAX_IDLE, Connection
from imgproxy.specs.http import proxy
from imgproxy.specs.http import url as urls

if TYPE_CHECKING:
    from imgproxy.net.response import Response
    from imgproxy.net.tcp import Route
    from imgproxy.specs.http.url import Url

# The query stands for a signature, which no message may contain.
WHERE = "https://registry.test/v2/x/blobs/y?secret=hunter2"
SHOWN = "GET https://registry.test/v2/x/blobs/y?…: "
DIALLED = "connecting to https://registry.test:443: "
URL = urls.parse(WHERE)
BODY = bytes(range(100))

CUT = (503, "UNAVAILABLE", True)
UNREACHABLE = (504, "UNREACHABLE", True)
NOWHERE = (504, "UNREACHABLE", False)
BROKEN = (502, "BAD_UPSTREAM", False)
TLS = (502, "TLS", False)
TOO_LARGE = (422, "SIZE_INVALID", False)


def tls_error(message: str, reason: str = "") -> ssl.SSLError:
    error = ssl.SSLError(1, message)
    error.reason = reason
    return error


def mistrusted(message: str) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.reason, error.verify_message = "CERTIFICATE_VERIFY_FAILED", message
    return error


RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


async def fetch(client: Client, url: Url = URL, limit: int = 1 << 20) -> bytes:
    """Send a GET and return the whole body."""
    response = await client.get(url, {})
    return await response.read(limit)


async def pull(response: Response) -> bytes:
    """Return the whole body, read as a blob is read."""
    body, buffer = bytearray(), memoryview(bytearray(64))
    while count := await response.receive_into(buffer):
        body += buffer[:count]
    return bytes(body)


# --- replies as they should be ------------------------------------------------------------------

LENGTH = answer(body=BODY)
CHUNKED = chunked(BODY[:33], BODY[33:34], BODY[34:])
TO_THE_END = head(200) + BODY
FRAMINGS = {"length": LENGTH, "chunked": CHUNKED, "to the end": TO_THE_END}
KEPT = {"length": LENGTH, "chunked": CHUNKED, "empty": answer(), "204": head(204)}


@pytest.mark.parametrize("framing", FRAMINGS)
@virtual_time
async def test_a_body_is_the_same_however_its_bytes_arrive(framing: str) -> None:
    reply = FRAMINGS[framing]
    splits = [(reply[:at], reply[at:]) for at in range(1, len(reply))]
    for pieces in [(reply,), *splits, tuple(bytes([byte]) for byte in reply)]:
        for read in (pull, lambda response: response.read(len(BODY))):
            async with scripted(asked(WHERE, *pieces, END)) as (client, _):
                assert await read(await client.get(URL, {})) == BODY


@virtual_time
async def test_a_buffer_is_filled_with_the_tiny_chunks_that_have_been_received() -> None:
    """And content that is there is not held back for more."""
    tiny = b"1\r\nx\r\n" * 5000
    begun = head(200, transfer_encoding="chunked")
    async with scripted(asked(WHERE, begun + tiny, 5.0, tiny, b"0\r\n\r\n")) as (client, _):
        response = await client.get(URL, {})
        buffer, counts = memoryview(bytearray(1 << 16)), list[int]()
        with elapsing(0):
            counts.append(await response.receive_into(buffer))
        with elapsing(5):
            while counts[-1]:
                counts.append(await response.receive_into(buffer))
        assert (sum(counts), counts[0]) == (10000, 5000)
        assert len(counts) < 6


@virtual_time
async def test_a_reply_shows_its_status_fields_and_size() -> None:
    reply = answer(404, BODY, content_type="text/plain", www_authenticate="Basic")
    reply = reply.replace(b"Basic", b"Basic\r\nWWW-Authenticate: B")
    async with scripted(asked(WHERE, reply)) as (client, _):
        response = await client.get(URL, {})
        assert (response.status, response.size) == (404, len(BODY))
        assert response.header("content-type") == "text/plain"
        assert response.header("www-authenticate") == "Basic, B"
        assert response.headers("www-authenticate") == ["Basic", "B"]
        assert response.header("location") == ""
        response.close()
        response.close()


@pytest.mark.parametrize("framing", ["chunked", "to the end"])
@virtual_time
async def test_the_size_of_a_body_that_does_not_say_is_unknown(framing: str) -> None:
    async with scripted(asked(WHERE, FRAMINGS[framing], END)) as (client, _):
        response = await client.get(URL, {})
        assert response.size is None
        assert await pull(response) == BODY


@virtual_time
async def test_a_request_names_the_program_and_asks_for_unencoded_bytes() -> None:
    wanted = asked(
        WHERE, answer(), user_agent="test/1", accept_encoding="identity", accept="text/plain"
    )
    async with scripted(wanted) as (client, _):
        await client.get(URL, {"Accept": "text/plain"})


@virtual_time
async def test_informational_replies_are_skipped() -> None:
    async with scripted(asked(WHERE, head(100) + head(103, link="</x>"), LENGTH)) as (client, _):
        assert await fetch(client) == BODY


@pytest.mark.parametrize("status", [204, 304])
@virtual_time
async def test_a_status_without_a_body_is_not_waited_for(status: int) -> None:
    for fields in ({}, {"content_length": "5"}, {"transfer_encoding": "chunked"}):
        async with scripted(asked(WHERE, head(status, **fields))) as (client, _):
            with elapsing(0):
                assert await fetch(client) == b""


@virtual_time
async def test_a_body_that_has_ended_stays_at_its_end() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, _):
        response = await client.get(URL, {})
        assert await pull(response) == BODY
        assert await pull(response) == b""


# --- connections that are kept ------------------------------------------------------------------


@pytest.mark.parametrize("framing", KEPT)
@virtual_time
async def test_a_connection_is_used_again_after_a_whole_reply(framing: str) -> None:
    async with scripted(*[asked(WHERE, KEPT[framing])] * 3) as (client, script):
        for _ in range(3):
            await fetch(client)
        assert len(script.streams) == 1


class ScriptedPreconnection:
    """A preconnection that takes so many seconds to be made."""

    def __init__(
        self,
        script: Script,
        seconds: float,
        url: str = WHERE,
        *,
        sent: bytes = b"",
        fails: bool = False,
    ) -> None:
        self.url = urls.parse(url)
        self._seconds = seconds
        self._sent = sent
        self._stream = None if fails else ScriptedStream(script, f"https://{self.url.authority}")
        script.streams += filter(None, [self._stream])

    async def connection(self) -> Connection | None:
        await trio.sleep(self._seconds)
        stream, self._stream = self._stream, None
        return None if stream is None else Connection(stream, self._sent)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def adopt(client: Client, preconnection: ScriptedPreconnection) -> None:
    client.adopt(preconnection)  # type: ignore[arg-type]  # all that a client uses of it


@virtual_time
async def test_a_preconnection_is_waited_for_and_used() -> None:
    async with scripted(*[asked(WHERE, LENGTH)] * 2) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1))
        with elapsing(1):
            assert await fetch(client) == BODY
            assert await fetch(client) == BODY
        assert script.dialled == []


@virtual_time
async def test_a_preconnection_serves_when_a_connection_is_ensured() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1))
        await client.connect(URL)
        assert await fetch(client) == BODY
        assert script.dialled == []


@pytest.mark.parametrize("steps", [(END,), (RESET,), (b"surplus",)])
@virtual_time
async def test_a_preconnection_that_is_unusable_is_replaced(steps: tuple[Step, ...]) -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1))
        script.streams[0].inbox.add(*steps)
        assert await fetch(client) == BODY
        assert script.dialled == ["https://registry.test"]
        assert script.streams[0].closed


@virtual_time
async def test_a_preconnection_that_failed_is_made_in_the_usual_way() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1, fails=True))
        assert await fetch(client) == BODY
        assert len(script.dialled) == 1


@virtual_time
async def test_a_preconnection_to_another_origin_is_kept_for_it() -> None:
    other = "https://other.test/x"
    async with scripted(asked(WHERE, LENGTH), asked(other, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1, other))
        assert await fetch(client) == BODY
        assert await fetch(client, urls.parse(other)) == BODY
        assert script.dialled == ["https://registry.test"]


@virtual_time
async def test_a_task_that_is_cancelled_leaves_the_preconnection_to_the_next() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 2))
        with trio.move_on_after(1):
            await fetch(client)
        assert await fetch(client) == BODY
        assert script.dialled == []


@virtual_time
async def test_a_preconnection_that_was_not_used_is_closed_with_the_client() -> None:
    async with scripted() as (client, script):
        adopt(client, ScriptedPreconnection(script, 2))
        with trio.move_on_after(1):
            await fetch(client)
        client.close()
        assert script.streams[0].closed


@virtual_time
async def test_two_requests_at_once_do_not_share_a_preconnection() -> None:
    async with scripted(*[asked(WHERE, LENGTH)] * 2) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fetch, client)
        assert len(script.streams) <= 2
        assert len(script.dialled) <= 1


SENT = request.compose(h11.Connection(h11.CLIENT), URL, {}, "test/1")


@pytest.mark.parametrize("is_ensured", [False, True])
@virtual_time
async def test_a_request_that_was_sent_beforehand_is_not_sent_again(*, is_ensured: bool) -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1, sent=SENT))
        script.streams[0].inbox.add(LENGTH)  # the answer to that request
        if is_ensured:
            await client.connect(URL)
        assert await fetch(client) == BODY
        assert await fetch(client) == BODY  # which is sent, like any other
        assert script.dialled == []


@virtual_time
async def test_a_connection_with_another_request_on_it_is_closed_and_another_is_made() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1, sent=SENT.replace(b"test/1", b"test/2")))
        script.streams[0].inbox.add(answer(body=b"to another question"))
        assert await fetch(client) == BODY
        assert script.streams[0].closed
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize("steps", [(END,), (RESET,)])
@virtual_time
async def test_a_request_that_was_sent_beforehand_in_vain_is_sent_again(
    steps: tuple[Step, ...],
) -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        adopt(client, ScriptedPreconnection(script, 1, sent=SENT))
        script.streams[0].inbox.add(*steps)
        assert await fetch(client) == BODY
        assert script.streams[0].closed
        assert script.dialled == ["https://registry.test"]


NOT_AGAIN = {
    "it ends with the body": (TO_THE_END, END),
    "the field Connection": (answer(body=BODY, connection="close"),),
    "the field in a list": (answer(body=BODY, connection="foo, Close"),),
    "HTTP/1.0": (LENGTH.replace(b"1.1", b"1.0", 1),),
    "HTTP/1.0 with keep-alive": (
        answer(body=BODY, connection="keep-alive").replace(b"1.1", b"1.0", 1),
    ),
    "surplus behind a length": (LENGTH + b"x",),
    "surplus behind an empty body": (answer() + b"x",),
    "surplus behind no body": (head(204) + b"x",),
    "surplus behind the last chunk": (CHUNKED + b"x",),
    "surplus that comes later": (LENGTH, b"HTTP/1.1 200 Smuggled\r\nContent-Length: 0\r\n\r\n"),
    "it ended": (LENGTH, END),
    "it was reset": (LENGTH, RESET),
    "both framings": (chunked(BODY, content_length="100"),),
}


@pytest.mark.parametrize("why", NOT_AGAIN)
@virtual_time
async def test_a_connection_is_not_used_again(why: str) -> None:
    steps = NOT_AGAIN[why]
    async with scripted(asked(WHERE, *steps), asked(WHERE, answer(body=b"2"))) as (client, script):
        assert await fetch(client) in (BODY, b"")
        assert await fetch(client) == b"2"
        assert [stream.closed for stream in script.streams] == [True, False]


@virtual_time
async def test_closing_a_response_before_its_end_closes_the_connection() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        response = await client.get(URL, {})
        await response.receive_into(memoryview(bytearray(10)))
        response.close()
        assert script.streams[0].closed


@pytest.mark.parametrize(
    "other",
    ["http://registry.test/", "https://registry.test:444/", "https://other.test/"],
)
@virtual_time
async def test_a_connection_serves_its_origin_alone(other: str) -> None:
    async with scripted(asked(WHERE, LENGTH), asked(other, LENGTH)) as (client, script):
        assert await fetch(client) == BODY
        assert await fetch(client, urls.parse(other)) == BODY
        assert len(script.streams) == 2


@virtual_time
async def test_no_more_connections_are_kept_than_the_limit() -> None:
    count = MAX_IDLE + 1
    async with scripted(*[asked(WHERE, LENGTH)] * count) as (client, script):
        for response in [await client.get(URL, {}) for _ in range(count)]:
            await response.read(1000)
        assert [stream.closed for stream in script.streams].count(False) == MAX_IDLE


@virtual_time
async def test_connecting_leaves_the_connection_to_the_next_request() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        await client.connect(URL)
        await client.connect(URL)
        assert await fetch(client) == BODY
        assert len(script.streams) == 1


# A server may close a kept connection at the moment when a request is sent on it.
STALE: dict[str, Step] = {"end": END, "reset": RESET}


@pytest.mark.parametrize("ending", STALE)
@virtual_time
async def test_a_kept_connection_that_ends_instead_of_answering_is_replaced_once(
    ending: str,
) -> None:
    exchanges = [asked(WHERE, LENGTH), asked(WHERE, STALE[ending]), asked(WHERE, LENGTH)]
    async with scripted(*exchanges) as (client, script):
        assert await fetch(client) == BODY
        assert await fetch(client) == BODY
        assert [stream.closed for stream in script.streams] == [True, False]


@virtual_time
async def test_a_kept_connection_that_takes_no_request_is_replaced() -> None:
    async with scripted(asked(WHERE, LENGTH), asked(WHERE, LENGTH)) as (client, script):
        assert await fetch(client) == BODY
        script.streams[0].broken = BrokenPipeError(errno.EPIPE, "Broken pipe")
        assert await fetch(client) == BODY
        assert len(script.streams) == 2


@virtual_time
async def test_a_kept_connection_whose_tls_is_broken_is_not_replaced() -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        assert await fetch(client) == BODY
        script.streams[0].broken = tls_error("bad record")
        with pytest.raises(Failure) as raised:
            await fetch(client)
        assert refused(raised.value) == TLS


@virtual_time
async def test_the_replacement_of_a_stale_connection_is_not_replaced() -> None:
    exchanges = [asked(WHERE, LENGTH), asked(WHERE, END), asked(WHERE, END)]
    async with scripted(*exchanges) as (client, _):
        assert await fetch(client) == BODY
        with pytest.raises(Failure) as raised:
            await fetch(client)
        assert refused(raised.value) == UNREACHABLE


NOT_STALE: dict[str, tuple[tuple[Step, ...], tuple[int, str, bool]]] = {
    "half a head, then a stall": ((b"HTTP/1.1 200 OK\r\n", SILENCE), UNREACHABLE),
    "half a head": ((b"HTTP/1.1 200 OK\r\n", END), UNREACHABLE),
    "half a head, then a reset": ((b"HTTP/1.1 200 OK\r\n", RESET), UNREACHABLE),
    "garbage": ((b"SSH-2.0\r\n\r\n",), BROKEN),
}


@pytest.mark.parametrize("how", NOT_STALE)
@virtual_time
async def test_a_kept_connection_with_another_fault_fails(how: str) -> None:
    steps, wanted = NOT_STALE[how]
    async with scripted(asked(WHERE, LENGTH), asked(WHERE, *steps)) as (client, _):
        assert await fetch(client) == BODY
        with pytest.raises(Failure) as raised:
            await fetch(client)
        assert refused(raised.value) == wanted


@virtual_time
async def test_a_kept_connection_that_died_silently_is_replaced_soon() -> None:
    """As where a firewall has forgotten it: what is sent vanishes, and nothing comes."""
    exchanges = [asked(WHERE, LENGTH), asked(WHERE, SILENCE), asked(WHERE, 50.0, LENGTH)]
    async with scripted(*exchanges) as (client, script):
        assert await fetch(client) == BODY
        with elapsing(KEPT_TIMEOUT + 50):  # the new connection has the usual time
            assert await fetch(client) == BODY
        assert [stream.closed for stream in script.streams] == [True, False]


@virtual_time
async def test_a_kept_connection_whose_reply_has_begun_has_the_usual_time() -> None:
    slow = asked(WHERE, 9.0, LENGTH[:5], 45.0, LENGTH[5:])
    async with scripted(asked(WHERE, LENGTH), slow) as (client, _):
        for seconds in (0, 54):
            with elapsing(seconds):
                assert await fetch(client) == BODY


@virtual_time
async def test_a_connection_that_has_only_been_made_has_the_usual_time() -> None:
    """It cannot have been idle for long, and the server may be slow."""
    async with scripted(asked(WHERE, 50.0, LENGTH)) as (client, script):
        await client.connect(URL)
        with elapsing(50):
            assert await fetch(client) == BODY
        assert len(script.streams) == 1


@virtual_time
async def test_a_server_that_is_silent_on_the_new_connection_too_is_a_failure() -> None:
    exchanges = [asked(WHERE, LENGTH), asked(WHERE, SILENCE), asked(WHERE, SILENCE)]
    async with scripted(*exchanges) as (client, _):
        assert await fetch(client) == BODY
        with elapsing(KEPT_TIMEOUT + 60), pytest.raises(Failure) as raised:
            await fetch(client)
        assert refused(raised.value) == UNREACHABLE
        assert "no answer for 60 s" in raised.value.message


# --- internal addresses -------------------------------------------------------------------------

PEERS: dict[str, tuple[str, str, bool]] = {
    "internal": ("10.0.0.5", WHERE, True),
    "loopback": ("::1", WHERE, True),
    "NAT64": ("64:ff9b::10.0.0.5", WHERE, True),
    "public": ("198.51.100.7", WHERE, False),
    "behind a proxy": ("", WHERE, False),
    "behind a proxy, an address": ("", WHERE.replace("registry.test", "10.0.0.5"), True),
    "behind a proxy, in decimal": ("", WHERE.replace("registry.test", "167772165"), True),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("case", PEERS)
@virtual_time
async def test_a_request_that_is_not_for_internal_addresses_is_not_sent_to_one(
    case: str,
    kept: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """Nor on a connection that has been made for another request."""
    peer, where, is_internal = PEERS[case]
    url = urls.parse(where)
    exchanges = [asked(where, LENGTH)] * ((not is_internal) + kept)
    async with scripted(*exchanges) as (client, script):
        script.peers[f"https://{url.authority}"] = peer
        if kept:
            assert await fetch(client, url) == BODY
        if not is_internal:
            response = await client.get(url, {}, internal=False)
            assert await response.read(1 << 20) == BODY
            return
        with pytest.raises(Failure) as raised:
            await client.get(url, {}, internal=False)
        assert refused(raised.value) == BROKEN
        assert f"leads to the internal address {peer or url.host}, which" in raised.value.message


@pytest.mark.parametrize(
    ("peer", "is_internal"),
    [("10.0.0.5", True), ("fd12::1", True), ("198.51.100.7", False), ("", False)],
)
@virtual_time
async def test_a_reply_tells_whether_it_came_from_an_internal_address(
    peer: str,
    is_internal: bool,  # noqa: FBT001  (a parameter)
) -> None:
    async with scripted(asked(WHERE, LENGTH)) as (client, script):
        script.peers["https://registry.test"] = peer
        response = await client.get(URL, {})
        assert await response.read(1 << 20) == BODY
        assert response.is_internal is is_internal


# --- failures -----------------------------------------------------------------------------------

LARGE_HEAD = head(200, **{f"x_{n}": "a" * 1000 for n in range(200)})
AT_ONCE, STALL = 0.0, 60.0

HEADS: dict[str, tuple[tuple[Step, ...], tuple[int, str, bool], str, float]] = {
    "nothing": ((SILENCE,), UNREACHABLE, "no answer for 60 s", STALL),
    "never whole": ((LENGTH[:20], SILENCE), UNREACHABLE, "no answer for 60 s", STALL),
    "byte by byte": (
        tuple(step for byte in LENGTH for step in (5.0, bytes([byte]))),
        UNREACHABLE,
        "no answer for 60 s",
        STALL,
    ),
    "a 1xx now and then": ((*(10.0, head(103)) * 99,), UNREACHABLE, "no answer for 60 s", STALL),
    "the end": ((END,), UNREACHABLE, "the connection was closed before an answer", AT_ONCE),
    "a reset": ((RESET,), UNREACHABLE, "Connection reset by peer", AT_ONCE),
    "a word of TLS": ((tls_error("certificate required"),), TLS, "TLS failed: cert", AT_ONCE),
    "the end after a 1xx": ((head(100), END), UNREACHABLE, "closed before an answer", AT_ONCE),
    "the end within": ((LENGTH[:20], END), UNREACHABLE, "ended within the head", AT_ONCE),
    "the end within the one after a 1xx": (
        (head(103) + LENGTH[:20], END),
        UNREACHABLE,
        "ended within the head",
        AT_ONCE,
    ),
    "1xx for ever": (
        (head(103) * 1000, SILENCE),
        BROKEN,
        "more than 100 replies with 1xx",
        AT_ONCE,
    ),
    "a greeting": ((b"SSH-2.0-OpenSSH_9.6\r\n", SILENCE), BROKEN, "begin with b'SSH-2.0", AT_ONCE),
    "a greeting after a 1xx": ((head(100), b"220 hi\r\n", SILENCE), BROKEN, "b'220 hi", AT_ONCE),
    "the end of a greeting": ((b"SSH-2.0-", END), BROKEN, "begin with b'SSH-2.0", AT_ONCE),
    "HTTP/0.9": ((b"<html>", END), BROKEN, "begin with b'<html>", AT_ONCE),
    "another case": ((b"http/1.1 200 OK\r\n", END), BROKEN, "begin with b'http/1.1", AT_ONCE),
    "too large": ((LARGE_HEAD,), BROKEN, "the server broke HTTP", AT_ONCE),
    "no end of it": ((*(LARGE_HEAD[:-2],) * 9,), BROKEN, "the server broke HTTP", AT_ONCE),
    "another protocol": ((b"SSH-2.0-x\r\n\r\n",), BROKEN, "the server broke HTTP", AT_ONCE),
    "control characters": ((b"\x1b[31m\0\r\n\r\n",), BROKEN, "the server broke HTTP", AT_ONCE),
    "a negative length": (
        (head(200, content_length="-1"),),
        BROKEN,
        "the server broke HTTP",
        AT_ONCE,
    ),
    "two lengths": (
        (head(200, content_length="1\r\nContent-Length: 2"),),
        BROKEN,
        "the server broke HTTP",
        AT_ONCE,
    ),
    "an unknown coding": (
        (head(200, transfer_encoding="gzip, chunked"),),
        BROKEN,
        "the server broke HTTP",
        AT_ONCE,
    ),
}


@pytest.mark.parametrize("case", HEADS)
@virtual_time
async def test_a_head_that_does_not_come_is_a_failure(case: str) -> None:
    steps, wanted, message, seconds = HEADS[case]
    async with scripted(asked(WHERE, *steps)) as (client, _):
        with elapsing(seconds), pytest.raises(Failure) as raised:
            await client.get(URL, {})
        assert_reported(raised.value, wanted, message)


MALFORMED = b"X-Cache : HIT\r\nX Cache: y\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\n" + MALFORMED + b"Link: x\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("early", [b"", EARLY, EARLY * 3])
@virtual_time
async def test_a_malformed_line_that_advises_is_ignored(size: int, early: bytes) -> None:
    """However the head is split on its way; and the body after it is whole."""
    reply = early + LENGTH.replace(b"\r\n", b"\r\n" + MALFORMED, 1)
    pieces = [reply[at : at + size] for at in range(0, len(reply), size)]
    async with scripted(asked(WHERE, *pieces), asked(WHERE, LENGTH)) as (client, script):
        assert await fetch(client, URL) == BODY
        assert await fetch(client, URL) == BODY
        assert len(script.streams) == 1


@pytest.mark.parametrize(
    "line", ["Content-Length : 5", "Transfer-Encoding : chunked", "Connection : close"]
)
@pytest.mark.parametrize("early", [b"", EARLY])
@virtual_time
async def test_a_malformed_line_that_may_frame_is_not(line: str, early: bytes) -> None:
    """Whoever reads it as that field sees another end of the response, and another one after it."""
    reply = LENGTH.replace(b"\r\n", b"\r\n" + line.encode() + b"\r\n", 1)
    async with scripted(asked(WHERE, early + reply)) as (client, script):
        with pytest.raises(Failure) as raised:
            await client.get(URL, {})
        assert_reported(raised.value, BROKEN, "the server broke HTTP: illegal header line")
        assert "bytearray" not in raised.value.message
        assert script.streams[0].closed


@virtual_time
async def test_a_head_that_is_cut_anywhere_is_a_broken_connection() -> None:
    """Which is worth another try, whereas a server that speaks another protocol is not."""
    whole = LENGTH[: LENGTH.index(b"\r\n\r\n") + 4]
    for at in range(1, len(whole)):
        for ending in (END, RESET):
            async with scripted(asked(WHERE, whole[:at], ending)) as (client, _):
                with pytest.raises(Failure) as raised:
                    await client.get(URL, {})
                assert_reported(raised.value, UNREACHABLE, "")
                assert raised.value.is_transient


@virtual_time
async def test_what_is_no_http_is_told_by_its_first_bytes() -> None:
    for other in (b"SSH-2.0-x\r\n", b"HTTX", b"\r\nHTTP/1.1 200 OK", b"\0", b"HTTP 200"):
        for pieces in [(other,), tuple(bytes([each]) for each in other)]:
            async with scripted(asked(WHERE, *pieces, END)) as (client, _):
                with elapsing(0), pytest.raises(Failure) as raised:
                    await client.get(URL, {})
                assert_reported(raised.value, BROKEN, "a reply cannot begin with")


def assert_reported(
    failure: Failure, wanted: tuple[int, str, bool], message: str, doing: str = SHOWN
) -> None:
    assert refused(failure) == wanted
    assert failure.message.startswith(doing), failure.message
    assert message in failure.message
    assert failure.message.isprintable()
    assert "hunter2" not in failure.message


def slowly(body: bytes, count: int, pause: float) -> tuple[Step, ...]:
    """Return steps that deliver so many bytes of the body at a time, with pauses before each."""
    pieces = [body[at : at + count] for at in range(0, len(body), count)]
    return tuple(step for piece in pieces for step in (pause, piece))


BODIES: dict[str, tuple[tuple[Step, ...], tuple[int, str, bool], str, float]] = {
    "stall": ((LENGTH[:-1], SILENCE), UNREACHABLE, "the reply stalled for 60 s", STALL),
    "stall in chunks": ((CHUNKED[:-9], SILENCE), UNREACHABLE, "stalled for 60 s", STALL),
    "stall to the end": ((TO_THE_END, SILENCE), UNREACHABLE, "stalled for 60 s", STALL),
    "trickle": (
        (head(200, content_length="5000"), *slowly(bytes(5000), 1, 1.0)),
        UNREACHABLE,
        "the reply stalled for 60 s",
        STALL,
    ),
    "end": ((LENGTH[:-1], END), CUT, "the reply was cut off: the connection ended 1 ", AT_ONCE),
    "reset": ((LENGTH[:-1], RESET), CUT, "cut off: Connection reset by peer", AT_ONCE),
    "reset in chunks": ((CHUNKED[:-9], RESET), CUT, "cut off: Connection reset", AT_ONCE),
    "reset to the end": ((TO_THE_END, RESET), CUT, "cut off: Connection reset", AT_ONCE),
    "TLS": (
        (LENGTH[:-1], tls_error("decryption failed")),
        CUT,  # the handshake went well: it is a fault of the network, and temporary
        "cut off: decryption failed",
        AT_ONCE,
    ),
    "no size of a chunk": (
        (head(200, transfer_encoding="chunked") + b"x\r\n",),
        BROKEN,
        "the server broke HTTP",
        AT_ONCE,
    ),
    "a chunk that is longer than its size": (
        (CHUNKED.replace(b"21\r\n", b"20\r\n"),),
        BROKEN,
        "the server broke HTTP",
        AT_ONCE,
    ),
}


@pytest.mark.parametrize("case", BODIES)
@virtual_time
async def test_a_body_that_does_not_come_is_a_failure(case: str) -> None:
    steps, wanted, message, seconds = BODIES[case]
    for read in (pull, lambda response: response.read(1 << 20)):
        async with scripted(asked(WHERE, *steps)) as (client, script):
            response = await client.get(URL, {})
            with elapsing(seconds), pytest.raises(Failure) as raised:
                await read(response)
            assert_reported(raised.value, wanted, message)
            assert script.streams[0].closed


@pytest.mark.parametrize("framing", ["length", "chunked"])
@virtual_time
async def test_a_body_that_is_cut_anywhere_is_temporary(framing: str) -> None:
    reply = FRAMINGS[framing]
    for at in range(reply.index(b"\r\n\r\n") + 4, len(reply)):
        async with scripted(asked(WHERE, reply[:at], END)) as (client, _):
            response = await client.get(URL, {})
            with pytest.raises(Failure) as raised:
                await pull(response)
            assert_reported(raised.value, CUT, "the reply was cut off")


@virtual_time
async def test_the_clock_runs_only_while_waiting_for_the_server() -> None:
    body = bytes(5000)
    reply = (head(200, content_length="5000"), *slowly(body, 100, 5.0))
    async with scripted(asked(WHERE, *reply)) as (client, _):
        response = await client.get(URL, {})
        received, buffer = 0, memoryview(bytearray(1000))
        while count := await response.receive_into(buffer):
            received += count
            await trio.sleep(1000)
        assert received == len(body)


@virtual_time
async def test_progress_restarts_the_clock() -> None:
    """1024 bytes every 55 s are slow, but not a stall."""
    count, pause = responses.MIN_PROGRESS, 55.0
    body = bytes(4 * count)
    reply = (head(200, content_length=str(len(body))), *slowly(body, count, pause))
    async with scripted(asked(WHERE, *reply)) as (client, _):
        response = await client.get(URL, {})
        with elapsing(4 * pause):
            received, buffer = 0, memoryview(bytearray(len(body)))
            while count := await response.receive_into(buffer):
                received += count
        assert received == len(body)


TRICKLES = {
    "length": (head(200, content_length="100"), b"x", b"y" * 99),
    "chunks": (head(200, transfer_encoding="chunked"), b"1\r\nx\r\n", b"1\r\ny\r\n"),
    "to the end": (head(200), b"x", b"y"),
}


@pytest.mark.parametrize("lateness", [0.0, 0.5, 1000.0])
@pytest.mark.parametrize("framing", TRICKLES)
@virtual_time
async def test_a_byte_that_comes_as_the_limit_runs_out_is_followed_by_a_stall(
    framing: str, lateness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time is left then, and not less than none, which the clock would refuse."""
    first, *rest = TRICKLES[framing]
    async with scripted(asked(WHERE, first, *rest)) as (client, script):
        response = await client.get(URL, {})
        (stream,) = script.streams
        receive = stream.receive_into

        async def receive_late(buffer: memoryview) -> int:
            count = await receive(buffer[:9])
            with trio.CancelScope(shield=True):
                await trio.sleep(STALL + lateness)
            return count

        monkeypatch.setattr(stream, "receive_into", receive_late)
        assert await response.receive_into(memoryview(bytearray(1))) == 1
        with elapsing(0), pytest.raises(Failure) as raised:
            await response.receive_into(memoryview(bytearray(1)))
        assert_reported(raised.value, UNREACHABLE, "the reply stalled for 60 s")
        assert stream.closed


OVERSIZE = {
    "by its length": head(200, content_length="101"),
    "in chunks": chunked(BODY, b"x"),
    "to the end": head(200) + BODY + b"x",
}


@pytest.mark.parametrize("how", OVERSIZE)
@virtual_time
async def test_a_document_beyond_its_limit_is_invalid(how: str) -> None:
    async with scripted(asked(WHERE, OVERSIZE[how], SILENCE)) as (client, script):
        with elapsing(0), pytest.raises(Failure) as raised:
            await fetch(client, limit=100)
        assert_reported(raised.value, TOO_LARGE, "more than the 100 bytes")
        assert script.streams[0].closed


@virtual_time
async def test_a_document_that_takes_for_ever_is_given_up() -> None:
    """It does not stall: 1024 bytes arrive every 50 s."""
    reply = (head(200), *slowly(bytes(1 << 20), 1024, 50.0))
    async with scripted(asked(WHERE, *reply)) as (client, script):
        with elapsing(responses.DOCUMENT_TIMEOUT), pytest.raises(Failure) as raised:
            await fetch(client)
        assert_reported(raised.value, UNREACHABLE, "no whole reply within 300 s")
        assert script.streams[0].closed


@pytest.mark.parametrize("steps", [(SILENCE,), (LENGTH[:-1], SILENCE), (CHUNKED[:-9], SILENCE)])
@virtual_time
async def test_a_task_that_is_cancelled_leaves_no_connection_open(steps: tuple[Step, ...]) -> None:
    async with scripted(asked(WHERE, *steps)) as (client, script):
        with trio.move_on_after(1) as scope:
            await fetch(client)
        assert scope.cancelled_caught
        assert script.streams[0].closed


# --- what --debug shows ---------------------------------------------------------------------------

CUT_SHORT = LENGTH[: len(LENGTH) - 40]
LOGGED: dict[str, tuple[tuple[Step, ...], str]] = {
    "a whole reply": ((2.0, LENGTH[:-40], 1.5, LENGTH[-40:]), "200, 100 bytes, 3500 ms (note)"),
    "a whole reply in chunks": ((CHUNKED,), "200, 100 bytes, 0 ms (note)"),
    "a whole reply to the end": ((TO_THE_END, END), "200, 100 bytes, 0 ms (note)"),
    "an empty one": ((answer(404),), "404, 0 bytes, 0 ms (note)"),
    "one that is cut off": ((CUT_SHORT, 1.0, END), "200, 60 bytes, 1000 ms (note)"),
    "one that stalls": ((CUT_SHORT, SILENCE), "200, 60 bytes, 60000 ms (note)"),
    "none": ((3.0, END), "the connection was closed before an answer (note)"),
    "a stall": ((SILENCE,), "no answer for 60 s (--stall-timeout) (note)"),
}


@pytest.mark.parametrize("case", LOGGED)
@virtual_time
async def test_each_request_is_logged_once_at_its_end_without_secrets(case: str) -> None:
    steps, message = LOGGED[case]
    script, notes = Script(asked(WHERE, *steps)), Notes()
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    with suppress(Failure):
        response = await client.get(URL, {}, note=" (note)")
        assert notes.details == [] or response.size == 0
        with suppress(Failure):
            await pull(response)
        response.close()
    assert notes.details == [f"{SHOWN}{message}"]
    client.close()
    script.check()


@virtual_time
async def test_a_reply_that_is_discarded_is_logged_with_the_bytes_received() -> None:
    script, notes = Script(asked(WHERE, LENGTH)), Notes()
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    response = await client.get(URL, {})
    await response.receive_into(memoryview(bytearray(10)))
    for _ in range(2):
        response.close()
    assert notes.details == [f"{SHOWN}200, 10 bytes, 0 ms"]


@virtual_time
async def test_a_request_that_was_repeated_on_a_fresh_connection_is_logged_once() -> None:
    script = Script(asked(WHERE, LENGTH), asked(WHERE, END), asked(WHERE, LENGTH))
    notes = Notes()
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    for _ in range(2):
        await fetch(client)
    assert notes.details == [f"{SHOWN}200, 100 bytes, 0 ms"] * 2


@virtual_time
async def test_a_connection_that_cannot_be_made_is_logged() -> None:
    notes = Notes()
    script = Script(unreachable={"https:": RESET})
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    with pytest.raises(Failure):
        await client.get(URL, {}, note=" (note)")
    assert notes.details == [f"{DIALLED}Connection reset by peer (note)"]


# --- several addresses ----------------------------------------------------------------------------

FIRST, SECOND, THIRD = "192.0.2.1", "192.0.2.2", "2001:db8::3"
FAULTS: dict[str, tuple[Step, ...]] = {
    "a reset": (RESET,),
    "the end": (END,),
    "silence": (SILENCE,),
    "half a head": (LENGTH[:20], END),
    "half a body": (LENGTH[:-1], END),
    "a body that stalls": (LENGTH[:-1], SILENCE),
    "no HTTP": (b"SSH-2.0-x\r\n",),
}


@pytest.mark.parametrize("fault", FAULTS)
@virtual_time
async def test_another_try_begins_at_another_address(fault: str) -> None:
    faulty, whole = asked(WHERE, *FAULTS[fault]), asked(WHERE, answer(connection="close"))
    async with scripted(faulty, faulty, whole, whole, faulty, whole) as (client, script):
        script.peers["https://registry.test"] = f"{FIRST} {SECOND} {THIRD}"
        for works in (False, False, True, True, False, True):
            if works:
                await fetch(client)
                continue
            with pytest.raises(Failure) as raised:
                await fetch(client)
            assert f" at {script.streams[-1].peer}: " in raised.value.message
        peers = [stream.peer for stream in script.streams]
        assert peers == [FIRST, SECOND, THIRD, THIRD, THIRD, FIRST]


@pytest.mark.parametrize("fault", [tls_error("bad record"), RESET, SILENCE])
@virtual_time
async def test_another_try_begins_at_another_address_after_a_handshake(
    fault: float | Exception,
) -> None:
    async with scripted(asked(WHERE, LENGTH), unreachable={"https:": fault}) as (client, script):
        script.peers["https://registry.test"] = f"{FIRST} {SECOND}"
        with pytest.raises(Failure) as raised:
            await client.connect(URL)
        assert raised.value.message.startswith(f"{DIALLED[:-2]} at {FIRST}: ")
        script.unreachable.clear()
        assert await fetch(client) == BODY
        assert script.streams[0].peer == SECOND


@virtual_time
async def test_a_connection_that_was_kept_says_nothing_of_its_address() -> None:
    async with scripted(asked(WHERE, LENGTH), asked(WHERE, END), asked(WHERE, LENGTH)) as (
        client,
        script,
    ):
        script.peers["https://registry.test"] = f"{FIRST} {SECOND}"
        for _ in range(2):
            assert await fetch(client) == BODY
        assert [stream.peer for stream in script.streams] == [FIRST, FIRST]


@virtual_time
async def test_a_host_that_is_an_address_is_not_named_twice() -> None:
    url = urls.parse("https://192.0.2.1/x")
    async with scripted(asked(str(url), END)) as (client, script):
        script.peers["https://192.0.2.1"] = FIRST
        with pytest.raises(Failure) as raised:
            await fetch(client, url)
        assert raised.value.message.startswith("GET https://192.0.2.1/x: the connection was closed")


def test_no_more_addresses_are_named_than_the_limit() -> None:
    assert responses.at("x", []) == ""
    assert responses.at("x", [FIRST, THIRD]) == " at 192.0.2.1, 2001:db8::3"
    assert responses.at("x", list("abcde")) == " at a, b, c, d, …"


# --- HEAD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404])
@virtual_time
async def test_what_is_asked_by_head_has_no_body_whatever_its_fields_say(status: int) -> None:
    fields: tuple[dict[str, str | None], ...] = (
        {"content_length": "100"},
        {"transfer_encoding": "chunked"},
        {},
    )
    exchanges = [asked(WHERE, head(status, **each), method="HEAD") for each in fields]
    script, notes = Script(*exchanges, asked(WHERE, LENGTH)), Notes()
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    for _ in fields:
        response = await client.get(URL, {}, method=request.HEAD)
        assert (response.status, await response.read(10)) == (status, b"")
    assert await (await client.get(URL, {})).read(1000) == BODY
    assert notes.details[0] == f"{SHOWN.replace('GET', 'HEAD')}{status}, 0 bytes, 0 ms"
    assert len(script.dialled) == 1
    client.close()
    script.check()


# --- forms --------------------------------------------------------------------------------------

FORM = b"refresh_token=hunter2"


@virtual_time
async def test_a_form_is_posted() -> None:
    wanted = asked(
        WHERE, LENGTH, form=FORM, content_type="application/x-www-form-urlencoded", accept=None
    )
    script, notes = Script(wanted), Notes()
    client = Client(script, notes, stall_timeout=60, user_agent="test/1")
    response = await client.get(URL, {}, method=request.post(FORM))
    assert await response.read(1000) == BODY
    assert notes.details == [f"{SHOWN.replace('GET', 'POST')}200, 100 bytes, 0 ms"]
    client.close()
    script.check()


# --- plain http through a proxy -----------------------------------------------------------------

PROXY = proxy.parse("http://user:hunter2@proxy.test:3128", "HTTP_PROXY")


@virtual_time
async def test_a_proxy_gets_the_whole_url_for_plain_http_alone() -> None:
    plain = MemoryStream(LENGTH)
    secure = MemoryStream(LENGTH)

    async def dial(url: Url, _: Route) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        return plain if url.scheme == "http" else secure

    client = Client(dial, Notes(), stall_timeout=60, user_agent="test/1", proxy_for=lambda _: PROXY)
    for scheme in ("http", "https"):
        assert await fetch(client, urls.parse(f"{scheme}://registry.test/x?y")) == BODY
    assert plain.sent.startswith(b"GET http://registry.test/x?y HTTP/1.1\r\n")
    assert b"\r\nHost: registry.test\r\n" in plain.sent
    assert f"\r\nProxy-Authorization: {PROXY.authorization}\r\n".encode() in plain.sent
    assert secure.sent.startswith(b"GET /x?y HTTP/1.1\r\nHost: registry.test\r\n")
    assert b"Proxy-Authorization" not in secure.sent
    client.close()
    assert plain.closed
    assert secure.closed


# --- dialling -----------------------------------------------------------------------------------


def several(*errors: OSError) -> OSError:
    """Return what trio raises when no address of a name answers."""
    error = OSError("all attempts to connect to registry.test:443 failed")
    error.__cause__ = errors[0] if len(errors) == 1 else ExceptionGroup("several", list(errors))
    return error


NO_ROUTE = OSError(errno.EHOSTUNREACH, "No route to host")
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

SHORT = OSError(errno.EMFILE, "Too many open files")
SHORTAGE = (503, "UNAVAILABLE", True)

DIALS: dict[str, tuple[OSError, tuple[int, str, bool], str]] = {
    "refused": (REFUSED, UNREACHABLE, "Connection refused"),
    "one address": (several(REFUSED), UNREACHABLE, "Connection refused"),
    "two addresses": (
        several(REFUSED, NO_ROUTE, REFUSED),
        UNREACHABLE,
        "Connection refused; No route to host",
    ),
    "no such name": (
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        NOWHERE,
        "Name or service not known",
    ),
    "no address of this name": (
        socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"),
        NOWHERE,
        "No address associated with hostname",
    ),
    "no name server": (
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        UNREACHABLE,
        "Temporary failure in name resolution",
    ),
    "forbidden": (OSError(errno.EACCES, "Permission denied"), NOWHERE, "Permission denied"),
    "certificate": (
        mistrusted("self-signed certificate"),
        TLS,
        "TLS failed: self-signed certificate (an authority of its own goes into certs.d or"
        " --cert-dir; --tls-verify=false accepts anything)",
    ),
    "no TLS": (
        tls_error("wrong version number", "WRONG_VERSION_NUMBER"),
        TLS,
        "TLS failed: wrong version number; it may speak plain http, which insecure = true",
    ),
    "TLS": (tls_error("bad record"), TLS, "TLS failed: bad record"),
    "descriptors": (SHORT, SHORTAGE, "Too many open files"),
    "descriptors for one of two": (several(NO_ROUTE, SHORT), SHORTAGE, "Too many open files"),
}


@pytest.mark.parametrize("case", DIALS)
@virtual_time
async def test_a_connection_that_cannot_be_made_is_a_failure(case: str) -> None:
    error, wanted, message = DIALS[case]
    async with scripted(unreachable={"https:": error}) as (client, script):
        for attempt in (partial(client.get, URL, {}), partial(client.connect, URL)):
            with pytest.raises(Failure) as raised:
                await attempt()
            assert_reported(raised.value, wanted, message, DIALLED)
            assert raised.value.is_transient == raised.value.retryable
        assert len(script.dialled) == 2


@pytest.mark.parametrize(("stall_timeout", "seconds"), [(60, 30), (30, 30), (7, 7)])
@virtual_time
async def test_an_address_that_never_answers_is_given_up(
    stall_timeout: float, seconds: float
) -> None:
    script = Script(unreachable={"https:": SILENCE})
    client = Client(script, Notes(), stall_timeout=stall_timeout, user_agent="test/1")
    for attempt in (partial(client.get, URL, {}), partial(client.connect, URL)):
        with elapsing(seconds), pytest.raises(Failure) as raised:
            await attempt()
        assert_reported(raised.value, UNREACHABLE, f"no answer for {seconds} s", DIALLED)


@virtual_time
async def test_a_defect_is_not_taken_for_a_failure() -> None:
    async with scripted(asked(WHERE, ZeroDivisionError())) as (client, script):
        with pytest.raises(ZeroDivisionError):
            await client.get(URL, {})
        assert script.streams[0].closed

"""The modules of the library for parents without I/O: replies at every split, and the pool."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of, encode

from imgproxy.frontends.single_image_routes import GetLayers, parse
from imgproxy.parent import failures
from imgproxy.parent.exchange import (
    MAX_DOCUMENT,
    UNDER_WAY,
    Exchange,
    IncompleteReplyError,
    Pipeline,
    blob_target,
    document_target,
    layer_target,
    layers_target,
)
from imgproxy.parent.failures import BrokenReplyError, BusyError, HungUpError, ShortBodyError
from imgproxy.parent.pool import Pool
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.layer_selection import Layer, LayerSpec, Offsets, detail
from imgproxy.specs.oci.manifest import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

DIGEST = digest_of(b"x")


def reply(body: bytes, *fields: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def fed(*pieces: bytes, target: str = "/manifest") -> Exchange:
    exchange = Exchange(target)
    for piece in pieces:
        exchange.feed(piece)
    return exchange


def test_a_request_is_a_line_and_a_host() -> None:
    assert Exchange("/manifest").request == b"GET /manifest HTTP/1.1\r\nHost: imgproxy\r\n\r\n"
    assert Exchange("/quit", "POST").request.startswith(b"POST /quit HTTP/1.1\r\n")


def test_a_reply_is_the_same_however_it_is_split() -> None:
    whole = reply(b"\r\n\r\nbody", "Content-Type: text/plain", f"Docker-Content-Digest: {DIGEST}")
    expected = (b"\r\n\r\nbody", "text/plain", DIGEST)
    assert fed(whole).document() == expected
    for cut in range(1, len(whole)):
        exchange = fed(whole[:cut])
        assert not exchange.is_whole
        exchange.feed(whole[cut:])
        assert exchange.is_whole
        assert exchange.document() == expected
    assert fed(*(bytes([each]) for each in whole)).document() == expected


def test_interim_replies_are_passed_over() -> None:
    exchange = fed(b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"body"))
    assert exchange.head is not None
    assert (exchange.head.status, exchange.document().raw) == (200, b"body")


def test_a_body_can_go_straight_to_its_reader() -> None:
    exchange = fed(reply(b"0123456789")[:-6])
    buffer = bytearray(3)
    assert exchange.take_into(memoryview(buffer)) == 3
    assert (bytes(buffer), exchange.remaining, exchange.counts) == (b"012", 7, (4, 10))
    assert exchange.take_into(memoryview(buffer)) == 1
    assert exchange.take_into(memoryview(buffer)) == 0
    exchange.count_received(4)
    assert (exchange.remaining, exchange.counts, exchange.is_whole) == (2, (8, 10), False)
    exchange.count_received(2)
    assert exchange.is_whole


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 2"], [reply(b"body")[:-1]]])
def test_an_early_end_is_told(pieces: list[bytes]) -> None:
    exchange = fed(*pieces)
    with pytest.raises(IncompleteReplyError):
        exchange.feed(b"")
    with pytest.raises(IncompleteReplyError):
        exchange.count_received(0)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        reply(b"body") + b"x",
        b"x" * 70_000,
    ],
)
def test_what_is_no_reply_of_the_program_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenReplyError):
        fed(data)


def test_a_connection_that_closes_does_not_stay() -> None:
    assert fed(reply(b"")).is_reusable
    assert not fed(reply(b"", "Connection: close")).is_reusable
    assert not Exchange("/manifest").is_reusable


def test_a_document_has_a_limit() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    fed(head % MAX_DOCUMENT).expect_document()
    with pytest.raises(BrokenReplyError, match="more than"):
        fed(head % (MAX_DOCUMENT + 1)).expect_document()


def test_a_manifest_is_taken_apart() -> None:
    layer = {"mediaType": OCI_LAYER, "digest": DIGEST, "size": 7}
    raw = encode({"schemaVersion": 2, "config": layer, "layers": [layer, layer]})
    manifest = fed(
        reply(
            raw,
            f"Content-Type: {OCI_MANIFEST}",
            f"Docker-Content-Digest: {digest_of(raw)}",
            f"Manifest-Digest: {DIGEST}",
            f"Manifest-Media-Type: {DOCKER_MANIFEST}",
            "Index-Digest: sha256:index",
        )
    ).manifest()
    descriptor = Descriptor(OCI_LAYER, digests.parse(DIGEST), 7)
    assert (manifest.raw, manifest.raw_digest) == (raw, digest_of(raw))
    assert (manifest.digest, manifest.media_type) == (DIGEST, DOCKER_MANIFEST)
    assert (manifest.index_digest, manifest.artifact_type) == ("sha256:index", None)
    assert (manifest.config, manifest.layers) == (descriptor, (descriptor, descriptor))
    assert manifest.json() == json.loads(raw)


@pytest.mark.parametrize(
    ("media_type", "document"),
    [(OCI_MANIFEST, {}), (OCI_INDEX, {"schemaVersion": 2, "manifests": []})],
)
def test_what_is_no_manifest_is_refused(media_type: str, document: object) -> None:
    exchange = fed(reply(encode(document), f"Content-Type: {media_type}"))
    with pytest.raises(BrokenReplyError):
        exchange.manifest()


def test_an_error_reply_has_its_facts() -> None:
    detail = {"retryable": True, "platforms": ["linux/amd64"]}
    body = encode({"errors": [{"code": "UNAVAILABLE", "message": "not now", "detail": detail}]})
    error = fed(reply(body, status=503)).refusal()
    assert (error.status, error.code, error.message) == (503, "UNAVAILABLE", "not now")
    assert (error.retryable, error.detail, error.target) == (True, detail, "/manifest")
    assert str(error) == "/manifest: 503 UNAVAILABLE: not now"


def test_an_error_is_final_unless_it_says_otherwise() -> None:
    body = encode({"errors": [{"code": "DENIED", "message": "a\x1bb"}]})
    error = fed(reply(body, status=403)).refusal()
    assert (error.retryable, error.message) == (False, "a b")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"errors":[]}', b'{"errors":[{"code":"X"}]}', b'{"errors":[1]}']
)
def test_an_error_reply_that_does_not_say_why_is_refused(body: bytes) -> None:
    with pytest.raises(BrokenReplyError, match="500"):
        raise fed(reply(body, status=500)).refusal()


def test_blobs_are_asked_for_by_descriptor_digest_or_text() -> None:
    digest = digests.parse(DIGEST)
    for what in (DIGEST, digest, Descriptor("", digest, 0)):
        assert blob_target(what) == f"/blobs/{DIGEST}"
        assert document_target(what) == f"/manifests/{DIGEST}"
    with pytest.raises(ValueError, match="is not a digest"):
        blob_target(f"{DIGEST} HTTP/1.1\r\n\r\n")


# --- who has which socket --------------------------------------------------------------------


def taken(pool: Pool[str], holders: Iterable[str]) -> list[str | None]:
    return [pool.take(holder, "/x") for holder in holders]


def test_layers_are_asked_for_by_what_they_are() -> None:
    assert layers_target() == "/layers"
    assert layers_target(offset=0) == "/layers?offset=0"
    asked = layers_target("a/b+c", "*=&", {"k": "v=w", "\u00e4": ""}, "-2--1")
    query = "type=a%2Fb%2Bc&title=%2A%3D%26&annotation=k%3Dv%3Dw&annotation=%C3%A4%3D&offset=-2--1"
    assert asked == f"/layers?{query}"
    assert parse(b"GET", asked.encode()) == GetLayers(
        LayerSpec("a/b+c", "*=&", (("k", "v=w"), ("\u00e4", "")), offsets=Offsets(-2, -1))
    )
    assert layer_target(7) == "/layers/7"


def test_layers_and_candidates_are_taken_apart() -> None:
    layer = Layer(Descriptor(OCI_LAYER, digests.parse(DIGEST), 1), 2, 0)
    told = encode(detail([layer]))
    assert fed(reply(told), target="/layers").layers() == [layer]
    assert fed(reply(told), target="/candidates").candidates() == detail([layer])
    exchange = fed(reply(b"", f"Docker-Content-Digest: {DIGEST}"), target="/layers/0")
    assert exchange.blob_digest() == layer.descriptor.digest


@pytest.mark.parametrize("body", [b"no", b"{}", b"[1]", b"[[]]"])
def test_what_describes_nothing_is_refused(body: bytes) -> None:
    exchange = fed(reply(body), target="/layers")
    for take in (exchange.layers, exchange.candidates):
        with pytest.raises(BrokenReplyError, match=r"^/layers: not understood: "):
            take()


@pytest.mark.parametrize("fields", [[], ["Docker-Content-Digest: x"]])
def test_a_layer_without_a_digest_is_refused(fields: list[str]) -> None:
    with pytest.raises(BrokenReplyError, match="is not a digest"):
        fed(reply(b"", *fields), target="/layers/0").blob_digest()


def test_sockets_are_had_by_one_at_a_time() -> None:
    pool = Pool(["a", "b"])
    assert {*taken(pool, ["me", "you"])} == {"a", "b"}
    assert taken(pool, ["me", "you", "they"]) == [None, None, None]
    pool.release("a")
    assert taken(pool, ["they"]) == ["a"]
    assert len(pool) == 2


def test_nobody_waits_for_themselves() -> None:
    pool = Pool(["a", "b"])
    taken(pool, ["me", "me"])
    with pytest.raises(BusyError, match=r"\(2\)"):
        pool.take("me", "/x")
    assert pool.take("you", "/x") is None


def test_a_lost_socket_does_not_come_back() -> None:
    pool = Pool(["a", "b"])
    first, _ = taken(pool, ["me", "you"])
    assert first is not None
    pool.discard(first)
    pool.release(first)
    assert len(pool) == 1
    assert taken(pool, ["me"]) == [None]
    assert len(pool.empty()) == 1
    assert len(pool) == 0


# --- how things end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returncode", "text", "retryable"),
    [
        (0, "imgproxy ended with exit status 0", False),
        (2, "wrong usage", False),
        (4, "a blob did not match its digest", False),
        (5, "the source was lost", True),
        (77, "imgproxy ended with exit status 77", False),
        (-signal.SIGKILL, "imgproxy was killed by SIGKILL", True),
        (-(signal.SIGRTMIN + 1), f"signal {signal.SIGRTMIN + 1}", True),
    ],
)
def test_an_ending_is_told(returncode: int, text: str, retryable: bool) -> None:  # noqa: FBT001
    ending = failures.ending(returncode, ("a line",))
    assert text in str(ending)
    assert (ending.retryable, ending.diagnostics) == (retryable, ("a line",))
    assert (ending.status, ending.signal).count(None) == 1


def test_the_reason_is_the_last_line_about_the_request() -> None:
    lines = ("imgproxy: GET /a: 1", "imgproxy: GET /a: 2", "imgproxy: GET /b: 3")
    assert failures.reason_for("/a", lines) == lines[1]
    assert failures.reason_for("/c", lines) == lines[2]
    assert failures.reason_for("/a", ()) is None


def test_a_short_body_may_pass_unless_its_bytes_are_wrong() -> None:
    lost = "imgproxy: GET /blobs/x: broken off: UNREACHABLE: …"
    wrong = "imgproxy: GET /blobs/x: broken off: DIGEST_INVALID: …"
    assert ShortBodyError("/blobs/x", (1, 2), lost, None).retryable
    error = ShortBodyError("/blobs/x", (1, 2), wrong, None)
    assert not error.retryable
    assert str(error) == f"/blobs/x: short body, 1 of 2 bytes: {wrong}"
    ending = failures.ending(5, ())
    assert HungUpError("/blobs/x", "no reply", wrong, ending).retryable


# --- several requests under way ------------------------------------------------------------------


def test_so_many_requests_are_under_way_until_there_are_no_more() -> None:
    targets = [f"/{number}" for number in range(UNDER_WAY + 2)]
    pipeline = Pipeline(targets)
    assert pipeline.requests() == b"".join(Exchange(each).request for each in targets[:UNDER_WAY])
    assert pipeline.target == "/0"
    sent = [pipeline.requests()]
    for target in targets:
        exchange = pipeline.next()
        assert exchange is pipeline.present is not None
        assert exchange.target == target
        exchange.feed(reply(target.encode()))
        sent.append(pipeline.requests())
    assert sent == [
        b"",
        *(Exchange(each).request for each in targets[UNDER_WAY:]),
        *[b""] * UNDER_WAY,
    ]
    assert pipeline.next() is None


def test_replies_in_a_row_are_the_same_however_they_are_split() -> None:
    bodies = [b"one", b"", b"HTTP/1.1 200 OK", b"\r\n\r\n"]
    whole = b"".join(map(reply, bodies))
    for length in range(1, len(whole) + 1):
        pipeline = Pipeline("abcd")
        pipeline.requests()
        pieces = iter([whole[at : at + length] for at in range(0, len(whole), length)])
        found = []
        while (exchange := pipeline.next()) is not None:
            while not exchange.is_whole:
                exchange.feed(next(pieces))
            found.append(exchange.document().raw)
        assert found == bodies
        assert next(pieces, None) is None


def test_what_is_under_way_can_be_dropped_if_it_is_small() -> None:
    pipeline = Pipeline("abc")
    pipeline.requests()
    assert pipeline.next() is not None
    pieces = iter([reply(b"12345")[:-3], b"345" + reply(b"1"), reply(b"12")])
    fed_to = []
    for exchange in pipeline.rest(8):
        exchange.feed(next(pieces))
        fed_to.append(exchange.target)
    assert fed_to == ["a", "a", "c"]
    assert (pipeline.requests(), pipeline.next()) == (b"", None)


def test_what_is_under_way_is_not_dropped_if_it_is_large() -> None:
    pipeline = Pipeline("ab")
    pipeline.requests()
    assert pipeline.next() is not None
    rest = pipeline.rest(7)
    next(rest).feed(reply(b"12345"))
    next(rest).feed(reply(b"123")[:-3])
    with pytest.raises(IncompleteReplyError):
        next(rest)


def test_bytes_behind_a_reply_that_none_follows_are_not_understood() -> None:
    with pytest.raises(BrokenReplyError, match="more bytes"):
        fed(reply(b"1") + b"2")

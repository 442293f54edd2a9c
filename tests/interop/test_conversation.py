"""HTTP as a parent may speak it, over a real socket: what is answered, and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.images import OCI_CONFIG, OCI_MANIFEST, digest_of
from support.parent import Child, listener_at

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Listen, Sample, Serve

HOST = "Host: localhost"

# Request lines and fields, the body, and the status with the error's code.
REFUSED: dict[str, tuple[list[str], bytes, int, str]] = {
    "no such path": (["GET /nowhere HTTP/1.1", HOST], b"", 404, "NOT_FOUND"),
    "the root": (["GET / HTTP/1.1", HOST], b"", 404, "NOT_FOUND"),
    "a query": (["GET /manifest?x HTTP/1.1", HOST], b"", 400, "BAD_REQUEST"),
    "no Host": (["GET /manifest HTTP/1.1"], b"", 400, "BAD_REQUEST"),
    "two Hosts": (["GET /manifest HTTP/1.1", HOST, HOST], b"", 400, "BAD_REQUEST"),
    "no Host and a body": (["POST /quit HTTP/1.1", "Content-Length: 2"], b"ok", 400, "BAD_REQUEST"),
    "a tunnel": (["CONNECT localhost:80 HTTP/1.1", HOST], b"", 501, "UNSUPPORTED"),
    "decoded once": (["GET /%256danifest HTTP/1.1", HOST], b"", 404, "NOT_FOUND"),
    "half an escape": (["GET /manifest%4 HTTP/1.1", HOST], b"", 400, "BAD_REQUEST"),
    "no digest": (["GET /blobs/latest HTTP/1.1", HOST], b"", 400, "DIGEST_INVALID"),
    "a path for a digest": (
        ["GET /blobs/../index.json HTTP/1.1", HOST],
        b"",
        400,
        "DIGEST_INVALID",
    ),
    "upper case": (
        [f"GET /blobs/sha256:{'A' * 64} HTTP/1.1", HOST],
        b"",
        400,
        "DIGEST_INVALID",
    ),
    "no such blob": (
        [f"GET /blobs/{digest_of(b'none')} HTTP/1.1", HOST],
        b"",
        404,
        "BLOB_UNKNOWN",
    ),
    "no such manifest": (
        [f"GET /manifests/{digest_of(b'none')} HTTP/1.1", HOST],
        b"",
        404,
        "MANIFEST_UNKNOWN",
    ),
}

CLOSED: dict[str, tuple[list[str], bytes, int]] = {
    "no HTTP at all": (["hello"], b"", 400),
    "HTTP/2": (["PRI * HTTP/2.0", "", "SM"], b"", 505),
    "two lengths": (
        ["GET /manifest HTTP/1.1", HOST, "Content-Length: 1", "Content-Length: 2"],
        b"ab",
        400,
    ),
    "length and chunks": (
        ["GET /manifest HTTP/1.1", HOST, "Content-Length: 5", "Transfer-Encoding: chunked"],
        b"0\r\n\r\n",
        400,
    ),
    "an unknown coding": (["GET /manifest HTTP/1.1", HOST, "Transfer-Encoding: gzip"], b"", 501),
    "a long body": (
        ["GET /manifest HTTP/1.1", HOST, "Content-Length: 65537"],
        bytes(65537),
        413,
    ),
    "a body without end": (
        ["GET /manifest HTTP/1.1", HOST, "Transfer-Encoding: chunked"],
        b"1000\r\n" + bytes(4096) + b"\r\n" + b"f000\r\n" + bytes(0xF000) + b"\r\n1\r\nx",
        413,
    ),
    "a long head": (["GET /manifest HTTP/1.1", HOST, "X-Long: " + "x" * 20_000], b"", 431),
    "a long line": (["GET /" + "x" * 20_000 + " HTTP/1.1", HOST], b"", 431),
}


def encoded(lines: list[str], body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode() + body


def assert_goes_on(child: Child, sample: Sample) -> None:
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


def test_every_kind_of_refusal_leaves_the_connection_usable(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    for name, (lines, body, status, code) in REFUSED.items():
        child.client.send(encoded(lines, body))
        reply = child.client.reply()
        assert (reply.status, reply.code) == (status, code), name
        assert reply.get("Connection") is None, name
    assert_goes_on(child, sample)
    assert len(child.stderr.splitlines()) == len(REFUSED), "one line a failure"


def test_what_cannot_be_understood_is_answered_and_ends_the_conversation(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    for name, (lines, body, status) in CLOSED.items():
        client = child.connect(str(tmp_path / "socket"))
        client.send(encoded(lines, body))
        reply = client.reply()
        assert reply.status == status, name
        assert reply.error, name
        assert reply.get("Connection") == "close", name
        assert client.ending() == "end", name
    assert child.connect(str(tmp_path / "socket")).get("/manifest").status == 200


@pytest.mark.parametrize("path", ["/manifest", "/config", "/quit", "/blobs/x", "/manifests/x"])
def test_another_method_is_a_405_that_names_those_allowed(
    path: str, sample: Sample, serve: Serve
) -> None:
    path = path.replace("x", digest_of(sample.layers[0]))
    child = serve(sample.name)
    wrong = ("GET", "HEAD", "PUT") if path == "/quit" else ("POST", "PUT", "DELETE", "PATCH")
    for method in wrong:
        reply = child.client.request(method, path)
        assert reply.status == 405
        assert reply.get("Allow") == ("POST" if path == "/quit" else "GET, HEAD")
    assert_goes_on(child, sample)


def test_every_200_says_what_its_body_is(sample: Sample, serve: Serve) -> None:
    digest, layer = sample.descriptor["digest"], digest_of(sample.layers[0])
    config = sample.layout.document(sample.descriptor)["config"]["digest"]
    expected = {
        "/manifest": (digest, OCI_MANIFEST),
        f"/manifests/{digest}": (digest, OCI_MANIFEST),
        "/config": (config, OCI_CONFIG),
        f"/blobs/{config}": (config, "application/octet-stream"),
        f"/blobs/{layer}": (layer, "application/octet-stream"),
    }
    child = serve(sample.name)
    for path, (named, media_type) in expected.items():
        reply = child.client.get(path)
        assert (reply.status, reply.reason) == (200, "OK")
        assert reply.get("Docker-Content-Digest") == named == digest_of(reply.body)
        assert reply.get("Content-Type") == media_type
        assert reply.get("Accept-Ranges") == "none"
    assert_goes_on(child, sample)


def test_head_has_the_fields_of_get_and_no_body(sample: Sample, serve: Serve) -> None:
    layer = digest_of(sample.layers[1])
    child = serve(sample.name)
    for path in ("/manifest", "/config", f"/blobs/{layer}", "/nowhere", "/manifest?x"):
        replies = [child.client.request(method, path) for method in ("GET", "HEAD")]
        got, head = ([f for f in reply.fields if f[0] != "Date"] for reply in replies)
        assert head == got, path
        assert replies[0].status == replies[1].status, path
    assert_goes_on(child, sample)


@pytest.mark.parametrize(
    "fields",
    [
        ["Range: bytes=0-1"],
        ["If-None-Match: *"],
        ["If-Modified-Since: Fri, 20 Nov 2026 00:00:00 GMT"],
        ["Accept-Encoding: gzip"],
        ["Content-Length: 65536"],
        ["Transfer-Encoding: chunked"],
    ],
)
def test_fields_and_bodies_without_a_meaning_here_change_nothing(
    fields: list[str], sample: Sample, serve: Serve
) -> None:
    bodies = {"Content-Length: 65536": bytes(65536), "Transfer-Encoding: chunked": b"0\r\n\r\n"}
    child = serve(sample.name)
    for path in ("/manifest", f"/blobs/{digest_of(sample.layers[0])}"):
        plain = child.client.get(path)
        lines = [f"GET {path} HTTP/1.1", HOST, *fields]
        child.client.send(encoded(lines, bodies.get(fields[0], b"")))
        reply = child.client.reply()
        assert (reply.status, reply.body) == (plain.status, plain.body)
    assert_goes_on(child, sample)


def test_other_ways_to_write_a_path_are_understood(sample: Sample, serve: Serve) -> None:
    layer = digest_of(sample.layers[0])
    child = serve(sample.name)
    assert child.client.get("http://localhost/manifest").body == sample.manifest
    assert child.client.get("/%6danifest").body == sample.manifest
    assert child.client.get("/manifest?").body == sample.manifest
    child.client.send(b"\r\n")
    assert child.client.get("/manifest").body == sample.manifest
    assert child.client.get(f"/blobs/{layer.replace(':', '%3A')}").body == sample.layers[0]
    assert_goes_on(child, sample)


def test_a_parent_that_waits_for_100_continue_gets_it(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    child.client.ask("GET", "/manifest", "Expect: 100-continue", "Content-Length: 3")
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert child.client.read(len(interim)) == interim
    child.client.send(b"abc")
    assert child.client.reply().body == sample.manifest
    assert_goes_on(child, sample)


def test_http_1_0_is_answered_once(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    child.client.send(b"GET /manifest HTTP/1.0\r\n\r\n")
    assert child.client.reply().body == sample.manifest
    assert child.client.ending() == "end"
    assert child.wait() == 0


def test_http_1_0_is_kept_alive_where_it_is_asked_for(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    for _ in range(3):
        child.client.send(b"GET /manifest HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        reply = child.client.reply()
        assert (reply.body, reply.get("Connection")) == (sample.manifest, "keep-alive")
    assert_goes_on(child, sample)


def test_pipelined_requests_are_answered_in_order(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    layers = [digest_of(layer) for layer in sample.layers]
    paths = ["/manifest", "/nowhere", *(f"/blobs/{layer}" for layer in layers), "/config"] * 20
    for path in paths:
        child.client.ask("GET", path)
    replies = [child.client.reply() for _ in paths]
    assert replies[0].body == sample.manifest
    assert [reply.status for reply in replies] == [200, 404, 200, 200, 200] * 20
    assert [reply.body for reply in replies[2:4]] == list(sample.layers)
    assert child.finish() == 0

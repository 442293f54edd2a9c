"""One conversation over a wire in memory: what is answered to which bytes, and how it ends."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    digest_of,
    encode,
    on,
)
from support.sources import LINUX, Place, Store, accept_anything, image_of, never
from support.streams import (
    END,
    SILENCE,
    Notes,
    Step,
    elapsing,
    real_time,
    replies,
    virtual_time,
)
from support.streams import MemoryStream as MemoryWire
from trio.testing import wait_all_tasks_blocked

from imgproxy import errors
from imgproxy.errors import Failure, MethodNotAllowedError, UnavailableError
from imgproxy.images.image import Image
from imgproxy.server import http_connection
from imgproxy.server.http_connection import MAX_DRAIN, MAX_HEAD, Conversation, Severity, Shutdown
from imgproxy.verification.verified_blob import CHUNK, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.parent import Reply

MIB = 1 << 20


def ask(
    method: str = "GET",
    target: str = "/manifest",
    *fields: str,
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """Give a request; `fields` are whole lines."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunks(*sizes: int) -> bytes:
    """Give a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in (*sizes, 0))


GET, QUIT = ask(), ask("POST", "/quit")


@dataclass
class Talk:
    """A conversation that has ended."""

    wire: MemoryWire
    notes: Notes
    severity: Severity

    def replies(self, *methods: str) -> list[Reply]:
        return replies(self.wire.sent, *methods)

    def reply(self, method: str = "GET") -> Reply:
        (reply,) = self.replies(method)
        return reply


async def hold(
    image: Image,
    wire: MemoryWire,
    *,
    shutdown: Shutdown | None = None,
    accepted: bool = False,
) -> Talk:
    """Hold a conversation to its end."""
    notes = Notes()
    shutdown = Shutdown() if shutdown is None else shutdown
    severity = await Conversation(wire, image, shutdown, notes, accepted=accepted).run()
    assert wire.closed
    return Talk(wire, notes, severity)


async def talk(place: Place, *steps: Step, accepted: bool = False) -> Talk:
    """Send these, and nothing after them; the sending side is shut down then."""
    return await hold(image_of(place), MemoryWire(*steps, END), accepted=accepted)


@dataclass
class Sample:
    """An image of two platforms, of which linux/amd64 is chosen."""

    store: Store
    index: Json
    chosen: Json
    other: Json
    place: Place

    @property
    def blobs(self) -> list[Json]:
        document = self.store.document(self.chosen)
        return [document["config"], *document["layers"]]


def sample(*layers: bytes, docker: bool = False) -> Sample:
    store = Store()
    chosen = store.image(*(layers or (b"one", b"two")), docker=docker)
    other = store.image(b"other", docker=docker)
    index = store.index(on(chosen, "linux/amd64"), on(other, "linux/arm64"), docker=docker)
    return Sample(store, index, chosen, other, Place(store, index))


def failing(failure: Exception) -> Image:
    """Give an image whose place fails when it is looked for."""

    async def fail() -> NoReturn:
        raise failure

    return Image(fail, accept_anything, LINUX, never)


# --- replies as they are promised ---------------------------------------------------------------


def fields_of(reply: Reply) -> dict[str, str]:
    """Give the fields of a reply apart from the date, which must be one."""
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.get("Date") or "")
    assert len({name.lower() for name, _ in reply.fields}) == len(reply.fields)
    return {name: value for name, value in reply.fields if name != "Date"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("docker", [True, False])
@virtual_time
async def test_the_manifest_is_oci_and_says_what_it_was(
    method: str,
    docker: bool,  # noqa: FBT001  (a parameter)
) -> None:
    image = sample(docker=docker)
    reply = (await talk(image.place, ask(method))).reply(method)
    original = image.store.read(image.chosen["digest"])
    served = (await image_of(image.place).open()).oci_manifest
    assert (served == original) != docker
    assert reply.body == (served if method == "GET" else b"")
    assert (reply.status, reply.reason) == (200, "OK")
    assert fields_of(reply) == {
        "Content-Length": str(len(served)),
        "Accept-Ranges": "none",
        "Content-Type": OCI_MANIFEST,
        "Docker-Content-Digest": digest_of(served),
        "Manifest-Digest": image.chosen["digest"],
        "Manifest-Media-Type": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "Index-Digest": image.index["digest"],
    }


@virtual_time
async def test_without_an_index_there_is_no_digest_of_one() -> None:
    image = sample()
    reply = (await talk(Place(image.store, image.chosen), GET)).reply()
    assert reply.get("Manifest-Digest") == image.chosen["digest"]
    assert reply.get("Index-Digest") is None


OCI_EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("in_index", [True, False])
@virtual_time
async def test_an_artifact_is_served_verbatim_and_says_its_type(
    method: str,
    in_index: bool,  # noqa: FBT001  (a parameter)
) -> None:
    store = Store()
    config = store.add(b"{}", OCI_EMPTY)
    subject = store.image(b"what it is about")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom+json",
        "config": config,
        "layers": [config],
        "subject": subject,
    }
    artifact = store.add(encode(document), OCI_MANIFEST)
    place = Place(store, store.index(on(artifact, "linux/amd64")) if in_index else artifact)
    reply = (await talk(place, ask(method))).reply(method)
    assert reply.body == (store.read(artifact["digest"]) if method == "GET" else b"")
    assert (reply.status, reply.get("Content-Type")) == (200, OCI_MANIFEST)
    assert reply.get("Artifact-Type") == "application/vnd.example.sbom+json"
    assert (reply.get("Index-Digest") is not None) == in_index


@virtual_time
async def test_an_image_has_no_artifact_type() -> None:
    store = Store()
    for said in ("", None):
        image = store.image(b"x", artifactType=said)
        reply = (await talk(Place(store, image), GET)).reply()
        assert reply.status == 200
        assert reply.get("Artifact-Type") is None


def contents(image: Sample) -> dict[str, tuple[str, str, bytes]]:
    """Give what can be had beside the manifest: its digest, its type, its bytes."""
    config, *layers = image.blobs
    octets = "application/octet-stream"
    wanted = [
        ("/config", config["digest"], OCI_CONFIG),
        *((f"/blobs/{blob['digest']}", blob["digest"], octets) for blob in (config, *layers)),
        *(
            (f"/manifests/{entry['digest']}", entry["digest"], entry["mediaType"])
            for entry in (image.index, image.chosen, image.other)
        ),
    ]
    return {path: (digest, kind, image.store.read(digest)) for path, digest, kind in wanted}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@virtual_time
async def test_content_comes_byte_for_byte_with_its_digest(method: str) -> None:
    image = sample()
    for path, (digest, media_type, content) in contents(image).items():
        talked = await talk(image.place, ask(method, path))
        reply = talked.reply(method)
        assert (reply.status, reply.reason) == (200, "OK")
        assert reply.body == (content if method == "GET" else b"")
        assert fields_of(reply) == {
            "Content-Length": str(len(content)),
            "Accept-Ranges": "none",
            "Content-Type": media_type,
            "Docker-Content-Digest": digest,
        }
        assert len(talked.wire.sizes) == 1  # head and body leave together
        assert talked.notes.failures == []
        assert talked.notes.details == [f"{method} {path}: 200, {len(content)} bytes"]
        assert talked.severity == Severity.NOTHING


@pytest.mark.parametrize(
    ("media_type", "wanted"),
    [
        ("application/vnd.docker.container.image.v1+json", OCI_CONFIG),
        ("application/vnd.oci.empty.v1+json", "application/vnd.oci.empty.v1+json"),
        (None, "application/octet-stream"),
    ],
)
@virtual_time
async def test_a_config_is_what_the_manifest_names_it(media_type: str | None, wanted: str) -> None:
    store = Store()
    config = {**store.add(b"{}", OCI_CONFIG), "mediaType": media_type}
    root = store.add(encode({"config": config, "layers": []}), OCI_MANIFEST)
    assert (await talk(Place(store, root), ask(target="/config"))).reply().get(
        "Content-Type"
    ) == wanted


@virtual_time
async def test_the_head_of_a_blob_does_not_read_the_blob() -> None:
    image = sample()
    for blob in image.blobs:
        del image.store.contents[blob["digest"]]
        reply = (await talk(image.place, ask("HEAD", f"/blobs/{blob['digest']}"))).reply("HEAD")
        assert (reply.status, reply.length) == (200, blob["size"])


@pytest.mark.parametrize("size", [0, 1, WHOLE, WHOLE + 1, 3 * CHUNK + 1])
@real_time
async def test_blobs_of_all_sizes_come_whole(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    image = sample(content)
    talked = await talk(image.place, ask(target=f"/blobs/{digest_of(content)}"), GET)
    blob, manifest = talked.replies("GET", "GET")
    assert blob.body == content
    assert manifest.status == 200
    assert [reader.closed for reader in image.place.readers] == [1]


@virtual_time
async def test_quitting_is_answered_with_nothing() -> None:
    shutdown = Shutdown()
    wire = MemoryWire(QUIT + GET, SILENCE)
    with elapsing(0):
        talked = await hold(image_of(sample().place), wire, shutdown=shutdown)
    reply = talked.reply("POST")
    assert (reply.status, reply.length) == (200, 0)
    assert "Content-Type" not in fields_of(reply)
    assert shutdown.requested
    assert wire.finished == (MAX_DRAIN, 0)


# --- requests that are refused ------------------------------------------------------------------

UNKNOWN_DIGEST = digest_of(b"unknown")

REFUSED = {
    "/": (404, "NOT_FOUND"),
    "/nothing": (404, "NOT_FOUND"),
    "/manifest/": (404, "NOT_FOUND"),
    "//manifest": (404, "NOT_FOUND"),
    "/blobs": (404, "NOT_FOUND"),
    "/blobs/": (400, "DIGEST_INVALID"),
    "/blobs/sha256:abc": (400, "DIGEST_INVALID"),
    "/blobs/../etc/passwd": (400, "DIGEST_INVALID"),
    f"/blobs/{UNKNOWN_DIGEST.upper()}": (400, "DIGEST_INVALID"),
    f"/blobs/{UNKNOWN_DIGEST}": (404, "BLOB_UNKNOWN"),
    f"/blobs/{UNKNOWN_DIGEST}/": (400, "DIGEST_INVALID"),
    "/blobs/blake3:" + "0" * 64: (404, "BLOB_UNKNOWN"),
    "/blobs/md7:x": (404, "BLOB_UNKNOWN"),
    "/manifests/latest": (400, "DIGEST_INVALID"),
    f"/manifests/{UNKNOWN_DIGEST}": (404, "MANIFEST_UNKNOWN"),
    "/manifest?": (400, "BAD_REQUEST"),
    "/manifest?x=y": (400, "BAD_REQUEST"),
    "/manifest%": (400, "BAD_REQUEST"),
    "/manifest%zz": (400, "BAD_REQUEST"),
    "/%ff": (400, "BAD_REQUEST"),
    "/%00": (404, "NOT_FOUND"),
    "/%1b%5b31m": (404, "NOT_FOUND"),
    "/%256danifest": (404, "NOT_FOUND"),
    "*": (400, "BAD_REQUEST"),
    "manifest": (400, "BAD_REQUEST"),
    "ftp://localhost/manifest": (400, "BAD_REQUEST"),
    "http:///manifest": (400, "BAD_REQUEST"),
    "http://[::1/manifest": (400, "BAD_REQUEST"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", REFUSED)
@virtual_time
async def test_a_target_that_means_nothing_is_refused_and_the_next_is_answered(
    method: str, target: str
) -> None:
    talked = await talk(sample().place, ask(method, target), GET)
    refused, answered = talked.replies(method, "GET")
    status, code = REFUSED[target]
    assert refused.status == status
    if method == "GET":
        assert refused.code == code
        assert refused.error["detail"]["retryable"] is False
    assert (refused.length or 0) > 0
    assert answered.status == 200
    (line,) = talked.notes.failures
    assert line.startswith(f"{method} ")
    assert f": {status} {code}: " in line


TARGETS = {
    "/manifest": "/manifest",
    "percent": "/%6d%61nifest",
    "absolute": "http://localhost/manifest",
    "absolute with a port": "http://localhost:80/manifest",
    "absolute https": "HTTPS://localhost/manifest",
    "absolute and the scheme's own name": "http://http/manifest",
    "absolute and a letter": "http://h/manifest",
    "absolute and encoded": "http://localhost/%6d%61nifest",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@virtual_time
async def test_a_target_may_be_spelt_in_several_ways(target: str) -> None:
    assert (await talk(sample().place, ask(target=target))).reply().status == 200


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/manifest", "GET, HEAD"),
        ("PUT", "/config", "GET, HEAD"),
        ("DELETE", f"/blobs/{UNKNOWN_DIGEST}", "GET, HEAD"),
        ("get", "/manifest", "GET, HEAD"),
        ("OPTIONS", "/manifest", "GET, HEAD"),
        ("CONNECT", "/manifest", "GET, HEAD"),
        ("GET", "/quit", "POST"),
        ("HEAD", "/quit", "POST"),
    ],
)
@virtual_time
async def test_a_method_that_a_path_does_not_have_is_refused(
    method: str, target: str, allow: str
) -> None:
    shutdown = Shutdown()
    wire = MemoryWire(ask(method, target), END)
    talked = await hold(image_of(sample().place), wire, shutdown=shutdown)
    reply = talked.reply(method)
    assert (reply.status, reply.reason) == (405, "Method Not Allowed")
    assert reply.get("Allow") == allow
    assert not shutdown.requested


REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def failures() -> list[Failure]:
    """Give one failure of each class."""
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    made: list[Failure] = [MethodNotAllowedError("words", "GET")]
    for each in classes:
        if issubclass(each, Failure) and each not in (Failure, MethodNotAllowedError):
            made.append(each("words", choices=["a"]))  # noqa: PERF401  (the types are narrowed)
    assert {failure.status for failure in made} == set(REASONS)
    return made


@pytest.mark.parametrize("failure", failures(), ids=lambda failure: type(failure).__name__)
@virtual_time
async def test_a_failure_is_answered_as_its_class_says(failure: Failure) -> None:
    wire = MemoryWire(ask(), ask("HEAD"), END)
    talked = await hold(failing(failure), wire)
    reply, head = talked.replies("GET", "HEAD")
    detail = {"retryable": failure.status in (503, 504)}
    if not isinstance(failure, MethodNotAllowedError):
        detail["choices"] = ["a"]  # type: ignore[assignment]  # JSON
    assert reply.error == {"code": failure.default_code, "message": "words", "detail": detail}
    assert (reply.status, reply.reason) == (failure.status, REASONS[failure.status])
    assert fields_of(reply) == fields_of(head)
    wanted = {
        "Content-Length": str(len(reply.body)),
        "Accept-Ranges": "none",
        "Content-Type": "application/json",
    }
    if isinstance(failure, MethodNotAllowedError):
        wanted["Allow"] = "GET"
    assert fields_of(reply) == wanted
    assert talked.severity == Severity.NOTHING
    line = f"{failure.status} {failure.default_code}: words"
    assert talked.notes.failures == [f"{method} /manifest: {line}" for method in ("GET", "HEAD")]


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("field", ["Origin: null", "ORIGIN: http://localhost", "Origin:"])
@virtual_time
async def test_pages_in_browsers_get_nothing_from_a_listener(
    field: str,
    accepted: bool,  # noqa: FBT001  (a parameter)
) -> None:
    shutdown = Shutdown()
    wire = MemoryWire(ask("GET", "/manifest", field), ask("POST", "/quit", field), END)
    talked = await hold(image_of(sample().place), wire, shutdown=shutdown, accepted=accepted)
    got, asked_to_quit = talked.replies("GET", "POST")
    if accepted:
        assert (got.status, got.code) == (403, "DENIED")
        assert asked_to_quit.status == 403
    assert shutdown.requested != accepted


# --- bodies of requests -------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"

BODIES = {
    "a length": ask("POST", "/quit", "Content-Length: 5", body=b"hello"),
    "no length": ask("POST", "/quit", "Content-Length: 0"),
    "the longest": ask("POST", "/quit", f"Content-Length: {MAX_DRAIN}", body=bytes(MAX_DRAIN)),
    "chunks": ask("POST", "/quit", CHUNKED, body=chunks(5, 70)),
    "chunks of the longest": ask("POST", "/quit", CHUNKED, body=chunks(5, MAX_DRAIN - 5)),
    "trailers": ask("POST", "/quit", CHUNKED, body=b"1\r\nx\r\n0\r\nX-Trailer: 1\r\n\r\n"),
}


@pytest.mark.parametrize("case", BODIES)
@virtual_time
async def test_a_body_that_nobody_asked_for_is_read_away(case: str) -> None:
    request = BODIES[case].replace(b"POST /quit", b"GET /manifest")
    first, second = (await talk(sample().place, request + GET)).replies("GET", "GET")
    assert (first.status, second.status) == (200, 200)
    assert first.get("Connection") is None


TOO_LARGE = {
    "says so": ask("GET", "/manifest", f"Content-Length: {MAX_DRAIN + 1}"),
    "says so and waits": ask(
        "GET", "/manifest", f"Content-Length: {MAX_DRAIN + 1}", "Expect: 100-continue"
    ),
    "says so much": ask("GET", "/manifest", "Content-Length: 99999999999999999999"),
    "in chunks": ask("GET", "/manifest", CHUNKED, body=chunks(*[9999] * 7)),
    "in a chunk": ask("GET", "/manifest", CHUNKED, body=b"%x\r\n" % MIB + bytes(MAX_DRAIN + 1)),
    "for a path that there is not": ask("GET", "/no", f"Content-Length: {MAX_DRAIN + 1}"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
@virtual_time
async def test_a_body_that_is_too_large_ends_the_conversation(case: str) -> None:
    with elapsing(http_connection.DRAIN_TIMEOUT):
        talked = await hold(image_of(sample().place), MemoryWire(TOO_LARGE[case], SILENCE))
    reply = talked.reply()
    assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")
    assert reply.interim == []
    assert_closing(talked, reply)


def assert_closing(talked: Talk, reply: Reply) -> None:
    """Assert that the reply is the last, and that a reset is avoided."""
    assert reply.get("Connection") == "close"
    assert talked.wire.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT)
    assert talked.severity == Severity.NOTHING
    assert len(talked.notes.failures) == 1


@virtual_time
async def test_who_waits_for_a_word_before_the_body_gets_it() -> None:
    expecting = ask("GET", "/manifest", "Content-Length: 5", "Expect: 100-continue")
    wire = MemoryWire(expecting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, image_of(sample().place), wire)
        await wait_all_tasks_blocked()
        assert wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.inbox.add(b"hello", expecting, b"hello", END)
    first, second = replies(wire.sent, "GET", "GET")
    assert (first.status, first.interim) == (200, [100])
    assert (second.status, second.interim) == (200, [100])


@virtual_time
async def test_who_does_not_wait_for_a_word_needs_none() -> None:
    expecting = ask("GET", "/manifest", "Content-Length: 5", "Expect: 100-continue", body=b"hello")
    reply = (await talk(sample().place, expecting)).reply()
    assert (reply.status, reply.interim) == (200, [])


# --- HTTP ---------------------------------------------------------------------------------------


@virtual_time
async def test_pipelined_requests_are_answered_in_order() -> None:
    image = sample()
    wanted = contents(image)
    methods = ["GET", "HEAD"] * len(wanted)
    paths = [path for path in wanted for _ in range(2)]
    requests = [ask(method, path) for method, path in zip(methods, paths, strict=True)]
    talked = await talk(image.place, b"".join(requests))
    for reply, path in zip(talked.replies(*methods), paths, strict=True):
        assert reply.get("Docker-Content-Digest") == wanted[path][0]


@virtual_time
async def test_ranges_and_conditions_are_ignored() -> None:
    image = sample()
    for field in (
        "Range: bytes=1-2",
        f'If-None-Match: "{image.chosen["digest"]}"',
        "If-Modified-Since: Fri, 20 Nov 2026 00:00:00 GMT",
        "Accept-Encoding: gzip",
        "Accept: text/plain",
        "Upgrade: h2c\r\nConnection: upgrade",
    ):
        first, second = (await talk(image.place, ask("GET", "/manifest", field) + GET)).replies(
            "GET", "GET"
        )
        assert first.status == 200
        assert first.body == second.body


LAST_REQUESTS = {
    "Connection: close": ask("GET", "/manifest", "Connection: close"),
    "Connection: x, Close": ask("GET", "/manifest", "Connection: x, Close"),
    "HTTP/1.0": ask(version="1.0"),
    "HTTP/1.0 without a host": b"GET /manifest HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with keep-alive": ask("GET", "/manifest", "Connection: keep-alive", version="1.0"),
}


@pytest.mark.parametrize("case", LAST_REQUESTS)
@virtual_time
async def test_a_request_that_is_the_last_is_answered_and_ends_the_conversation(case: str) -> None:
    wire = MemoryWire(LAST_REQUESTS[case] + GET, SILENCE)
    with elapsing(http_connection.DRAIN_TIMEOUT):
        talked = await hold(image_of(sample().place), wire)
    reply = talked.reply()
    assert reply.status == 200
    assert reply.get("Connection") == "close"
    assert wire.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT)


GARBAGE = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "TLS and a line": b"\x16\x03\x01\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /manifest\r\n\r\n",
    "HTTP/3.0": ask(version="3.0"),
    "no host": b"GET /manifest HTTP/1.1\r\n\r\n",
    "two hosts": ask("GET", "/manifest", "Host: other"),
    "a space in the target": ask("GET", "/mani fest"),
    "a control in the target": ask("GET", "/mani\x1bfest"),
    "eight bits in the target": ask("GET", "/mani\xfffest"),
    "no colon": ask("GET", "/manifest", "nonsense"),
    "a space before the colon": ask("GET", "/manifest", "Host : x"),
    "a NUL": ask("GET", "/manifest", "X: \0"),
    "a negative length": ask("GET", "/manifest", "Content-Length: -1"),
    "a long length": ask("GET", "/manifest", "Content-Length: " + "9" * 5000),
    "two lengths": ask("GET", "/manifest", "Content-Length: 1", "Content-Length: 2"),
    "both framings": ask("GET", "/manifest", CHUNKED, "Content-Length: 5", body=chunks(1)),
    "both framings and nothing else": b"GET /manifest HTTP/1.0\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
    "both framings, empty": ask("GET", "/manifest", CHUNKED, "Content-Length: 0", body=chunks()),
    "no size of a chunk": ask("GET", "/manifest", CHUNKED, body=b"x\r\n"),
    "a chunk that is too long": ask("GET", "/manifest", CHUNKED, body=b"1\r\nxx\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize(
    "before", [[], ["GET"], ["HEAD"]], ids=["first", "after GET", "after HEAD"]
)
@pytest.mark.parametrize("case", GARBAGE)
@virtual_time
async def test_garbage_is_refused_and_ends_the_conversation(case: str, before: list[str]) -> None:
    requests = b"".join(map(ask, before)) + GARBAGE[case]
    talked = await hold(image_of(sample().place), MemoryWire(requests + GET, SILENCE))
    *answered, reply = talked.replies(*before, "GET")
    assert [each.status for each in answered] == [200] * len(before)
    assert (reply.status, reply.code) == (400, "BAD_REQUEST")
    assert_closing(talked, reply)


@virtual_time
async def test_a_transfer_coding_that_is_unknown_is_not_implemented() -> None:
    for coding in ("gzip, chunked", "gzip"):
        request = ask("GET", "/manifest", f"Transfer-Encoding: {coding}")
        talked = await hold(image_of(sample().place), MemoryWire(request, SILENCE))
        reply = talked.reply()
        assert (reply.status, reply.code) == (501, "UNSUPPORTED")
        assert_closing(talked, reply)


def request_of(size: int) -> bytes:
    """Give a request whose head has so many bytes."""
    return ask("GET", "/manifest", "X: " + "a" * (size - len(ask("GET", "/manifest", "X: "))))


@pytest.mark.parametrize("before", [b"", GET, ask("POST", "/no", CHUNKED, body=chunks(99, 20_000))])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@virtual_time
async def test_the_limit_of_a_head_is_the_same_however_it_arrives(
    count: int, before: bytes
) -> None:
    for size, status in ((MAX_HEAD, 200), (MAX_HEAD + 2, 431), (4 * MAX_HEAD, 431)):
        sent = before + request_of(size)
        length = -(-len(sent) // count)
        pieces = [sent[at : at + length] for at in range(0, len(sent), length)]
        talked = await hold(image_of(sample().place), MemoryWire(*pieces, END))
        *_, reply = talked.replies(*["GET"] * bool(before), "GET")
        assert reply.status == status
        if status == 431:
            assert reply.code == "HEAD_TOO_LARGE"
            assert reply.get("Connection") == "close"


@virtual_time
async def test_a_head_without_an_end_is_too_large() -> None:
    pieces = [b"GET /manifest HTTP/1.1\r\n", *[b"X: y\r\n"] * 5000]
    talked = await hold(image_of(sample().place), MemoryWire(*pieces, SILENCE))
    reply = talked.reply()
    assert (reply.status, reply.reason) == (431, "Request Header Fields Too Large")
    assert_closing(talked, reply)


STREAMS = {
    "requests": (
        ask() + ask("HEAD", "/config") + ask("POST", "/no", "Content-Length: 5", body=b"hello"),
        ["GET", "HEAD", "POST"],
    ),
    "chunks": (
        ask("GET", "/manifest", CHUNKED, body=chunks(5, 2)) + ask(target="/%6danifest"),
        ["GET", "GET"],
    ),
    "garbage": (ask("HEAD") + b"garbage\r\n\r\n" + GET, ["HEAD", "GET"]),
    "quit": (GET + QUIT + GET, ["GET", "POST"]),
    "half": (GET + GET[:-3], ["GET", "GET"]),
}


def without_dates(sent: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", sent)


@pytest.mark.parametrize("case", STREAMS)
@virtual_time
async def test_replies_are_the_same_however_requests_arrive(case: str) -> None:
    stream, methods = STREAMS[case]
    image = image_of(sample().place)
    whole = await hold(image, MemoryWire(stream, END))
    assert len(whole.replies(*methods)) == len(methods)
    splits = [(stream[:at], stream[at:]) for at in range(1, len(stream))]
    for pieces in [*splits, [bytes([byte]) for byte in stream]]:
        talked = await hold(image, MemoryWire(*pieces, END))
        assert without_dates(bytes(talked.wire.sent)) == without_dates(bytes(whole.wire.sent))


WORDS = [
    *(b"GET", b"HEAD", b"POST", b" ", b"/manifest", b"/config", b"/quit", b" HTTP/1.1\r\n"),
    *(b"Host: x\r\n", b"\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"abc", b"0\r\n\r\n", b"\0", b"\xff", GET, ask("HEAD"), QUIT),
]


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.lists(st.integers(1, 50), max_size=20))
@settings(deadline=None)
@virtual_time
async def test_no_bytes_are_a_defect(words: list[bytes], cuts: list[int]) -> None:
    stream, pieces = b"".join(words), []
    for cut in cuts:
        pieces.append(stream[:cut])
        stream = stream[cut:]
    steps = [piece for piece in (*pieces, stream) if piece]
    talked = await hold(image_of(sample().place), MemoryWire(*steps, END))
    assert talked.severity == Severity.NOTHING


# --- bodies of replies that break off -----------------------------------------------------------

LARGE = bytes(range(256)) * (3 * CHUNK // 256)
SMALL = b"small"

BROKEN = UnavailableError("the source is lost")


@pytest.mark.parametrize(
    ("steps", "severity", "words"),
    [
        ((LARGE[:-1] + b"x", END), Severity.MISMATCH, "DIGEST_INVALID: "),
        ((LARGE[:-1], END), Severity.MISMATCH, "SIZE_INVALID: "),
        ((LARGE + b"x", END), Severity.MISMATCH, "SIZE_INVALID: "),
        ((LARGE[: 2 * CHUNK], BROKEN), Severity.LOST, "UNAVAILABLE: the source is lost"),
        ((LARGE[: 2 * CHUNK], ZeroDivisionError("oops")), Severity.DEFECT, "a defect of this"),
    ],
    ids=["other", "shorter", "longer", "lost", "defect"],
)
@real_time
async def test_a_body_that_breaks_off_stays_short_and_ends_the_conversation(
    steps: tuple[Step, ...], severity: Severity, words: str
) -> None:
    image = sample(LARGE)
    path = f"/blobs/{digest_of(LARGE)}"
    image.place.steps[digest_of(LARGE)] = steps
    talked = await talk(image.place, ask(target=path) + GET)
    reply = talked.reply()
    assert reply.status == 200
    assert reply.length == len(LARGE)
    assert reply.ending == "end"
    assert LARGE.startswith(reply.body)
    assert talked.severity == severity
    (line,) = talked.notes.failures
    assert line.startswith(f"GET {path}: ")
    assert words in line
    assert talked.wire.finished is not None
    assert [reader.closed for reader in image.place.readers] == [1]


@pytest.mark.parametrize(
    ("steps", "status", "code"),
    [
        ((b"SMALL", END), 422, "DIGEST_INVALID"),
        ((b"smal", END), 422, "SIZE_INVALID"),
        ((b"smaller", END), 422, "SIZE_INVALID"),
        ((b"sm", BROKEN), 503, "UNAVAILABLE"),
        ((b"sm", ZeroDivisionError("oops")), 500, "INTERNAL"),
    ],
    ids=["other", "shorter", "longer", "lost", "defect"],
)
@virtual_time
async def test_a_small_blob_that_is_wrong_is_a_failure_and_the_conversation_goes_on(
    steps: tuple[Step, ...], status: int, code: str
) -> None:
    image = sample(SMALL)
    image.place.steps[digest_of(SMALL)] = steps
    talked = await talk(image.place, ask(target=f"/blobs/{digest_of(SMALL)}"), GET)
    refused, answered = talked.replies("GET", "GET")
    assert (refused.status, refused.code) == (status, code)
    assert answered.status == 200
    assert talked.severity == (Severity.DEFECT if status == 500 else Severity.NOTHING)
    assert [reader.closed for reader in image.place.readers] == [1]


@virtual_time
async def test_a_large_blob_whose_source_fails_at_once_is_a_failure() -> None:
    image = sample(LARGE)
    image.place.steps[digest_of(LARGE)] = (BROKEN,)
    talked = await talk(image.place, ask(target=f"/blobs/{digest_of(LARGE)}"), GET)
    refused, answered = talked.replies("GET", "GET")
    assert (refused.status, refused.code) == (503, "UNAVAILABLE")
    assert answered.status == 200
    assert talked.severity == Severity.NOTHING


@virtual_time
async def test_a_blob_without_its_algorithm_is_not_implemented() -> None:
    store = Store()
    layer = {"mediaType": OCI_LAYER, "digest": "blake3:" + "0" * 64, "size": 5}
    config = store.add(b"{}", OCI_CONFIG)
    root = store.add(encode({"config": config, "layers": [layer]}), OCI_MANIFEST)
    place = Place(store, root)
    talked = await talk(place, GET, ask(target=f"/blobs/{layer['digest']}"))
    manifest, blob = talked.replies("GET", "GET")
    assert manifest.status == 200  # merely mentioned
    assert (blob.status, blob.code) == (501, "UNSUPPORTED")
    assert place.readers == []


@virtual_time
async def test_a_defect_is_answered_without_its_details() -> None:
    talked = await hold(failing(ZeroDivisionError("a secret")), MemoryWire(GET, ask("HEAD"), END))
    reply, head = talked.replies("GET", "HEAD")
    assert (reply.status, reply.code) == (head.status, "INTERNAL") == (500, "INTERNAL")
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    assert talked.severity == Severity.DEFECT
    assert talked.notes.failures == [
        f"{method} /manifest: a defect of this program: ZeroDivisionError('a secret')"
        for method in ("GET", "HEAD")
    ]
    assert any("Traceback" in line for line in talked.notes.details)


@virtual_time
async def test_a_defect_in_a_conversation_is_not_one_of_the_others() -> None:
    class Defective(MemoryWire):
        async def finish(self, limit: int, patience: float) -> None:
            raise ZeroDivisionError(limit, patience)

    talked = await hold(image_of(sample().place), Defective(GET, END))
    assert talked.reply().status == 200
    assert talked.severity == Severity.DEFECT


def test_the_gravest_of_several_events_counts() -> None:
    assert sorted(Severity, reverse=True) == [
        Severity.DEFECT,
        Severity.MISMATCH,
        Severity.LOST,
        Severity.NOTHING,
    ]


# --- how a conversation ends --------------------------------------------------------------------


@virtual_time
async def test_a_conversation_without_a_request_ends_without_a_reply() -> None:
    for steps in ((), (0.5,)):
        talked = await talk(sample().place, *steps)
        assert talked.wire.sent == b""
        assert talked.severity == Severity.NOTHING
        assert talked.notes.failures == []


@virtual_time
async def test_half_a_request_is_refused_at_its_end() -> None:
    for half in (GET[:10], ask("GET", "/manifest", "Content-Length: 5", body=b"hel")):
        reply = (await talk(sample().place, half)).reply()
        assert (reply.status, reply.code) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("path", ["/manifest", f"/blobs/{digest_of(b'one')}"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ENOSPC])
@virtual_time
async def test_a_reply_that_cannot_be_sent_ends_a_conversation(number: int, path: str) -> None:
    """Quietly where the parent does not want it; a full disk is told of."""
    image, wire = sample(), MemoryWire(ask(target=path))
    wire.broken = OSError(number, os.strerror(number))
    talked = await hold(image_of(image.place), wire)
    assert talked.severity == Severity.NOTHING
    told = ["sending a reply: No space left on device"] if number == errno.ENOSPC else []
    assert talked.notes.failures == told
    assert all(reader.closed for reader in image.place.readers)


@virtual_time
async def test_a_reset_ends_a_conversation_quietly() -> None:
    reset = ConnectionResetError(104, "Connection reset by peer")
    for steps in ((reset,), (GET, reset), (GET[:9], reset)):
        talked = await hold(image_of(sample().place), MemoryWire(*steps))
        assert talked.severity == Severity.NOTHING
        assert talked.notes.failures == []
        assert talked.wire.finished is None


async def started(
    nursery: trio.Nursery, image: Image, wire: MemoryWire, shutdown: Shutdown | None = None
) -> list[Talk]:
    """Hold a conversation in the background until it waits; give what it will have been."""
    ended: list[Talk] = []

    async def run() -> None:
        ended.append(await hold(image, wire, shutdown=shutdown))

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    assert ended == []
    return ended


def waits_for_a_document(image: Sample, wire: MemoryWire) -> None:
    image.place.gate = trio.Event()
    wire.inbox.add(GET)


def waits_for_a_blob(image: Sample, wire: MemoryWire) -> None:
    image.place.steps[digest_of(b"one")] = (b"o", SILENCE)
    wire.inbox.add(ask(target=f"/blobs/{digest_of(b'one')}"))


def waits_for_its_parent(_: Sample, wire: MemoryWire) -> None:
    wire.stop_reading()
    wire.inbox.add(GET)


def waits_for_a_request(_: Sample, wire: MemoryWire) -> None:
    wire.inbox.add(GET)


def waits_for_a_body(_: Sample, wire: MemoryWire) -> None:
    wire.inbox.add(ask("GET", "/manifest", "Content-Length: 5"))


WAITING = [
    waits_for_a_document,
    waits_for_a_blob,
    waits_for_its_parent,
    waits_for_a_request,
    waits_for_a_body,
]


@pytest.mark.parametrize("how", [MemoryWire.hang_up, MemoryWire.lose_reader])
@pytest.mark.parametrize("wait", WAITING)
@virtual_time
async def test_a_parent_that_is_gone_ends_whatever_is_under_way(
    wait: Callable[[Sample, MemoryWire], object], how: Callable[[MemoryWire], None]
) -> None:
    """Even if somebody else could still send, through a pipe that was left open."""
    image, wire = sample(), MemoryWire()
    wait(image, wire)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, image_of(image.place), wire)
        with elapsing(0):
            how(wire)
            await wait_all_tasks_blocked()
            (talked,) = ended
    assert talked.severity == Severity.NOTHING
    assert all(reader.closed for reader in image.place.readers)
    if wait is not waits_for_a_request:
        assert talked.notes.details[-1].startswith("the parent is gone: ")
        assert talked.wire.finished is None
    if wait is waits_for_a_document:
        assert image.place.closed == 1


@pytest.mark.parametrize("wait", [waits_for_a_document, waits_for_a_blob, waits_for_its_parent])
@virtual_time
async def test_a_parent_that_only_stops_sending_still_gets_its_reply(
    wait: Callable[[Sample, MemoryWire], object],
) -> None:
    image, wire = sample(), MemoryWire()
    wait(image, wire)
    image.place.steps[digest_of(b"one")] = (b"o", 50.0, b"ne", END)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, image_of(image.place), wire)
        wire.inbox.add(END)
        await wait_all_tasks_blocked()
        image.place.gate.set()
        wire.read_on()
    assert ended[0].reply().status == 200
    assert wire.finished is not None


@pytest.mark.parametrize("how", [MemoryWire.hang_up, MemoryWire.lose_reader])
@virtual_time
async def test_the_last_word_of_a_parent_is_heard(how: Callable[[MemoryWire], None]) -> None:
    shutdown = Shutdown()
    wire = MemoryWire()
    async with trio.open_nursery() as nursery:
        await started(nursery, image_of(sample().place), wire, shutdown)
        wire.inbox.add(QUIT)
        how(wire)
    assert shutdown.requested
    assert wire.sent == b""


@virtual_time
async def test_a_last_word_that_was_there_before_is_heard() -> None:
    shutdown = Shutdown()
    wire = MemoryWire(QUIT)
    wire.hang_up()
    await hold(image_of(sample().place), wire, shutdown=shutdown)
    assert shutdown.requested


@virtual_time
async def test_a_last_word_that_arrives_with_the_hang_up_is_heard() -> None:
    class Late(MemoryWire):
        async def receive_into(self, buffer: memoryview) -> int:
            count = await super().receive_into(buffer)
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            return count

    shutdown = Shutdown()
    wire = Late(QUIT)
    wire.hang_up()
    talked = await hold(image_of(sample().place), wire, shutdown=shutdown)
    assert shutdown.requested
    assert talked.wire.sent == b""


@virtual_time
async def test_a_parent_that_goes_while_its_reply_is_sent_is_not_waited_for() -> None:
    class Leaving(MemoryWire):
        async def send(self, data: bytes | bytearray | memoryview) -> None:
            await super().send(data)
            self.lose_reader()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()

    with elapsing(0):
        talked = await hold(image_of(sample().place), Leaving(GET))
    assert talked.reply().status == 200


@virtual_time
async def test_who_cannot_be_watched_is_served_all_the_same() -> None:
    class Unwatched(MemoryWire):
        async def wait_hung_up(self) -> None:
            raise OSError(24, "Too many open files")

    talked = await hold(image_of(sample().place), Unwatched(GET, END))
    assert talked.reply().status == 200
    assert talked.severity == Severity.NOTHING


@virtual_time
async def test_quitting_lets_replies_under_way_be_finished_and_takes_no_new_requests() -> None:
    image, shutdown = sample(), Shutdown()
    shared = image_of(image.place)
    idle, fresh, asking, sending = MemoryWire(GET), MemoryWire(), MemoryWire(), MemoryWire()
    halfway, owing = MemoryWire(GET[:9]), MemoryWire()
    waits_for_a_blob(image, asking)
    waits_for_its_parent(image, sending)
    waits_for_a_body(image, owing)
    image.place.steps[digest_of(b"one")] = (b"o", 50.0, b"ne", END)
    async with trio.open_nursery() as nursery:
        wires = (idle, fresh, asking, sending, halfway, owing)
        talks = {wire: await started(nursery, shared, wire, shutdown) for wire in wires}
        asking.inbox.add(GET)
        sending.inbox.add(GET, GET)
        quitter = MemoryWire(QUIT)
        await hold(shared, quitter, shutdown=shutdown)
        await trio.sleep(http_connection.DRAIN_TIMEOUT + 0.1)
        over = {wire for wire, ended in talks.items() if ended}
        assert over == {idle, fresh, halfway, owing}
        sending.read_on()
    assert [len(replies(wire.sent, "GET")) for wire in (idle, asking, sending)] == [1, 1, 1]
    assert [bytes(wire.sent) for wire in (fresh, halfway, owing)] == [b""] * 3
    assert all(wire.finished == (MAX_DRAIN, http_connection.DRAIN_TIMEOUT) for wire in wires)


@virtual_time
async def test_quitting_knows_of_no_conversation_that_is_over() -> None:
    shutdown = Shutdown()
    await hold(image_of(sample().place), MemoryWire(GET, END), shutdown=shutdown)
    assert shutdown._scopes == set()


def test_bodies_are_read_away_up_to_a_limit_that_is_promised() -> None:
    assert MAX_DRAIN == 64 * 1024
    assert http_connection.DRAIN_TIMEOUT == 1


@virtual_time
async def test_after_quitting_nothing_is_begun() -> None:
    shutdown = Shutdown()
    shutdown.request()
    talked = await hold(image_of(sample().place), MemoryWire(GET), shutdown=shutdown)
    assert talked.wire.sent == b""


@virtual_time
async def test_what_is_sent_after_the_last_reply_is_read_away() -> None:
    wire = MemoryWire(ask("GET", "/manifest", "Connection: close"), 0.5, bytes(1000), END)
    with elapsing(0.5):
        await hold(image_of(sample().place), wire)
    assert wire.inbox.is_quiet is False  # nothing but the end is left
    assert await wire.inbox.receive_into(memoryview(bytearray(1))) == 0

"""What is asked of one image over HTTP, and what is answered: imgproxy(1), PROTOCOL."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
from support.conversations import GET, QUIT, Talk, ask, fields_of, started
from support.conversations import hold as hold_with
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
from support.sources import MemorySource, Store, image_of
from support.streams import (
    END,
    SILENCE,
    MemoryStream,
    Step,
    elapsing,
    real_time,
    replies,
    virtual_time,
)
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import UnavailableError
from imgproxy.frontends.single_image import SingleImage
from imgproxy.server.http_connection import MAX_DRAIN, Severity
from imgproxy.server.shutdown import Shutdown
from imgproxy.specs.oci import convert
from imgproxy.verification.verified_blob import CHUNK, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.images.image import Image


async def hold(image: Image, stream: MemoryStream, *, shutdown: Shutdown | None = None) -> Talk:
    """Hold a conversation about an image to its end."""
    return await hold_with(SingleImage(image), stream, shutdown=shutdown)


async def talk(place: MemorySource, *steps: Step) -> Talk:
    """Send these, and nothing after them; the sending side is shut down then."""
    return await hold(image_of(place), MemoryStream(*steps, END))


@dataclass
class Sample:
    """An image of two platforms, of which linux/amd64 is chosen."""

    store: Store
    index: Json
    chosen: Json
    other: Json
    place: MemorySource

    @property
    def blobs(self) -> list[Json]:
        document = self.store.document(self.chosen)
        return [document["config"], *document["layers"]]


def sample(*layers: bytes, docker: bool = False) -> Sample:
    store = Store()
    chosen = store.image(*(layers or (b"one", b"two")), docker=docker)
    other = store.image(b"other", docker=docker)
    index = store.index(on(chosen, "linux/amd64"), on(other, "linux/arm64"), docker=docker)
    return Sample(store, index, chosen, other, MemorySource(store, index))


# --- replies as they are promised ---------------------------------------------------------------


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
    served = convert.manifest(original) if docker else original
    assert (served == original) != docker
    assert b"docker" not in served
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
async def test_a_manifest_is_converted_once_for_each_image_that_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted: list[bytes] = []

    def convert_manifest(raw: bytes) -> bytes:
        converted.append(raw)
        return b"{}"

    monkeypatch.setattr(convert, "manifest", convert_manifest)
    shown = sample(docker=True)
    image = image_of(shown.place)
    front_end = SingleImage(image)
    for opened in (1, 2):
        stream = MemoryStream(ask(), ask("HEAD"), ask(target="/config"), ask(), END)
        first, _, _, last = (await hold_with(front_end, stream)).replies(
            "GET", "HEAD", "GET", "GET"
        )
        assert first.body == last.body == b"{}"
        assert converted == [shown.store.read(shown.chosen["digest"])] * opened
        (await image.open()).is_replaced = True


@virtual_time
async def test_without_an_index_there_is_no_digest_of_one() -> None:
    image = sample()
    reply = (await talk(MemorySource(image.store, image.chosen), GET)).reply()
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
    place = MemorySource(store, store.index(on(artifact, "linux/amd64")) if in_index else artifact)
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
        reply = (await talk(MemorySource(store, image), GET)).reply()
        assert reply.status == 200
        assert reply.get("Artifact-Type") is None


def contents(image: Sample) -> dict[str, tuple[str, str, bytes]]:
    """Return what can be had beside the manifest: its digest, its type, its bytes."""
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
        assert len(talked.stream.sizes) == 1  # head and body leave together
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
    assert (await talk(MemorySource(store, root), ask(target="/config"))).reply().get(
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
    stream = MemoryStream(QUIT + GET, SILENCE)
    with elapsing(0):
        talked = await hold(image_of(sample().place), stream, shutdown=shutdown)
    reply = talked.reply("POST")
    assert (reply.status, reply.length) == (200, 0)
    assert "Content-Type" not in fields_of(reply)
    assert shutdown.requested
    assert stream.finished == (MAX_DRAIN, 0)


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
    "/manifest?x": (400, "BAD_REQUEST"),
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
    stream = MemoryStream(ask(method, target), END)
    talked = await hold(image_of(sample().place), stream, shutdown=shutdown)
    reply = talked.reply(method)
    assert (reply.status, reply.reason) == (405, "Method Not Allowed")
    assert reply.get("Allow") == allow
    assert not shutdown.requested


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
    assert talked.stream.finished is not None
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
    place = MemorySource(store, root)
    talked = await talk(place, GET, ask(target=f"/blobs/{layer['digest']}"))
    manifest, blob = talked.replies("GET", "GET")
    assert manifest.status == 200  # merely mentioned
    assert (blob.status, blob.code) == (501, "UNSUPPORTED")
    assert place.readers == []


# --- how a conversation ends --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "severity"), [(errno.EPIPE, Severity.NOTHING), (errno.ENOSPC, Severity.LOST)]
)
@virtual_time
async def test_a_blob_whose_reply_cannot_be_sent_is_closed(number: int, severity: Severity) -> None:
    image, stream = sample(), MemoryStream(ask(target=f"/blobs/{digest_of(b'one')}"))
    stream.broken = OSError(number, os.strerror(number))
    talked = await hold(image_of(image.place), stream)
    assert talked.severity == severity
    assert [reader.closed for reader in image.place.readers] == [1]


def waits_for_a_document(image: Sample, stream: MemoryStream) -> None:
    image.place.gate = trio.Event()
    stream.inbox.add(GET)


def waits_for_a_blob(image: Sample, stream: MemoryStream) -> None:
    image.place.steps[digest_of(b"one")] = (b"o", 50.0, b"ne", END)
    stream.inbox.add(ask(target=f"/blobs/{digest_of(b'one')}"))


@pytest.mark.parametrize("how", [MemoryStream.hang_up, MemoryStream.lose_reader])
@pytest.mark.parametrize("wait", [waits_for_a_document, waits_for_a_blob])
@virtual_time
async def test_what_a_parent_that_is_gone_had_asked_for_is_closed(
    wait: Callable[[Sample, MemoryStream], object], how: Callable[[MemoryStream], None]
) -> None:
    image, stream = sample(), MemoryStream()
    wait(image, stream)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, SingleImage(image_of(image.place)), stream)
        with elapsing(0):
            how(stream)
            await wait_all_tasks_blocked()
            (talked,) = ended
    assert talked.severity == Severity.NOTHING
    assert talked.notes.details[-1].startswith("the parent is gone: ")
    if wait is waits_for_a_document:
        assert image.place.closed == 1
    else:
        assert [reader.closed for reader in image.place.readers] == [1]


@pytest.mark.parametrize("wait", [waits_for_a_document, waits_for_a_blob])
@virtual_time
async def test_a_parent_that_only_stops_sending_still_gets_its_reply(
    wait: Callable[[Sample, MemoryStream], object],
) -> None:
    image, stream = sample(), MemoryStream()
    wait(image, stream)
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, SingleImage(image_of(image.place)), stream)
        stream.inbox.add(END)
        await wait_all_tasks_blocked()
        image.place.gate.set()
    assert ended[0].reply().status == 200
    assert stream.finished is not None


@virtual_time
async def test_several_conversations_share_one_opened_image() -> None:
    image = sample()
    front_end = SingleImage(image_of(image.place))
    image.place.gate = trio.Event()
    streams = [MemoryStream(GET, END) for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(hold_with, front_end, stream)
        await wait_all_tasks_blocked()
        image.place.gate.set()
    assert [replies(stream.sent, "GET")[0].status for stream in streams] == [200] * 5
    assert image.place.asked == [image.index["digest"], image.chosen["digest"]]

"""`imgproxy registry` asked for everything that a registry answers, by a client of our own.

One process answers all; what it serves is in `support.registry_doors.Stock`. Whatever other
registries get wrong, and clients break at, has a test here: status, fields, bytes, framing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.damage import flip
from support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Layout,
    digest_of,
    named,
)
from support.registry_doors import (
    ABSENT,
    NAME,
    Door,
    Stock,
    assert_is_refused,
    blob,
    manifest,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.parent import Reply

# What changes from one reply to the next.
CHANGING = {"date"}


def fields_of(reply: Reply) -> dict[str, str]:
    """Return the fields that do not change; each is there once."""
    names = [name.lower() for name, _ in reply.fields]
    assert len(set(names)) == len(names), reply.fields
    return {name.lower(): value for name, value in reply.fields if name.lower() not in CHANGING}


# --- what there is --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/v2/", "/v2"])
def test_the_base_says_that_this_is_a_registry(door: Door, target: str) -> None:
    reply = door.ask(target)
    assert (reply.status, reply.json()) == (200, {})
    assert reply.get("Content-Type") == "application/json"
    assert reply.get("Docker-Distribution-Api-Version") == "registry/2.0"


def test_it_is_healthy(door: Door) -> None:
    reply = door.ask("/healthz")
    assert (reply.status, reply.get("Content-Type")) == (200, "text/plain")


def test_documents_are_the_originals(door: Door, stock: Stock) -> None:
    for reference, descriptor in stock.documents.items():
        reply = door.ask(manifest(NAME, reference))
        digest = descriptor["digest"]
        assert reply.status == 200, reference
        assert reply.body == stock.layout.read(digest)
        fields = fields_of(reply)
        assert fields["content-type"] == descriptor["mediaType"], "no parameters either"
        assert fields["content-length"] == str(descriptor["size"])
        assert fields["docker-content-digest"] == digest
        assert fields["etag"] == f'"{digest}"'
        assert fields["docker-distribution-api-version"] == "registry/2.0"
        assert fields["x-content-type-options"] == "nosniff"
        assert "content-encoding" not in fields


def test_blobs_are_the_originals(door: Door, stock: Stock) -> None:
    config = stock.layout.document(stock.app)["config"]
    for descriptor in (config, *stock.layout.layers(stock.app)):
        # containerd sends this, and takes what is encoded for it.
        reply = door.ask(blob(NAME, descriptor["digest"]), "Accept-Encoding: zstd, gzip, deflate")
        assert (reply.status, reply.body) == (200, stock.read(descriptor))
        fields = fields_of(reply)
        assert fields["content-type"] == "application/octet-stream"
        assert fields["content-length"] == str(descriptor["size"])
        assert fields["docker-content-digest"] == descriptor["digest"]
        assert fields["etag"] == f'"{descriptor["digest"]}"'
        assert fields["x-content-type-options"] == "nosniff"
        assert not {"content-encoding", "transfer-encoding"} & set(fields)


def test_head_has_the_fields_of_get_and_no_body(door: Door, stock: Stock) -> None:
    client = door.connect()
    for target in targets(stock):
        got = client.request("GET", target)
        head = client.request("HEAD", target)  # a body would be in the way of the next reply
        assert (head.status, fields_of(head)) == (got.status, fields_of(got)), target
        assert got.complete, target


def test_requests_at_once_are_answered_in_order(door: Door, stock: Stock) -> None:
    client = door.connect()
    for target in targets(stock):
        client.ask("HEAD", target)
        client.ask("GET", target)
    for target in targets(stock):
        head, got = client.reply("HEAD"), client.reply()
        assert (head.status, head.length) == (got.status, len(got.body)), target


# --- Accept ---------------------------------------------------------------------------------------

TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.mark.parametrize(
    "accept",
    [
        [],
        ["*/*"],
        ["application/*"],
        ["application/json"],
        ["text/html"],
        [DOCKER_MANIFEST],
        [f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"],  # containerd
        [OCI_MANIFEST, DOCKER_MANIFEST, SCHEMA_1, DOCKER_LIST, OCI_INDEX],  # skopeo, podman
        [f"{OCI_MANIFEST};q=0.5, */*;q=0"],
        [f"{each};q=0" for each in TYPES],
        [""],
        [",;,"],
    ],
)
def test_nothing_is_converted_or_refused_for_accept(
    door: Door, stock: Stock, accept: list[str]
) -> None:
    lines = [f"Accept: {each}" for each in accept]
    for reference, descriptor in stock.documents.items():
        reply = door.ask(manifest(NAME, reference), *lines)
        assert (reply.status, reply.get("Content-Type")) == (200, descriptor["mediaType"])
        assert reply.body == stock.read(descriptor)
    assert door.status(blob(NAME, stock.layer["digest"]), *lines) == 200


# --- conditions -----------------------------------------------------------------------------------


def test_what_a_client_has_is_not_sent_again(door: Door, stock: Stock) -> None:
    for target, digest in (
        (manifest(NAME, "1"), stock.app["digest"]),
        (manifest(NAME, stock.index["digest"]), stock.index["digest"]),
        (blob(NAME, stock.layer["digest"]), stock.layer["digest"]),
    ):
        client = door.connect()
        for known in (f'"{digest}"', f'W/"{digest}"', f'"other", "{digest}"', "*"):
            for method in ("GET", "HEAD"):
                reply = client.request(method, target, f"If-None-Match: {known}")
                assert (reply.status, reply.body) == (304, b""), known
                assert reply.get("ETag") == f'"{digest}"'
        for other in (f'"{ABSENT}"', '""', '"', ",", digest[:-1]):
            assert client.request("GET", target, f"If-None-Match: {other}").status == 200, other


def test_what_is_absent_stays_absent_under_a_condition(door: Door) -> None:
    for target in (manifest(NAME, "absent"), blob(NAME, ABSENT)):
        assert door.status(target, "If-None-Match: *") == 404


# --- ranges ---------------------------------------------------------------------------------------

# Beyond what is verified before the head of its reply: the first range needs a pass over the whole.
LARGE = os.urandom((3 << 20) + 77)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    layout = Layout(tmp_path_factory.mktemp("large"))
    layout.save(named(layout.image(LARGE), f"{NAME}:1"))
    with registry_doors.running("--images", str(layout.path)) as door:
        yield door


def part(reply: Reply) -> tuple[str | None, bytes]:
    """Return which part a reply says that it is, and what it is."""
    assert (reply.status, reply.complete) == (206, True), reply
    return reply.get("Content-Range"), reply.body


@pytest.mark.parametrize("is_large", [False, True])
def test_a_range_is_given_as_it_was_asked_for(
    door: Door, large: Door, stock: Stock, *, is_large: bool
) -> None:
    asked, whole = (large, LARGE) if is_large else (door, stock.read(stock.layer))
    target, size = blob(NAME, digest_of(whole)), len(whole)
    for wanted, start, stop in (
        ("5-9", 5, 10),
        ("5-", 5, size),
        ("0-0", 0, 1),
        ("0-", 0, size),
        ("-7", size - 7, size),
        (f"-{size * 2}", 0, size),
        (f"{size - 1}-{size}", size - 1, size),  # regctl asks for one past the end
        (f"9-{size * 2}", 9, size),
    ):
        given = part(asked.ask(target, f"Range: bytes={wanted}"))
        assert given == (f"bytes {start}-{stop - 1}/{size}", whole[start:stop]), wanted
        head = asked.ask(target, f"Range: bytes={wanted}", method="HEAD")
        assert (head.status, head.length) == (200, size), wanted
    for beyond in (f"{size}-", f"{size + 5}-{size + 9}", "-0"):
        reply = asked.ask(target, f"Range: bytes={beyond}")
        assert (reply.status, reply.code) == (416, "UNSUPPORTED"), reply
        assert reply.get("Content-Range") == f"bytes */{size}"
        assert reply.complete, "the length is that of what comes"
    for disregarded in ("0-1,4-5", "-1,0-0", "9-5", "x", "-", "1-2-3"):
        reply = asked.ask(target, f"Range: bytes={disregarded}")
        assert (reply.status, reply.body) == (200, whole), disregarded
    assert asked.ask(target, "Range: pages=1-2").status == 200
    assert asked.ask(target, "Range: bytes=1-2", "Range: bytes=3-4").status == 200


def test_a_range_has_a_condition(door: Door, stock: Stock) -> None:
    digest, whole = stock.layer["digest"], stock.read(stock.layer)
    for condition, status in (
        (f'"{digest}"', 206),
        (f'W/"{digest}"', 200),
        (digest, 200),
        (f'"{ABSENT}"', 200),
        ("Mon, 30 Nov 2026 00:00:00 GMT", 200),
    ):
        ranged = ("Range: bytes=3-", f"If-Range: {condition}")
        reply = door.ask(blob(NAME, digest), *ranged)
        assert (reply.status, reply.body) == (status, whole[3:] if status == 206 else whole)
    beyond = (f"Range: bytes={len(whole)}-", f'If-Range: "{ABSENT}"')
    assert door.status(blob(NAME, digest), *beyond) == 200
    known = ("Range: bytes=3-", f'If-None-Match: "{digest}"')
    assert door.status(blob(NAME, digest), *known) == 304


def test_documents_are_whole_whatever_the_range(door: Door, stock: Stock) -> None:
    for wanted in ("0-", "5-", f"{1 << 40}-"):  # containerd sends the first of these
        reply = door.ask(manifest(NAME, stock.app["digest"]), f"Range: bytes={wanted}")
        assert (reply.status, reply.body) == (200, stock.read(stock.app))


def test_the_beginning_of_what_is_not_verified_is_the_whole(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.save(named(layout.image(LARGE), f"{NAME}:1"))
    target = blob(NAME, digest_of(LARGE))
    for wanted in ("0-", "0-9"):
        with registry_doors.running("--images", str(tmp_path)) as door:
            client = door.connect()
            client.ask("GET", target, f"Range: bytes={wanted}")
            head = client.head()  # the client leaves, as containerd does
            assert (head.status, head.get("Content-Range")) == (200, None)
            client.close()
    with registry_doors.running("--images", str(tmp_path)) as door:
        assert door.ask(target, "Range: bytes=0-").body == LARGE
        assert part(door.ask(target, "Range: bytes=0-9")) == (
            f"bytes 0-9/{len(LARGE)}",
            LARGE[:10],
        )


def test_the_rest_of_what_was_found_wrong_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.save(named(layout.image(LARGE), f"{NAME}:1"))
    file = layout.file(digest_of(LARGE))
    flip(file, len(LARGE) - 1)
    target = blob(NAME, digest_of(LARGE))
    with registry_doors.running("--images", str(tmp_path)) as door:
        cut = door.ask(target)
        assert (cut.status, cut.ending) == (200, "end")
        assert 0 < len(cut.body) < len(LARGE)
        for wanted in (f"{len(cut.body)}-", "0-", "1-2", "-5"):
            assert_is_refused(door.ask(target, f"Range: bytes={wanted}"), 502, "DIGEST_INVALID")
        assert_is_refused(door.ask(target), 502, "DIGEST_INVALID")
        assert door.status(target, method="HEAD") == 200, "it needs nothing of the content"
        flip(file, len(LARGE) - 1)
        assert part(door.ask(target, "Range: bytes=-5"))[1] == LARGE[-5:]

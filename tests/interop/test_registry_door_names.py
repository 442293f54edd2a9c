"""Names that a registry is asked for, lists of what it has, other methods, senders and policies.

As in `test_registry_door`, one process answers nearly all.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.images import OCI_INDEX, Layout, named
from support.registry_doors import (
    ABSENT,
    NAME,
    REGISTRY,
    Door,
    Stock,
    assert_is_refused,
    blob,
    manifest,
    path,
    targets,
)

if TYPE_CHECKING:
    from support.home import Home

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "namespace"),
    [
        (NAME, "", None),
        ("team/app", f"ns={REGISTRY}", REGISTRY),
        ("team/app", f"unknown=1&ns={REGISTRY}&digest=x", REGISTRY),
    ],
)
def test_a_registry_is_named_in_the_query_or_the_path(
    door: Door, stock: Stock, name: str, query: str, namespace: str | None
) -> None:
    for target, descriptor in (
        (manifest(name, "1", query), stock.app),
        (manifest(name, stock.index["digest"], query), stock.index),
        (blob(name, stock.layer["digest"], query), stock.layer),
    ):
        reply = door.ask(target)
        assert (reply.status, reply.body) == (200, stock.read(descriptor)), target
        assert reply.get("OCI-Namespace") == namespace
    reply = door.ask(path(name, "tags", "list", query))
    assert reply.json() == {"name": "team/app", "tags": list(stock.tags)}
    assert door.status(path(name, "referrers", stock.app["digest"], query)) == 200


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("library/busybox", ""),
        ("library/busybox", "ns=docker.io"),
        ("library/busybox", "ns=index.docker.io"),
        ("library/busybox", "ns=registry-1.docker.io"),
        ("library/busybox", "ns="),
        ("docker.io/library/busybox", ""),
        ("registry-1.docker.io/library/busybox", ""),
    ],
)
def test_names_of_docker_hub(door: Door, stock: Stock, name: str, query: str) -> None:
    assert door.ask(manifest(name, "1", query)).body == stock.read(stock.hub)


@pytest.mark.slow
def test_the_default_registry_has_the_names_without_one(stock: Stock) -> None:
    options = ("--images", str(stock.layout.path), "--default-registry", REGISTRY)
    with registry_doors.running(*options) as door:
        assert door.ask(manifest("team/app", "1")).body == stock.read(stock.app)
        assert door.ask(manifest(NAME, "1")).body == stock.read(stock.app)
        hub = manifest("library/busybox", "1", "ns=docker.io")
        assert door.ask(hub).body == stock.read(stock.hub)
        assert door.status(manifest("library/busybox", "1")) == 404


def test_a_registry_that_is_given_twice_is_malformed(door: Door) -> None:
    for query in (f"ns={REGISTRY}&ns={REGISTRY}", "ns=a&ns=b", f"ns=&ns={REGISTRY}"):
        assert_is_refused(door.ask(manifest("team/app", "1", query)), 400, "NAME_INVALID")


@pytest.mark.parametrize(
    "namespace",
    [
        "other.example",
        f"{REGISTRY}:443",
        f"{REGISTRY}/team",
        f"user@{REGISTRY}",
        f"https://{REGISTRY}",
        f"{REGISTRY}%00",
        f"{REGISTRY}%0a",
        "169.254.169.254",
        "[::1]:5000",
        "localhost:22",
        "nix:0",
        "..",
        "*",
        "%ff",
        "a" * 300,
    ],
)
def test_registries_that_are_not_served_are_absent(door: Door, namespace: str) -> None:
    for target in (
        manifest("team/app", "1", f"ns={namespace}"),
        blob("team/app", ABSENT, f"ns={namespace}"),
        path("team/app", "tags", "list", f"ns={namespace}"),
    ):
        reply = door.ask(target)
        if namespace == "%ff":
            assert_is_refused(reply, 400, "BAD_REQUEST")
        else:
            assert reply.status == 404, target
            assert reply.code in {"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"}


HOSTILE = [
    "..",
    "../../etc",
    "%2e%2e/%2e%2e/etc",
    "team/../team/app",
    "team/./app",
    "team%2Fapp",
    "team%2fapp",
    "team%5Capp",
    "team\\app",
    "team%00app",
    "team%0aapp",
    "team%",
    "team%zz",
    "team//app",
    "/team/app",
    "team/app/",
    "Team/app",
    "team/%C3%A9",
    "team/app%252e",
    "-team",
    "team-",
    "team..app",
    "team___app",
    "team app",
    "team%20app",
    "team:5000/app",
    "team@sha256",
    "<name>",
    "~root",
    "$HOME",
    "*",
    "a" * 256,
    "a/" * 200 + "a",
    "a" * 5000,
]


def test_names_that_cannot_be_are_absent(door: Door) -> None:
    client = door.connect()
    for name in HOSTILE:
        for target in (
            *(manifest(each, "1") for each in (name, f"{REGISTRY}/{name}")),
            manifest(name, "1", f"ns={REGISTRY}"),
            blob(name, ABSENT),
            path(name, "tags", "list"),
        ):
            if " " in target:  # HTTP cannot say it
                continue
            reply = client.get(target)
            assert reply.status == 404, target
            assert reply.code in {"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"}, target


def test_references_that_cannot_be_are_absent(door: Door, stock: Stock) -> None:
    client = door.connect()
    encoded = stock.app["digest"].removeprefix("sha256:")
    for reference in (
        ".INVALID_MANIFEST_NAME",
        "-1",
        "1%2F2",
        "1%00",
        "..",
        "%2e%2e",
        "a" * 129,
        "%C3%A9",
        "sha256:baddigeststring",
        "sha256:totallywrong",
        "sha256:",
        f"sha256:{encoded[:-1]}",
        f"sha256:{encoded}0",
        f"sha256:{encoded.upper()}",
        f"SHA256:{encoded}",
        f"sha256%2F{encoded}",
        f"md5:{encoded[:32]}",
        f"sha512:{encoded}",
        f"sha512:{encoded * 2}",
        f":{encoded}",
        encoded,
        ABSENT,
    ):
        for kind, code in (("manifests", "MANIFEST_UNKNOWN"), ("blobs", "BLOB_UNKNOWN")):
            reply = client.get(path(NAME, kind, reference))
            assert reply.status == 404, reference
            assert reply.code in {code, "NAME_UNKNOWN"}, reference


def test_an_escape_is_decoded_once(door: Door, stock: Stock) -> None:
    digest = stock.app["digest"].replace(":", "%3A")
    assert door.ask(manifest(NAME.replace("a", "%61"), digest)).body == stock.read(stock.app)
    assert door.status(manifest(NAME, digest.replace("%", "%25"))) == 404


def test_a_document_is_no_blob_and_a_blob_no_document(door: Door, stock: Stock) -> None:
    # containerd takes the media type from whatever answers.
    for descriptor in stock.documents.values():
        for method in ("GET", "HEAD"):
            assert door.status(blob(NAME, descriptor["digest"]), method=method) == 404
    for descriptor in (stock.layer, stock.layout.document(stock.app)["config"]):
        reply = door.ask(manifest(NAME, descriptor["digest"]))
        assert_is_refused(reply, 404, "MANIFEST_UNKNOWN")


def test_paths_that_are_none(door: Door) -> None:
    for target in (
        "/",
        "/v1/",
        "/v2/x",
        "/v2/_oci/ext/discover",
        f"/v2/{NAME}",
        f"/v2/{NAME}/manifests",
        f"/v2/{NAME}/manifests/",
        f"/v2/{NAME}/blobs/uploads/",
        f"/v2/{NAME}/tags/other",
        f"/v3/{NAME}/manifests/1",
        "/manifest",
        "/metrics/x",
    ):
        assert_is_refused(door.ask(target), 404, "NAME_UNKNOWN")


@pytest.mark.slow
def test_names_may_be_called_like_routes(layout: Layout) -> None:
    one = layout.image(b"x")
    names = ("manifests/blobs", "tags/list", "v2/manifests", "a/manifests/b", "healthz")
    layout.save(*(named(one, f"{REGISTRY}/{each}:1") for each in names))
    with registry_doors.running("--images", str(layout.path)) as door:
        for name in names:
            assert door.ask(manifest(f"{REGISTRY}/{name}", "1")).status == 200, name
            assert door.ask(path(f"{REGISTRY}/{name}", "tags", "list")).json()["tags"] == ["1"]


# --- lists ----------------------------------------------------------------------------------------


def pages(door: Door, target: str, key: str) -> list[list[str]]:
    """Return the pages of a list, each found by the link of the one before."""
    found = []
    while target:
        reply = door.ask(target)
        assert reply.status == 200, target
        found.append(reply.json()[key])
        link = reply.get("Link")
        target = ""
        if link is not None:
            match = re.fullmatch(r'<(/v2/[^>]*)>; rel="next"', link)
            assert match, link
            target = match[1]
        assert len(found) < 100, "no end"
    return found


def test_tags_are_in_order_and_come_in_pages(door: Door, stock: Stock) -> None:
    tags = list(stock.tags)
    target = path(NAME, "tags", "list")
    assert pages(door, target, "tags") == [tags]
    for n in range(1, len(tags) + 2):
        for asked in (f"{target}?n={n}", f"/v2/team/app/tags/list?n={n}&ns={REGISTRY}"):
            found = pages(door, asked, "tags")
            assert [tag for each in found for tag in each] == tags
            assert all(len(each) == n for each in found[:-1])
            assert found[-1], "a link leads to something"


def test_the_ends_of_a_list(door: Door, stock: Stock) -> None:
    tags = list(stock.tags)
    for query, expected in (
        ("n=0", []),
        ("n=0&last=1", []),
        ("n=1000000", tags),
        (f"n=3&last={tags[-1]}", []),
        ("last=zzz", []),
        ("n=5&last=zzz", []),
        ("last=1", tags[1:]),
        ("last=15", tags[2:]),
        ("last=..%2F..", tags),
        ("last=", tags),
        ("last=%00", tags),
    ):
        reply = door.ask(path(NAME, "tags", "list", query))
        assert (reply.status, reply.json()["tags"]) == (200, expected), query
        assert reply.get("Link") is None, query
    for bad in ("-1", "x", "", "1.5", "%2B1", "9" * 30, "0x10", "%D9%A1"):
        reply = door.ask(path(NAME, "tags", "list", f"n={bad}"))
        assert reply.status == 400, bad
        assert reply.error
    assert_is_refused(door.ask(path(f"{REGISTRY}/none", "tags", "list")), 404, "NAME_UNKNOWN")


def test_referrers(door: Door, stock: Stock) -> None:
    target = path(NAME, "referrers", stock.app["digest"])
    reply = door.ask(target)
    assert reply.get("Content-Type") == OCI_INDEX
    assert reply.get("OCI-Filters-Applied") is None
    index = reply.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    assert sorted(index["manifests"], key=lambda each: str(each["artifactType"])) == [
        {
            **each,
            "artifactType": kind,
            "annotations": {"kind": kind},
        }
        for each, kind in zip(stock.referrers, ("text/sbom", "text/signature"), strict=True)
    ]
    filtered = door.ask(f"{target}?artifactType=text%2Fsbom")
    assert filtered.get("OCI-Filters-Applied") == "artifactType"
    assert [each["digest"] for each in filtered.json()["manifests"]] == [
        stock.referrers[0]["digest"]
    ]
    assert door.ask(f"{target}?artifactType=none").json()["manifests"] == []


def test_what_nothing_refers_to_has_an_empty_list(door: Door, stock: Stock) -> None:
    # A 404 would mean that there are no such lists here, and send clients to a tag.
    for name, digest in (
        (NAME, ABSENT),
        (NAME, stock.index["digest"]),
        (f"{REGISTRY}/other", stock.app["digest"]),
        (f"{REGISTRY}/none", ABSENT),
    ):
        reply = door.ask(path(name, "referrers", digest))
        assert (reply.status, reply.get("Content-Type")) == (200, OCI_INDEX)
        assert reply.json()["manifests"] == []
    for bad in ("bad", "sha256:bad", "1"):
        assert_is_refused(door.ask(path(NAME, "referrers", bad)), 400, "DIGEST_INVALID")


def test_the_catalog(door: Door) -> None:
    names = ["library/busybox", f"{REGISTRY}/other", NAME]
    assert pages(door, "/v2/_catalog", "repositories") == [names]
    assert pages(door, "/v2/_catalog?n=1", "repositories") == [[each] for each in names]
    assert door.ask("/v2/_catalog?n=0").json() == {"repositories": []}


@pytest.mark.slow
def test_there_is_no_catalog_that_was_not_asked_for(stock: Stock) -> None:
    with registry_doors.running("--images", str(stock.layout.path)) as quiet:
        assert_is_refused(quiet.ask("/v2/_catalog"), 404, "NAME_UNKNOWN")


# --- other methods, other senders -----------------------------------------------------------------


def test_nothing_can_be_changed(door: Door, stock: Stock) -> None:
    client = door.connect()
    for target in (*targets(stock), "/v2/team/app/blobs/uploads/", "/metrics"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            reply = client.request(method, target, body=b"{}" if method[0] == "P" else b"")
            assert_is_refused(reply, 405, "UNSUPPORTED")
            assert reply.get("Allow") == "GET, HEAD"
    assert client.get("/v2/").status == 200


def test_pages_in_browsers_are_refused(door: Door, stock: Stock) -> None:
    for target in ("/v2/", manifest(NAME, "1"), blob(NAME, stock.layer["digest"]), "/v2/_catalog"):
        for line in (
            "Origin: https://evil.example",
            "Origin: null",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
        ):
            reply = door.ask(target, line)
            assert (reply.status, reply.code) == (403, "DENIED"), line
            assert not [name for name, _ in reply.fields if name.lower().startswith("access-")]


def test_a_name_that_was_made_to_lead_here_is_refused(door: Door) -> None:
    for host, status in (
        ("evil.example", 403),
        (f"evil.example:{door.port}", 403),
        ("localhost.evil.example", 403),
        (REGISTRY, 403),
        ("127.0.0.1", 200),
        (door.address, 200),
        ("[::1]:5000", 200),
        ("localhost:1", 200),
    ):
        client = door.connect()
        client.send(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert client.reply().status == status, host


def test_who_speaks_tls_is_answered_in_clear_text(door: Door) -> None:
    # Go's clients know by that, at once, that they have to speak plain HTTP.
    client = door.connect()
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505))
    content, _ = client.read_to_end()
    assert content.startswith(b"HTTP/1.1 400 ")


# --- policy ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "status", "code"),
    [({"default": [{"type": "reject"}]}, 403, "DENIED"), ("{", 500, "CONFIGURATION")],
)
def test_without_a_policy_that_accepts_it_nothing_is_served(
    stock: Stock, home: Home, policy: object, status: int, code: str
) -> None:
    # A policy in the home directory is read when something is asked for.
    home.write(".config/containers/policy.json", policy)
    options = ("--images", str(stock.layout.path))
    with registry_doors.running(*options, policy=None, env=home.environment()) as door:
        for target in (
            manifest(NAME, "1"),
            manifest(NAME, stock.app["digest"]),
            blob(NAME, stock.layer["digest"]),
        ):
            reply = door.ask(target)
            assert (reply.status, reply.code) == (status, code), target
            assert json.loads(reply.body)
        assert door.status("/v2/") == 200

"""An image at a registry: what is asked for and comes back, and which credentials are used."""

from __future__ import annotations

import pytest
import trio
from support.images import OCI_MANIFEST, digest_of
from support.registries import (
    BASE,
    BLOB,
    DIGEST,
    FOUND,
    FOUND_BLOB,
    GONE,
    LAYER,
    MANIFEST,
    MIRROR,
    OTHER,
    PLACES,
    WHERE,
    Ring,
    described,
    failure_of,
    manifest,
    moved,
    read_blob,
    registry,
    unauthorized,
)
from support.streams import SILENCE, answer, asked, head, refused, virtual_time

from imgproxy.errors import Failure
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.verification import documents

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
UNAVAILABLE = (503, "UNAVAILABLE", True)
WRONG_DIGEST = (422, "DIGEST_INVALID", False)


# --- what is asked for --------------------------------------------------------------------------


@virtual_time
async def test_the_first_manifest_takes_one_request() -> None:
    wanted = asked(
        WHERE, FOUND, accept=distribution.ACCEPT_MANIFESTS, authorization=None, user_agent="test/1"
    )
    async with registry(wanted) as (source, script):
        document = await source.root()
        assert (document.raw, document.media_type) == (MANIFEST, OCI_MANIFEST)
        assert (document.digests, document.size) == ((), None)
        assert document.name == (
            "docker://registry.test/acme/os:1: manifest 1 from registry.test/acme/os"
        )
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("registry.test/acme/os", f"{BASE}/manifests/latest"),
        (f"registry.test/acme/os@{DIGEST}", f"{BASE}/manifests/{DIGEST}"),
        (f"registry.test/acme/os:1@{DIGEST}", f"{BASE}/manifests/{DIGEST}"),
        ("localhost:5000/x:1", "https://localhost:5000/v2/x/manifests/1"),
        ("[::1]:5000/x:1", "https://[::1]:5000/v2/x/manifests/1"),
        ("busybox:1", "https://registry-1.docker.io/v2/library/busybox/manifests/1"),
    ],
)
@virtual_time
async def test_a_reference_says_what_is_asked(reference: str, url: str) -> None:
    async with registry(asked(url, FOUND), reference=reference) as (source, _):
        document = await source.root()
        wanted = (digests.parse(DIGEST),) if "@" in reference else ()
        assert document.digests == wanted


@pytest.mark.parametrize(
    ("tail", "scope"),
    [(":1", ":1"), ("", ":latest"), (f"@{DIGEST}", f"@{DIGEST}"), (f":1@{DIGEST}", f"@{DIGEST}")],
)
@virtual_time
async def test_policies_know_the_image_by_its_scopes(tail: str, scope: str) -> None:
    name = "registry.test/acme/os"
    async with registry(reference=name + tail) as (source, _):
        assert source.name == f"docker://{name}{tail or ':latest'}"
        assert source.identity.transport == "docker"
        assert source.identity.scopes[:3] == [name + scope, name, "registry.test/acme"]


@pytest.mark.parametrize(
    ("described_as", "content_type", "wanted"),
    [
        (OCI_MANIFEST, "text/plain", OCI_MANIFEST),
        (OCI_MANIFEST, None, OCI_MANIFEST),
        ("", OCI_MANIFEST, OCI_MANIFEST),
        ("", None, ""),
    ],
)
@virtual_time
async def test_an_index_says_what_its_entries_are(
    described_as: str, content_type: str | None, wanted: str
) -> None:
    reply = answer(body=MANIFEST, content_type=content_type)
    async with registry(asked(f"{BASE}/manifests/{DIGEST}", reply)) as (source, _):
        document = await source.document(described(MANIFEST, described_as))
        assert document.media_type == wanted
        assert document.digests == (digests.parse(DIGEST),)
        assert document.size == len(MANIFEST)


@virtual_time
async def test_a_pull_uses_one_connection() -> None:
    async with registry(asked(WHERE, FOUND), asked(BLOB, FOUND_BLOB)) as (source, script):
        await source.root()
        assert await read_blob(source) == LAYER
        assert len(script.streams) == 1
        source.close()
        assert script.streams[0].closed


@virtual_time
async def test_a_manifest_beyond_the_limit_is_not_read() -> None:
    size = str(MAX_DOCUMENT_SIZE + 1)
    async with registry(asked(WHERE, head(200, content_length=size))) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == (422, "SIZE_INVALID", False)


@virtual_time
async def test_a_cancelled_request_leaves_no_connection_behind() -> None:
    cut = FOUND[:-1]
    for steps in ((SILENCE,), (cut, SILENCE), (unauthorized(None, b"xx")[:-1], SILENCE)):
        async with registry(asked(WHERE, *steps)) as (source, script):
            with trio.move_on_after(1) as scope:
                await source.root()
            assert scope.cancelled_caught
            assert script.streams[0].closed


# --- what comes back ----------------------------------------------------------------------------


@virtual_time
async def test_the_digest_that_the_registry_says_is_one_that_must_agree() -> None:
    wrong = digest_of(b"something else")
    reply = answer(body=MANIFEST, content_type=OCI_MANIFEST, docker_content_digest=wrong)
    where = f"{BASE}/manifests/{DIGEST}"
    async with registry(asked(WHERE, reply), asked(where, reply)) as (source, _):
        by_tag = await source.root()
        by_digest = await source.document(described(MANIFEST))
    assert by_tag.digests == (digests.parse(wrong),)
    assert by_digest.digests == (digests.parse(DIGEST), digests.parse(wrong))
    for document in (by_tag, by_digest):
        with pytest.raises(Failure) as raised:
            documents.verify(document)
        assert refused(raised.value) == (422, "DIGEST_INVALID", False)


@pytest.mark.parametrize(
    "said", [f'"{DIGEST}"', f"{DIGEST}, {DIGEST}", DIGEST.upper().replace("SHA", "sha")]
)
@virtual_time
async def test_a_digest_is_known_however_it_is_written(said: str) -> None:
    reply = answer(body=MANIFEST, docker_content_digest=said)
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).digests == (digests.parse(DIGEST),)


@pytest.mark.parametrize(
    "said", ["blake3:" + "0" * 64, "md7:abc", "sha256:abc", "nonsense", None, ""]
)
@virtual_time
async def test_a_digest_that_cannot_be_computed_is_no_obstacle(said: str | None) -> None:
    reply = answer(body=MANIFEST, docker_content_digest=said)
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).digests == ()


# --- which location gets which credentials ------------------------------------------------------


@virtual_time
async def test_each_endpoint_is_shown_its_own_credentials_alone() -> None:
    mine, theirs = Credentials("u", "p", "", "a"), Credentials("m", "q", "", "b")
    ring = Ring(registry_test=mine, mirror_test=theirs)
    basic = unauthorized('Basic realm="x"')
    exchanges = [
        manifest(MIRROR, basic, authorization=None),
        manifest(MIRROR, GONE, authorization=theirs.basic),
        manifest(OTHER, basic, authorization=None),
        asked(WHERE, basic, authorization=None),
        asked(WHERE, FOUND, authorization=mine.basic),
    ]
    async with registry(*exchanges, places=PLACES, ring=ring) as (source, _):
        await source.root()
    assert ring.asked == [
        ("mirror.test", "cache/os", False),
        ("other.test", "acme/os", False),
        ("registry.test", "acme/os", True),
    ]


@virtual_time
async def test_a_given_token_is_for_the_image_s_own_registry_alone() -> None:
    exchanges = [
        manifest(MIRROR, GONE, authorization=None),
        manifest(OTHER, GONE, authorization=None),
        asked(WHERE, FOUND, authorization="Bearer given"),
    ]
    async with registry(*exchanges, places=PLACES, registry_token="given") as (source, _):
        await source.root()


@pytest.mark.parametrize(
    ("page", "media_type", "words"),
    [
        (b"<html><title>Sign in</title>", "text/html", "(text/html: Sign in)"),
        (b"\n <!DOCTYPE html><p>a", "text/html; charset=utf-8", "(text/html; charset=utf-8: a)"),
        (b"<x/>", OCI_MANIFEST, f"({OCI_MANIFEST})"),
        (b"<x/>", None, "(no type)"),
    ],
)
@virtual_time
async def test_a_page_in_place_of_a_manifest_is_told_with_its_url(
    page: bytes, media_type: str | None, words: str
) -> None:
    there = "https://portal.test/login"
    exchanges = [
        asked(WHERE, moved(there)),
        asked(there, answer(body=page, content_type=media_type)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == BAD_UPSTREAM
    assert f"GET {there}: a page, and no manifest {words}" in failure.message

"""What is asked of a registry for a tag that a cache has: HEAD, and GET where that says nothing."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.images import OCI_INDEX, digest_of
from support.registries import (
    CHALLENGE,
    TOKENS,
    WHERE,
    Ring,
    image_at,
    place,
    token,
    unauthorized,
)
from support.streams import Exchange, Script, answer, asked, head, real_time

from imgproxy.errors import DeniedError, NotFoundError
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.cache import Cache, CacheOptions
from imgproxy.transports.source import stale_since
from imgproxy.verification.documents import compare
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgproxy.store.cache_records import CachedTag


MANIFEST, MOVED = (
    json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "x": each}).encode()
    for each in "ab"
)
DIGEST = digest_of(MANIFEST)
FOUND, NEW = (answer(body=each, content_type=OCI_INDEX) for each in (MANIFEST, MOVED))
REFERENCE = "registry.test/acme/os:1"


def said(digest: str | None = DIGEST, status: int = 200, **fields: str | None) -> bytes:
    """Return an answer to HEAD."""
    return head(status, content_length="34", docker_content_digest=digest, **fields)


def confirmed(*steps: bytes, **fields: str) -> Exchange:
    return asked(WHERE, *steps, method="HEAD", **fields)


class Scene:
    """A cache, which has what a tag stood for."""

    def __init__(self, path: Path, **options: bool) -> None:
        self.path = path
        self.reported: list[str] = []
        chosen = CacheOptions(**options)
        self.cache = Cache(str(path / "cache"), chosen, self.reported.append, compare)

    @property
    def tag(self) -> CachedTag:
        reference = parse_reference(REFERENCE)
        found = self.cache.records.tag(reference.name, "1")
        assert found is not None
        return found

    def forget_when(self) -> None:
        """Make the cache's answer an old one."""
        self.cache.records.set_tag(
            parse_reference(REFERENCE).name, "1", self.tag._replace(asked=self.tag.asked - 1000)
        )

    def without_login(self, **options: bool) -> Scene:
        """Return the same cache as one that uses no credentials has it."""
        return Scene(self.path, anonymous=True, **options)

    async def ask(
        self, *exchanges: Exchange, insecure: bool = False, ring: Ring | None = None
    ) -> tuple[bytes, bool]:
        """Return what the tag stands for, and whether that is an old answer."""
        script = Script(*exchanges)
        raw = image_at(script, [place(REFERENCE, insecure=insecure)], REFERENCE, ring=ring)
        image = self.cache.opened(raw)
        try:
            document = await VerifiedSource(image, LargeBlobs()).root()
        finally:
            image.close()
        script.check()
        return document.raw, stale_since(image) is not None


@asynccontextmanager
async def cached(path: Path) -> AsyncIterator[Scene]:
    """Yield a scene whose cache has the document of an old answer."""
    scene = Scene(path)
    assert await scene.ask(asked(WHERE, FOUND)) == (MANIFEST, False)
    scene.forget_when()
    yield scene
    scene.cache.close()


@real_time
async def test_what_still_stands_for_the_same_is_not_sent(tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        before = scene.tag
        assert await scene.ask(confirmed(said())) == (MANIFEST, False)
        assert scene.tag.asked > before.asked
        assert scene.tag.document == before.document
        assert scene.reported == []


@real_time
async def test_a_token_is_fetched_for_it(tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        exchanges = (
            confirmed(head(401, www_authenticate=CHALLENGE, content_length="9")),
            asked(TOKENS, token("t")),
            confirmed(said(), authorization="Bearer t"),
        )
        assert await scene.ask(*exchanges) == (MANIFEST, False)


@pytest.mark.parametrize(
    "answered",
    [
        said(digest_of(MOVED)),
        said(None),
        said("sha256:no-digest"),
        said(f"{DIGEST}, {digest_of(MOVED)}"),
        said(DIGEST, 404),
        said(DIGEST, 405),
        said(DIGEST, 403),
        said(DIGEST, 204),
        said(DIGEST, 501),
        unauthorized(None),
    ],
)
@real_time
async def test_where_it_may_be_another_one_it_is_asked_for(answered: bytes, tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        assert await scene.ask(confirmed(answered), asked(WHERE, NEW)) == (MOVED, False)
        assert str(scene.tag.document.digest) == digest_of(MOVED)


@pytest.mark.parametrize("status", [429, 500, 503])
@real_time
async def test_a_registry_that_is_ill_is_not_asked_twice(status: int, tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        before = scene.tag
        assert await scene.ask(confirmed(said(status=status))) == (MANIFEST, True)
        assert scene.tag == before
        (line,) = scene.reported
        assert f"HEAD {WHERE}: {status}" in line


@real_time
async def test_what_is_gone_is_gone(tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        with pytest.raises(Exception, match=f"GET {WHERE}: 404"):
            await scene.ask(confirmed(said(None, 404)), asked(WHERE, answer(404)))


@real_time
async def test_without_verified_tls_an_answer_serves_only_those_who_accept_that(
    tmp_path: Path,
) -> None:
    async with cached(tmp_path) as scene:
        assert not scene.tag.document.is_insecure
        assert await scene.ask(confirmed(said()), insecure=True) == (MANIFEST, False)
        assert scene.tag.document.is_insecure
        # What was said there is worth nothing here, and so the document itself is asked for.
        assert await scene.ask(asked(WHERE, FOUND)) == (MANIFEST, False)
        assert not scene.tag.document.is_insecure


@real_time
async def test_what_came_by_a_login_serves_nobody_without(tmp_path: Path) -> None:
    demanded = head(401, www_authenticate='Basic realm="x"', content_length="0")
    user = Credentials("user", "word", "", "auth.json")
    ring = Ring(registry_test=user)
    scene = Scene(tmp_path)
    by_login = asked(WHERE, FOUND, authorization=user.basic)
    assert await scene.ask(asked(WHERE, demanded), by_login, ring=ring) == (MANIFEST, False)
    assert scene.tag.document.by_login
    offline = scene.without_login(offline=True)
    with pytest.raises(NotFoundError, match="by a login, which --no-creds does without"):
        await offline.ask()
    with pytest.raises(DeniedError):
        await scene.without_login().ask(asked(WHERE, demanded))
    assert await Scene(tmp_path, offline=True).ask() == (MANIFEST, True)
    # Everybody may have it by now.
    assert await scene.without_login().ask(asked(WHERE, FOUND)) == (MANIFEST, False)
    assert await offline.ask() == (MANIFEST, True)
    # That a login has been used again takes nothing away.
    again = confirmed(demanded), confirmed(said(), authorization=user.basic)
    assert await scene.ask(*again, ring=ring) == (MANIFEST, False)
    reference = parse_reference(REFERENCE)
    document = scene.cache.records.document(reference.name, scene.tag.document.digest)
    assert document is not None
    assert not document.by_login


def rot(path: str) -> None:
    """Replace a file of the store by another of the same size."""
    Path(path).chmod(0o600)
    Path(path).write_bytes(MOVED)


@real_time
async def test_what_rotted_is_asked_for(tmp_path: Path) -> None:
    async with cached(tmp_path) as scene:
        path = scene.cache.store.blob_path(scene.tag.document.digest)
        rot(path)
        assert await scene.ask(confirmed(said()), asked(WHERE, FOUND)) == (MANIFEST, False)

"""Redirects and encodings: what is followed, what is refused."""

from __future__ import annotations

import gzip
import zlib

import pytest
from support.registries import (
    BASE,
    CHALLENGE,
    FOUND,
    MANIFEST,
    TOKENS,
    WHERE,
    failure_of,
    moved,
    place,
    registry,
    token,
    unauthorized,
)
from support.streams import (
    SILENCE,
    Step,
    answer,
    asked,
    elapsing,
    head,
    refused,
    virtual_time,
)

from imgproxy.errors import Failure
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE

INSECURE = [place(insecure=True)]

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
UNAUTHORIZED = (403, "UNAUTHORIZED", False)


# --- bodies that nobody needs ---------------------------------------------------------------------

NOT_SENT = head(307, content_length="5000", location="https://cdn.test/x")


@pytest.mark.parametrize("begun", [b"", b"x" * 100])
@virtual_time
async def test_the_body_of_a_redirect_is_not_waited_for(begun: bytes) -> None:
    exchanges = [
        asked(WHERE, NOT_SENT + begun, SILENCE),
        asked("https://cdn.test/x", NOT_SENT.replace(b"/x", b"/y") + begun, SILENCE),
        asked("https://cdn.test/y", FOUND),
    ]
    async with registry(*exchanges) as (source, script):
        with elapsing(0):
            assert (await source.root()).raw == MANIFEST
        assert [stream.closed for stream in script.streams] == [True, True, False]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
@pytest.mark.parametrize("sent", [(SILENCE,), (b"x" * 4999, SILENCE), (0.4, b"x") * 99])
@virtual_time
async def test_the_body_of_a_refusal_is_waited_for_a_second_at_most(
    status: int, sent: tuple[Step, ...]
) -> None:
    refusal = head(status, content_length="5000")
    async with registry(asked(WHERE, refusal, *sent)) as (source, script):
        with elapsing(1), pytest.raises(Failure) as raised:
            await source.root()
        assert f": {status}" in raised.value.message
        assert script.streams[0].closed


@virtual_time
async def test_the_body_of_a_challenge_is_waited_for_a_second_at_most() -> None:
    exchanges = [
        asked(WHERE, head(401, content_length="5000", www_authenticate=CHALLENGE), SILENCE),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges) as (source, _):
        with elapsing(1):
            assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_a_refusal_that_arrives_in_time_is_quoted_and_its_connection_used_again() -> None:
    words = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}'
    gone = head(404, content_length=str(len(words)))
    exchanges = [asked(WHERE, gone, 0.5, words[:9], 0.4, words[9:]), asked(WHERE, FOUND)]
    async with registry(*exchanges) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert "no such tag" in raised.value.message
        assert (await source.root()).raw == MANIFEST
        assert len(script.streams) == 1


# --- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@virtual_time
async def test_redirects_are_followed_and_the_token_stays_at_home(status: int) -> None:
    signed = "https://cdn.test/y?X-Signature=hunter2"
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, moved("../elsewhere", status), authorization="Bearer t1"),
        asked(f"{BASE}/elsewhere", moved(signed, status), authorization="Bearer t1"),
        asked(signed, moved("//eu.cdn.test/z", status), authorization=None),
        asked("https://eu.cdn.test/z", moved(f"{BASE}/back", status), authorization=None),
        asked(f"{BASE}/back", FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert len(script.streams) == 4


@pytest.mark.parametrize("location", ["https://registry.test:444/x", "https://sub.registry.test/x"])
@virtual_time
async def test_a_neighbour_is_not_at_home(location: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, moved(location)),
        asked(location, FOUND, authorization=None),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_nobody_but_the_registry_may_say_where_tokens_are_had() -> None:
    exchanges = [
        asked(WHERE, moved("https://cdn.test/x")),
        asked("https://cdn.test/x", unauthorized(CHALLENGE)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED


@virtual_time
async def test_a_circle_of_redirects_ends() -> None:
    count = distribution.MAX_REDIRECTS + 1
    failure = await failure_of(*[asked(WHERE, moved(WHERE))] * count)
    assert refused(failure) == BAD_UPSTREAM
    assert failure.message == f"GET {WHERE}: redirected more than 10 times"


@virtual_time
async def test_as_many_redirects_as_allowed_are_followed() -> None:
    count = distribution.MAX_REDIRECTS
    exchanges = [*[asked(WHERE, moved(WHERE))] * count, asked(WHERE, FOUND)]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


LOCATIONS = {
    "missing": (None, "redirected without a Location"),
    "down to http": ("http://cdn.test/?X-Signature=hunter2", "refused (--tls-verify=false"),
    "another scheme": ("file:///etc/passwd", "neither http nor https"),
    "userinfo": ("https://u:hunter2@cdn.test/x", "user information"),
    "userinfo with a slash": ("https://u:hunter2/y@cdn.test/x", "unusable"),
    "userinfo without a path": ("https://u:hunter2@cdn.test", "user information"),
    "a fragment": ("ftp://cdn.test/x#hunter2", "neither http nor https"),
    "no ASCII": ("https://\xe9.test/?X-Signature=hunter2", "its host is malformed"),
    "a port out of range": ("https://cdn.test:99999/?X-Signature=hunter2", "unusable"),
    "a port that is no number": ("https://u:hunter2", "unusable"),
    "no brackets": ("https://[::1/?X-Signature=hunter2", "unusable"),
    "a label too long": (f"https://{'a' * 64}.test/", "its host is malformed"),
    "an empty label": ("https://a..test/", "its host is malformed"),
}


@pytest.mark.parametrize("case", LOCATIONS)
@virtual_time
async def test_a_redirect_to_somewhere_unusable_is_refused_without_its_secrets(case: str) -> None:
    location, words = LOCATIONS[case]
    failure = await failure_of(asked(WHERE, moved(location)))
    assert refused(failure) == BAD_UPSTREAM
    assert words in failure.message
    assert "hunter2" not in failure.message
    assert failure.message.isprintable()


@virtual_time
async def test_of_an_insecure_registry_a_redirect_may_lead_to_http() -> None:
    exchanges = [asked(WHERE, moved("http://cdn.test/x")), asked("http://cdn.test/x", FOUND)]
    async with registry(*exchanges, places=INSECURE) as (source, _):
        assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize(
    "encoding", ["gzip", "x-gzip", "GZIP", "gzip, identity", "zstd", "aws-chunked"]
)
@virtual_time
async def test_a_document_that_is_only_said_to_be_encoded_is_taken_as_it_is(encoding: str) -> None:
    """The digest decides; nothing that begins as JSON is compressed."""
    reply = answer(body=MANIFEST, content_encoding=encoding)
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
@virtual_time
async def test_a_document_that_was_compressed_unasked_is_decompressed(encoding: str) -> None:
    reply = answer(body=gzip.compress(MANIFEST), content_encoding=encoding)
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).raw == MANIFEST


PACKED = gzip.compress(MANIFEST, mtime=0)


ENCODED = {
    "by another encoding": (PACKED, "zstd"),
    "by br": (PACKED, "br"),
    "twice": (PACKED, "gzip, gzip"),
    "cut off": (PACKED[:-1], "gzip"),
    "with more after it": (PACKED + b"x", "gzip"),
    "damaged": (PACKED[:-8] + bytes(8), "gzip"),
    "otherwise than it says": (zlib.compress(MANIFEST), "gzip"),
    "by deflate": (zlib.compress(MANIFEST), "deflate"),
    "a page": (b"<html>", "gzip"),
    "nothing": (b"", "gzip"),
}


@pytest.mark.parametrize("case", ENCODED)
@virtual_time
async def test_encoded_replies_are_not_the_bytes_that_were_asked_for(case: str) -> None:
    body, encoding = ENCODED[case]
    reply = answer(body=body, content_encoding=encoding)
    async with registry(asked(WHERE, reply)) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
    assert refused(raised.value) == BAD_UPSTREAM
    assert f"the reply is encoded ({encoding}), which was not requested" in raised.value.message


@virtual_time
async def test_a_compressed_document_may_not_be_larger_than_another() -> None:
    """Some kilobytes of gzip can be gigabytes of blanks; memory is what would run out."""
    for size, fits in ((MAX_DOCUMENT_SIZE, True), (MAX_DOCUMENT_SIZE + 1, False)):
        body = b"{" + b" " * (size - 2) + b"}"
        reply = answer(body=gzip.compress(body), content_encoding="gzip")
        async with registry(asked(WHERE, reply)) as (source, _):
            if fits:
                assert (await source.root()).raw == body
                continue
            with pytest.raises(Failure) as raised:
                await source.root()
            assert refused(raised.value) == (422, "SIZE_INVALID", False)


@virtual_time
async def test_identity_is_no_encoding() -> None:
    reply = answer(body=MANIFEST, content_encoding="identity")
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_who_redirects_to_a_server_that_cannot_be_reached_is_told() -> None:
    dead: dict[str, float | Exception] = {"https://cdn.test": OSError(113, "No route to host")}
    exchanges = [
        asked(WHERE, moved("https://other.test/x?secret=1")),
        asked("https://other.test/x?secret=1", moved("https://cdn.test/y")),
    ]
    failure = await failure_of(*exchanges, unreachable=dead)
    assert refused(failure) == (504, "UNREACHABLE", True)
    assert failure.message.endswith("(https://other.test/x?… redirects there)")

"""What the answers of a registry mean."""

from __future__ import annotations

import pytest
from support.images import digest_of
from support.registries import (
    BLOB,
    CHALLENGE,
    LAYER,
    MANIFEST,
    TOKENS,
    WHERE,
    described,
    registry,
    unauthorized,
)
from support.streams import (
    SILENCE,
    Step,
    answer,
    asked,
    head,
    refused,
    virtual_time,
)

from imgproxy.errors import Failure

# --- statuses and encodings --------------------------------------------------------------------

WORDS = b'{"errors":[{"code":"CODE","message":"the\\u0007words","detail":{}}]}'
UNKNOWN = b'{"errors":[{"code":"NAME_UNKNOWN","message":"no repository"}]}'

STATUSES = {
    "404": (answer(404), "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", (404, False), "404"),
    "404 with words": (
        answer(404, WORDS),
        "MANIFEST_UNKNOWN",
        "BLOB_UNKNOWN",
        (404, False),
        "404 (CODE: the words)",
    ),
    "404 of the name": (answer(404, UNKNOWN), "NAME_UNKNOWN", "NAME_UNKNOWN", (404, False), "404"),
    "404 with a page": (
        answer(404, b"<html>"),
        "MANIFEST_UNKNOWN",
        "BLOB_UNKNOWN",
        (404, False),
        "404",
    ),
    "403": (answer(403, WORDS), "DENIED", "DENIED", (403, False), "403 (CODE: the words)"),
    "429": (answer(429, WORDS), "TOOMANYREQUESTS", "TOOMANYREQUESTS", (503, True), "429 (CODE"),
    "500": (answer(500, b"\0"), "UNAVAILABLE", "UNAVAILABLE", (503, True), "500"),
    "503 of no length": (
        head(503, connection="close"),
        "UNAVAILABLE",
        "UNAVAILABLE",
        (503, True),
        "503",
    ),
    "418": (answer(418, WORDS), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "418 (CODE"),
    "400": (answer(400), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "400"),
    "204": (head(204), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "204"),
    "206": (answer(206, MANIFEST), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "206"),
}


@pytest.mark.parametrize("case", STATUSES)
@virtual_time
async def test_a_status_says_what_went_wrong(case: str) -> None:
    reply, manifest_code, blob_code, (status, retryable), words = STATUSES[case]
    steps: tuple[Step, ...] = (reply, b"")
    for url, kind, name, code in (
        (WHERE, "manifest", "1", manifest_code),
        (BLOB, "blob", digest_of(LAYER), blob_code),
    ):
        async with registry(asked(url, *steps)) as (source, _):
            with pytest.raises(Failure) as raised:
                await (source.root() if kind == "manifest" else source.blob(described(LAYER)))
            assert refused(raised.value) == (status, code, retryable)
            assert raised.value.message.startswith(f"{kind} {name}: GET {url}: {words}")
            assert raised.value.message.isprintable()


@virtual_time
async def test_an_error_body_that_stalls_or_swells_is_given_up() -> None:
    for steps in ((head(404, content_length="9"), SILENCE), (answer(404, bytes(1 << 17)),)):
        async with registry(asked(WHERE, *steps)) as (source, script):
            with pytest.raises(Failure) as raised:
                await source.root()
            assert raised.value.status == 404
            assert script.streams[0].closed


# --- when to come back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [(None, None), ("7", 7), ("600", 600), ("soon", None), ("Sun, 06 Nov 1994 08:49:37 GMT", 0)],
)
@pytest.mark.parametrize("status", [429, 503])
@virtual_time
async def test_when_to_come_back_is_kept(status: int, said: str | None, wanted: float) -> None:
    late = answer(status, retry_after=said)
    for exchanges in (
        [asked(WHERE, late)],
        [asked(WHERE, unauthorized(CHALLENGE)), asked(TOKENS, late)],
    ):
        async with registry(*exchanges) as (source, _):
            with pytest.raises(Failure) as raised:
                await source.root()
        assert (raised.value.retryable, raised.value.retry_after) == (True, wanted)

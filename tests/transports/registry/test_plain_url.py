"""Files of web servers: below a URL, or at it."""

from __future__ import annotations

import pytest
from support.images import digest_of
from support.registries import moved, read
from support.streams import answer, asked, refused, scripted, virtual_time

from imgproxy.errors import Failure
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.content_range import Range
from imgproxy.specs.oci import digest as digests
from imgproxy.transports.registry.plain_url import PlainUrl

CONTENT = bytes(range(40))
DIGEST = digests.parse(digest_of(CONTENT))
BASE = "https://files.test/a/"


@virtual_time
async def test_a_file_is_read_by_its_name() -> None:
    async with scripted(asked(f"{BASE}x", answer(body=CONTENT), accept=None)) as (client, _):
        location = PlainUrl(urls.parse(BASE), client, allow_http=False)
        assert (location.name, location.demerits) == (BASE, 0)
        assert await location.read("x", "file", len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("reply", "wanted", "message"),
    [
        (answer(404), (404, "MANIFEST_UNKNOWN", False), f"a file: GET {BASE}x: 404"),
        (answer(503), (503, "UNAVAILABLE", True), f"a file: GET {BASE}x: 503"),
        (answer(206), (502, "BAD_UPSTREAM", False), f"a file: GET {BASE}x: 206"),
        (answer(body=CONTENT + b"x"), (422, "SIZE_INVALID", False), f"GET {BASE}x: the reply"),
        (
            answer(body=CONTENT, content_encoding="gzip"),
            (502, "BAD_UPSTREAM", False),
            f"GET {BASE}x: the reply is encoded (gzip)",
        ),
    ],
)
@virtual_time
async def test_a_file_that_cannot_be_read_is_a_failure(
    reply: bytes, wanted: tuple[int, str, bool], message: str
) -> None:
    async with scripted(asked(f"{BASE}x", reply)) as (client, _):
        with pytest.raises(Failure) as raised:
            await PlainUrl(urls.parse(BASE), client, allow_http=False).read("x", "a file", 40)
    assert refused(raised.value) == wanted
    assert raised.value.message.startswith(message)


@virtual_time
async def test_a_blob_is_had_whole_or_from_a_byte_on() -> None:
    part = answer(206, CONTENT[30:], content_range="bytes 30-39/40")
    exchanges = [
        asked(BASE, answer(body=CONTENT), range=None),
        asked(BASE, part, range="bytes=30-39"),
    ]
    async with scripted(*exchanges) as (client, _):
        location = PlainUrl(urls.parse(BASE), client, allow_http=False)
        assert await read((await location.blob(DIGEST)).response) == CONTENT
        response, promised = await location.blob(DIGEST, Range(30, 40, 40))
        assert (await read(response), promised) == (CONTENT[30:], 10)


@virtual_time
async def test_a_blob_that_is_not_there_is_named() -> None:
    async with scripted(asked(BASE, answer(404))) as (client, _):
        with pytest.raises(Failure) as raised:
            await PlainUrl(urls.parse(BASE), client, allow_http=False).blob(DIGEST)
    assert refused(raised.value) == (404, "BLOB_UNKNOWN", False)
    assert raised.value.message == f"blob {DIGEST}: GET {BASE}: 404"


@virtual_time
async def test_a_redirect_to_http_must_be_allowed() -> None:
    plain = "http://else.test/x"
    exchanges = [asked(BASE, moved(plain)), asked(BASE, moved(plain)), asked(plain, answer())]
    async with scripted(*exchanges) as (client, _):
        with pytest.raises(Failure, match="redirected from https to http"):
            await PlainUrl(urls.parse(BASE), client, allow_http=False).blob(DIGEST)
        (await PlainUrl(urls.parse(BASE), client, allow_http=True).blob(DIGEST)).response.close()


@pytest.mark.parametrize("status", [400, 403])
@virtual_time
async def test_a_signed_url_that_has_expired_is_replaced_once(status: int) -> None:
    store = "https://store.test/x?sig="
    exchanges = [
        asked(BASE, moved(f"{store}1")),
        asked(f"{store}1", answer(status)),
        asked(BASE, moved(f"{store}2")),
        asked(f"{store}2", answer(body=CONTENT)),
        asked(BASE, moved(f"{store}3")),
        asked(f"{store}3", answer(status)),
        asked(BASE, moved(f"{store}4")),
        asked(f"{store}4", answer(status)),
        asked(BASE, answer(status)),
    ]
    async with scripted(*exchanges) as (client, _):
        location = PlainUrl(urls.parse(BASE), client, allow_http=False)
        assert await read((await location.blob(DIGEST)).response) == CONTENT
        for _ in range(2):
            with pytest.raises(Failure, match=rf": {status}$"):
                await location.blob(DIGEST)

"""A response that is positioned at a byte: by a range, or by skipping what is before it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.registries import read
from support.streams import SILENCE, Step, answer, asked, chunked, refused, scripted, virtual_time

from imgproxy.errors import BadUpstreamError, Failure
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.content_range import Range
from imgproxy.transports.registry.blob_part import open_part

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.net.client import Client
    from imgproxy.net.response import Response

URL = "https://files.test/x"
CONTENT = bytes(range(40))
WANTED = Range(30, 40, 40)
PART = answer(206, CONTENT[30:], content_range="bytes 30-39/40")
WHOLE = answer(body=CONTENT)


async def get(
    client: Client, fields: dict[str, str], *, wanted: Collection[int] = (200,)
) -> Response:
    response = await client.get(urls.parse(URL), fields)
    if response.status not in wanted:
        response.close()
        raise BadUpstreamError(f"GET {URL}: {response.status}")
    return response


@virtual_time
async def test_the_whole_is_asked_for_without_a_range() -> None:
    async with scripted(asked(URL, WHOLE, range=None)) as (client, _):
        response, promised = await open_part(partial(get, client), None)
        assert (await read(response), promised) == (CONTENT, 0)


REPLIES: dict[str, tuple[tuple[Step, ...], int]] = {
    "the rest": ((PART,), 10),
    "a part of it": ((answer(206, CONTENT[30:35], content_range="bytes 30-34/40"),), 5),
    "the whole": ((WHOLE,), 10),
    "the whole in chunks": ((chunked(CONTENT[:7], CONTENT[7:]),), 10),
}


@pytest.mark.parametrize("reply", REPLIES)
@virtual_time
async def test_the_next_byte_is_the_wanted_one(reply: str) -> None:
    steps, promised = REPLIES[reply]
    async with scripted(asked(URL, *steps, range="bytes=30-39")) as (client, _):
        part = await open_part(partial(get, client), WANTED)
        content = await read(part.response)
        assert content == CONTENT[30 : 30 + len(content)]
        assert (len(content), part.promised) == (promised, promised)


@virtual_time
async def test_without_ranges_the_whole_is_asked_for_once_more() -> None:
    refusal = answer(416, content_range="bytes */40")
    exchanges = [asked(URL, refusal, range="bytes=30-39"), asked(URL, WHOLE, range=None)]
    async with scripted(*exchanges) as (client, _):
        response, promised = await open_part(partial(get, client), WANTED)
        assert (await read(response), promised) == (CONTENT[30:], 10)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (answer(206, CONTENT[29:], content_range="bytes 29-39/40"), (502, "BAD_UPSTREAM", False)),
        (answer(200, CONTENT[:20]), (502, "BAD_UPSTREAM", False)),
        (chunked(CONTENT[:20]), (503, "UNAVAILABLE", True)),
        (answer(416, content_range="bytes */41"), (502, "BAD_UPSTREAM", False)),
    ],
)
@virtual_time
async def test_any_other_answer_is_a_failure_and_leaves_nothing_open(
    reply: bytes, wanted: tuple[int, str, bool]
) -> None:
    async with scripted(asked(URL, reply)) as (client, _):
        with pytest.raises(Failure) as raised:
            await open_part(partial(get, client), WANTED)
        assert refused(raised.value) == wanted


@virtual_time
async def test_a_skip_that_is_cancelled_leaves_nothing_open() -> None:
    async with scripted(asked(URL, WHOLE[:-20], SILENCE)) as (client, script):
        with trio.move_on_after(1) as scope:
            await open_part(partial(get, client), WANTED)
        assert scope.cancelled_caught
        assert script.streams[0].closed

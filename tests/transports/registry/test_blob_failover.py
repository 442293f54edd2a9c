"""A blob of several locations: where its parts come from, and which of them are rejected."""

from __future__ import annotations

from typing import Any

import pytest
from support.images import digest_of
from support.registries import (
    BASE,
    BUSY,
    FOUND_BLOB,
    GONE,
    LAYER,
    MIRROR,
    PLACES,
    blob,
    described,
    read,
    read_blob,
    registry,
)
from support.streams import END, answer, elapsing, virtual_time

from imgproxy.errors import Failure, InvalidError

TWO = [PLACES[0], PLACES[2]]
SIZE = len(LAYER)
CUT = FOUND_BLOB[: 10 - SIZE]


def rest(base: str, *steps: bytes) -> Any:  # noqa: ANN401  (an exchange)
    """Return the request for what is left after ten bytes; by default it is answered."""
    part = answer(206, LAYER[10:], content_range=f"bytes 10-{SIZE - 1}/{SIZE}")
    return blob(base, *(steps or (part,)), range=f"bytes=10-{SIZE - 1}")


@virtual_time
async def test_the_rest_is_had_where_it_is() -> None:
    exchanges = [blob(MIRROR, CUT, END, range=None), rest(BASE)]
    async with registry(*exchanges, places=TWO, retries=1) as (source, script):
        reader = await source.blob(described(LAYER))
        assert await read(reader) == LAYER
        assert reader.name == (
            f"docker://registry.test/acme/os:1: blob {digest_of(LAYER)}"
            " from mirror.test/cache/os and registry.test/acme/os"
        )
        assert script.streams[0].closed


@pytest.mark.parametrize("status", [401, 403, 404, 451])
@virtual_time
async def test_a_mirror_is_waited_for_whatever_the_origin_says(status: int) -> None:
    """It may be gone or deny access, and the mirror have the blob all the same."""
    exchanges = [
        blob(MIRROR, CUT, END),
        rest(BASE, answer(status)),
        rest(MIRROR, BUSY),
        rest(MIRROR, BUSY),
        rest(MIRROR),
    ]
    async with registry(*exchanges, places=TWO, retries=3) as (source, _):
        assert await read_blob(source) == LAYER


@virtual_time
async def test_all_that_sent_a_part_of_wrong_bytes_are_rejected() -> None:
    exchanges = [blob(MIRROR, CUT, END), rest(BASE)]
    async with registry(*exchanges, places=TWO, retries=1) as (source, _):
        reader = await source.blob(described(LAYER))
        await read(reader)
        assert reader.reject(InvalidError("its bytes are wrong"))
        with elapsing(0), pytest.raises(InvalidError) as raised:
            await source.blob(described(LAYER))
        assert raised.value.message.count("its bytes are wrong") == 2


@virtual_time
async def test_a_location_whose_body_was_cut_off_is_asked_last_the_next_time() -> None:
    exchanges = [blob(MIRROR, CUT, END), rest(BASE), blob(BASE, FOUND_BLOB)]
    async with registry(*exchanges, places=TWO, retries=1) as (source, _):
        for _ in range(2):
            assert await read_blob(source) == LAYER


@virtual_time
async def test_the_only_location_is_not_asked_again_for_wrong_bytes() -> None:
    async with registry(blob(BASE, FOUND_BLOB)) as (source, _):
        reader = await source.blob(described(LAYER))
        reader.close()
        wrong = InvalidError("its bytes are wrong")
        assert not reader.reject(wrong)
        with pytest.raises(InvalidError) as raised:
            await source.blob(described(LAYER))
        assert raised.value.message == wrong.message


@virtual_time
async def test_the_retries_of_the_beginning_are_not_those_of_the_rest() -> None:
    exchanges = [blob(BASE, BUSY), blob(BASE, CUT, END), rest(BASE, BUSY)]
    async with registry(*exchanges, places=TWO[1:], retries=1) as (source, _):
        with elapsing(1 + 1), pytest.raises(Failure):
            await read_blob(source)


@virtual_time
async def test_a_blob_that_no_location_has_is_not_waited_for() -> None:
    async with registry(blob(MIRROR, GONE), blob(BASE, GONE), places=TWO, retries=5) as (source, _):
        with elapsing(0), pytest.raises(Failure) as raised:
            await source.blob(described(LAYER))
    assert raised.value.code == "BLOB_UNKNOWN"

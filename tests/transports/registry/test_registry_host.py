"""Return whether a registry is reached by https or http."""

from __future__ import annotations

import ssl

import pytest
import trio
from support.registries import (
    BLOB,
    FOUND,
    FOUND_BLOB,
    LAYER,
    MANIFEST,
    STALL,
    WHERE,
    moved,
    place,
    read_blob,
    registry,
)
from support.streams import (
    SILENCE,
    asked,
    elapsing,
    refused,
    virtual_time,
)

from imgproxy.errors import Failure
from imgproxy.transports.registry.registry_host import BLOB_STALLS, HTTPS_TIMEOUT

INSECURE = [place(insecure=True)]


NO_TLS = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
NO_TLS.reason = "WRONG_VERSION_NUMBER"
NOBODY = ConnectionRefusedError(111, "Connection refused")
PLAIN = WHERE.replace("https:", "http:")


@virtual_time
async def test_of_an_insecure_registry_https_is_tried_first_and_its_connection_used() -> None:
    async with registry(asked(WHERE, FOUND), places=INSECURE) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize("fault", [NO_TLS, NOBODY, SILENCE])
@virtual_time
async def test_of_an_insecure_registry_http_is_tried_where_https_fails(
    fault: float | Exception,
) -> None:
    plain_blob = BLOB.replace("https:", "http:")
    exchanges = [asked(PLAIN, FOUND), asked(plain_blob, FOUND_BLOB)]
    async with registry(*exchanges, places=INSECURE, unreachable={"https:": fault}) as (
        source,
        script,
    ):
        with elapsing(HTTPS_TIMEOUT if fault is SILENCE else 0):
            assert (await source.root()).raw == MANIFEST
            assert await read_blob(source) == LAYER
        assert script.dialled == ["https://registry.test", "http://registry.test"]


@virtual_time
async def test_a_registry_that_is_silent_to_both_is_given_up_after_both() -> None:
    async with registry(places=INSECURE, unreachable={"http": SILENCE}) as (source, _):
        with elapsing(HTTPS_TIMEOUT + 30), pytest.raises(Failure) as raised:
            await source.root()
        assert "no answer for 5 s; connecting to http://" in raised.value.message
        assert raised.value.is_transient


@virtual_time
async def test_with_verification_tls_has_the_whole_time() -> None:
    async with registry(unreachable={"https:": SILENCE}) as (source, _):
        with elapsing(30), pytest.raises(Failure):
            await source.root()


@virtual_time
async def test_the_head_of_a_blob_may_take_longer_than_that_of_a_manifest() -> None:
    """A cache may have to fetch the blob first."""
    late = STALL * BLOB_STALLS
    exchanges = [
        asked(BLOB, late - 1, moved("https://cdn.test/x")),
        asked("https://cdn.test/x", late - 1, FOUND_BLOB),
        asked(WHERE, SILENCE),
        asked(BLOB, SILENCE),
    ]
    async with registry(*exchanges) as (source, script):
        with elapsing(2 * (late - 1)):
            assert await read_blob(source) == LAYER
        for stream in script.streams:
            stream.close()  # a kept one would be replaced
        with elapsing(STALL), pytest.raises(Failure) as raised:
            await source.root()
        assert "no answer for 60 s (--stall-timeout)" in raised.value.message
        with elapsing(late), pytest.raises(Failure) as raised:
            await read_blob(source)
        assert "no answer for 300 s (5 times --stall-timeout)" in raised.value.message


@virtual_time
async def test_requests_at_the_same_time_probe_once() -> None:
    plain_blob = BLOB.replace("https:", "http:")
    exchanges = [asked(plain_blob, FOUND_BLOB)] * 3
    async with registry(*exchanges, places=INSECURE, unreachable={"https:": NO_TLS}) as (
        source,
        script,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_blob, source)
        assert script.dialled.count("https://registry.test") == 1


@virtual_time
async def test_a_registry_that_speaks_neither_is_unreachable() -> None:
    unreachable: dict[str, float | Exception] = {"https:": NO_TLS, "http:": NOBODY}
    async with registry(places=INSECURE, unreachable=unreachable) as (source, script):
        for _ in range(2):
            with pytest.raises(Failure) as raised:
                await source.root()
            assert refused(raised.value) == (504, "UNREACHABLE", True)
            assert "TLS failed" in raised.value.message
            assert "Connection refused" in raised.value.message
        assert len(script.dialled) == 4


@virtual_time
async def test_with_verification_http_is_never_tried() -> None:
    async with registry(unreachable={"https:": NO_TLS}) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == (502, "TLS", False)
        assert script.dialled == ["https://registry.test"]

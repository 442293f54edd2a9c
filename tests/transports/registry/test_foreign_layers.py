"""Layers from the URLs of their descriptors: when they are fetched, and what is remembered."""

from __future__ import annotations

import pytest
from support.images import digest_of
from support.registries import network, read
from support.streams import answer, asked, refused, virtual_time

from imgproxy.errors import Failure, InvalidError, NotFoundError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.transports.registry.foreign_layers import ForeignLayers

pytestmark = pytest.mark.usefixtures("nothing_configured")

CONTENT = b"a layer"
ONE, TWO = "https://one.test/x", "https://two.test/x"
MISSING = NotFoundError("it is not there", code="BLOB_UNKNOWN", digest="d")
FOUND = answer(body=CONTENT)


def layer(*urls: str, content: bytes = CONTENT) -> Descriptor:
    return Descriptor("", digests.parse(digest_of(content)), len(content), urls=urls)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "it is at https://one.test/x, and --foreign-layers fetches it"),
        ({"offline": True}, "it is at https://one.test/x, and --offline forbids asking there"),
        (
            {"offline": True, "foreign_layers": True},
            "it is at https://one.test/x, and --offline forbids asking there",
        ),
    ],
)
@virtual_time
async def test_a_layer_is_fetched_if_an_option_allows_it(
    options: dict[str, bool], reason: str
) -> None:
    async with network(**options) as (opened, _):
        with pytest.raises(NotFoundError) as raised:
            await ForeignLayers(opened).open(layer(ONE), MISSING)
    assert raised.value.message == f"it is not there; {reason}"
    assert raised.value.code == "BLOB_UNKNOWN"
    assert raised.value.detail == {"digest": "d", "urls": [ONE]}


@virtual_time
async def test_urls_that_are_unusable_are_no_urls() -> None:
    async with network(foreign_layers=True) as (opened, _):
        with pytest.raises(NotFoundError, match=r"; its URLs are unusable$"):
            await ForeignLayers(opened).open(layer("ftp://x/y", "nonsense"), MISSING)


@virtual_time
async def test_one_url_after_the_other_is_asked_without_credentials() -> None:
    exchanges = [asked(ONE, answer(404), authorization=None), asked(TWO, FOUND, authorization=None)]
    async with network(*exchanges, foreign_layers=True, registry_token="t") as (opened, _):
        reader = await ForeignLayers(opened).open(layer(ONE, TWO), MISSING)
        assert await read(reader) == CONTENT
        digest = digest_of(CONTENT)
        assert reader.name == f"foreign layer {digest}: blob {digest} from {TWO}"


@virtual_time
async def test_a_url_with_wrong_bytes_is_not_asked_again_for_the_layer() -> None:
    exchanges = [asked(ONE, FOUND), asked(TWO, FOUND), asked(TWO, FOUND)]
    async with network(*exchanges, foreign_layers=True) as (opened, _):
        layers = ForeignLayers(opened)
        reader = await layers.open(layer(ONE, TWO), MISSING)
        reader.close()
        assert reader.reject(InvalidError("its bytes are wrong"))
        for _ in range(2):
            (await layers.open(layer(ONE, TWO), MISSING)).close()


@virtual_time
async def test_all_urls_that_failed_are_named() -> None:
    exchanges = [asked(ONE, answer(404)), asked(TWO, answer(503))]
    async with network(*exchanges, foreign_layers=True) as (opened, _):
        with pytest.raises(Failure) as raised:
            await ForeignLayers(opened).open(layer(ONE, TWO), MISSING)
    assert refused(raised.value) == (503, "UNAVAILABLE", True)
    assert [each["endpoint"] for each in raised.value.detail["endpoints"]] == [ONE, TWO]


@virtual_time
async def test_layers_share_connections_and_leave_none_open() -> None:
    contents = [bytes([n]) * 9 for n in range(5)]
    exchanges = [asked(f"https://one.test/{n}", answer(body=contents[n])) for n in range(5)]
    async with network(*exchanges, foreign_layers=True) as (opened, script):
        layers = ForeignLayers(opened)
        for n, content in enumerate(contents):
            descriptor = layer(f"https://one.test/{n}", content=content)
            assert await read(await layers.open(descriptor, MISSING)) == content
        assert script.dialled == ["https://one.test"]
        assert opened.servers == [("", "", False)]

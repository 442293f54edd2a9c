"""What may be chosen, and the layers that were: `/candidates` and `/layers` of one image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.artifacts import (
    HELM,
    HELM_PROVENANCE,
    TIMONI_CONTENT,
    helm,
    oras,
    said,
    timoni,
)
from support.conversations import ask, fields_of
from support.conversations import hold as hold_with
from support.images import OCI_LAYER, digest_of
from support.sources import LINUX, MemorySource, Store, accept_anything, at, image_of, never
from support.streams import END, MemoryStream, virtual_time

from imgproxy.config import policy
from imgproxy.frontends.single_image import SingleImage
from imgproxy.images.image import Image
from imgproxy.specs.oci import layer_selection

if TYPE_CHECKING:
    from support.parent import Reply

TITLES = ["one.txt", "docs/two.txt", "three.json"]
SIGNED = b'{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/absent"}]}'
REJECTED = b'{"default": [{"type": "reject"}]}'


async def replies(
    image: Image, *targets: str, layers: str = "", method: str = "GET"
) -> list[Reply]:
    """Ask for these on one connection; `layers` are SPECs with blanks between."""
    front_end = SingleImage(image, [layer_selection.parse(each) for each in layers.split()])
    stream = MemoryStream(*(ask(method, target) for target in targets), END)
    return (await hold_with(front_end, stream)).replies(*[method] * len(targets))


async def documents(image: Image, *targets: str, layers: str = "") -> list[Any]:
    found = await replies(image, *targets, layers=layers)
    assert [each.status for each in found] == [200] * len(targets)
    return [json.loads(each.body) for each in found]


def error_of(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(reply.body)["errors"][0]["code"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", ["/layers", "/candidates"])
@virtual_time
async def test_a_description_is_json_with_its_digest(method: str, target: str) -> None:
    store = Store()
    image = image_of(MemorySource(store, oras(store)))
    (whole,) = await replies(image, target)
    (reply,) = await replies(image, target, method=method)
    assert fields_of(reply) == {
        "Content-Length": str(len(whole.body)),
        "Accept-Ranges": "none",
        "Content-Type": "application/json",
        "Docker-Content-Digest": digest_of(whole.body),
    }
    assert reply.body == (whole.body if method == "GET" else b"")


@virtual_time
async def test_layers_are_described_with_their_places() -> None:
    store = Store()
    files = oras(store)
    (found,) = await documents(image_of(MemorySource(store, files)), "/layers")
    assert found == [
        {**each, "index": n, "offset": n, "title": TITLES[n]}
        for n, each in enumerate(store.layers(files))
    ]


@virtual_time
async def test_the_option_leaves_layers_and_the_query_fewer() -> None:
    store = Store()
    image = image_of(MemorySource(store, oras(store)))
    targets = ["/layers", "/layers?type=text/plain", "/layers?offset=-1", "/layers?title=*.txt"]
    plain = await documents(image, *targets)
    chosen = await documents(image, *targets, layers="title=docs/* type=application/json")
    places = [
        [[(each["index"], each["offset"]) for each in found] for found in all_of]
        for all_of in (plain, chosen)
    ]
    assert places == [
        [[(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 1)], [(2, 2)], [(0, 0), (1, 1)]],
        [[(1, 0), (2, 1)], [(1, 0)], [(2, 1)], [(1, 0)]],
    ]


@virtual_time
async def test_a_query_may_state_annotations() -> None:
    store = Store()
    image = image_of(MemorySource(store, timoni(store)))
    query = f"type={TIMONI_CONTENT}&annotation=sh.timoni.content.type=module"
    (found,) = await documents(image, f"/layers?{query}")
    assert [each["index"] for each in found] == [1]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@virtual_time
async def test_a_layer_comes_as_its_blob_does(method: str) -> None:
    store = Store()
    files = oras(store)
    image = image_of(MemorySource(store, files))
    for n, each in enumerate(store.layers(files)):
        by_offset, by_digest = await replies(
            image, f"/layers/{n}", f"/blobs/{each['digest']}", method=method
        )
        assert fields_of(by_offset) == fields_of(by_digest)
        assert by_offset.body == by_digest.body
    (last,) = await replies(image, "/layers/0", layers="offset=-1")
    assert last.body == store.read(store.layers(files)[2]["digest"])


@virtual_time
async def test_layers_have_the_types_that_the_manifest_has() -> None:
    store = Store()
    image = image_of(MemorySource(store, store.image(b"one", docker=True)))
    query = f"/layers?type={OCI_LAYER}"
    manifest, layers, found = await documents(image, "/manifest", "/layers", query)
    assert [each["mediaType"] for each in layers] == [OCI_LAYER]
    assert [each["mediaType"] for each in manifest["layers"]] == [OCI_LAYER]
    assert found == layers


@virtual_time
async def test_what_is_not_there_is_a_404_with_what_is() -> None:
    store = Store()
    image = image_of(MemorySource(store, helm(store)))
    targets = ["/layers/1", "/layers?title=x", "/layers?offset=1"]
    for reply in await replies(image, *targets, layers="offset=-1"):
        assert error_of(reply) == (404, "BLOB_UNKNOWN")
        (there,) = json.loads(reply.body)["errors"][0]["detail"]["layers"]
        assert (there["index"], there["offset"]) == (1, 0)
        assert there["mediaType"] == HELM_PROVENANCE
    for reply in await replies(image, "/layers", "/layers/0", layers="title=x"):
        assert error_of(reply) == (404, "BLOB_UNKNOWN")
        assert len(json.loads(reply.body)["errors"][0]["detail"]["layers"]) == 2
    (manifest,) = await replies(image, "/manifest", layers="title=x")
    assert manifest.status == 200


@virtual_time
async def test_candidates_are_there_where_the_choice_is_ambiguous() -> None:
    store = Store()
    charts = [said(helm(store, str(n)), HELM, n=str(n)) for n in range(3)]
    source = MemorySource(store, store.index(*charts))
    manifest, candidates = await replies(image_of(source), "/manifest", "/candidates")
    assert error_of(manifest) == (409, "AMBIGUOUS")
    assert candidates.status == 200
    found = json.loads(candidates.body)
    assert found == json.loads(manifest.body)["errors"][0]["detail"]["choices"]
    assert [each["annotations"] for each in found] == [{"n": str(n)} for n in range(3)]


@virtual_time
async def test_the_policy_may_reject_the_name_and_candidates_with_it() -> None:
    store = Store()
    source = MemorySource(store, store.index(*(helm(store, str(n)) for n in range(2))))
    rejected = Image(at(source), lambda: policy.parse(REJECTED, "p"), LINUX, never)
    for reply in await replies(rejected, "/candidates", "/layers", "/layers/0"):
        assert error_of(reply) == (403, "DENIED")
    assert source.asked == []


@virtual_time
async def test_descriptions_may_come_before_signatures_are_checked_and_content_not() -> None:
    store = Store()
    source = MemorySource(store, helm(store))
    signed = Image(at(source), lambda: policy.parse(SIGNED, "p"), LINUX, never)
    candidates, layers, layer = await replies(signed, "/candidates", "/layers", "/layers/0")
    assert candidates.status == 200
    # The key is missing, which matters once signatures are checked.
    assert {error_of(each) for each in (layers, layer)} == {(500, "CONFIGURATION")}


@virtual_time
async def test_anything_is_accepted_where_the_policy_says_so() -> None:
    store = Store()
    image = Image(at(MemorySource(store, helm(store))), accept_anything, LINUX, never)
    found = await replies(image, "/candidates", "/layers", "/layers/0", "/layers/1")
    assert [each.status for each in found] == [200] * 4


@virtual_time
async def test_what_is_told_of_a_stale_name_says_so() -> None:
    store = Store()
    source = MemorySource(store, helm(store))
    source.stale_since = 0.0  # type: ignore[attr-defined]
    for reply in await replies(image_of(source), "/candidates", "/layers"):
        assert reply.get("Warning") == '110 imgproxy "Response is Stale"'
        assert int(reply.get("Age") or 0) > 0

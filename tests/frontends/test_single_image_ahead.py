"""Which blobs of one image are opened before their turn: named by what is released, from afar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support.conversations import ask, hold, started
from support.images import on
from support.sources import MemorySource, Store, image_of
from support.streams import END, MemoryStream, virtual_time

from imgproxy.frontends.single_image import SingleImage
from imgproxy.server.handler import Request
from imgproxy.verification.verified_blob import CHUNK, WHOLE

if TYPE_CHECKING:
    from support.images import Json

    from imgproxy.specs.oci.manifest import Descriptor


class DistantSource(MemorySource):
    """A source that has to be waited for."""

    def is_distant(self, _: Descriptor | None) -> bool:
        return True


def image(*layers: bytes) -> tuple[Store, Json, MemorySource]:
    """Return an index of two images, of which the one with these layers is chosen."""
    store = Store()
    chosen, other = store.image(*layers), store.image(b"of another platform")
    index = store.index(on(chosen, "linux/amd64"), on(other, "linux/arm64"))
    return store, index, DistantSource(store, index)


def layers(store: Store, entry: Json) -> list[str]:
    return [each["digest"] for each in store.document(entry)["layers"]]


def blobs(*digests: str) -> bytes:
    return b"".join(ask("GET", f"/blobs/{each}") for each in digests)


@virtual_time
async def test_the_blobs_of_the_chosen_manifest_are_opened_while_the_first_is_waited_for() -> None:
    store, index, place = image(b"one", b"two", b"three")
    chosen = layers(store, store.document(index)["manifests"][0])
    handler = SingleImage(image_of(place))
    stream = MemoryStream(ask())
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, handler, stream)
        place.asked.clear()
        place.gate = trio.Event()
        stream.inbox.add(blobs(*chosen) + ask("GET", "/config"), END)
        await trio.testing.wait_all_tasks_blocked()
        assert len(place.asked) == 4
        place.gate.set()
    assert [each.body for each in ended[0].replies(*["GET"] * 5)][1:4] == [b"one", b"two", b"three"]
    assert len(place.asked) == 4
    assert [each.closed for each in place.readers] == [1] * 4


@virtual_time
async def test_what_no_released_manifest_names_is_asked_for_in_its_turn_alone() -> None:
    store, index, place = image(b"one")
    first, other = store.document(index)["manifests"]
    [one], [another] = layers(store, first), layers(store, other)
    release = ask("GET", f"/manifests/{other['digest']}")
    stream = MemoryStream(ask())
    async with trio.open_nursery() as nursery:
        ended = await started(nursery, SingleImage(image_of(place)), stream)
        place.asked.clear()
        place.gate = trio.Event()
        stream.inbox.add(blobs(one, another) + release + blobs(another), END)
        await trio.testing.wait_all_tasks_blocked()
        assert place.asked == [one]
        place.gate.set()
    statuses = [each.status for each in ended[0].replies(*["GET"] * 5)]
    assert statuses == [200, 200, 404, 200, 200]
    assert place.asked == [one, other["digest"], another]


@virtual_time
async def test_a_blob_weighs_what_is_received_before_its_turn() -> None:
    store, index, place = image(b"small", *map(bytes, (WHOLE, WHOLE + 1, CHUNK + 1)))
    handler = SingleImage(image_of(place))
    [chosen, other] = store.document(index)["manifests"]
    asked = [Request(b"GET", f"/blobs/{each}".encode()) for each in layers(store, chosen)]
    assert not handler.waits()
    assert handler.weight_ahead(asked[0]) is None  # nothing is opened yet
    await hold(handler, MemoryStream(ask(), END))
    assert handler.waits()
    assert [handler.weight_ahead(each) for each in asked] == [
        (5, 5),
        (WHOLE, WHOLE),
        (WHOLE + 1, WHOLE + 1),
        (CHUNK + 1, CHUNK),
    ]
    for target in ("/manifest", f"/manifests/{other['digest']}", "/quit", "/nowhere"):
        assert handler.weight_ahead(Request(b"GET", target.encode())) is None
    [unnamed] = layers(store, other)
    assert handler.weight_ahead(Request(b"GET", f"/blobs/{unnamed}".encode())) is None


@virtual_time
async def test_nothing_is_opened_early_of_what_lies_on_this_host() -> None:
    store, index, _ = image(b"one", b"two")
    place = MemorySource(store, index)
    chosen = layers(store, store.document(index)["manifests"][0])
    handler = SingleImage(image_of(place))
    await hold(handler, MemoryStream(ask(), END))
    assert not handler.waits()
    assert handler.weight_ahead(Request(b"GET", f"/blobs/{chosen[0]}".encode())) is None

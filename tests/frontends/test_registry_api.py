"""Replies of a registry that depend on time; all others are asked for in `interop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.local_places import Shelf, name, repositories
from support.sources import MemorySource, Store
from support.streams import SILENCE, elapsing, virtual_time

from imgproxy.errors import Failure
from imgproxy.frontends.registry_api import RegistryApi
from imgproxy.frontends.registry_metrics import Metrics
from imgproxy.server.handler import Request
from imgproxy.transports import time_limit
from imgproxy.verification.verified_blob import WHOLE

if TYPE_CHECKING:
    from imgproxy.images.repositories import Repositories
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import Candidate
    from imgproxy.transports.source import Document

REFERENCE = name("registry.example/app:1")


def api_of(served: Repositories) -> RegistryApi:
    return RegistryApi(
        served,
        default_registry="docker.io",
        has_catalog=False,
        report=lambda _: None,
        renew=trio.lowlevel.checkpoint,
        metrics=Metrics(),
    )


@virtual_time
async def test_a_range_of_what_is_being_verified_comes_later() -> None:
    store = Store()
    content = bytes(WHOLE + 1)
    image = store.image(content)
    source = MemorySource(store, image)
    (layer,) = store.layers(image)
    source.steps[layer["digest"]] = (content[:10], SILENCE)
    async with repositories([Shelf({REFERENCE: source})]) as served:
        api = api_of(served)
        target = f"/v2/registry.example/app/blobs/{layer['digest']}".encode()
        for wanted in (b"bytes=1-2", b"bytes=5-", b"bytes=-1"):
            reply = await api.handle(Request(b"GET", target, [(b"range", wanted)]))
            assert callable(reply.body)
            begun = trio.current_time()
            with pytest.raises(Failure) as raised:
                await reply.body()
            assert trio.current_time() - begun == 25
            assert (raised.value.status, raised.value.retryable) == (503, True)
            assert raised.value.header_fields == (("Retry-After", "10"),)
        assert source.asked.count(layer["digest"]) == 1, "one pass is for all"


class SlowSource(MemorySource):
    """A registry that takes three seconds for each document."""

    async def document(self, descriptor: Descriptor) -> Document:
        with time_limit.waiting(lambda: self.name):
            await trio.sleep(3)
        return await super().document(descriptor)


class AskedShelf(Shelf):
    """A place whose registry says that everything refers to everything."""

    async def tags(self, _: Reference) -> list[str]:
        return []

    async def referrers(self, repository: Reference, _: Digest) -> list[Candidate]:
        return await self.everything(repository)


@virtual_time
async def test_all_that_one_request_looks_through_has_one_time_limit() -> None:
    store = Store()
    image = store.image(b"a layer")
    notes = [store.image(b"note %d" % n, subject=image) for n in range(20)]
    sources = {name(f"x.io/os@{each['digest']}"): SlowSource(store, each) for each in notes}
    absent = f"sha256:{'0' * 64}"
    async with repositories([AskedShelf(sources)]) as served:  # type: ignore[arg-type]
        api = api_of(served)
        referrers = Request(b"GET", f"/v2/x.io/os/referrers/{image['digest']}".encode(), [])
        for _ in range(2):
            with elapsing(25), pytest.raises(Failure) as raised:
                await api.handle(referrers)
            assert (raised.value.status, raised.value.retryable) == (503, True)
        reply = await api.handle(referrers)  # what was had in the time is not asked for again
        assert isinstance(reply.body, bytes)
        assert all(each["digest"].encode() in reply.body for each in notes)
    async with repositories([Shelf(sources)]) as served:  # type: ignore[arg-type]
        blob = Request(b"GET", f"/v2/x.io/os/blobs/{absent}".encode(), [])
        with elapsing(25), pytest.raises(Failure) as raised:
            await api_of(served).handle(blob)
        assert (raised.value.status, raised.value.retryable) == (503, True)

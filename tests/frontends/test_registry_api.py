"""Replies of a registry that depend on time; all others are asked for in `interop`."""

from __future__ import annotations

import pytest
import trio
from support.local_places import Shelf, name, repositories
from support.sources import MemorySource, Store
from support.streams import SILENCE, virtual_time

from imgproxy.errors import Failure
from imgproxy.frontends.registry_api import RegistryApi
from imgproxy.frontends.registry_metrics import Metrics
from imgproxy.server.handler import Request
from imgproxy.verification.verified_blob import WHOLE

REFERENCE = name("registry.example/app:1")


@virtual_time
async def test_a_range_of_what_is_being_verified_comes_later() -> None:
    store = Store()
    content = bytes(WHOLE + 1)
    image = store.image(content)
    source = MemorySource(store, image)
    (layer,) = store.layers(image)
    source.steps[layer["digest"]] = (content[:10], SILENCE)
    async with repositories([Shelf({REFERENCE: source})]) as served:
        api = RegistryApi(
            served,
            default_registry="docker.io",
            has_catalog=False,
            report=lambda _: None,
            renew=trio.lowlevel.checkpoint,
            metrics=Metrics(),
        )
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

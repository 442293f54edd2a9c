"""Sources over a store: what they do where the store fails, or others are at work."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.registries import image_at, place
from support.sources import MemorySource, Store, describe
from support.streams import Script, real_time

from imgproxy.errors import Failure
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.net import body_turn
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.store import locks
from imgproxy.store.content_store import ContentStore
from imgproxy.store.files import DestinationError
from imgproxy.store.keeper import Keeper
from imgproxy.store.partial_blob import BusyError, PartialBlob
from imgproxy.transports.cache import Cache, CacheOptions
from imgproxy.transports.cached import CachedSource
from imgproxy.transports.kept_blobs import KeptBlobs
from imgproxy.verification.documents import compare
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Document, Reader

CONTENT = b"a layer" * 10_000


class Scene:
    """An image of one layer, a store that has nothing, and a source over both."""

    def __init__(self, path: Path, *, tolerant: bool = True, patience: float = 0.3) -> None:
        self.memory = Store()
        self.image = self.memory.image(CONTENT)
        self.layer = describe(self.memory.layers(self.image)[0])
        self.source = MemorySource(self.memory, self.image)
        self.store = ContentStore(str(path / "store"))
        self.store.create()
        self.keeper = Keeper()
        self.failures: list[Failure] = []
        told = {"failed": self.failures.append, "patience": patience} if tolerant else {}
        blobs = KeptBlobs(self.store, self.keeper.keep, **told)  # type: ignore[arg-type]
        self.cached = CachedSource(self.source, blobs)

    async def read(self) -> bytes:
        """Return the layer, verified; what is kept then is committed."""
        blob = await VerifiedSource(self.cached, LargeBlobs()).blob(self.layer)
        try:
            content = bytes(await blob.read())
        finally:
            blob.close()
        await self.keeper.commit()
        return content

    @property
    def asked(self) -> int:
        return self.source.asked.count(str(self.layer.digest))

    def put(self, content: bytes) -> None:
        path = self.store.blob_path(self.layer.digest)
        self.store.put(self.layer.digest, content)
        assert os.path.getsize(path) == len(CONTENT)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@real_time
async def test_what_was_verified_is_kept(scene: Scene) -> None:
    assert [await scene.read() for _ in range(2)] == [CONTENT] * 2
    assert scene.asked == 1
    assert not scene.failures


@real_time
async def test_what_to_search_is_kept_like_a_root(scene: Scene) -> None:
    """It is the root where the source has nothing else to search."""
    index = scene.memory.index(scene.image)
    verified = VerifiedSource(scene.cached, LargeBlobs())
    assert str((await verified.everything()).digest) == scene.image["digest"]

    class Searched(MemorySource):
        async def everything(self) -> Document:
            return await self.document(describe(index))

    scene.cached._source = Searched(scene.memory, scene.image)
    assert str((await verified.everything()).digest) == index["digest"]
    for each in (scene.image, index):
        descriptor = describe(each)
        assert scene.store.has(descriptor.digest, descriptor.size)


@real_time
async def test_what_is_wrong_in_the_store_is_replaced(scene: Scene) -> None:
    scene.put(bytes(len(CONTENT)))
    assert [await scene.read() for _ in range(2)] == [CONTENT] * 2
    assert scene.asked == 1


@real_time
async def test_what_is_wrong_and_cannot_be_removed_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.put(bytes(len(CONTENT)))

    def remove(*_: Any) -> None:  # noqa: ANN401
        raise DestinationError("it is read-only")

    monkeypatch.setattr(ContentStore, "remove", remove)
    assert [await scene.read() for _ in range(2)] == [CONTENT] * 2
    assert scene.asked == 2
    assert [each.message for each in scene.failures] == ["it is read-only"]


def broken(*_: Any) -> int:  # noqa: ANN401
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@real_time
async def test_what_the_disk_cannot_read_is_fetched_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.put(CONTENT)
    with monkeypatch.context() as context:
        context.setattr(os, "preadv", broken)
        assert await scene.read() == CONTENT
    assert scene.asked == 1


@real_time
async def test_a_beginning_that_the_disk_cannot_read_is_thrown_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await scene.store.partial(scene.layer.digest, scene.layer.size)
    assert begun is not None
    begun.append(CONTENT[:1000])
    begun.close()
    with monkeypatch.context() as context:
        context.setattr(os, "preadv", broken)
        assert await scene.read() == CONTENT
    assert scene.asked == 2


@pytest.mark.parametrize("method", ["append", "check_room", "truncate"])
@real_time
async def test_a_store_that_cannot_be_written_fails_nothing(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:  # noqa: ANN401
        raise DestinationError("the disk is full")

    scene = Scene(tmp_path)
    part = await scene.store.partial(scene.layer.digest, scene.layer.size)
    assert part is not None
    part.append(b"wrong")
    part.close()
    with monkeypatch.context() as context:
        context.setattr(PartialBlob, method, fail)
        assert await scene.read() == CONTENT
        assert scene.failures
        strict = Scene(tmp_path, tolerant=False)
        with pytest.raises(DestinationError, match="the disk is full"):
            await strict.read()


def test_a_cache_reports_what_its_user_can_mend(tmp_path: Path) -> None:
    lines: list[str] = []
    cache = Cache(str(tmp_path), CacheOptions(), lines.append, compare)
    cache.failed(BusyError("another process has it"))
    assert lines == []
    cache.failed(DestinationError("full"))
    assert lines == ["going on without the cache where it fails: full"]


@real_time
async def test_a_blob_that_another_does_not_get_on_with_is_fetched_without_being_kept(
    scene: Scene,
) -> None:
    path = f"{scene.store.path}/.imgproxy/partial/{scene.layer.digest}".replace(
        "sha256:", "sha256-"
    )
    other = locks.try_lock(path, locks.EXCLUSIVE)
    assert other is not None
    assert await scene.read() == CONTENT
    assert not scene.store.has(scene.layer.digest, scene.layer.size)
    assert [type(each) for each in scene.failures] == [BusyError]  # a cache does not report it
    other.close()


@real_time
async def test_a_blob_is_fetched_once_for_all_who_want_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, patience=20.0)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(scene.read)
    assert scene.asked == 1


@real_time
async def test_a_blob_that_waits_for_its_turn_is_let_go_before_others_give_up(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, patience=0.4)
    waited = []

    async def wait(*, is_redirected: bool) -> None:
        waited.append(is_redirected)
        await trio.sleep_forever()

    class Redirected(MemorySource):
        async def blob(
            self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
        ) -> Reader:
            await body_turn.come(is_redirected=True)
            return await super().blob(descriptor, offset, stop)

    async def ask() -> None:
        with pytest.raises(body_turn.OverdueError), body_turn.awaited(wait):
            await scene.read()

    scene.cached._source = Redirected(scene.memory, scene.image)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert waited == [True]
        assert await scene.read() == CONTENT
    assert not scene.failures
    assert scene.store.has(scene.layer.digest, scene.layer.size)


@real_time
async def test_a_beginning_that_is_wrong_is_not_kept_by_the_cache_beneath(tmp_path: Path) -> None:
    """What the outer one had already, nobody has verified in the inner one."""
    inner = Scene(tmp_path)
    part = await inner.store.partial(inner.layer.digest, inner.layer.size)
    assert part is not None
    part.append(b"wrong")
    part.close()
    outer = Scene(tmp_path / "outer")
    outer.cached = CachedSource(inner.cached, KeptBlobs(outer.store, outer.keeper.keep))
    part = await outer.store.partial(outer.layer.digest, outer.layer.size)
    assert part is not None
    part.append(CONTENT[:1000])
    part.close()
    assert await outer.read() == CONTENT
    await inner.keeper.commit()
    assert not inner.store.has(inner.layer.digest, inner.layer.size)


@real_time
async def test_nothing_is_asked_of_an_image_offline(tmp_path: Path) -> None:
    """A script without exchanges fails on every request."""
    cache = Cache(str(tmp_path / "cache"), CacheOptions(offline=True), lambda _: None, compare)
    reference = "registry.test/acme/os:1"
    image = cache.opened(image_at(Script(), [place(reference)], reference))
    layer = Scene(tmp_path).layer
    for attempt in (image.root(), image.document(layer), image.blob(layer)):
        with pytest.raises(Failure, match="--offline forbids asking the registry") as caught:
            await attempt
        assert (caught.value.status, caught.value.retryable) == (404, False)
    image.close()
    cache.close()


class RegistrySource(MemorySource):
    """An image in memory that is called like one of a registry."""

    reference = parse_reference("registry.test/acme/os:1")
    accepts_insecure = False


@real_time
async def test_a_document_is_recorded_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection in between would remove it."""
    cache = Cache(str(tmp_path / "cache"), CacheOptions(), lambda _: None, compare)
    memory = Store()
    image = cache.opened(RegistrySource(memory, memory.image(CONTENT)))  # type: ignore[arg-type]
    put, written = ContentStore.put, []

    def watched(store: ContentStore, digest: Digest, content: bytes) -> None:
        assert digest in [each.digest for each in cache.records.roots()]
        written.append(digest)
        put(store, digest, content)

    monkeypatch.setattr(ContentStore, "put", watched)
    root = await VerifiedSource(image, LargeBlobs()).root()
    assert written == [root.digest]
    image.close()
    cache.close()

"""Many images by name and platform: what is shared, and when it is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.blobs import noise, pieces_of
from support.images import on
from support.sources import (
    LINUX,
    MemorySource,
    Store,
    accept_anything,
    digest,
    layer_of,
    never,
    several,
)
from support.streams import real_time, virtual_time

from imgproxy.errors import NotFoundError, ReplacedError, UnavailableError
from imgproxy.images.catalog import Catalog
from imgproxy.images.selection import Wanted
from imgproxy.specs.http.ranges import Part
from imgproxy.specs.oci import platform as platforms
from imgproxy.verification.known_blobs import KnownBlobs
from imgproxy.verification.verified_blob import CHUNK, FIRST, MAX_LARGE, LargeBlobs
from imgproxy.verification.verified_parts import VerifiedParts

if TYPE_CHECKING:
    from support.images import Json

    from imgproxy.images.image import Image
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.transports.source import Source

ARM = Wanted(platforms.parse("linux/arm64"))


class Names:
    """Sources by name, and a catalog of them; `opened` are those that were opened, by name.

    `gate` makes all of them wait.
    """

    def __init__(self, store: Store, **roots: Json) -> None:
        self.opened: list[tuple[str, MemorySource]] = []
        self.gate: trio.Event | None = None
        self._store = store
        self._roots = roots
        self.catalog = Catalog(self.open_sources, accept_anything, never)

    async def open_sources(self, name: str) -> list[Source]:
        await trio.lowlevel.checkpoint()
        if name not in self._roots:
            raise NotFoundError(f"{name} is in no registry", code="NAME_UNKNOWN")
        source = MemorySource(self._store, self._roots[name])
        if self.gate is not None:
            source.gate = self.gate
        self.opened.append((name, source))
        return [source]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.opened]

    @property
    def closed(self) -> list[int]:
        return [source.closed for _, source in self.opened]


@pytest.fixture
def store() -> Store:
    return Store()


async def chosen(image: Image) -> str:
    return str((await image.open()).manifest.digest)


@virtual_time
async def test_nothing_is_opened_before_it_is_needed(store: Store) -> None:
    names = Names(store, a=store.image(b"a"))
    image = names.catalog.image("a", LINUX)
    await trio.testing.wait_all_tasks_blocked()
    assert names.opened == []
    image.close()
    names.catalog.close()
    assert names.opened == []


@virtual_time
async def test_each_name_is_an_image_of_its_own(store: Store) -> None:
    roots = {"a": store.image(b"a"), "b": store.image(b"b")}
    names = Names(store, **roots)
    images = {name: names.catalog.image(name, LINUX) for name in roots}
    for name, root in roots.items():
        assert await chosen(images[name]) == root["digest"]
    assert names.names == ["a", "b"]
    images["a"].close()
    assert names.closed == [1, 0]
    assert await chosen(images["b"]) == roots["b"]["digest"]
    images["b"].close()
    assert names.closed == [1, 1]


@virtual_time
async def test_each_platform_is_an_image_of_its_own(store: Store) -> None:
    entries = several(store, "linux/amd64", "linux/arm64")
    names = Names(store, a=store.index(*entries.values()))
    images = [names.catalog.image("a", each) for each in (LINUX, ARM)]
    found = [await chosen(image) for image in images]
    assert found == [entry["digest"] for entry in entries.values()]
    for image in images:
        image.close()
    assert names.closed == [1, 1]


@virtual_time
async def test_an_image_is_opened_once_for_all_its_users(store: Store) -> None:
    names = Names(store, a=store.image(b"a"), b=store.image(b"b"))
    names.gate = trio.Event()
    images = [names.catalog.image(name, LINUX) for name in ("a", "a", "b", "a")]
    found: list[OpenedImage] = []

    async def open_one(image: Image) -> None:
        found.append(await image.open())

    async with trio.open_nursery() as nursery:
        for image in images:
            nursery.start_soon(open_one, image)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(names.names) == ["a", "b"]
        names.gate.set()
    assert len({id(each) for each in found}) == 2
    for image in images:
        image.close()
    assert names.closed == [1, 1]


@virtual_time
async def test_users_of_one_name_share_its_failure_and_no_other_name_s(store: Store) -> None:
    names = Names(store, a=store.image(b"a"))
    images = {name: names.catalog.image(name, LINUX) for name in ("a", "missing")}
    with pytest.raises(NotFoundError, match="missing is in no registry"):
        await images["missing"].open()
    await images["a"].open()
    for image in images.values():
        image.close()
    assert names.closed == [1]


@virtual_time
async def test_an_image_stays_open_for_those_who_have_not_closed_it(store: Store) -> None:
    names = Names(store, a=store.image(b"a"))
    first, second = (names.catalog.image("a", LINUX) for _ in range(2))
    opened = await first.open()
    first.close()
    assert names.closed == [0]
    assert await second.open() is opened
    third = names.catalog.image("a", LINUX)
    second.close()
    assert names.closed == [0]
    assert await third.open() is opened
    third.close()
    assert names.closed == [1]


@virtual_time
async def test_an_image_that_was_closed_by_all_is_opened_anew(store: Store) -> None:
    names = Names(store, a=store.image(b"a"))
    for count in (1, 2, 3):
        image = names.catalog.image("a", LINUX)
        await image.open()
        assert names.closed == [1] * (count - 1) + [0]
        image.close()
    assert names.closed == [1] * 3


@virtual_time
async def test_a_user_who_gives_up_leaves_nothing_open(store: Store) -> None:
    names = Names(store, a=store.image(b"a"))
    names.gate = trio.Event()
    image = names.catalog.image("a", LINUX)
    with trio.move_on_after(1):
        await image.open()
    image.close()
    assert names.closed == [1]


@virtual_time
async def test_an_image_that_was_replaced_is_opened_anew_for_all(store: Store) -> None:
    root, other = store.image(b"x"), store.image(b"other")
    names = Names(store, a=store.index(on(root, "linux/amd64"), other))
    first, second = (names.catalog.image("a", LINUX) for _ in range(2))
    for generation in range(4):
        opened = await first.open()
        assert await second.open() is opened
        names.opened[generation][1].failures[other["digest"]] = ReplacedError("another is there")
        with pytest.raises(ReplacedError):
            await opened.document(digest(other))
    assert names.closed == [1, 1, 0, 0]  # something may still be read from the one before
    for image in (first, second):
        image.close()
    assert names.closed == [1] * 4


@virtual_time
async def test_a_source_that_fails_is_closed_and_the_next_open_tries_again(store: Store) -> None:
    root = store.image(b"a")
    names = Names(store, a=root)
    names.gate = trio.Event()
    image = names.catalog.image("a", LINUX)

    async def fail() -> None:
        with pytest.raises(UnavailableError):
            await image.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.testing.wait_all_tasks_blocked()
        names.opened[0][1].failures[root["digest"]] = UnavailableError("not now")
        names.gate.set()
    assert names.closed == [1]
    await image.open()
    image.close()
    assert names.closed == [1, 1]


@virtual_time
async def test_closing_the_catalog_closes_everything_that_was_opened(store: Store) -> None:
    names = Names(store, a=store.image(b"a"), b=store.image(b"b"))
    images = [names.catalog.image(name, LINUX) for name in ("a", "a", "b")]
    for image in images:
        await image.open()
    names.catalog.close()
    assert names.closed == [1, 1]
    names.catalog.close()
    for image in images:
        image.close()
    assert names.closed == [1, 1]


@virtual_time
async def test_what_is_opened_while_the_catalog_is_closed_is_closed_by_its_user(
    store: Store,
) -> None:
    names = Names(store, a=store.image(b"a"))
    names.gate = trio.Event()
    old = names.catalog.image("a", LINUX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.open)
        await trio.testing.wait_all_tasks_blocked()
        names.catalog.close()
        names.gate.set()
    new = names.catalog.image("a", LINUX)
    await new.open()
    assert names.closed == [0, 0]
    old.close()
    assert names.closed == [1, 0]
    assert names.catalog.image("a", LINUX) is new
    for _ in range(2):
        new.close()
    assert names.closed == [1, 1]


@real_time
async def test_the_images_of_one_catalog_share_what_bounds_their_memory(store: Store) -> None:
    """Two catalogs do not."""
    size = FIRST + CHUNK
    roots = {f"n{n}": store.image(noise(size) + bytes([n])) for n in range(MAX_LARGE + 1)}
    for names in (Names(store, **roots), Names(store, **roots)):
        blobs = []
        for name, root in roots.items():
            opened = await names.catalog.image(name, LINUX).open()
            blobs.append(await opened.open_blob(opened.find_blob(layer_of(store, root))))
        largest = [max(map(len, await pieces_of(blob, []))) for blob in blobs]
        assert largest[:MAX_LARGE] == [CHUNK] * MAX_LARGE
        assert largest[-1] < CHUNK
        names.catalog.close()
        assert names.closed == [1] * len(roots)


@real_time
async def test_parts_of_blobs_are_had_of_all_images_of_a_catalog(store: Store) -> None:
    """What was found out by way of one image is known to the others; a replaced one is noted."""
    content = noise(FIRST + CHUNK)
    roots = {name: store.image(content, name.encode()) for name in ("a", "b")}
    names, known = Names(store, **roots), KnownBlobs()
    large_blobs = LargeBlobs(known)
    names.catalog = Catalog(names.open_sources, accept_anything, never, large_blobs=large_blobs)
    wanted = Part(FIRST, FIRST + 9, len(content))
    async with trio.open_nursery() as nursery:
        parts = VerifiedParts(nursery, large_blobs, known)
        for name, root in roots.items():
            opened = await names.catalog.image(name, LINUX).open()
            layer = opened.find_blob(layer_of(store, root))
            assert parts.is_ready(layer) == (name == "b")
            part = await opened.open_part(layer, wanted, parts)
            assert b"".join(await pieces_of(part, [])) == content[FIRST : FIRST + 9]
        names.opened[-1][1].failures[str(layer.digest)] = ReplacedError("another is there")
        with pytest.raises(ReplacedError):
            await opened.open_part(layer, wanted, parts)
        assert opened.is_replaced
    names.catalog.close()

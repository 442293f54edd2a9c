"""What a walk through indexes may read and keep, of whatever a registry contains.

An index may be made so that reading it costs much more than sending it. Memory is measured as
Python's own: bounds are several times what is needed, and a small part of what it was once.
"""

from __future__ import annotations

import json
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.images import OCI_INDEX, Json, digest_of, on
from support.sources import MemorySource, Store, chosen, digest, failure_of, image_of, opened
from support.streams import refused, virtual_time

from imgproxy.errors import Failure
from imgproxy.images import selection
from imgproxy.images.selection import MAX_ENTRIES, MAX_INDEXES, MAX_TOTAL_SIZE
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
INVALID = (422, "MANIFEST_INVALID", False)
UNKNOWN = (404, "MANIFEST_UNKNOWN", False)

ENTRIES = f"more than {MAX_ENTRIES} entries in all indexes together, which is the limit"
BYTES = f"more than {MAX_TOTAL_SIZE} bytes of indexes, which is the limit"


@pytest.fixture
def store() -> Store:
    return Store()


@contextmanager
def peaking_below(limit: int) -> Iterator[None]:
    """Assert that the block never has more than so many bytes of objects at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def full(store: Store, n: int, entry: bytes, *more: Json, size: int = MAX_DOCUMENT_SIZE) -> Json:
    """Return an index of this size that repeats an entry, behind others."""
    start = b'{"schemaVersion":2,"mediaType":"%b","annotations":{"n":"%d"},"manifests":[' % (
        OCI_INDEX.encode(),
        n,
    )
    first = b"".join(_json(each) + b"," for each in more)
    count = (size - len(start) - len(first) - 2) // (len(entry) + 1)
    return store.add(start + first + b",".join([entry] * count) + b"]}", OCI_INDEX)


def _json(entry: Json) -> bytes:
    return json.dumps(entry).encode()


SHORT = b'{"digest":"%b","size":1}' % digest_of(b"none").encode()
SHORTEST = b'{"digest":"a:b","size":0}'
# Text that is kept of an entry, and takes four bytes a character as soon as one is beyond all.
LONG = '{{"digest":"a:b","size":0,"platform":{{"os":"{}"}}}}'.format("x" * 65536 + "𝄞").encode()
NOTHING = b"{}"


def wide(store: Store, entry: bytes) -> Json:
    image = on(store.image(b"x"), "linux/amd64")
    return store.index(*(full(store, n, entry) for n in range(60)), image)


def deep(store: Store, entry: bytes) -> Json:
    descriptor = on(store.image(b"x"), "linux/amd64")
    for n in range(4):
        descriptor = full(store, n, entry, descriptor)
    return descriptor


@pytest.mark.parametrize(
    ("tree", "entry", "message", "peak"),
    [
        (wide, SHORT, ENTRIES, 150 * MIB),
        (wide, SHORTEST, ENTRIES, 250 * MIB),
        (wide, LONG, BYTES, 250 * MIB),
        (wide, NOTHING, "manifests[0].size: missing", 300 * MIB),
        (deep, SHORT, ENTRIES, 150 * MIB),
    ],
    ids=["wide", "wide and short", "wide and long", "a million of nothing", "deep"],
)
@pytest.mark.slow
@virtual_time
async def test_a_hostile_tree_is_refused_before_it_takes_the_memory(
    store: Store, tree: Callable[[Store, bytes], Json], entry: bytes, message: str, peak: int
) -> None:
    """Sixty indexes of 4 MiB took 1.3 GB, and the same again at the next request.

    Whoever may push to a registry could have the program killed, and its parent with it.
    """
    source = MemorySource(store, tree(store, entry))
    image = image_of(source)
    with peaking_below(peak):
        for _ in range(2):
            with pytest.raises(Failure) as raised:
                await image.open()
            assert refused(raised.value) == INVALID
            assert message in raised.value.message
            del raised
            kept = tracemalloc.get_traced_memory()[0]
            assert kept < 10 * MIB  # nothing waits for the garbage collection


@virtual_time
async def test_an_index_of_the_largest_size_is_walked(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    source = MemorySource(store, full(store, 0, SHORT, image))
    assert await chosen(source) == image["digest"]


@virtual_time
async def test_many_indexes_of_many_entries_are_walked(store: Store) -> None:
    """Far more than published images have: 60 indexes of 500 entries with platforms."""
    image = on(store.image(b"x"), "linux/amd64")
    entry = _json(on(store.image(b"y"), "linux/s390x"))
    size = 500 * (len(entry) + 1)
    inner = [full(store, n, entry, size=size) for n in range(60)]
    assert await chosen(MemorySource(store, store.index(*inner, image))) == image["digest"]


@pytest.mark.parametrize("nested", [True, False])
@virtual_time
async def test_entries_have_a_limit_together(
    store: Store,
    nested: bool,  # noqa: FBT001  (a parameter)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    inner = store.index(image, image, image)
    root = store.index(inner, image) if nested else store.index(*[image] * 5)
    monkeypatch.setattr(selection, "MAX_ENTRIES", 5)
    assert await chosen(MemorySource(store, root)) == image["digest"]
    monkeypatch.setattr(selection, "MAX_ENTRIES", 4)
    failure = await failure_of(MemorySource(store, root))
    assert refused(failure) == INVALID
    assert failure.message == (
        "memory:image: more than 4 entries in all indexes together, which is the limit"
    )


@virtual_time
async def test_the_bytes_of_indexes_have_a_limit_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would exceed it is not fetched; an index that is missing does not count."""
    image = on(store.image(b"x"), "linux/amd64")
    one, two = store.index(image), store.index(image, image)
    missing = {**store.index(), "digest": digest_of(b"missing"), "size": 1}
    root = store.index(one, missing, two)
    size = root["size"] + one["size"] + two["size"]
    monkeypatch.setattr(selection, "MAX_TOTAL_SIZE", size)
    assert await chosen(MemorySource(store, root)) == image["digest"]
    monkeypatch.setattr(selection, "MAX_TOTAL_SIZE", size - 1)
    source = MemorySource(store, root)
    failure = await failure_of(source)
    assert refused(failure) == INVALID
    assert failure.message == (
        f"memory:image: more than {size - 1} bytes of indexes, which is the limit"
    )
    assert two["digest"] not in source.asked


@virtual_time
async def test_the_message_says_which_limit_was_exceeded(store: Store) -> None:
    entries = [store.index(annotations={"n": str(n)}) for n in range(MAX_INDEXES + 1)]
    failure = await failure_of(MemorySource(store, store.index(*entries)))
    assert failure.message == (
        "memory:image: more than 64 indexes in the first one, which is the limit"
    )


@virtual_time
async def test_the_bytes_of_indexes_are_kept_only_on_the_way_to_the_manifest(store: Store) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    other = on(store.image(b"y"), "linux/arm64")
    beside, between = store.index(other), store.index(image)
    root = store.index(beside, between)
    source = MemorySource(store, root)
    served = await opened(source)
    assert len(source.asked) == 4
    for kept in (root, between, image):
        await served.document(digest(kept))
    assert len(source.asked) == 4
    assert (await served.document(digest(beside))).raw == store.read(beside["digest"])
    assert source.asked[4:] == [beside["digest"]]


@virtual_time
async def test_of_many_platforms_the_message_lists_some(store: Store) -> None:
    entries = [on(store.image(b"x"), f"linux/arch{n}") for n in range(1000)]
    failure = await failure_of(MemorySource(store, store.index(*entries)))
    assert refused(failure) == UNKNOWN
    assert failure.detail == {"platforms": [f"linux/arch{n}" for n in range(64)]}
    assert failure.message.endswith(", linux/arch63 and 936 more)")

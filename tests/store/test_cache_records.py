"""What a cache knows, and how it is kept within a size."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.damage import flip
from support.images import Json, Layout
from support.streams import real_time, virtual_time

from imgproxy.errors import Failure
from imgproxy.specs.oci import digest as digests
from imgproxy.store import inventory, locks, partial_blob
from imgproxy.store.cache_records import CachedDocument, CachedTag, CacheRecords
from imgproxy.store.cache_size import shrink
from imgproxy.store.collection import Collection
from imgproxy.store.content_store import ContentStore
from imgproxy.store.partial_blob import BusyError, open_partial
from imgproxy.store.reachability import Documents
from imgproxy.verification.documents import compare

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest

NAME = "quay.io/acme/os"
DIGEST = digests.compute(b"document")
DOCUMENT = CachedDocument(DIGEST, "a/b", 8, is_insecure=False, by_login=False)
INSECURE = DOCUMENT._replace(is_insecure=True)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    made = ContentStore(str(tmp_path / "store"))
    made.create()
    return made


@pytest.fixture
def records(store: ContentStore) -> CacheRecords:
    return CacheRecords(store.path)


# --- records ----------------------------------------------------------------------------------


def test_what_was_recorded_is_known_under_its_name_alone(records: CacheRecords) -> None:
    assert records.tag(NAME, "1") is records.document(NAME, DIGEST) is None
    records.set_tag(NAME, "1", CachedTag(DOCUMENT, 1000.0))
    records.add_document(NAME, DOCUMENT)
    records.keep_signatures(NAME, DIGEST, b"signatures")
    assert records.tag(NAME, "1") == CachedTag(DOCUMENT, 1000.0)
    assert records.document(NAME, DIGEST) == DOCUMENT
    assert records.signatures(NAME, DIGEST, 10) == b"signatures"
    assert records.signatures(NAME, DIGEST, 9) == b""
    assert [each.digest for each in records.roots()] == [DIGEST]
    for name in (f"{NAME}/x", "quay.io/acme"):
        assert records.tag(name, "1") is records.document(name, DIGEST) is None
        assert records.signatures(name, DIGEST, 10) == b""


def test_a_document_is_as_safe_as_it_ever_came(records: CacheRecords) -> None:
    for found, known in ((INSECURE, INSECURE), (DOCUMENT, DOCUMENT), (INSECURE, DOCUMENT)):
        records.add_document(NAME, found)
        assert records.document(NAME, DIGEST) == known


def test_a_document_is_as_public_as_it_ever_was(records: CacheRecords) -> None:
    by_login, worst = DOCUMENT._replace(by_login=True), INSECURE._replace(by_login=True)
    for found, known in (
        (worst, worst),
        (INSECURE, INSECURE),
        (worst, INSECURE),
        (by_login, DOCUMENT),
        (worst, DOCUMENT),
    ):
        records.add_document(NAME, found)
        assert records.document(NAME, DIGEST) == known


def test_a_record_that_cannot_be_read_is_none(store: ContentStore, records: CacheRecords) -> None:
    records.set_tag(NAME, "1", CachedTag(DOCUMENT, 1000.0))
    records.add_document(NAME, DOCUMENT)
    files = [each for each in Path(store.path).glob(".imgproxy/names/*/*/*") if each.is_file()]
    assert len(files) == 2
    for file in files:
        for content in (b"", b"{}", b"[]", file.read_bytes()[:-1], b'{"digest":"x"}'):
            file.write_bytes(content)
            assert records.tag(NAME, "1") is None or file.parent.name != "tags"
            assert records.document(NAME, DIGEST) is None or file.parent.name == "tags"
    assert list(records.roots()) == []


# --- room -------------------------------------------------------------------------------------


class Images:
    """Images in a store, each recorded under a name of its own, the first used first."""

    def __init__(self, store: ContentStore, records: CacheRecords, path: Path) -> None:
        self.layout = Layout(path)
        self.store = store
        self.records = records
        self.descriptors: list[Json] = []

    def add(self, *layers: bytes) -> Digest:
        descriptor = self.layout.image(*layers)
        document = self.layout.document(descriptor)
        for each in (descriptor, document["config"], *document["layers"]):
            self.store.put(digests.parse(each["digest"]), self.layout.read(each["digest"]))
        digest = digests.parse(descriptor["digest"])
        media_type, size = descriptor["mediaType"], descriptor["size"]
        found = CachedDocument(digest, media_type, size, is_insecure=False, by_login=False)
        name = f"{NAME}/{len(self.descriptors)}"
        self.records.add_document(name, found)
        self.records.set_tag(name, "1", CachedTag(found, 1.0))
        self.records.keep_signatures(name, digest, b"{}")
        for used in self.records.all_documents():
            if used.document == found:
                os.utime(used.path, (0, len(self.descriptors)))
        self.descriptors.append(descriptor)
        return digest

    def has(self, content: bytes) -> bool:
        return self.store.has(digests.compute(content), len(content))

    def limit(self, size: int) -> None:
        shrink(self.store, self.records, compare, size)


BIG = [bytes([n]) * 10_000 for n in range(4)]


@pytest.fixture
def images(store: ContentStore, records: CacheRecords, tmp_path: Path) -> Images:
    return Images(store, records, tmp_path / "layout")


def test_what_was_used_least_recently_goes_first(images: Images, records: CacheRecords) -> None:
    for content in BIG[:3]:
        images.add(content)
    images.limit(40_000)
    assert [images.has(each) for each in BIG[:3]] == [True, True, True]
    images.limit(25_000)
    assert [images.has(each) for each in BIG[:3]] == [False, True, True]
    assert len(list(records.all_documents())) == 2
    assert records.tag(f"{NAME}/0", "1") is None
    assert records.tag(f"{NAME}/1", "1") is not None
    images.limit(0)
    assert list(records.all_documents()) == []
    assert list(inventory.blobs(images.store, [])) == []


def test_what_another_image_has_as_well_stays(images: Images) -> None:
    images.add(BIG[0], BIG[1])
    images.add(BIG[1])
    images.limit(15_000)
    assert [images.has(each) for each in BIG[:2]] == [False, True]


@real_time
async def test_what_a_name_reaches_stays(images: Images) -> None:
    images.add(BIG[0])
    images.add(BIG[1])
    index = images.layout.index(images.descriptors[0])
    images.store.put(digests.parse(index["digest"]), images.layout.read(index["digest"]))
    await images.store.change_index(lambda found: found.with_name("os", index))
    images.limit(0)
    assert [images.has(each) for each in BIG[:2]] == [True, False]


def test_what_is_in_use_stays(images: Images, records: CacheRecords) -> None:
    digest = images.add(BIG[0])
    images.add(BIG[1])
    lock = records.use(f"{NAME}/0", digest)
    assert lock is not None
    for used in records.all_documents():
        os.utime(used.path, (0, 0))
    images.limit(0)
    assert [images.has(each) for each in BIG[:2]] == [True, False]
    lock.close()
    images.limit(0)
    assert not images.has(BIG[0])


def test_what_a_process_relies_on_stays(images: Images) -> None:
    for content in BIG[:2]:
        images.add(content)
    with images.store.using():
        images.store.use([digests.compute(BIG[0])])
        images.limit(0)
        assert [images.has(each) for each in BIG[:2]] == [True, False]


def test_what_is_cached_is_not_collected(images: Images) -> None:
    """`gc` keeps it with all that it reaches, also where a document cannot be read."""
    images.add(BIG[0])
    images.add(BIG[1])
    images.store.put(digests.compute(BIG[2]), BIG[2])
    damaged_manifest(images)
    collection = Collection(images.store, Documents(images.store, compare), grace=0)
    removed = {each.digest for each in collection.remove(collection.find())}
    assert removed > {digests.compute(BIG[0]), digests.compute(BIG[2])}
    assert [images.has(each) for each in BIG[:3]] == [False, True, False]
    assert images.store.has(
        digests.parse(images.descriptors[0]["digest"]), images.descriptors[0]["size"]
    )


def damaged_index(images: Images) -> None:
    flip(Path(images.store.path) / "index.json")


def damaged_manifest(images: Images) -> None:
    digest = digests.parse(images.descriptors[0]["digest"])
    os.chmod(images.store.blob_path(digest), 0o600)
    flip(Path(images.store.blob_path(digest)))


def no_digest(images: Images) -> None:
    index = Path(images.store.path) / "index.json"
    index.write_bytes(index.read_bytes().replace(b"sha256:", b"what:!"))


@pytest.mark.parametrize("damage", [damaged_index, damaged_manifest, no_digest])
def test_nothing_is_removed_where_it_cannot_be_told_what_names_reach(
    damage: Any,  # noqa: ANN401
    images: Images,
) -> None:
    @real_time
    async def name_it() -> None:
        entry = images.descriptors[0]
        await images.store.change_index(lambda found: found.with_name("os", entry))

    images.add(BIG[0])
    images.add(BIG[1])
    name_it()
    damage(images)
    with pytest.raises(Failure):
        images.limit(0)
    assert images.has(BIG[0])
    assert images.has(BIG[1])


def test_what_nothing_names_is_left_to_who_may_be_about_to(images: Images) -> None:
    images.add(BIG[0])
    for content in BIG[1:3]:
        images.store.put(digests.compute(content), content)
    os.utime(images.store.blob_path(digests.compute(BIG[1])), (0, 0))
    images.limit(25_000)
    assert [images.has(each) for each in BIG[:3]] == [True, False, True]


@real_time
async def test_what_was_begun_counts_and_goes_where_nobody_goes_on(images: Images) -> None:
    images.add(BIG[0])
    parts = []
    for content in BIG[1:]:
        begun = await images.store.partial(digests.compute(content), len(content))
        assert begun is not None
        begun.append(content[:9000])
        parts.append(begun)
    parts[0].close()
    parts[1].close()
    for begun, old in zip(parts, (True, False, True), strict=True):
        if old:
            os.utime(begun._path, (0, 0))
    images.limit(30_000)
    left = {each.path for each in inventory.begun(images.store)}
    assert left == {begun._path for begun in parts[1:]}  # one is new, and one is in use
    assert images.has(BIG[0])
    images.limit(20_000)
    assert not images.has(BIG[0])
    parts[2].close()


# --- blobs that others fetch ------------------------------------------------------------------


@virtual_time
async def test_who_waits_for_a_blob_that_stands_still_gives_up(tmp_path: Path) -> None:
    path = str(tmp_path / "part")
    other = locks.try_lock(path, locks.EXCLUSIVE)
    assert other is not None
    with pytest.raises(BusyError):
        await open_partial(path, str(tmp_path / "blob"), 10, patience=5.0)
    other.close()
    (await open_partial(path, str(tmp_path / "blob"), 10, patience=5.0)).close()


@virtual_time
async def test_who_waits_for_a_blob_that_grows_waits_longer_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part"
    other = locks.try_lock(str(path), locks.EXCLUSIVE)
    assert other is not None
    tries, real = [], locks.try_lock

    def growing(*arguments: Any) -> Any:  # noqa: ANN401
        tries.append(os.write(other.fd, b"x"))
        return real(*arguments)

    monkeypatch.setattr(locks, "try_lock", growing)
    opening = partial(open_partial, str(path), str(tmp_path / "blob"), 10**6, patience=5.0)
    with pytest.raises(BusyError):
        await opening()
    most = 5.0 * partial_blob._PATIENCES / locks.INTERVAL
    assert most - 1 <= len(tries) <= most + 2
    other.close()

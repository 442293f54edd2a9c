"""The loop over the places of a source: what does not verify is read from the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.blobs import (
    NO_ALGORITHM,
    RAW,
    SMALL,
    WRONG_DIGEST,
    WRONG_SIZE,
    Chunks,
    described,
    found,
    noise,
    pieces_of,
    small_pieces,
)
from support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of, on
from support.images import encode as encoded
from support.sources import MemorySource, Store, chosen, digest, embedding, opened
from support.streams import real_time, refused, virtual_time

from imgproxy.errors import Failure
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Descriptor
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from imgproxy.transports.source import Document, Reader
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_blob import Blob


@pytest.fixture
def store() -> Store:
    return Store()


class Places(MemorySource):
    """A source that finds these, one after the other; asking for more is a mistake."""

    def __init__(self, *found: Document | Chunks) -> None:
        super().__init__(Store(), {})
        self._found = iter(found)

    async def root(self) -> Document:
        await trio.lowlevel.checkpoint()
        document = next(self._found)
        assert not isinstance(document, Chunks)
        return document

    async def blob(self, _: Descriptor, offset: int = 0, stop: int | None = None) -> Reader:
        assert (offset, stop) == (0, None)
        await trio.lowlevel.checkpoint()
        reader = next(self._found)
        assert isinstance(reader, Chunks)
        return reader


async def open_blob(descriptor: Descriptor, *readers: Chunks) -> Blob:
    return await VerifiedSource(Places(*readers), LargeBlobs()).blob(descriptor)


async def verified(*documents: Document) -> VerifiedDocument:
    return await VerifiedSource(Places(*documents), LargeBlobs()).root()


# --- places after the first ---------------------------------------------------------------------

SMALL_BLOB, LARGE_BLOB = noise(SMALL), noise(5 * SMALL)
WRONG: dict[str, tuple[bytes, Chunks]] = {
    "wrong bytes": (SMALL_BLOB, Chunks(bytes(SMALL), [7], others=True)),
    "too short": (SMALL_BLOB, Chunks(SMALL_BLOB[:-1], [7], others=True)),
    "too long": (SMALL_BLOB, Chunks(SMALL_BLOB + b"x", [7], others=True)),
    "another size": (SMALL_BLOB, Chunks(b"", [7], 1, others=True)),
    "another size of a large one": (LARGE_BLOB, Chunks(b"", [7], 1, others=True)),
    "nothing of a large one": (LARGE_BLOB, Chunks(b"", [7], others=True)),
}


@pytest.mark.parametrize("case", WRONG)
@real_time
async def test_a_blob_that_is_wrong_before_the_head_is_read_from_another_place(case: str) -> None:
    content, wrong = WRONG[case]
    good = Chunks(content, [7])
    with small_pieces():
        blob = await open_blob(described(content), wrong, good)
        assert [failure.status for failure in wrong.rejected] == [422]
        assert (wrong.closed, good.closed) == (1, 0)
        whole = b"".join(await pieces_of(blob, []))
    assert whole == content
    assert good.rejected == []


@real_time
async def test_a_blob_that_is_wrong_after_the_head_is_not_read_from_another_place() -> None:
    content = noise(5 * SMALL)
    with small_pieces():
        reader = Chunks(bytes(5 * SMALL), [7], others=True)
        blob = await open_blob(described(content), reader)
        passed_on: list[bytes] = []
        with pytest.raises(Failure) as raised:
            await pieces_of(blob, passed_on)
    assert refused(raised.value) == WRONG_DIGEST
    assert reader.rejected == [raised.value]
    assert len(b"".join(passed_on)) < len(content)


@pytest.mark.parametrize("algorithm", ["blake3:" + "0" * 64, "md5:abc"])
@virtual_time
async def test_without_its_algorithm_a_blob_is_not_even_fetched(algorithm: str) -> None:
    descriptor = Descriptor(OCI_LAYER, digests.parse(algorithm), 5)
    with pytest.raises(Failure) as raised:
        await open_blob(descriptor)
    assert refused(raised.value) == NO_ALGORITHM
    assert algorithm in raised.value.message


@virtual_time
async def test_no_blob_that_is_larger_than_a_document_is_read_whole() -> None:
    blob = Descriptor(OCI_CONFIG, digests.compute(SMALL_BLOB), MAX_DOCUMENT_SIZE + 1)
    with pytest.raises(Failure, match=f"{MAX_DOCUMENT_SIZE + 1} bytes are more than") as caught:
        await VerifiedSource(Places(), LargeBlobs()).content(blob)
    assert caught.value.code == "SIZE_INVALID"


@real_time
async def test_the_failure_is_that_of_the_last_place() -> None:
    content = noise(5)
    first, last = Chunks(bytes(5), [7], others=True), Chunks(bytes(4), [7])
    with pytest.raises(Failure) as raised:
        await open_blob(described(content), first, last)
    assert refused(raised.value) == WRONG_SIZE
    assert (first.closed, last.closed) == (1, 1)


OTHER = digest_of(b"other")
WRONG_DOCUMENTS = [
    found(OTHER),
    found(digest_of(RAW), OTHER),
    found(OTHER, digest_of(RAW)),
    found(digest_of(RAW), size=len(RAW) + 1),
    found(raw=b"{}"),
]


@virtual_time
async def test_a_document_that_is_wrong_is_read_from_the_next_place() -> None:
    rejected: list[str] = []

    def reject(failure: Failure) -> bool:
        rejected.append(failure.code)
        return True

    wrong = [document._replace(reject=reject) for document in WRONG_DOCUMENTS]
    document = await verified(*wrong, found(digest_of(RAW)))
    assert document.raw == RAW
    assert rejected == ["DIGEST_INVALID"] * 3 + ["SIZE_INVALID", "MANIFEST_INVALID"]
    with pytest.raises(Failure) as raised:
        await verified(*wrong, found(OTHER))
    assert refused(raised.value) == WRONG_DIGEST


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (found("blake3:" + "0" * 64), NO_ALGORITHM),
        (found(raw=b'{"schemaVersion":1}'), (415, "UNSUPPORTED", False)),
    ],
    ids=["no-algorithm", "schema-1"],
)
@virtual_time
async def test_a_document_that_cannot_be_verified_is_not_read_from_another_place(
    document: Document, wanted: tuple[int, str, bool]
) -> None:
    """It would be the same bytes there, those of its digest."""
    with pytest.raises(Failure) as raised:
        await verified(document._replace(reject=lambda _: True))
    assert refused(raised.value) == wanted


# --- the data field -----------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
@virtual_time
async def test_embedded_documents_are_used_if_they_are_right(
    store: Store,
    right: bool,  # noqa: FBT001  (a parameter)
) -> None:
    image = on(store.image(b"x"), "linux/amd64")
    content = store.read(image["digest"])
    inner = store.index(embedding(image, content if right else content[::-1]))
    content = store.read(inner["digest"])
    root = store.index(embedding(inner, content if right else content[::-1]))
    source = MemorySource(store, root)
    assert await chosen(source) == image["digest"]
    entries = [root["digest"], inner["digest"], image["digest"]]
    assert source.asked == (entries[:1] if right else entries)


@pytest.mark.parametrize("right", [True, False])
@real_time
async def test_embedded_blobs_are_used_if_they_are_right(
    store: Store,
    right: bool,  # noqa: FBT001  (a parameter)
) -> None:
    for content in (b"content", b"", bytes(range(251)) * 4200):
        layer = store.add(content, OCI_LAYER)
        layer = embedding(layer, content if right else b"x" + content[1:])
        config = store.add(b"{}", OCI_CONFIG)
        source = MemorySource(
            store, store.add(encoded({"config": config, "layers": [layer]}), OCI_MANIFEST)
        )
        image = await opened(source)
        blob = await image.open_blob(image.find_blob(digest(layer)))
        got = b""
        while piece := await blob.read():
            got += piece
        blob.close()
        assert got == content
        assert (layer["digest"] in source.asked) != right

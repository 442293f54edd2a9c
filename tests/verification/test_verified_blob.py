"""No bytes that fail their digest or their size are given out as a whole."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import Outcome, capture
from support.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from support.streams import SILENCE, Inbox, Step, real_time, refused, virtual_time

from imgproxy.errors import Failure, InvalidError, UnavailableError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import Descriptor, Manifest
from imgproxy.transports.source import Document
from imgproxy.verification import verified_blob
from imgproxy.verification.verified_blob import (
    CHUNK,
    CHUNK_OF_MANY,
    FIRST,
    MAX_LARGE,
    WHOLE,
    Blob,
    VerifiedDocument,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgproxy.transports.source import Reader

WRONG_DIGEST = (422, "DIGEST_INVALID", False)
WRONG_SIZE = (422, "SIZE_INVALID", False)
NO_ALGORITHM = (501, "UNSUPPORTED", False)

# In place of a mebibyte, so that every way to split a blob can be tried.
SMALL = 16


@contextmanager
def small_pieces() -> Iterator[None]:
    with patch.multiple(verified_blob, WHOLE=SMALL, FIRST=SMALL, CHUNK=SMALL):
        yield


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


def described(content: bytes, algorithm: str = "sha256", size: int | None = None) -> Descriptor:
    digest = digests.parse(digest_of(content, algorithm))
    return Descriptor(OCI_LAYER, digest, len(content) if size is None else size)


class Chunks:
    """A reader that gives as many bytes at a time as it was told; it says no size of its own.

    `others` are there if it is condemned.
    """

    def __init__(
        self, content: bytes, sizes: list[int], size: int | None = None, *, others: bool = False
    ) -> None:
        self.size = size
        self.name = "the blob"
        self.closed = 0
        self.rejected: list[Failure] = []
        self._others = others
        self._rest = memoryview(content)
        self._sizes = cycle(sizes)

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), len(self._rest), next(self._sizes))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def reject(self, failure: Failure) -> bool:
        self.rejected.append(failure)
        return self._others

    def close(self) -> None:
        self.closed += 1


async def open_blob(descriptor: Descriptor, *readers: Reader) -> Blob:
    """Open a blob that these have, one after the other; asking for more is a mistake."""
    places = iter(readers)

    async def give() -> Reader:
        await trio.lowlevel.checkpoint()
        reader = next(places, None)
        assert reader is not None
        return reader

    return await verified_blob.open_blob(descriptor, give)


async def pieces_of(descriptor: Descriptor, reader: Reader, pieces: list[bytes]) -> None:
    """Put all pieces of a blob, as they were when they were given, into `pieces`."""
    blob = await open_blob(descriptor, reader)
    try:
        while piece := await blob.read():
            pieces.append(bytes(piece))
        assert not await blob.read()
    finally:
        blob.close()


async def content_of(descriptor: Descriptor, reader: Reader) -> bytes:
    pieces: list[bytes] = []
    await pieces_of(descriptor, reader, pieces)
    return b"".join(pieces)


async def failure_of(descriptor: Descriptor, reader: Chunks | Inbox) -> tuple[Failure, bytes]:
    """Give how a blob fails, and what had been given out by then."""
    pieces: list[bytes] = []
    with pytest.raises(Failure) as raised:
        await pieces_of(descriptor, reader, pieces)
    assert reader.closed
    # What is wrong with it is told once; what befell it on the way is no lie of its.
    wrong = [raised.value] if isinstance(raised.value, InvalidError) else []
    assert reader.rejected == wrong
    return raised.value, b"".join(pieces)


# --- blobs that are what they should be ---------------------------------------------------------


def test_blobs_are_verified_before_their_head_up_to_a_mebibyte() -> None:
    """As the documents promise."""
    assert WHOLE == 1 << 20


SIZES = [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, WHOLE + CHUNK, 3 * CHUNK + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("says_size", [True, False])
@real_time
async def test_a_blob_of_any_size_is_given_out_whole(
    size: int,
    says_size: bool,  # noqa: FBT001  (a parameter)
) -> None:
    content = noise(size)
    reader = Chunks(content, [700_001], size if says_size else None)
    assert await content_of(described(content), reader) == content
    assert reader.closed == 1


chunkings = st.lists(st.integers(1, 3 * SMALL), min_size=1, max_size=8)


@given(st.binary(max_size=5 * SMALL), chunkings, st.booleans())
@settings(deadline=None)
@real_time
async def test_a_blob_is_the_same_however_its_bytes_arrive(
    content: bytes,
    sizes: list[int],
    says_size: bool,  # noqa: FBT001  (a parameter)
) -> None:
    reader = Chunks(content, sizes, len(content) if says_size else None)
    with small_pieces():
        assert await content_of(described(content), reader) == content


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size", [5, 5 * SMALL])
@real_time
async def test_each_algorithm_that_is_available_is_compared(algorithm: str, size: int) -> None:
    content = noise(size)
    with small_pieces():
        assert await content_of(described(content, algorithm), Chunks(content, [7])) == content
        failure, _ = await failure_of(described(content, algorithm), Chunks(bytes(size), [7]))
    assert refused(failure) == WRONG_DIGEST
    assert f"do not have the digest {digest_of(content, algorithm)}" in failure.message
    assert f"but {digest_of(bytes(size), algorithm)}" in failure.message


@real_time
async def test_a_piece_stays_as_it_is_until_the_next_is_wanted() -> None:
    content = noise(5 * SMALL)
    with small_pieces():
        blob = await open_blob(described(content), Chunks(content, [SMALL]))
        for at in range(0, len(content), SMALL):
            piece = await blob.read()
            await trio.lowlevel.checkpoint()
            assert piece == content[at : at + SMALL]
        blob.close()
        blob.close()


@real_time
async def test_two_blobs_at_once_have_large_pieces_and_more_have_smaller_ones() -> None:
    """Memory, that is; the bytes are the same."""
    size = 2 * CHUNK + 5
    content = noise(size)
    opened = [await open_blob(described(content), Chunks(content, [size])) for _ in range(4)]
    assert [len(await blob.read()) for blob in opened] == [FIRST] * 4
    pieces = [len(await blob.read()) for blob in opened]
    assert pieces == [CHUNK, CHUNK, CHUNK_OF_MANY, CHUNK_OF_MANY]
    opened[0].close()
    opened[0].close()
    after = await open_blob(described(content), Chunks(content, [size]))
    assert len(await after.read()) == FIRST
    received = bytearray()
    for blob in (opened[2], after):
        while piece := await blob.read():
            received += piece
    assert received == content[FIRST + CHUNK_OF_MANY :] + content[FIRST:]
    for blob in (*opened, after):
        blob.close()
    alone = await open_blob(described(content), Chunks(content, [size]))
    assert len(await alone.read()) == FIRST
    alone.close()


@real_time
async def test_a_blob_that_fails_takes_no_memory_from_others() -> None:
    content = noise(2 * CHUNK)
    for _ in range(MAX_LARGE + 1):
        await failure_of(described(content), Chunks(content[:-1], [CHUNK]))
        await failure_of(described(content), Chunks(b"", [CHUNK]))
    blob = await open_blob(described(content), Chunks(content, [len(content)]))
    assert len(await blob.read()) == FIRST
    assert len(await blob.read()) == CHUNK
    blob.close()


# --- blobs that are not -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, WHOLE])
@real_time
async def test_of_a_small_blob_that_is_wrong_nothing_is_begun(size: int) -> None:
    wrong = bytes([noise(size)[0] ^ 1]) + noise(size)[1:]
    reader = Chunks(wrong, [700_001])
    with pytest.raises(Failure) as raised:
        await open_blob(described(noise(size)), reader)
    assert refused(raised.value) == WRONG_DIGEST
    assert reader.closed == 1


@pytest.mark.parametrize("size", [WHOLE + 1, WHOLE + CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize("place", ["first", "last"])
@real_time
async def test_of_a_large_blob_that_is_wrong_the_last_piece_is_withheld(
    size: int, place: str
) -> None:
    content = noise(size)
    wrong = bytes([content[0] ^ 1]) + content[1:]
    if place == "last":
        wrong = content[:-1] + bytes([content[-1] ^ 1])
    failure, given_out = await failure_of(described(content), Chunks(wrong, [WHOLE]))
    assert refused(failure) == WRONG_DIGEST
    last = (size - FIRST) % WHOLE or WHOLE
    assert given_out == wrong[:-last]


@given(st.binary(min_size=SMALL + 1, max_size=5 * SMALL), chunkings, st.data())
@settings(deadline=None)
@real_time
async def test_a_large_blob_that_is_wrong_is_never_given_out_whole(
    content: bytes, sizes: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    wrong = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    with small_pieces():
        failure, given_out = await failure_of(described(content), Chunks(wrong, sizes))
    assert refused(failure) == WRONG_DIGEST
    assert len(given_out) < len(content)
    assert wrong.startswith(given_out)


@given(st.binary(max_size=4 * SMALL), chunkings, st.integers(-4 * SMALL, 2 * SMALL), st.booleans())
@settings(deadline=None)
@real_time
async def test_a_blob_of_another_size_is_never_given_out_whole(
    content: bytes,
    sizes: list[int],
    difference: int,
    says_size: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """Even if its bytes have the digest: `content` is what it names."""
    size = max(0, len(content) + difference)
    if size == len(content):
        size += 1
    reader = Chunks(content, sizes, len(content) if says_size else None)
    with small_pieces():
        failure, given_out = await failure_of(described(content, size=size), reader)
    assert refused(failure) == WRONG_SIZE
    assert len(given_out) < max(size, 1)
    assert f"the descriptor says {size} bytes" in failure.message


@pytest.mark.parametrize("size", [5, 5 * SMALL])
@real_time
async def test_a_source_that_says_another_size_is_not_read(size: int) -> None:
    content = noise(size)
    with small_pieces():
        reader = Inbox(RuntimeError("it was read"), size=size + 1)
        with pytest.raises(Failure) as raised:
            await open_blob(described(content), reader)
    assert refused(raised.value) == WRONG_SIZE
    assert raised.value.message == (
        f"the blob: the descriptor says {size} bytes, there are {size + 1}"
    )
    assert reader.closed


@pytest.mark.parametrize("size", [5, 5 * SMALL])
@real_time
async def test_a_source_that_has_less_than_it_says_is_refused(size: int) -> None:
    content = noise(size)
    with small_pieces():
        reader = Chunks(content[:-1], [7], size)
        failure, given_out = await failure_of(described(content), reader)
    assert refused(failure) == WRONG_SIZE
    assert len(given_out) < size
    assert f"there are only {size - 1}" in failure.message


@real_time
async def test_a_source_that_goes_on_after_the_last_byte_is_refused() -> None:
    for size in (5, 5 * SMALL):
        content = noise(size)
        with small_pieces():
            reader = Chunks(content + b"x", [7])
            failure, given_out = await failure_of(described(content), reader)
        assert refused(failure) == WRONG_SIZE
        assert len(given_out) < size
        assert failure.message.endswith("there are more")


@pytest.mark.parametrize("size", [5, 5 * SMALL])
@real_time
async def test_of_a_source_that_fails_at_once_nothing_is_begun(size: int) -> None:
    broken = UnavailableError("the source is broken")
    reader = Inbox(broken)
    with small_pieces(), pytest.raises(UnavailableError) as raised:
        await open_blob(described(noise(size)), reader)
    assert raised.value is broken
    assert reader.closed == 1


@pytest.mark.parametrize("at", [0, SMALL, 2 * SMALL, 5 * SMALL])
@real_time
async def test_a_source_that_fails_is_what_is_told(at: int) -> None:
    content = noise(5 * SMALL)
    broken = UnavailableError("the source is broken")
    with small_pieces():
        reader = Inbox(*([content[:at]] if at else []), broken)
        failure, given_out = await failure_of(described(content), reader)
    assert failure is broken
    assert len(given_out) < len(content)


@pytest.mark.parametrize("digest", ["blake3:" + "0" * 64, "md5:abc"])
@virtual_time
async def test_without_its_algorithm_a_blob_is_not_even_fetched(digest: str) -> None:
    async def fetch() -> Reader:
        raise AssertionError

    descriptor = Descriptor(OCI_LAYER, digests.parse(digest), 5)
    with pytest.raises(Failure) as raised:
        await verified_blob.open_blob(descriptor, fetch)
    assert refused(raised.value) == NO_ALGORITHM
    assert digest in raised.value.message


@pytest.mark.parametrize("arrived", [0, 5, SMALL, 3 * SMALL])
@real_time
async def test_whoever_stops_waiting_leaves_nothing_behind(arrived: int) -> None:
    content = noise(5 * SMALL)
    steps: tuple[Step, ...] = ((content[:arrived],) if arrived else ()) + (SILENCE,)
    reader = Inbox(*steps)
    with small_pieces():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(content_of, described(content), reader)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert reader.closed == 0
            nursery.cancel_scope.cancel()
    assert [reader.closed] == [1]


@virtual_time
async def test_a_hash_that_fails_is_no_hang() -> None:
    class Failing:
        def update(self, _: memoryview) -> None:
            raise MemoryError

    hashing = verified_blob._Hashing(Failing())  # type: ignore[arg-type]  # as much of a hash as is used
    with patch.object(trio.lowlevel, "start_thread_soon", run_at_once):
        hashing.begin(memoryview(b"x"))
    with pytest.raises(MemoryError):
        await hashing.catch_up()


def run_at_once(work: Callable[[], None], deliver: Callable[[Outcome[None]], None]) -> None:
    """Do what a thread would do, and ignore what it would only print."""
    with suppress(MemoryError):
        deliver(capture(work))


def test_a_thread_that_hashes_beyond_the_end_of_the_loop_is_no_failure() -> None:
    """The loop may end while a piece is being hashed."""

    async def begin() -> verified_blob._Hashing:
        return verified_blob._Hashing(hashlib.sha256())

    hashing = trio.run(begin)
    hashing._awaited = 0, trio.Event()
    hashing._wake()


# --- looking elsewhere --------------------------------------------------------------------------

SMALL_BLOB, LARGE_BLOB = noise(SMALL), noise(5 * SMALL)
ELSEWHERE: dict[str, tuple[bytes, Chunks]] = {
    "wrong bytes": (SMALL_BLOB, Chunks(bytes(SMALL), [7], others=True)),
    "too short": (SMALL_BLOB, Chunks(SMALL_BLOB[:-1], [7], others=True)),
    "too long": (SMALL_BLOB, Chunks(SMALL_BLOB + b"x", [7], others=True)),
    "another size": (SMALL_BLOB, Chunks(b"", [7], 1, others=True)),
    "another size of a large one": (LARGE_BLOB, Chunks(b"", [7], 1, others=True)),
    "nothing of a large one": (LARGE_BLOB, Chunks(b"", [7], others=True)),
}


@pytest.mark.parametrize("case", ELSEWHERE)
@real_time
async def test_what_is_wrong_before_the_head_is_looked_for_elsewhere(case: str) -> None:
    content, liar = ELSEWHERE[case]
    good = Chunks(content, [7])
    with small_pieces():
        blob = await open_blob(described(content), liar, good)
        assert [failure.status for failure in liar.rejected] == [422]
        assert (liar.closed, good.closed) == (1, 0)
        whole = b""
        while piece := await blob.read():
            whole += piece
        blob.close()
    assert whole == content
    assert good.rejected == []


@real_time
async def test_what_is_wrong_after_the_head_is_told_and_no_more() -> None:
    content = noise(5 * SMALL)
    with small_pieces():
        reader = Chunks(bytes(5 * SMALL), [7], others=True)
        failure, given_out = await failure_of(described(content), reader)
    assert refused(failure) == WRONG_DIGEST
    assert len(given_out) < len(content)


@real_time
async def test_the_last_place_s_complaint_is_the_one_that_is_heard() -> None:
    content = noise(5)
    first, last = Chunks(bytes(5), [7], others=True), Chunks(bytes(4), [7])
    with pytest.raises(Failure) as raised:
        await open_blob(described(content), first, last)
    assert refused(raised.value) == WRONG_SIZE
    assert (first.closed, last.closed) == (1, 1)


# --- documents ----------------------------------------------------------------------------------

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}")}
RAW = json.dumps({"schemaVersion": 2, "config": {**CONFIG, "size": 2}, "layers": []}).encode()


def found(*named: str, raw: bytes = RAW, size: int | None = None) -> Document:
    return Document(raw, OCI_MANIFEST, tuple(map(digests.parse, named)), size, "the document")


async def verified(*found: Document) -> VerifiedDocument:
    """Verify a document of which these are found, one after the other."""
    places = iter(found)

    async def find() -> Document:
        await trio.lowlevel.checkpoint()
        return next(places)

    return await verified_blob.document(find)


@pytest.mark.parametrize("size", [None, len(RAW)])
@pytest.mark.parametrize(
    "named",
    [
        (),
        (digest_of(RAW),),
        (digest_of(RAW, "sha512"),),
        (digest_of(RAW, "sha384"), digest_of(RAW)),
    ],
)
@virtual_time
async def test_a_document_that_agrees_with_all_who_named_it_is_verified(
    named: tuple[str, ...], size: int | None
) -> None:
    document = await verified(found(*named, size=size))
    assert document.raw == RAW
    assert str(document.digest) == (named[0] if named else digest_of(RAW))
    assert document.media_type == OCI_MANIFEST
    assert isinstance(document.parsed, Manifest)


OTHER = digest_of(b"other")
DOCUMENTS = {
    "another digest": (found(OTHER), WRONG_DIGEST),
    "another digest after a right one": (found(digest_of(RAW), OTHER), WRONG_DIGEST),
    "another digest before a right one": (found(OTHER, digest_of(RAW)), WRONG_DIGEST),
    "another size": (found(digest_of(RAW), size=len(RAW) + 1), WRONG_SIZE),
    "no algorithm": (found("blake3:" + "0" * 64), NO_ALGORITHM),
    "no document": (found(raw=b"{}"), (422, "MANIFEST_INVALID", False)),
}


@pytest.mark.parametrize("case", DOCUMENTS)
@virtual_time
async def test_a_document_that_does_not_agree_is_refused(case: str) -> None:
    document, wanted = DOCUMENTS[case]
    with pytest.raises(Failure) as raised:
        await verified(document)
    assert refused(raised.value) == wanted
    assert "the document" in raised.value.message or wanted == NO_ALGORITHM


@virtual_time
async def test_a_document_that_is_wrong_is_looked_for_elsewhere_while_there_is_elsewhere() -> None:
    rejected: list[str] = []

    def reject(failure: Failure) -> bool:
        rejected.append(failure.code)
        return True

    wrong = [
        document._replace(reject=reject)
        for document, (status, _, _) in DOCUMENTS.values()
        if status == 422
    ]
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
async def test_a_document_that_cannot_be_judged_is_not_looked_for_elsewhere(
    document: Document, wanted: tuple[int, str, bool]
) -> None:
    """It would be the same: the digest says which it is."""
    with pytest.raises(Failure) as raised:
        await verified(document._replace(reject=lambda _: True))
    assert refused(raised.value) == wanted


EMBEDDED = {
    "right": (described(b"data")._replace(data=b"data"), b"data"),
    "empty": (described(b"")._replace(data=b""), b""),
    "by another algorithm": (described(b"data", "sha512")._replace(data=b"data"), b"data"),
    "none": (described(b"data"), None),
    "another size": (described(b"data", size=5)._replace(data=b"data"), None),
    "another digest": (described(b"atad")._replace(data=b"data"), None),
    "no algorithm": (
        Descriptor(OCI_LAYER, digests.parse("blake3:" + "0" * 64), 4, b"data"),
        None,
    ),
}


@pytest.mark.parametrize("case", EMBEDDED)
def test_embedded_content_counts_if_it_is_what_the_descriptor_says(case: str) -> None:
    descriptor, wanted = EMBEDDED[case]
    assert verified_blob.embedded(descriptor) == wanted


def test_a_document_may_be_named_by_several_digests() -> None:
    raw = b'{"schemaVersion":2,"manifests":[]}'
    parsed = manifests.parse(raw, OCI_INDEX, "it")
    document = VerifiedDocument(raw, digests.compute(raw), parsed)
    for algorithm in ("sha256", "sha384", "sha512"):
        assert verified_blob.has_digest(document, digests.compute(raw, algorithm))
        assert not verified_blob.has_digest(document, digests.compute(b"else", algorithm))
    assert not verified_blob.has_digest(document, digests.parse("blake3:" + "0" * 64))

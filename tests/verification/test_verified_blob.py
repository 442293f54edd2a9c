"""No blob that fails its digest or its size is passed on as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blobs import (
    NO_ALGORITHM,
    SMALL,
    WRONG_DIGEST,
    WRONG_SIZE,
    Chunks,
    described,
    noise,
    pieces_of,
    small_pieces,
)
from support.images import OCI_LAYER, digest_of
from support.streams import SILENCE, Inbox, Step, real_time, refused, virtual_time

from imgproxy.errors import Failure, InvalidError, UnavailableError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.verification import verified_blob
from imgproxy.verification.verified_blob import (
    BUFFERS,
    CHUNK,
    CHUNK_OF_CROWD,
    CHUNK_OF_HUNDREDS,
    CHUNK_OF_MANY,
    FIRST,
    MAX_LARGE,
    MAX_MANY,
    WHOLE,
    Blob,
    LargeBlobs,
)

if TYPE_CHECKING:
    from imgproxy.transports.source import Reader


async def open_blob(
    descriptor: Descriptor, reader: Reader, large_blobs: LargeBlobs | None = None
) -> Blob:
    return await verified_blob.open_blob(descriptor, reader, large_blobs or LargeBlobs())


async def content_of(descriptor: Descriptor, reader: Reader) -> bytes:
    return b"".join(await pieces_of(await open_blob(descriptor, reader), []))


async def failure_of(descriptor: Descriptor, reader: Chunks | Inbox) -> tuple[Failure, bytes]:
    """Return how a blob fails, and the bytes that had been passed on by then."""
    pieces: list[bytes] = []
    try:
        blob = await open_blob(descriptor, reader)
    except Failure as failure:
        assert reader.closed
        assert reader.rejected == []  # the caller rejects it
        return failure, b""
    with pytest.raises(Failure) as raised:
        await pieces_of(blob, pieces)
    assert reader.closed
    # A reader with wrong bytes is rejected once; one that fails while it is read is not.
    is_wrong = isinstance(raised.value, InvalidError)
    assert reader.rejected == ([raised.value] if is_wrong else [])
    return raised.value, b"".join(pieces)


# --- blobs that are what they should be ---------------------------------------------------------


def test_blobs_are_verified_before_their_head_up_to_a_mebibyte() -> None:
    """As imgproxy(1) documents."""
    assert WHOLE == 1 << 20


SIZES = [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, WHOLE + CHUNK, 3 * CHUNK + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("says_size", [True, False])
@real_time
async def test_a_blob_of_any_size_is_passed_on_whole(
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
async def test_a_piece_stays_as_it_is_until_the_next_call() -> None:
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
    """The sizes bound the memory; the bytes are the same."""
    size = 2 * CHUNK + 5
    content = noise(size)
    large_blobs = LargeBlobs()

    async def opened_one() -> Blob:
        return await open_blob(described(content), Chunks(content, [size]), large_blobs)

    opened = [await opened_one() for _ in range(4)]
    assert [len(await blob.read()) for blob in opened] == [FIRST] * 4
    pieces = [len(await blob.read()) for blob in opened]
    assert pieces == [CHUNK, CHUNK, CHUNK_OF_MANY, CHUNK_OF_MANY]
    opened[0].close()
    opened[0].close()
    after = await opened_one()
    assert len(await after.read()) == FIRST
    received = bytearray()
    for blob in (opened[2], after):
        while piece := await blob.read():
            received += piece
    assert received == content[FIRST + CHUNK_OF_MANY :] + content[FIRST:]
    for blob in (*opened, after):
        blob.close()
    alone = await opened_one()
    assert len(await alone.read()) == FIRST
    alone.close()


@real_time
async def test_a_crowd_of_blobs_has_small_pieces_and_the_memory_of_a_few() -> None:
    content = noise(3 * CHUNK)
    large_blobs, opened = LargeBlobs(), list[Blob]()
    for _ in range(66):
        reader = Chunks(content, [len(content)])
        opened.append(await open_blob(described(content), reader, large_blobs))
    for _ in range(2):  # the first piece is shorter
        pieces = [len(await blob.read()) for blob in opened]
    few = [CHUNK] * MAX_LARGE + [CHUNK_OF_MANY] * MAX_MANY
    crowd = [CHUNK_OF_CROWD] * (64 - len(few)) + [CHUNK_OF_HUNDREDS] * 2
    assert pieces == few + crowd
    assert BUFFERS * sum(few) + sum(crowd) <= 36 * 1024 * 1024
    for blob, read in ((opened[63], FIRST + CHUNK_OF_CROWD), (opened[65], 2 * CHUNK_OF_HUNDREDS)):
        assert b"".join(await pieces_of(blob, [])) == content[read:]
    opened[MAX_LARGE].close()
    after = await open_blob(described(content), Chunks(content, [len(content)]), large_blobs)
    assert [len(await after.read()) for _ in range(2)] == [FIRST, CHUNK_OF_MANY]
    for blob in (*opened, after):
        blob.close()


@real_time
async def test_two_catalogs_do_not_share_what_bounds_their_memory() -> None:
    size = FIRST + CHUNK
    content = noise(size)
    opened = []
    for large_blobs in (LargeBlobs(), LargeBlobs()):
        for _ in range(MAX_LARGE):
            reader = Chunks(content, [size])
            opened.append(await open_blob(described(content), reader, large_blobs))
    for blob in opened:
        assert [len(piece) for piece in await pieces_of(blob, [])] == [FIRST, CHUNK]


@real_time
async def test_a_blob_that_fails_takes_no_memory_from_others() -> None:
    content = noise(2 * CHUNK)
    large_blobs = LargeBlobs()
    for _ in range(MAX_LARGE + 1):
        blob = await open_blob(described(content), Chunks(content[:-1], [CHUNK]), large_blobs)
        with pytest.raises(InvalidError):
            await pieces_of(blob, [])
        with pytest.raises(InvalidError):
            await open_blob(described(content), Chunks(b"", [CHUNK]), large_blobs)
    blob = await open_blob(described(content), Chunks(content, [len(content)]), large_blobs)
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
    failure, passed_on = await failure_of(described(content), Chunks(wrong, [WHOLE]))
    assert refused(failure) == WRONG_DIGEST
    last = (size - FIRST) % WHOLE or WHOLE
    assert passed_on == wrong[:-last]


@given(st.binary(min_size=SMALL + 1, max_size=5 * SMALL), chunkings, st.data())
@settings(deadline=None)
@real_time
async def test_a_large_blob_that_is_wrong_is_never_passed_on_whole(
    content: bytes, sizes: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    wrong = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    with small_pieces():
        failure, passed_on = await failure_of(described(content), Chunks(wrong, sizes))
    assert refused(failure) == WRONG_DIGEST
    assert len(passed_on) < len(content)
    assert wrong.startswith(passed_on)


@given(st.binary(max_size=4 * SMALL), chunkings, st.integers(-4 * SMALL, 2 * SMALL), st.booleans())
@settings(deadline=None)
@real_time
async def test_a_blob_of_another_size_is_never_passed_on_whole(
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
        failure, passed_on = await failure_of(described(content, size=size), reader)
    assert refused(failure) == WRONG_SIZE
    assert len(passed_on) < max(size, 1)
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
        failure, passed_on = await failure_of(described(content), reader)
    assert refused(failure) == WRONG_SIZE
    assert len(passed_on) < size
    assert f"there are only {size - 1}" in failure.message


@real_time
async def test_a_source_that_goes_on_after_the_last_byte_is_refused() -> None:
    for size in (5, 5 * SMALL):
        content = noise(size)
        with small_pieces():
            reader = Chunks(content + b"x", [7])
            failure, passed_on = await failure_of(described(content), reader)
        assert refused(failure) == WRONG_SIZE
        assert len(passed_on) < size
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
async def test_the_failure_of_a_source_is_what_is_raised(at: int) -> None:
    content = noise(5 * SMALL)
    broken = UnavailableError("the source is broken")
    with small_pieces():
        reader = Inbox(*([content[:at]] if at else []), broken)
        failure, passed_on = await failure_of(described(content), reader)
    assert failure is broken
    assert len(passed_on) < len(content)


@pytest.mark.parametrize("digest", ["blake3:" + "0" * 64, "md5:abc"])
@virtual_time
async def test_without_its_algorithm_a_blob_is_refused(digest: str) -> None:
    descriptor = Descriptor(OCI_LAYER, digests.parse(digest), 5)
    with pytest.raises(Failure) as raised:
        verified_blob.check_algorithm(descriptor)
    assert refused(raised.value) == NO_ALGORITHM
    assert digest in raised.value.message
    reader = Inbox(RuntimeError("it was read"))
    with pytest.raises(Failure) as raised:
        await open_blob(descriptor, reader)
    assert refused(raised.value) == NO_ALGORITHM
    assert reader.closed == 1


@pytest.mark.parametrize("arrived", [0, 5, SMALL, 3 * SMALL])
@real_time
async def test_a_client_that_stops_waiting_leaves_nothing_open(arrived: int) -> None:
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

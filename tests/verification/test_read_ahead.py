"""What is received of a blob before it is read: it is verified, bounded, and given out in order."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blobs import (
    SMALL,
    WRONG_DIGEST,
    WRONG_SIZE,
    Chunks,
    described,
    noise,
    pieces_of,
    small_pieces,
)
from support.streams import Inbox, real_time, refused
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import Failure, UnavailableError
from imgproxy.verification import verified_blob
from imgproxy.verification.verified_blob import Blob, LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 4 * SMALL
CONTENT = noise(3 * PIECE)

chunkings = st.lists(st.integers(1, 3 * SMALL), min_size=1, max_size=8)


@contextmanager
def pieces_with_room() -> Iterator[None]:
    """Make the first piece of a blob smaller than the others, as it is."""
    with small_pieces(), patch.object(verified_blob, "CHUNK", PIECE):
        yield


async def opened(content: bytes, reader: Chunks | Inbox) -> Blob:
    return await verified_blob.open_blob(described(content), reader, LargeBlobs())


async def read_later(content: bytes, reader: Chunks, turns: int, pieces: list[bytes]) -> None:
    """Put the pieces of a blob into `pieces` that has been received ahead for so many turns."""
    with pieces_with_room():
        blob = await opened(content, reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blob.read_ahead)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            await pieces_of(blob, pieces)


@given(st.binary(max_size=3 * PIECE), chunkings, st.integers(0, 9), st.booleans())
@settings(deadline=None)
@real_time
async def test_a_blob_is_the_same_whatever_is_received_ahead(
    content: bytes,
    sizes: list[int],
    turns: int,
    says_size: bool,  # noqa: FBT001  (a parameter)
) -> None:
    reader = Chunks(content, sizes, len(content) if says_size else None)
    pieces: list[bytes] = []
    await read_later(content, reader, turns, pieces)
    assert b"".join(pieces) == content
    assert (reader.accepted, reader.closed) == (1, 1)


@given(st.binary(min_size=SMALL + 1, max_size=3 * PIECE), chunkings, st.integers(0, 9), st.data())
@settings(deadline=None)
@real_time
async def test_what_is_wrong_is_never_passed_on_whole(
    content: bytes, sizes: list[int], turns: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    wrong = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    reader, pieces = Chunks(wrong, sizes), list[bytes]()
    with pytest.raises(ExceptionGroup) as raised:
        await read_later(content, reader, turns, pieces)
    [failure] = raised.value.exceptions
    assert isinstance(failure, Failure)
    assert refused(failure) == WRONG_DIGEST
    assert reader.rejected == [failure]
    assert len(b"".join(pieces)) < len(content)
    assert wrong.startswith(b"".join(pieces))


@pytest.mark.parametrize(
    ("size", "received"), [(SMALL, SMALL), (SMALL + 2, SMALL + 1), (3 * PIECE, PIECE)]
)
@real_time
async def test_so_much_is_received_ahead_and_never_the_last_byte(size: int, received: int) -> None:
    content = noise(size)
    reader = Chunks(content, [5])
    with pieces_with_room():
        blob = await opened(content, reader)
        await blob.read_ahead()
        assert size - reader.left == received
        assert b"".join(await pieces_of(blob, [])) == content


@real_time
async def test_what_fails_ahead_is_raised_after_what_arrived() -> None:
    broken = UnavailableError("the source is broken")
    pieces: list[bytes] = []
    with pieces_with_room():
        blob = await opened(CONTENT, Inbox(CONTENT[: 2 * SMALL], broken))
        await blob.read_ahead()
        with pytest.raises(UnavailableError) as raised:
            await pieces_of(blob, pieces)
    assert raised.value is broken
    assert b"".join(pieces) == CONTENT[: 2 * SMALL]


@real_time
async def test_an_end_that_comes_early_is_raised_in_its_turn() -> None:
    reader = Chunks(CONTENT[: 2 * SMALL], [SMALL])
    pieces: list[bytes] = []
    with pieces_with_room():
        blob = await opened(CONTENT, reader)
        await blob.read_ahead()
        with pytest.raises(Failure) as raised:
            await pieces_of(blob, pieces)
    assert refused(raised.value) == WRONG_SIZE
    assert reader.rejected == [raised.value]
    assert b"".join(pieces) == CONTENT[: 2 * SMALL]


@real_time
async def test_reading_waits_for_what_is_on_its_way() -> None:
    reader = Inbox(CONTENT[:SMALL])
    pieces: list[bytes] = []
    with pieces_with_room():
        blob = await opened(CONTENT, reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blob.read_ahead)
            nursery.start_soon(pieces_of, blob, pieces)
            await wait_all_tasks_blocked(0.01)
            assert pieces == [CONTENT[:SMALL]]
            reader.add(CONTENT[SMALL : 2 * SMALL])
            await wait_all_tasks_blocked(0.01)
            assert b"".join(pieces) == CONTENT[: 2 * SMALL]
            reader.add(CONTENT[2 * SMALL :], b"")
    assert b"".join(pieces) == CONTENT


@real_time
async def test_closing_ends_what_is_on_its_way() -> None:
    reader = Inbox(CONTENT[:SMALL])
    with pieces_with_room():
        blob = await opened(CONTENT, reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blob.read_ahead)
            await wait_all_tasks_blocked(0.01)
            blob.close()
    assert [reader.closed] == [1]

"""Hashing in a thread: it ends, whatever fails."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import trio
from outcome import Outcome, capture
from support.streams import real_time, virtual_time

from imgproxy.verification.hashing import HashingThread

if TYPE_CHECKING:
    from collections.abc import Callable


@real_time
async def test_pieces_are_hashed_in_order_while_they_are_still_begun() -> None:
    hashing = HashingThread(hashlib.sha256())
    pieces = [bytes([n]) * 100_000 for n in range(20)]
    for piece in pieces:
        hashing.begin(memoryview(piece))
        await hashing.catch_up(2)
    await hashing.catch_up()
    assert hashing.hasher.digest() == hashlib.sha256(b"".join(pieces)).digest()


@virtual_time
async def test_a_hash_that_fails_is_no_hang() -> None:
    class Failing:
        def update(self, _: memoryview) -> None:
            raise MemoryError

    hashing = HashingThread(Failing())  # type: ignore[arg-type]  # as much of a hash as is used
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

    async def begin() -> HashingThread:
        return HashingThread(hashlib.sha256())

    hashing = trio.run(begin)
    hashing._awaited = 0, trio.Event()
    hashing._wake()

"""Pieces that one thread makes and another reads."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.unpacking import piece_queue
from imgproxy.unpacking.piece_queue import PieceQueue

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_pieces_are_read_as_one_stream() -> None:
    with closing(PieceQueue(lambda: iter([b"ab", b"", b"cdef", b"g"]))) as queue:
        assert queue.read(1) == b"a"
        assert queue.read(3) == b"bcd"
        assert queue.position == 4
        queue.skip(1)
        assert bytes(queue.read_some(10)) == b"f"
        assert queue.read(10) == b"g"
        assert queue.position == 7
        assert queue.read(1) == queue.read_some(1) == b""
        queue.skip(1)
        queue.drain()
        assert queue.position == 7


def test_what_is_read_is_watched() -> None:
    seen: list[bytes] = []
    with closing(PieceQueue(lambda: iter([b"ab", b"c", b"d"]), seen.append)) as queue:
        assert queue.read(1) == b"a"
        assert seen == [b"ab"]
        queue.drain()
    assert b"".join(seen) == b"abcd"


def test_a_whole_piece_is_not_copied() -> None:
    piece = b"x" * 1000
    with closing(PieceQueue(lambda: iter([piece, piece]))) as queue:
        assert queue.read_some(1000) is piece
        part = queue.read_some(10)
        assert isinstance(part, memoryview)
        assert part.obj is piece


def test_what_the_maker_raises_is_raised_to_the_reader_after_its_pieces() -> None:
    def make() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    with closing(PieceQueue(make)) as queue:
        assert queue.read(1) == b"a"
        with pytest.raises(ZeroDivisionError):
            queue.drain()
        assert queue.read(1) == b""


def test_a_maker_whose_reader_stops_ends() -> None:
    made = []

    def make() -> Iterator[bytes]:
        for number in range(10**6):
            made.append(number)
            yield b"x"

    before = threading.active_count()
    with closing(PieceQueue(make)) as queue:
        assert queue.read(2) == b"xx"
    assert threading.active_count() == before
    assert len(made) <= 2 + 2 * (piece_queue._READY + 1)


def test_a_maker_that_fails_while_nobody_reads_is_no_matter() -> None:
    def make() -> Iterator[bytes]:
        yield b"x" * 100
        raise ZeroDivisionError

    with closing(PieceQueue(make)):
        pass

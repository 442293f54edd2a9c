"""Parts are given out of verified blobs only, and never with a wrong byte."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

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
from support.streams import END, SILENCE, Inbox, real_time, refused, virtual_time

from imgproxy.errors import (
    BadUpstreamError,
    Failure,
    InvalidError,
    NotReadyError,
    UnavailableError,
)
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.http.ranges import Part
from imgproxy.transports.readers import open_local
from imgproxy.transports.time_limit import limited, max_retries
from imgproxy.verification.known_blobs import KnownBlobs
from imgproxy.verification.verified_blob import (
    CHUNK_OF_CROWD,
    CHUNK_OF_MANY,
    MAX_LARGE,
    MAX_MANY,
    LargeBlobs,
)
from imgproxy.verification.verified_parts import VerifiedParts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader

SIZE = 5 * SMALL + 3
CONTENT = noise(SIZE)
DESCRIPTOR = described(CONTENT)
CONDEMNED = (502, "DIGEST_INVALID", False)
TIMES = count(1)
PARTS = [(0, 1), (0, SIZE), (SMALL, 2 * SMALL), (SMALL - 1, SMALL + 1), (SIZE - 1, SIZE), (20, 70)]


class Blobs:
    """A source of one blob, which `open_reader` opens from a byte on. `asked` are those bytes."""

    def __init__(self, open_reader: Callable[[int], Reader], name: str = "memory:image") -> None:
        self.name = name
        self.asked: list[int] = []
        self.stops: list[int | None] = []
        self.open_reader = open_reader

    async def blob(self, _: Descriptor, offset: int = 0, stop: int | None = None) -> Reader:
        await trio.lowlevel.checkpoint()
        self.asked.append(offset)
        self.stops.append(stop)
        return self.open_reader(offset)


class Door:
    """What a front-end has: `large_blobs`, `known` and `parts` for all of its sources."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.known = KnownBlobs()
        self.large_blobs = LargeBlobs(self.known)
        self.parts = VerifiedParts(nursery, self.large_blobs, self.known)

    async def whole(self, source: object, descriptor: Descriptor = DESCRIPTOR) -> bytes:
        verified = VerifiedSource(source, self.large_blobs)  # type: ignore[arg-type]
        return b"".join(await pieces_of(await verified.blob(descriptor), []))

    async def part(
        self, source: object, start: int, stop: int, descriptor: Descriptor = DESCRIPTOR
    ) -> bytes:
        verified = VerifiedSource(source, self.large_blobs)  # type: ignore[arg-type]
        wanted = Part(start, stop, descriptor.size)
        return b"".join(await pieces_of(await verified.part(descriptor, wanted, self.parts), []))


@asynccontextmanager
async def a_door() -> AsyncIterator[Door]:
    with small_pieces():
        async with trio.open_nursery() as nursery:
            yield Door(nursery)
            nursery.cancel_scope.cancel()


def rest_of(content: bytes) -> Callable[[int], Reader]:
    return lambda offset: Chunks(content[offset:], [7, 40, 1])


# --- what is right ------------------------------------------------------------------------------


@real_time
async def test_a_part_is_had_after_one_pass_and_without_the_bytes_before_it() -> None:
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        assert not door.parts.is_ready(DESCRIPTOR)
        assert await door.part(source, 40, 50) == CONTENT[40:50]
        assert source.asked == [0, 2 * SMALL]
        assert door.parts.is_ready(DESCRIPTOR)
        for start, stop in PARTS:
            assert await door.part(source, start, stop) == CONTENT[start:stop]
        assert source.asked[2:] == [start // SMALL * SMALL for start, _ in PARTS]
        ends = [min(-(-stop // SMALL) * SMALL, SIZE) for _, stop in PARTS]
        assert source.stops == [None, 4 * SMALL, *ends]


@real_time
async def test_a_whole_blob_that_was_read_leaves_what_its_parts_need() -> None:
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        assert await door.whole(source) == CONTENT
        assert door.parts.is_ready(DESCRIPTOR)
        assert await door.part(source, 20, 70) == CONTENT[20:70]
        assert source.asked == [0, SMALL]


@real_time
async def test_without_a_door_that_asks_nothing_is_kept() -> None:
    async with a_door() as door:
        plain = VerifiedSource(Blobs(rest_of(CONTENT)), LargeBlobs())  # type: ignore[arg-type]
        assert await pieces_of(await plain.blob(DESCRIPTOR), [])
        assert not door.parts.is_ready(DESCRIPTOR)


@real_time
async def test_a_small_blob_is_verified_for_each_part() -> None:
    content = noise(SMALL)
    source = Blobs(rest_of(content))
    async with a_door() as door:
        assert door.parts.is_ready(described(content))
        for start, stop in ((0, 1), (3, 9), (0, SMALL), (SMALL - 1, SMALL)):
            assert await door.part(source, start, stop, described(content)) == content[start:stop]
        source.open_reader = rest_of(bytes(SMALL))
        with pytest.raises(InvalidError) as raised:
            await door.part(source, 0, 1, described(content))
        assert refused(raised.value) == WRONG_DIGEST


@real_time
async def test_a_part_is_read_in_pieces_that_are_the_smaller_the_more_there_are() -> None:
    """The first few have two buffers each, a crowd has one block; all begin with one block."""
    content = noise(6 * 1024 * 1024)
    descriptor, source = described(content), Blobs(rest_of(b""))
    source.open_reader = lambda offset: Chunks(content[offset:], [len(content)])
    async with trio.open_nursery() as nursery:
        door = Door(nursery)
        verified = VerifiedSource(source, door.large_blobs)  # type: ignore[arg-type]
        await door.whole(source, descriptor)
        wanted = Part(0, len(content), len(content))
        opened = [
            await verified.part(descriptor, wanted, door.parts)
            for _ in range(MAX_LARGE + MAX_MANY + 2)
        ]
        assert {len(await each.read()) for each in opened} == {CHUNK_OF_CROWD}
        sizes = [max([len(await each.read()) for _ in range(3)]) for each in opened]
        few = [2 * 1024 * 1024] * MAX_LARGE + [CHUNK_OF_MANY] * MAX_MANY
        assert sizes == few + [CHUNK_OF_CROWD] * 2
        opened[0].close()
        again = await verified.part(descriptor, wanted, door.parts)
        assert max(map(len, await pieces_of(again, []))) == sizes[0]  # type: ignore[arg-type]
        assert b"".join(await pieces_of(opened[-1], [])) == content[4 * sizes[-1] :]  # type: ignore[arg-type]
        for each in (*opened, again):
            each.close()


# --- one pass for all ---------------------------------------------------------------------------


@real_time
async def test_all_who_ask_at_once_wait_for_one_pass_that_survives_them() -> None:
    inbox = Inbox(CONTENT[:10])
    source = Blobs(lambda offset: Chunks(CONTENT[offset:], [9]) if offset else inbox)
    got: list[bytes] = []
    async with a_door() as door:

        async def ask() -> None:
            got.append(await door.part(source, 40, 50))

        async with trio.open_nursery() as first:
            first.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            first.cancel_scope.cancel()
        assert not inbox.closed
        async with trio.open_nursery() as others:
            for _ in range(5):
                others.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert source.asked == [0]
            inbox.add(CONTENT[10:], END)
        assert got == [CONTENT[40:50]] * 5
        assert source.asked == [0] + [2 * SMALL] * 5
        assert inbox.closed == 1


@virtual_time
async def test_who_has_waited_long_enough_is_told_when_to_come_back() -> None:
    source = Blobs(lambda _: Inbox(CONTENT[:10], SILENCE))
    async with a_door() as door:
        begun = trio.current_time()
        with pytest.raises(NotReadyError) as raised:
            await door.part(source, 40, 50)
        assert trio.current_time() - begun == 25
        assert refused(raised.value) == (503, "UNAVAILABLE", True)
        assert raised.value.retry_after == 10
        assert f"blob {DESCRIPTOR.digest}: its {SIZE} bytes" in raised.value.message
        with pytest.raises(NotReadyError):
            await door.part(source, 40, 50)
        assert source.asked == [0]


@real_time
async def test_the_time_limit_of_the_first_client_is_not_that_of_the_pass() -> None:
    limits = []

    def open_reader(offset: int) -> Reader:
        limits.append(max_retries())
        return Chunks(CONTENT[offset:], [9])

    async with a_door() as door:
        with limited(5, retries=3):
            assert await door.part(Blobs(open_reader), 40, 50) == CONTENT[40:50]
    assert limits == [float("inf"), 3]


@real_time
async def test_why_a_pass_failed_is_told_to_all_and_the_next_one_tries_again() -> None:
    inbox = Inbox(CONTENT[:10])
    source = Blobs(lambda _: inbox)
    failures: list[Exception] = []
    async with a_door() as door:

        async def ask() -> None:
            with pytest.raises((Failure, ZeroDivisionError)) as raised:
                await door.part(source, 40, 50)
            failures.append(raised.value)

        for failure in (UnavailableError("it broke"), ZeroDivisionError("a defect")):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked(0.01)
                inbox.add(failure)
            assert [str(each) for each in failures] == [str(failure)] * 3
            assert {type(each) for each in failures} == {type(failure)}
            failures.clear()
            inbox = Inbox(CONTENT[:10])
        assert source.asked == [0, 0]
        source.open_reader = rest_of(CONTENT)
        assert await door.part(source, 40, 50) == CONTENT[40:50]


@real_time
async def test_a_source_with_a_name_of_its_own_is_read_by_itself() -> None:
    """What one name leads to says nothing about another; what is verified serves both."""
    missing = UnavailableError("not there")
    async with a_door() as door:
        broken, good = Blobs(lambda _: Inbox(missing), "one"), Blobs(rest_of(CONTENT), "other")
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(UnavailableError, match="not there"):
                    await door.part(broken, 40, 50)

            nursery.start_soon(fail)
            assert await door.part(good, 40, 50) == CONTENT[40:50]
        assert await door.part(good, 1, 2) == CONTENT[1:2]


@real_time
async def test_a_pass_goes_on_with_another_location() -> None:
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    readers = iter([Chunks(wrong, [9], others=True), Chunks(CONTENT, [9])])
    source = Blobs(lambda offset: Chunks(CONTENT[offset:], [9]) if offset else next(readers))
    async with a_door() as door:
        assert await door.part(source, 40, 50) == CONTENT[40:50]
    assert source.asked == [0, 0, 2 * SMALL]


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2 * SMALL, SIZE - 1])
@real_time
async def test_of_a_blob_that_does_not_verify_there_are_no_parts(at: int) -> None:
    wrong = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    source = Blobs(rest_of(wrong))
    async with a_door() as door:
        for _ in range(2):
            with pytest.raises(InvalidError) as raised:
                await door.part(source, 40, 41)
            assert refused(raised.value) == WRONG_DIGEST
        assert not door.parts.is_ready(DESCRIPTOR)


@pytest.mark.parametrize(("start", "stop"), PARTS)
@pytest.mark.parametrize("at", [0, SMALL - 1, SMALL, 40, SIZE - 1])
@real_time
async def test_damage_of_a_verified_blob_is_found_in_the_blocks_that_are_read(
    start: int, stop: int, at: int
) -> None:
    wrong = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        await door.whole(source)
        reader = Chunks(wrong[start // SMALL * SMALL :], [7])
        source.open_reader = lambda _: reader
        if start // SMALL <= at // SMALL <= (stop - 1) // SMALL:
            with pytest.raises(InvalidError) as raised:
                await door.part(source, start, stop)
            assert refused(raised.value) == WRONG_DIGEST
            assert reader.rejected == [raised.value]
        else:
            assert await door.part(source, start, stop) == CONTENT[start:stop]
            assert reader.rejected == []
        assert reader.closed


@real_time
async def test_what_is_too_short_now_is_wrong() -> None:
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        await door.whole(source)
        source.open_reader = rest_of(CONTENT[:-1])
        with pytest.raises(InvalidError) as raised:
            await door.part(source, SIZE - 1, SIZE)
        assert refused(raised.value) == WRONG_SIZE
        assert raised.value.message.endswith(f"there are only {SIZE - 1}")


@real_time
async def test_a_part_that_is_wrong_in_one_location_is_read_from_another() -> None:
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        await door.whole(source)
        wrong, good = Chunks(bytes(SIZE), [9], others=True), Chunks(CONTENT[SMALL:], [9])
        readers = iter([wrong, good])
        source.open_reader = lambda _: next(readers)
        assert await door.part(source, 20, 70) == CONTENT[20:70]
        assert (wrong.closed, len(wrong.rejected)) == (1, 1)


@real_time
async def test_a_source_that_fails_leaves_nothing_open() -> None:
    source = Blobs(rest_of(CONTENT))
    async with a_door() as door:
        await door.whole(source)
        for steps in ([], [CONTENT[SMALL : 2 * SMALL]]):
            broken = Inbox(*steps, UnavailableError("it broke"))
            source.open_reader = lambda _, broken=broken: broken  # type: ignore[misc]
            with pytest.raises(UnavailableError, match="it broke"):
                await door.part(source, 20, 70)
            assert broken.closed
            assert broken.rejected == []


class File:
    """A blob in a file. See `Source`."""

    name = "dir:/file"

    def __init__(self, path: str) -> None:
        self.path = path

    async def blob(self, _: Descriptor, offset: int = 0, stop: int | None = None) -> Reader:
        return (await open_local(self.path)).between(offset, stop)

    def write(self, content: bytes) -> None:
        """Write the file anew, as another file with a time that no other has."""
        with open(f"{self.path}.new", "wb") as file:
            file.write(content)
        os.utime(f"{self.path}.new", ns=(0, next(TIMES)))
        os.replace(f"{self.path}.new", self.path)

    def change(self, what: str, content: bytes, at: int, bits: int) -> None:
        """Change the file in place, or replace it by one with its content."""
        with open(self.path, "r+b") as file:
            if what == "damage":
                file.seek(at)
                file.write(bytes([content[at] ^ bits]))
            elif what == "cut":
                file.truncate(at)
            elif what == "grow":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            elif what == "repair":
                file.write(content)
                file.truncate()
        if what == "replace":
            self.write(content)


@pytest.mark.parametrize("content", [CONTENT, CONTENT[:SMALL]], ids=["large", "small"])
@pytest.mark.parametrize("first", ["whole", "part"])
@real_time
async def test_a_wrong_blob_is_gone_for_all_until_its_file_changes(
    tmp_path: os.PathLike[str], content: bytes, first: str
) -> None:
    source, descriptor = File(f"{tmp_path}/blob"), described(content)
    source.write(content[:-1] + bytes([content[-1] ^ 1]))
    async with a_door() as door:
        asks = {
            "whole": partial(door.whole, source, descriptor),
            "part": partial(door.part, source, 10, 12, descriptor),
        }
        with pytest.raises(InvalidError) as raised:
            await asks[first]()
        assert refused(raised.value) == WRONG_DIGEST
        for ask in asks.values():
            with pytest.raises(BadUpstreamError) as again:
                await ask()
            assert refused(again.value) == CONDEMNED
        source.write(content)
        assert await asks["part"]() == content[10:12]
        assert await asks["whole"]() == content


@real_time
async def test_a_blob_that_rots_after_it_was_verified_is_gone_as_well(
    tmp_path: os.PathLike[str],
) -> None:
    source = File(f"{tmp_path}/blob")
    source.write(CONTENT)
    async with a_door() as door:
        await door.whole(source)
        source.write(CONTENT[:40] + b"!" + CONTENT[41:])
        assert await door.part(source, 0, SMALL) == CONTENT[:SMALL]
        with pytest.raises(InvalidError):
            await door.part(source, 40, 41)
        for ask in (door.whole(source), door.part(source, 0, SMALL)):
            with pytest.raises(BadUpstreamError):
                await ask
        source.write(CONTENT)
        assert await door.part(source, 40, 41) == CONTENT[40:41]


changes = st.sampled_from(["nothing", "damage", "repair", "replace", "cut", "grow", "forget"])
asked = st.tuples(changes, st.integers(0, 200), st.integers(1, 200), st.integers(1, 255))


@given(st.binary(min_size=1, max_size=6 * SMALL), st.lists(asked, max_size=12))
@settings(deadline=None)
@real_time
async def test_any_parts_of_a_file_that_changes_are_right_or_fail(
    content: bytes, sequence: list[tuple[str, int, int, int]]
) -> None:
    size, descriptor = len(content), described(content)
    with tempfile.TemporaryDirectory() as directory:
        source = File(f"{directory}/blob")
        source.write(content)
        is_whole = True
        async with a_door() as door:
            for change, at, length, bits in sequence:
                start = at % size
                stop = min(start + length, size)
                source.change(change, content, start, bits)
                if change == "forget":
                    door.known = door.large_blobs.known = door.parts._known = KnownBlobs()
                is_whole = change == "replace" or (is_whole and change in ("nothing", "forget"))
                try:
                    assert await door.part(source, start, stop, descriptor) == content[start:stop]
                except (InvalidError, BadUpstreamError):
                    assert not is_whole
                try:
                    assert await door.whole(source, descriptor) == content
                except (InvalidError, BadUpstreamError):
                    assert not is_whole

"""Members of compressed archives: readers that come and go, threads, and slots for cursors."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.archives import (
    LARGE,
    Member,
    gzip_members,
    gzipped,
    write_archive,
    zstd_compressed,
    zstd_frames,
)
from support.opened import (
    CHANGED,
    content_of,
    drained,
    open_descriptors,
    refusing,
)
from support.streams import real_time

from imgproxy.host.files import OpenFile
from imgproxy.transports.local import decompression
from imgproxy.transports.local.tar_archive import Archive, open_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.readers import Content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


class Gate:
    """Makes the thread that reads a file wait, until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_shut = False
        self.count = 0  # of reads
        self.reached = threading.Event()
        self._may_go_on = threading.Event()
        read = OpenFile.read

        def wait(file: OpenFile, size: int, offset: int) -> bytes:
            if self.is_shut:
                self.reached.set()
                self._may_go_on.wait(10)
            self.count += 1
            return read(file, size, offset)

        monkeypatch.setattr(OpenFile, "read", wait)

    def open(self) -> None:
        self.is_shut = False
        self._may_go_on.set()


async def read_until(gate: Gate, reader: Content, got: bytearray) -> None:
    """Read until a thread waits at the gate, and be cancelled then."""
    buffer = memoryview(bytearray(30_000))

    async def read() -> None:
        while count := await reader.receive_into(buffer):
            got.extend(buffer[:count])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        gate.is_shut = True
        assert await trio.to_thread.run_sync(gate.reached.wait, 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("compress", [gzipped, gzip_members, zstd_compressed])
@real_time
async def test_a_cancelled_reader_does_not_affect_others(
    path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(1 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=compress))
    gate, got = Gate(monkeypatch), bytearray()
    reader = await tree.open("a", "a")
    await read_until(gate, reader, got)
    reader.close()
    gate.open()
    assert await content_of(tree, "a", 10_000) == content
    assert content.startswith(got)
    assert len(got) < len(content)
    tree.close()


@pytest.mark.usefixtures("small_steps")
@real_time
async def test_a_cancelled_reader_can_continue(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(1 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=gzipped))
    gate, got = Gate(monkeypatch), bytearray()
    reader = await tree.open("a", "a")
    await read_until(gate, reader, got)
    gate.open()
    assert bytes(got) + await drained(reader) == content
    tree.close()


@pytest.mark.usefixtures("small_steps")
@real_time
async def test_a_reader_closed_in_the_middle_does_not_affect_others(path: Path) -> None:
    content = os.urandom(1 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=gzipped))
    for size in range(0, 400_000, 40_000):
        reader = await tree.open("a", "a")
        buffer = memoryview(bytearray(size))
        count = await reader.receive_into(buffer)
        assert content.startswith(buffer[:count])
        reader.close()
    assert await content_of(tree, "a") == content
    tree.close()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("part", [300_000, 50_000])
@pytest.mark.parametrize("compress", [gzipped, zstd_frames])
@real_time
async def test_parts_of_members_in_order_cost_one_pass(
    path: Path, compress: Callable[[bytes], bytes], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [Member(f"{n}", os.urandom(300_000)) for n in range(5)]
    tree = await open_archive(write_archive(path, *members, compress=compress))
    counts: list[int] = []
    read = OpenFile.read

    def count(file: OpenFile, size: int, offset: int) -> bytes:
        content = read(file, size, offset)
        counts.append(len(content))
        return content

    monkeypatch.setattr(OpenFile, "read", count)
    for member in members:
        for start in range(0, 300_000, part):
            reader = (await tree.open(member.name, "x")).between(start, start + part)
            assert await reader.read(part) == member.content[start : start + part]
    # Input that a decompressor did not use is read again.
    assert sum(counts) < 1.2 * os.stat(path).st_size
    tree.close()


def slots_of(tree: Archive) -> trio.CapacityLimiter:
    assert tree._blocks is not None
    return tree._blocks.archive.slots


async def until_free(tree: Archive) -> None:
    """Wait until no slot is in use, at most as long as a test may take."""
    while slots_of(tree).borrowed_tokens:  # noqa: ASYNC110  (there is no event for it)
        await trio.sleep(0.001)


@pytest.fixture
def two_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "MAX_CURSORS", 2)


@pytest.mark.usefixtures("small_steps")
@real_time
async def test_a_reader_closed_in_the_middle_releases_its_slot(path: Path) -> None:
    tree = await open_archive(
        write_archive(path, Member("a", os.urandom(1 << 20)), compress=gzipped)
    )
    unread, reader = [await tree.open("a", "a") for _ in range(2)]
    assert slots_of(tree).borrowed_tokens == 0
    await reader.receive_into(memoryview(bytearray(10)))
    assert slots_of(tree).borrowed_tokens == 1
    for each in (unread, reader, reader):
        each.close()
    await until_free(tree)
    tree.close()


@pytest.mark.parametrize("compress", [gzipped, zstd_compressed])
@real_time
async def test_the_thread_of_a_closed_reader_ends_and_releases_its_slot(
    path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(2 << 20)  # what a thread decompresses in one go
    tree = await open_archive(write_archive(path, Member("a", content), compress=compress))
    gate, got = Gate(monkeypatch), bytearray()
    reader = await tree.open("a", "a")
    gate.is_shut = True
    await read_until(gate, reader, got)
    reader.close()
    assert slots_of(tree).borrowed_tokens == 1  # the thread still runs
    passed = gate.count
    gate.open()
    await until_free(tree)
    assert gate.count - passed <= 8  # and 32 would be left
    tree.close()


@pytest.mark.parametrize("compress", [gzipped, zstd_compressed])
@real_time
async def test_the_way_to_a_member_ends_for_a_closed_reader(
    path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [Member("a", os.urandom(2 << 20)), Member("b", LARGE)]
    tree = await open_archive(write_archive(path, *members, compress=compress))
    gate = Gate(monkeypatch)
    gate.is_shut = True
    reader = await tree.open("b", "b")
    await read_until(gate, reader, bytearray())
    reader.close()
    passed = gate.count
    gate.open()
    await until_free(tree)
    assert gate.count - passed <= 8
    assert await content_of(tree, "b") == LARGE
    tree.close()


@pytest.mark.usefixtures("small_steps", "two_slots")
@real_time
async def test_more_readers_than_slots_are_all_served(path: Path) -> None:
    """The reader that is read from continues; the others have begun and are idle."""
    content = os.urandom(1 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=gzipped))
    readers = [await tree.open("a", "a") for _ in range(5)]
    for reader in readers:
        await reader.receive_into(memoryview(bytearray(10)))
        assert slots_of(tree).borrowed_tokens <= 2
    for reader in reversed(readers):
        assert await drained(reader) == content[10:]
    await until_free(tree)
    tree.close()


@pytest.mark.usefixtures("small_steps", "two_slots")
@real_time
async def test_readers_at_the_same_time_take_turns_with_the_slots(path: Path) -> None:
    content = os.urandom(1 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=gzipped))
    contents: list[bytes] = []
    most = 0

    async def read() -> None:
        nonlocal most
        contents.append(await content_of(tree, "a"))
        most = max(most, slots_of(tree).borrowed_tokens)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read)
    assert contents == [content] * 5
    assert most <= 2
    await until_free(tree)
    tree.close()


@pytest.mark.usefixtures("small_steps", "two_slots")
@real_time
async def test_a_finished_reader_releases_its_slot_before_closing(path: Path) -> None:
    tree = await open_archive(write_archive(path, Member("a", LARGE), compress=gzipped))
    readers = [await tree.open("a", "a") for _ in range(5)]
    for reader in readers:
        buffer = memoryview(bytearray(len(LARGE)))
        filled = 0
        while filled < len(LARGE):
            filled += await reader.receive_into(buffer[filled:])
        assert bytes(buffer) == LARGE
        assert slots_of(tree).borrowed_tokens == 0
    for reader in readers:
        reader.close()
    tree.close()


@pytest.mark.usefixtures("small_steps")
@real_time
async def test_a_failed_reader_releases_its_slot(path: Path) -> None:
    tree = await open_archive(
        write_archive(path, Member("a", os.urandom(1 << 20)), compress=gzipped)
    )
    reader = await tree.open("a", "a")
    os.truncate(path, 1000)
    with refusing(CHANGED, f"{path} has been changed"):
        await drained(reader)  # which closes it
    assert slots_of(tree).borrowed_tokens == 0
    tree.close()


@real_time
async def test_opening_can_be_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(path, Member("a", LARGE), compress=gzipped)
    before = open_descriptors()
    gate = Gate(monkeypatch)
    gate.is_shut = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_archive, str(path))
        assert await trio.to_thread.run_sync(gate.reached.wait, 10)
        nursery.cancel_scope.cancel()
    gate.open()
    assert open_descriptors() == before


@real_time
async def test_the_more_readers_there_are_the_less_is_decompressed_ahead(path: Path) -> None:
    content = os.urandom(3 << 20)
    tree = await open_archive(write_archive(path, Member("a", content), compress=gzipped))
    opened = [await tree.open("a", "a") for _ in range(decompression.MAX_CURSORS + 2)]
    buffer = memoryview(bytearray(len(content)))
    got = [await each.receive_into(buffer) for each in opened]
    assert got == [2 << 20] * 4 + [256 << 10] * 12 + [64 << 10] * 2
    assert await drained(opened[-1]) == content[got[-1] :]
    opened[0].close()
    opened.append(await tree.open("a", "a"))
    assert await opened[-1].receive_into(buffer) == 64 << 10
    for each in opened:
        each.close()
    alone = await tree.open("a", "a")
    assert await alone.receive_into(buffer) == 2 << 20
    alone.close()
    tree.close()

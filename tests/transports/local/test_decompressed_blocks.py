"""Parts of members of compressed archives, by clients that hang up and come back."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from support.archives import (
    Member,
    bzip2_streams,
    gzipped,
    write_archive,
    xz_streams,
    zstd_compressed,
)
from support.opened import drained
from support.streams import real_time

from imgproxy.errors import InvalidError
from imgproxy.host.files import OpenFile
from imgproxy.transports.local import decompressed_blocks
from imgproxy.transports.local.decompressed_blocks import BLOCK
from imgproxy.transports.local.tar_archive import Archive, open_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODECS = [
    gzipped,
    zstd_compressed,
    *(pytest.param(each, marks=pytest.mark.slow) for each in (bzip2_streams, xz_streams)),
]

NAME = "layer.tar"


async def opened(path: Path, content: bytes, compress: Callable[[bytes], bytes]) -> Archive:
    return await open_archive(write_archive(path, Member(NAME, content), compress=compress))


class Counted:
    """Counts the compressed bytes that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        read = OpenFile.read

        def counted(file: OpenFile, size: int, offset: int) -> bytes:
            content = read(file, size, offset)
            self.count += len(content)
            return content

        monkeypatch.setattr(OpenFile, "read", counted)


async def begin_of(tree: Archive, start: int, count: int, end: int) -> bytes:
    """Ask for a part from a byte to the end, read the first bytes, and hang up."""
    reader = (await tree.open(NAME, "x")).between(start, end)
    try:
        buffer, filled = memoryview(bytearray(count)), 0
        while filled < count and (got := await reader.receive_into(buffer[filled:])):
            filled += got
        return bytes(buffer[:filled])
    finally:
        reader.close()


@real_time
@pytest.mark.parametrize("compress", [gzipped, zstd_compressed])
async def test_chunks_by_requests_that_are_abandoned_cost_little_more_than_one_pass(
    tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, step = os.urandom(6 << 20), 200_000
    tree = await opened(tmp_path / "archive", content, compress)
    counted = Counted(monkeypatch)
    for start in range(0, len(content), step):
        chunk = await begin_of(tree, start, step, len(content))
        assert chunk == content[start : start + step]
    assert counted.count < 3 * len(content)  # gzip's input is read twice
    tree.close()


@real_time
@pytest.mark.parametrize("compress", CODECS)
async def test_parts_in_any_order_by_many_at_once(
    tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompressed_blocks, "MAX_KEPT", 3)
    monkeypatch.setattr(decompressed_blocks, "_kept", decompressed_blocks._Kept())
    monkeypatch.setattr(decompressed_blocks, "_NEAR", 2)
    content = os.urandom(1 << 20)
    tree = await opened(tmp_path / "archive", content, compress)
    numbers = random.Random(18)

    async def read() -> None:
        for _ in range(3):
            start, stop = sorted(numbers.sample(range(len(content)), 2))
            part = (await tree.open(NAME, "x")).between(start, stop)
            assert await drained(part, 1 << 16) == content[start:stop]

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
    assert len(decompressed_blocks._kept._blocks) <= 3
    tree.close()


@real_time
async def test_who_needs_what_another_is_coming_to_waits_for_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(2 << 20)
    tree = await opened(tmp_path / "archive", content, zstd_compressed)
    reached, may_go_on = threading.Event(), threading.Event()
    read, reads = OpenFile.read, 0

    def wait(file: OpenFile, size: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 1:
            reached.set()
            may_go_on.wait(10)
        return read(file, size, offset)

    monkeypatch.setattr(OpenFile, "read", wait)
    got: dict[int, bytes] = {}

    async def chunk(start: int) -> None:
        got[start] = await begin_of(tree, start, 1000, len(content))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chunk, 0)
        assert await trio.to_thread.run_sync(reached.wait, 10)
        nursery.start_soon(chunk, 3 * BLOCK)
        await trio.testing.wait_all_tasks_blocked()
        assert reads == 1
        may_go_on.set()
    assert got == {start: content[start : start + 1000] for start in (0, 3 * BLOCK)}
    blocks = tree._blocks  # type: ignore[union-attr]
    assert len(blocks._idle) <= 1
    tree.close()


@real_time
async def test_what_is_broken_fails_for_each_who_asks(tmp_path: Path) -> None:
    path, content = tmp_path / "archive", os.urandom(1 << 20)
    tree = await opened(path, content, zstd_compressed)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(500_000)
        file.write(bytes(100_000))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert await begin_of(tree, 1000, 1000, len(content)) == content[1000:2000]
    for _ in range(3):
        with pytest.raises(InvalidError, match="inflating zstd"):
            await begin_of(tree, 900_000, 1000, len(content))
    assert tree._blocks._busy == set()  # type: ignore[union-attr]
    tree.close()


@real_time
async def test_nothing_is_decompressed_for_who_has_left(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    tree = await opened(tmp_path / "archive", content, gzipped)
    blocks = tree._blocks  # type: ignore[union-attr]
    assert bytes(blocks.read(900_000, lambda: True)) == b""
    assert bytes(blocks.read(10 << 20, lambda: False)) == b""  # beyond the end
    tree.close()

"""Blobs that are received once for all who want them at the same time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.filled import noise
from support.registries import described, read
from support.streams import real_time

from imgproxy.errors import InvalidError, NotFoundError, NotReadyError
from imgproxy.images.whole_blobs import read_through
from imgproxy.transports import fills
from imgproxy.transports.cache import Cache, CacheOptions
from imgproxy.transports.fills import Fills
from imgproxy.transports.kept_blobs import KeptBlobs
from imgproxy.transports.readers import Bytes
from imgproxy.verification.documents import compare
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader

CONTENT = noise(3_000_000)
BLOB = described(CONTENT)
HALF = len(CONTENT) // 2


class Origin:
    """What blobs are received from: up to a byte, until more may come; `asked` has the offsets."""

    def __init__(self, content: bytes = CONTENT, limit: int = len(CONTENT)) -> None:
        self.asked: list[int] = []
        self.closed = 0
        self._content = content
        self._limit = limit
        self._more = trio.Event()

    async def receive(self, offset: int) -> Reader:
        await trio.lowlevel.checkpoint()
        self.asked.append(offset)
        return _Held(self, self._content, offset)

    def let_go(self) -> None:
        self._limit = len(self._content)
        self._more.set()

    async def wait(self, position: int) -> int:
        while position >= self._limit < len(self._content):
            await self._more.wait()
        return self._limit - position


class _Held(Bytes):
    def __init__(self, origin: Origin, content: bytes, offset: int) -> None:
        super().__init__("a blob", content)
        self.between(offset, None)
        self.size = None
        self._of = origin

    async def receive_into(self, buffer: memoryview) -> int:
        left = await self._of.wait(self._position)
        return await super().receive_into(buffer[: min(left, 64 * 1024)])

    def close(self) -> None:
        self._of.closed += 1


class Stage:
    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.cache = Cache(str(path), CacheOptions(), self.said.append, compare)
        self.fills = Fills(self.cache, partial(read_through, LargeBlobs()))
        self.blobs = KeptBlobs(self.cache.store, self.cache.keep, self.cache.failed)

    def follow(self, origin: Origin, descriptor: Descriptor = BLOB) -> Reader:
        return self.fills.follow(descriptor, origin.receive, self.blobs)

    @property
    def is_stored(self) -> bool:
        return self.cache.store.has(BLOB.digest, BLOB.size)


@asynccontextmanager
async def staged(path: Path) -> AsyncIterator[Stage]:
    stage = Stage(path / "cache")
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.fills.run)
        yield stage
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; a test that waits for ever fails."""
    while not condition():  # noqa: ASYNC110  (there is no event for it)
        await trio.sleep(0.01)


async def part(reader: Reader, count: int) -> bytes:
    buffer = memoryview(bytearray(count))
    filled = 0
    while filled < count:
        received = await reader.receive_into(buffer[filled:])
        assert received
        filled += received
    return bytes(buffer)


@real_time
async def test_those_who_come_later_get_all_of_it(tmp_path: Path) -> None:
    origin = Origin(limit=HALF)
    async with staged(tmp_path) as stage:
        first = stage.follow(origin)
        assert await part(first, HALF) == CONTENT[:HALF]
        second = stage.follow(origin)
        assert await part(second, HALF) == CONTENT[:HALF]
        origin.let_go()
        assert await read(first) == await read(second) == CONTENT[HALF:]
        assert stage.is_stored
        assert origin.asked == [0]


@real_time
async def test_a_part_waits_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(limit=HALF)
    async with staged(tmp_path) as stage:
        with monkeypatch.context() as context:
            context.setattr(fills, "WAIT", 0.1)
            with pytest.raises(NotReadyError, match="ask again later") as caught:
                await stage.fills.wait_stored(BLOB, origin.receive, stage.blobs)
            assert caught.value.retry_after == fills.RETRY_AFTER
        assert not stage.is_stored
        origin.let_go()
        await stage.fills.wait_stored(BLOB, origin.receive, stage.blobs)
        assert stage.is_stored
        assert origin.asked == [0]


@real_time
async def test_a_part_fails_as_the_whole_does(tmp_path: Path) -> None:
    origin = Origin(bytes(len(CONTENT)))
    async with staged(tmp_path) as stage:
        with pytest.raises(InvalidError):
            await stage.fills.wait_stored(BLOB, origin.receive, stage.blobs)


@real_time
async def test_what_goes_on_alone_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fills, "MAX_ABANDONED", 2)
    contents = [CONTENT[n:] for n in range(4)]
    origins = [Origin(each, HALF) for each in contents]
    async with staged(tmp_path) as stage:
        for content, origin in zip(contents, origins, strict=True):
            reader = stage.follow(origin, described(content))
            await part(reader, 1000)
            reader.close()
            reader.close()
        await until(lambda: all(each.closed for each in origins[:2]))
        assert not any(each.closed for each in origins[2:])
        for each in origins:
            each.let_go()
        # Who comes back goes on where it was given up.
        assert await read(stage.follow(origins[0], described(contents[0]))) == contents[0]
        assert origins[0].asked[0] == 0 < origins[0].asked[1] <= HALF
        for content in contents[2:]:
            assert await read(stage.follow(Origin(content), described(content))) == content


@real_time
async def test_a_follower_keeps_a_blob_from_being_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fills, "MAX_ABANDONED", 0)
    origin = Origin(limit=HALF)
    async with staged(tmp_path) as stage:
        first, second = stage.follow(origin), stage.follow(origin)
        first.close()
        await part(second, 1000)
        assert not origin.closed
        second.close()
        await until(lambda: origin.closed > 0)


@real_time
async def test_what_has_just_been_given_up_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fills, "MAX_ABANDONED", 0)
    origin = Origin(limit=HALF)
    async with staged(tmp_path) as stage:
        first = stage.follow(origin)
        await part(first, 1000)
        first.close()
        second = stage.follow(origin)
        origin.let_go()
        assert await read(second) == CONTENT
        assert stage.is_stored
        assert origin.asked[0] == 0 < origin.asked[1]


@real_time
async def test_what_another_process_receives_is_followed(tmp_path: Path) -> None:
    origin = Origin()
    async with staged(tmp_path) as stage:
        theirs = await Stage(tmp_path / "cache").cache.store.partial(BLOB.digest, BLOB.size)
        assert theirs is not None
        reader = stage.follow(origin)
        for start in (0, HALF):
            theirs.append(CONTENT[start : start + HALF])
            count = HALF - (start > 0)  # the last byte is not there yet
            assert await part(reader, count) == CONTENT[start:][:count]
        theirs.commit()
        assert await read(reader) == CONTENT[-1:]
        assert origin.asked == []


@real_time
async def test_another_process_that_dies_is_gone_on_from(tmp_path: Path) -> None:
    origin = Origin()
    async with staged(tmp_path) as stage:
        theirs = await Stage(tmp_path / "cache").cache.store.partial(BLOB.digest, BLOB.size)
        assert theirs is not None
        reader = stage.follow(origin)
        theirs.append(CONTENT[:HALF])
        assert await part(reader, HALF) == CONTENT[:HALF]
        theirs.close()
        assert await read(reader) == CONTENT[HALF:]
        assert origin.asked == [HALF]


@real_time
async def test_a_beginning_that_was_wrong_is_no_ones(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        theirs = await Stage(tmp_path / "cache").cache.store.partial(BLOB.digest, BLOB.size)
        assert theirs is not None
        reader = stage.follow(Origin())
        theirs.append(bytes(HALF))
        assert await part(reader, 1000) == bytes(1000)
        theirs.truncate()
        with pytest.raises(InvalidError, match="received anew") as caught:
            await part(reader, HALF)
        assert reader.reject(caught.value)
        reader.close()
        theirs.close()
        assert await read(stage.follow(Origin())) == CONTENT


@real_time
async def test_all_learn_why_it_failed_and_wrong_bytes_are_not_asked_for_again(
    tmp_path: Path,
) -> None:
    origin = Origin(CONTENT[:-1] + b"?", HALF)
    async with staged(tmp_path) as stage:
        readers = [stage.follow(origin) for _ in range(3)]
        origin.let_go()
        for each in readers:
            with pytest.raises(InvalidError) as caught:
                await read(each)
            assert not each.reject(caught.value)
        assert origin.asked == [0]
        assert not stage.is_stored

        async def absent(_: int) -> Reader:
            raise NotFoundError("nobody has it", code="BLOB_UNKNOWN")

        with pytest.raises(NotFoundError, match="nobody has it"):
            await read(stage.fills.follow(BLOB, absent, stage.blobs))


@real_time
async def test_where_the_store_fails_each_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(limit=HALF)
    async with staged(tmp_path) as stage:
        readers = [stage.follow(origin) for _ in range(2)]
        for each in readers:
            assert await part(each, HALF) == CONTENT[:HALF]
        monkeypatch.setattr("os.pwrite", _full)
        origin.let_go()
        for each in readers:
            assert await read(each) == CONTENT[HALF:]
        assert origin.asked == [0, HALF, HALF]
        assert len(stage.said) == 1
        assert "No space left" in stage.said[0]


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")

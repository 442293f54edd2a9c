"""A store on disk: blobs, names, locks, and what killed processes leave behind."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from support.damage import flip
from support.streams import real_time, virtual_time

from imgproxy.errors import UnavailableError
from imgproxy.specs.oci import digest as digests
from imgproxy.store import content_store, locks
from imgproxy.store.content_store import ContentStore
from imgproxy.store.files import DestinationError, write
from imgproxy.store.users import relied_on

if TYPE_CHECKING:
    from imgproxy.specs.oci.layout_index import LayoutIndex

CONTENT = bytes(range(256)) * 10
DIGEST = digests.compute(CONTENT)
ENTRY = {"mediaType": "x/y", "digest": str(DIGEST), "size": len(CONTENT)}


def check_blob(path: str) -> None:
    with open(path, "rb") as file:
        assert file.read() == CONTENT
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o444


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    made = ContentStore(str(tmp_path / "store"))
    made.create()
    return made


def named(name: str, index: LayoutIndex) -> LayoutIndex:
    return index.with_name(name, ENTRY)


def test_a_store_is_an_empty_layout_that_only_its_user_may_enter(tmp_path: Path) -> None:
    path = tmp_path / "a/store"
    ContentStore(str(path)).create()
    assert (path / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
    assert ContentStore(str(path)).index().entries == []
    assert sorted(each.name for each in path.iterdir()) == [
        ".imgproxy",
        "blobs",
        "index.json",
        "oci-layout",
    ]
    for directory in (path, path / "blobs", path / ".imgproxy", path / ".imgproxy/partial"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@real_time
async def test_what_is_there_of_a_layout_stays(store: ContentStore) -> None:
    await store.change_index(partial(named, "a"))
    store.create()
    assert store.index().names == ["a"]


def test_a_directory_with_other_files_becomes_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match=r"is neither an OCI layout nor empty$"):
        ContentStore(str(tmp_path)).create()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_becomes_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match=r"/file: Not a directory$"):
        ContentStore(str(tmp_path / "file")).create()


@real_time
async def test_what_others_put_beside_blobs_is_no_obstacle(store: ContentStore) -> None:
    (Path(store.path) / "blobs/README").touch()
    (Path(store.path) / "blobs/sha1").symlink_to("nowhere")
    await store.change_index(partial(named, "a"))
    assert store.index().names == ["a"]


def test_a_blob_is_a_regular_file(store: ContentStore) -> None:
    path = Path(store.blob_path(DIGEST))
    path.mkdir(parents=True)
    assert not store.has(DIGEST, path.stat().st_size)
    with pytest.raises(DestinationError, match=f"{DIGEST.encoded}: Is a directory$"):
        store.put(DIGEST, CONTENT)
    path.rmdir()
    os.mkfifo(path)
    assert not store.has(DIGEST, 0)
    store.put(DIGEST, CONTENT)
    check_blob(store.blob_path(DIGEST))


@real_time
async def test_a_blob_gets_its_name_when_it_is_whole(store: ContentStore) -> None:
    begun = await store.partial(DIGEST, len(CONTENT))
    assert begun is not None
    begun.append(CONTENT)
    assert not store.has(DIGEST, len(CONTENT))
    begun.commit()
    begun.close()
    assert store.has(DIGEST, len(CONTENT))
    assert not store.has(DIGEST, len(CONTENT) - 1)
    assert await store.partial(DIGEST, len(CONTENT)) is None
    check_blob(store.blob_path(DIGEST))
    assert os.listdir(f"{store.path}/.imgproxy/partial") == []


@real_time
async def test_what_is_there_of_a_blob_is_the_beginning_for_the_next(store: ContentStore) -> None:
    begun = await store.partial(DIGEST, len(CONTENT))
    assert begun is not None
    begun.append(CONTENT[:1000])
    begun.close()
    begun.close()
    again = await store.partial(DIGEST, len(CONTENT))
    assert again is not None
    assert again.size == 1000
    buffer = memoryview(bytearray(600))
    assert [again.read_into(buffer, at) for at in (0, 600, 1000)] == [600, 400, 0]
    assert bytes(buffer[:400]) == CONTENT[600:1000]
    again.truncate()
    assert again.size == 0
    again.close()
    assert os.listdir(f"{store.path}/.imgproxy/partial") == []


@real_time
async def test_more_bytes_than_a_blob_has_are_no_beginning_of_it(store: ContentStore) -> None:
    begun = await store.partial(DIGEST, len(CONTENT))
    assert begun is not None
    begun.append(CONTENT + b"x")
    begun.close()
    again = await store.partial(DIGEST, len(CONTENT))
    assert again is not None
    assert again.size == 0
    again.close()


@real_time
async def test_a_blob_has_one_writer_and_the_others_wait_for_it(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.001)
    written = []

    async def fetch() -> None:
        begun = await store.partial(DIGEST, len(CONTENT))
        if begun is not None:
            written.append(begun.size)
            await trio.sleep(0.01)
            begun.append(CONTENT)
            begun.commit()

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(fetch)
    assert written == [0]


@real_time
async def test_a_writer_that_fails_gives_way_to_the_next(store: ContentStore) -> None:
    first = await store.partial(DIGEST, len(CONTENT))
    assert first is not None
    first.append(CONTENT[:10])
    with trio.move_on_after(0.01) as scope:
        await store.partial(DIGEST, len(CONTENT))
    assert scope.cancelled_caught
    first.close()
    second = await store.partial(DIGEST, len(CONTENT))
    assert second is not None
    assert second.size == 10
    second.close()


@real_time
async def test_where_there_is_no_room_is_known_before(store: ContentStore) -> None:
    begun = await store.partial(DIGEST, 2**60)
    assert begun is not None
    with pytest.raises(
        DestinationError, match=r"bytes are missing, and the disk has room for \d+$"
    ):
        begun.check_room()
    begun.close()


def test_a_document_is_written_once(store: ContentStore) -> None:
    store.put(DIGEST, CONTENT)
    before = os.stat(store.blob_path(DIGEST))
    store.put(DIGEST, CONTENT)
    assert os.stat(store.blob_path(DIGEST)).st_ino == before.st_ino
    flip(Path(store.blob_path(DIGEST)), 7)
    store.put(DIGEST, CONTENT)
    check_blob(store.blob_path(DIGEST))
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert not store.has(DIGEST, len(CONTENT))


@real_time
async def test_no_name_is_lost_by_many_at_once(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.001)
    names = [f"n{n}" for n in range(30)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(store.change_index, partial(named, name))
    assert sorted(store.index().names) == sorted(names)


@virtual_time
async def test_a_process_that_was_stopped_is_waited_for_so_long(store: ContentStore) -> None:
    with (
        locks.wait_lock(store.index_lock, locks.EXCLUSIVE),
        pytest.raises(UnavailableError, match=r"index\.lock: another process has had the lock for"),
    ):
        await store.change_index(partial(named, "a"))
    assert store.index().names == []


def test_so_is_a_lock_that_is_held_for_moments(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LIMIT", 0.05)
    with (
        store.using(),
        locks.wait_lock(store.lock, locks.EXCLUSIVE),
        pytest.raises(UnavailableError, match=r"/lock: another process has had the lock for"),
    ):
        store.use([DIGEST])


@virtual_time
async def test_and_a_blob_that_another_one_has(store: ContentStore) -> None:
    begun = await store.partial(DIGEST, len(CONTENT))
    assert begun is not None
    with pytest.raises(UnavailableError, match=r"has added nothing for 900 s; if it is stopped"):
        await store.partial(DIGEST, len(CONTENT), 900.0)
    begun.close()


@real_time
async def test_no_index_grows_beyond_what_readers_take(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await store.change_index(partial(named, name))
    size = len(store.index().encode())
    monkeypatch.setattr(content_store, "MAX_DOCUMENT_SIZE", size)
    with pytest.raises(
        DestinationError, match=rf"it would have \d+ bytes, and readers take {size};"
    ):
        await store.change_index(partial(named, "d"))
    assert store.index().names == ["a", "b", "c"]
    monkeypatch.setattr(content_store, "MAX_DOCUMENT_SIZE", 100)  # it has become too long elsewhere
    await store.change_index(lambda index: index.without_name("a"))
    assert store.index().names == ["b", "c"]


@real_time
async def test_a_foreign_writer_s_change_is_kept(store: ContentStore) -> None:
    """It takes no lock; what it has written since the index was read is read again."""
    calls = []

    def change(index: LayoutIndex) -> LayoutIndex:
        calls.append(index.names)
        if len(calls) == 1:
            write(f"{store.path}/index.json", named("theirs", index).encode(), 0o644)
        return named("ours", index)

    after = await store.change_index(change)
    assert after.names == store.index().names == ["theirs", "ours"]
    assert calls == [[], ["theirs"]]


@real_time
async def test_a_foreign_writer_that_never_stops_is_told(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_store, "_is_same", lambda *_: False)
    with pytest.raises(DestinationError, match=r"another program keeps changing it$"):
        await store.change_index(partial(named, "a"))
    assert store.index().names == []


def test_what_a_process_relies_on_is_known_until_its_end(store: ContentStore) -> None:
    store.use([DIGEST])  # of nobody
    with store.using():
        assert relied_on(store.users) == set()
        store.use([DIGEST])
        assert relied_on(store.users) == {str(DIGEST)}
    assert relied_on(store.users) == set()
    assert os.listdir(store.users) == []

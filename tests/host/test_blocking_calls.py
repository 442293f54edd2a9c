"""Calls that may hang: in threads, of which each file system has its own."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.hanging import HangingMount, hanging_mount
from support.parent import eventually
from support.streams import real_time

from imgproxy.errors import Failure, NotFoundError
from imgproxy.host import blocking_calls, environment, mounts
from imgproxy.host.files import open_file
from imgproxy.transports.readers import open_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# More than the threads that trio has for everything.
MANY = 45


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[HangingMount]:
    with hanging_mount(tmp_path / "hanging") as mount:
        yield mount


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table be read after the test has mounted something."""
    monkeypatch.setattr(mounts, "_last", None)


def on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@real_time
async def test_what_answers_by_itself_is_called_directly(tmp_path: Path) -> None:
    assert await blocking_calls.call(str(tmp_path), on_main_thread)
    assert await blocking_calls.settle(environment.host().exists, str(tmp_path))


@real_time
async def test_what_may_hang_is_called_in_a_thread(mount: HangingMount) -> None:
    assert not await blocking_calls.call(str(mount.path), on_main_thread)


@real_time
async def test_local_files_are_opened_without_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> None:  # noqa: ANN401  (whatever is called)
        raise AssertionError("a thread")

    monkeypatch.setattr(blocking_calls, "in_thread", refused)
    (tmp_path / "file").write_bytes(b"content")
    file = await open_local(str(tmp_path / "file"))
    assert await file.read(7) == b"content"
    with pytest.raises(NotFoundError):
        await open_local(str(tmp_path / "nothing"))


@real_time
async def test_what_hangs_takes_no_thread_from_others(mount: HangingMount, tmp_path: Path) -> None:
    """Not from another file system that may hang, and not from what has nothing to do with it."""
    with hanging_mount(tmp_path / "other") as other:
        (other.content / "file").write_bytes(b"content")
        mount.hang()
        async with trio.open_nursery() as nursery:
            for _ in range(MANY):
                nursery.start_soon(open_file, f"{mount.path}/file")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert await (await open_local(f"{other.path}/file")).read(7) == b"content"
                await trio.to_thread.run_sync(on_main_thread)
            nursery.cancel_scope.cancel()


@real_time
async def test_reads_that_hang_do_not_stop_one_of_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same file system, of a disk that answers for one file alone."""
    for name in ("hanging", "other"):
        (tmp_path / name).write_bytes(name.encode())
    hanging = await open_local(str(tmp_path / "hanging"))
    other = await open_local(str(tmp_path / "other"))
    released, real = threading.Event(), os.preadv
    hung = hanging._file._fd

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        if fd == hung:
            released.wait(10)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    async with trio.open_nursery() as nursery:
        for _ in range(MANY):
            nursery.start_soon(hanging.receive_into, memoryview(bytearray(1)))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert await other.read(5) == b"other"
        nursery.cancel_scope.cancel()
    released.set()
    hanging.close()


@real_time
async def test_threads_that_hang_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were left behind count; who waits for a thread can be cancelled."""
    released, begun = threading.Event(), []

    def hang() -> None:
        begun.append(1)
        released.wait(10)

    monkeypatch.setattr(blocking_calls, "MOST", 3)
    for _ in range(5):
        with trio.move_on_after(0.05):
            await blocking_calls.in_thread(1, hang)
    assert len(begun) == 3
    assert await blocking_calls.in_thread(2, lambda: "another file system")
    released.set()
    assert await blocking_calls.in_thread(1, lambda: "the same, again")


@real_time
async def test_a_file_that_nobody_waits_for_any_more_is_closed(mount: HangingMount) -> None:
    (mount.content / "file").write_bytes(b"content")
    mount.hang()
    with trio.move_on_after(0.2) as scope:
        await open_file(f"{mount.path}/file")
    assert scope.cancelled_caught
    mount.go_on()
    with trio.fail_after(5):
        (await open_file(f"{mount.path}/file")).close()
    assert eventually(lambda: str(mount.path / "file") not in opened())


def opened() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # that of the listing
    return found


def at(mount: HangingMount) -> list[Callable[[], object]]:
    """Return functions that look at what is there, and what is not."""
    host = environment.host()
    return [
        lambda: environment.read_file(f"{mount.path}/file"),
        lambda: host.exists(f"{mount.path}/file") and not host.exists(f"{mount.path}/nothing"),
        lambda: sorted(host.names(f"{mount.path}/directory")),
    ]


@real_time
async def test_a_function_that_looks_at_many_paths_is_begun_again(mount: HangingMount) -> None:
    (mount.content / "file").write_bytes(b"content")
    (mount.content / "directory" / "below").mkdir(parents=True)
    (mount.content / "directory" / "link").symlink_to("below")
    (mount.content / "directory" / "name").write_bytes(b"")
    wanted = [b"content", True, ["name"]]
    assert [await blocking_calls.settle(each) for each in at(mount)] == wanted
    with pytest.raises(FileNotFoundError):
        await blocking_calls.settle(environment.read_file, f"{mount.path}/nothing")
    (mount.content / "loop").symlink_to("loop")
    with pytest.raises(Failure, match="reading") as raised:
        await blocking_calls.settle(environment.host().names, f"{mount.path}/loop")
    assert str(mount.path) in raised.value.message
    for each in at(mount):  # without an event loop, nobody waits
        with pytest.raises(mounts.WouldWaitError):
            each()


@real_time
async def test_a_wait_for_an_answer_can_be_cancelled(mount: HangingMount) -> None:
    mount.hang()
    for each in at(mount):
        with trio.move_on_after(0.1) as scope:
            await blocking_calls.settle(each)
        assert scope.cancelled_caught

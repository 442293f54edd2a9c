"""Archives that come through a pipe."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.archives import (
    LARGE,
    SMALL,
    Member,
    gzipped,
    pack,
    plain,
    write_archive,
)
from support.opened import (
    BROKEN,
    CHANGED,
    NOT_FOUND,
    UNSUPPORTED,
    content_of,
    open_descriptors,
    refusing,
)
from support.streams import real_time

from imgproxy.transports.local import pipe_spool
from imgproxy.transports.local.tar_archive import open_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import IO

    from _typeshed import ReadableBuffer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def piped(content: bytes) -> int:
    """Return the end of a pipe that another thread fills."""
    ours, theirs = os.pipe()

    def fill() -> None:
        with open(theirs, "wb") as file:
            file.write(content)

    threading.Thread(target=fill, daemon=True).start()
    return inherited(ours)


def inherited(fd: int) -> int:
    """Return a descriptor, which is now one that a program has inherited."""
    os.set_inheritable(fd, True)  # noqa: FBT003  (the name says it)
    return fd


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the directory for temporary files, with nothing in it."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    spools: dict[int, pipe_spool._Spool] = {}
    monkeypatch.setattr(pipe_spool, "_spools", spools)
    yield path
    for spool in spools.values():
        spool._file.close()


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}"])
@pytest.mark.parametrize("compress", [plain, gzipped])
@real_time
async def test_what_comes_through_a_pipe_is_kept_without_a_name(
    temporary: Path, compress: Callable[[bytes], bytes], form: str
) -> None:
    members = [Member("a", LARGE), Member("b", SMALL)]
    fd = piped(compress(pack(members)))
    tree = await open_archive(form.format(fd))
    assert tree.path == form.format(fd)
    assert os.listdir(temporary) == []
    for member in (*members, *reversed(members)):
        assert await content_of(tree, member.name) == member.content
    tree.close()
    os.close(fd)


@real_time
async def test_what_comes_through_a_pipe_is_read_once_and_opened_often(temporary: Path) -> None:
    fd = piped(pack([Member("a", LARGE)]))
    first = await open_archive(f"/dev/fd/{fd}")
    first.close()
    before = open_descriptors()
    os.rmdir(temporary)
    for _ in range(3):
        tree = await open_archive(f"/dev/fd/{fd}")
        assert await content_of(tree, "a") == LARGE
        tree.close()
    assert open_descriptors() == before
    os.close(fd)


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("pieces", [1, 2, 5])
@real_time
async def test_what_has_come_through_a_pipe_is_not_lost_on_cancellation(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = piped(pack([Member("a", LARGE)]))
    read, left = os.read, pieces
    scope = trio.CancelScope()

    def interrupt(fd: int, size: int) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            scope.cancel()
        return read(fd, min(size, 10_000))

    monkeypatch.setattr(os, "read", interrupt)
    with scope:
        await open_archive(f"/dev/fd/{fd}")
    assert scope.cancelled_caught
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == LARGE
    tree.close()
    os.close(fd)


@pytest.mark.usefixtures("temporary")
@real_time
async def test_what_comes_through_a_pipe_and_is_no_archive_is_refused_each_time() -> None:
    fd = piped(b"hello" * 1000)
    for _ in range(2):
        with refusing(UNSUPPORTED, f"/dev/fd/{fd} is not a tar archive"):
            await open_archive(f"/dev/fd/{fd}")
    os.close(fd)


@real_time
async def test_a_file_that_is_inherited_is_read_where_it_lies(path: Path, temporary: Path) -> None:
    write_archive(path, Member("a", LARGE), compress=gzipped)
    fd = inherited(os.open(path, os.O_RDONLY))
    os.rmdir(temporary)  # a file there could not be made
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == LARGE
    tree.close()
    os.close(fd)


@real_time
async def test_a_descriptor_that_is_not_there_is_not_found() -> None:
    with refusing(NOT_FOUND, "/dev/fd/987: no such descriptor was inherited"):
        await open_archive("/dev/fd/987")


CONFIGURATION = (500, "CONFIGURATION")
PURPOSE = "since an archive is not read in order: "


@pytest.mark.parametrize("case", ["missing", "a file"])
@real_time
async def test_a_directory_that_cannot_keep_a_pipe_is_to_be_replaced(
    case: str, temporary: Path
) -> None:
    """Another try does not help, until there is such a directory: nothing has been read yet."""
    fd = piped(pack([Member("a", SMALL)]))
    os.rmdir(temporary)
    if case == "a file":
        os.mknod(temporary)
    reason = {"missing": "No such file or directory", "a file": "Not a directory"}[case]
    words = f"keeping what comes through /dev/fd/{fd} in a file in {temporary}, {PURPOSE}{reason}"
    for _ in range(2):
        with refusing(CONFIGURATION, words, "another try does not help", "TMPDIR") as raised:
            await open_archive(f"/dev/fd/{fd}")
        assert raised.value.detail == {"variable": "TMPDIR"}
    if case == "a file":
        os.unlink(temporary)
    os.mkdir(temporary)
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == SMALL
    tree.close()
    os.close(fd)


def failing(number: int) -> Callable[[], IO[bytes]]:
    def fail() -> IO[bytes]:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.ENOSPC, CHANGED),
        (errno.EDQUOT, CHANGED),
        (errno.EMFILE, CHANGED),
        (errno.ENFILE, CHANGED),
        (errno.ENOMEM, CHANGED),
        (errno.EACCES, CONFIGURATION),
        (errno.EROFS, CONFIGURATION),
        (errno.EIO, CONFIGURATION),
    ],
)
@pytest.mark.usefixtures("temporary")
@real_time
async def test_a_file_that_cannot_be_made_may_be_made_later_or_not(
    number: int, wanted: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = piped(pack([Member("a", SMALL)]))
    with monkeypatch.context() as broken:
        broken.setattr("imgproxy.host.environment.temporary_file", failing(number))
        helps = "another try may help" if wanted == CHANGED else "another try does not help"
        with refusing(wanted, f"/dev/fd/{fd}", f"{PURPOSE}{os.strerror(number)} after 0 b", helps):
            await open_archive(f"/dev/fd/{fd}")
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == SMALL
    tree.close()
    os.close(fd)


@pytest.mark.usefixtures("temporary")
@real_time
async def test_a_socket_that_was_reset_is_not_taken_for_one_that_has_ended() -> None:
    """Its next read says that there is no more, which would make an archive of a part of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours:
        theirs.sendall(pack([Member("a", LARGE)])[:10240])
        os.set_blocking(ours.fileno(), False)
        reset = struct.pack("ii", 1, 0)
        path = f"/dev/fd/{inherited(ours.fileno())}"
        with trio.move_on_after(0.2):
            await open_archive(path)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        theirs.close()
        for _ in range(2):
            with refusing(BROKEN, f"reading the archive that comes through {path}: ", "Connection"):
                await open_archive(path)
            with refusing(BROKEN, "after 10240 bytes", "another try does not help"):
                await open_archive(path)


@pytest.mark.usefixtures("temporary")
@real_time
async def test_what_was_read_before_a_failed_read_stays_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd, theirs = os.pipe()
    inherited(fd)
    os.write(theirs, b"x" * 20_000)
    read, left = os.read, 2

    def fail(other: int, size: int) -> bytes:
        nonlocal left
        if other != fd:
            return read(other, size)
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, min(size, 10_000))

    monkeypatch.setattr(os, "read", fail)
    for _ in range(2):
        with refusing(BROKEN, f"/dev/fd/{fd}: Input/output error after 10000 bytes"):
            await open_archive(f"/dev/fd/{fd}")
    os.close(fd)
    os.close(theirs)


class Troubled(io.FileIO):
    """A file on a disk that is full at the second write, and accepts little at once after that."""

    writes = 0

    def write(self, data: ReadableBuffer, /) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:30_000])


@real_time
async def test_what_could_not_be_written_is_not_lost(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Troubled(str(temporary / "spool"), "w+")
    monkeypatch.setattr("imgproxy.host.environment.temporary_file", lambda: file)
    monkeypatch.setattr(pipe_spool, "_PIECE", 50_000)
    fd = piped(pack([Member("a", LARGE)]))
    words = f"keeping what comes through /dev/fd/{fd} in a file in {temporary}, {PURPOSE}"
    with refusing(CHANGED, f"{words}No space left on device after 30000 bytes", "another try may"):
        await open_archive(f"/dev/fd/{fd}")
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == LARGE
    tree.close()
    os.close(fd)


class Hanging(io.FileIO):
    """A file on a disk that hangs at each write until it is released."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "w+")
        self.released = threading.Event()

    def write(self, data: ReadableBuffer, /) -> int:
        self.released.wait(10)
        return super().write(data)


@real_time
async def test_nobody_waits_for_a_disk_that_hangs(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was about to write is written once, whoever waits for it."""
    file = Hanging(str(temporary / "spool"))
    monkeypatch.setattr("imgproxy.host.environment.temporary_file", lambda: file)
    fd = piped(pack([Member("a", LARGE)]))
    for _ in range(2):
        with trio.move_on_after(0.2) as scope:
            await open_archive(f"/dev/fd/{fd}")
        assert scope.cancelled_caught
    file.released.set()
    tree = await open_archive(f"/dev/fd/{fd}")
    assert await content_of(tree, "a") == LARGE
    tree.close()
    os.close(fd)

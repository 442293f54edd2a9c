"""Local files: their type is checked before they are opened for reading."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import real_time, refused

from imgproxy.errors import Failure, InvalidError, ReplacedError
from imgproxy.host import files, mounts
from imgproxy.host.files import OpenFile
from imgproxy.transports.readers import Bytes, Content, LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOT_FOUND = (404, "NOT_FOUND", False)
DENIED = (403, "DENIED", False)
UNSUPPORTED = (415, "UNSUPPORTED", False)
BAD_PATH = (422, "PATH_INVALID", False)
UNAVAILABLE = (503, "UNAVAILABLE", True)

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def loop_at(path: Path) -> None:
    path.symlink_to(path)


# Opening a FIFO would wait for a writer.
PLACES: dict[str, tuple[Callable[[Path], object], tuple[int, str, bool], str]] = {
    "nothing": (lambda _: None, NOT_FOUND, "No such file or directory"),
    "a dangling link": (lambda at: at.symlink_to("nowhere"), NOT_FOUND, "No such file"),
    "a directory": (lambda at: at.mkdir(), UNSUPPORTED, "is a directory, not a regular file"),
    "a FIFO": (os.mkfifo, UNSUPPORTED, "is a FIFO, not a regular file"),
    "a socket": (socket_at, UNSUPPORTED, "is a socket, not a regular file"),
    "a device": (lambda at: at.symlink_to(os.devnull), UNSUPPORTED, "is a character device"),
    "a loop of links": (loop_at, BAD_PATH, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_regular_file_is_refused_unopened(what: str, tmp_path: Path) -> None:
    make, wanted, words = PLACES[what]
    place = tmp_path / "place"
    make(place)
    before = open_descriptors()
    with pytest.raises(Failure) as raised:
        LocalFile(OpenFile(str(place)))
    assert refused(raised.value) == wanted
    assert raised.value.message.startswith(str(place))
    assert words in raised.value.message
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("tail", "wanted"),
    [("/x", NOT_FOUND), ("x" * 300, BAD_PATH), ("/x" * 3000, BAD_PATH)],
    ids=["below a file", "a long name", "a long path"],
)
def test_a_path_that_cannot_be_is_refused(
    tail: str, wanted: tuple[int, str, bool], path: Path
) -> None:
    with pytest.raises(Failure) as raised:
        LocalFile(OpenFile(f"{path}{tail}"))
    assert refused(raised.value) == wanted


def test_control_characters_of_a_path_stay_out_of_messages(tmp_path: Path) -> None:
    with pytest.raises(Failure) as raised:
        LocalFile(OpenFile(f"{tmp_path}/a\x1b[31m\nb"))
    assert raised.value.message == f"{tmp_path}/a [31m b: No such file or directory"


ERRORS = {
    errno.ENOENT: NOT_FOUND,
    errno.ENOTDIR: NOT_FOUND,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ELOOP: BAD_PATH,
    errno.ENAMETOOLONG: BAD_PATH,
    errno.EIO: UNAVAILABLE,
    errno.EMFILE: UNAVAILABLE,
    errno.ESTALE: UNAVAILABLE,
}


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_a_failure_of_the_system_keeps_its_words(number: int) -> None:
    failure = files.failure("/a/b", OSError(number, os.strerror(number)))
    assert refused(failure) == ERRORS[number]
    assert failure.message == f"/a/b: {os.strerror(number)}"


def test_a_failure_without_words_is_told_all_the_same() -> None:
    assert files.failure("/a/b", OSError("odd")).message == "/a/b: odd"


def failing_open(error: int, *, times: int) -> Callable[..., int]:
    """Return an `os.open` that fails from a given call on."""
    calls = iter(range(times))
    real = os.open

    def fake(*arguments: Any) -> int:  # noqa: ANN401  (what os.open takes)
        if next(calls, None) is None:
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    return fake


@pytest.mark.parametrize("times", [0, 1], ids=["looking at it", "opening it"])
def test_a_file_that_may_not_be_read_is_denied(
    times: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user who runs the tests may have every right, so the refusal is simulated."""
    before = open_descriptors()
    monkeypatch.setattr(os, "open", failing_open(errno.EACCES, times=times))
    with pytest.raises(Failure) as raised:
        LocalFile(OpenFile(str(path)))
    monkeypatch.undo()
    assert refused(raised.value) == DENIED
    assert open_descriptors() == before


# --- the file is the one that was opened --------------------------------------------------------


def changed_in_place(path: Path) -> None:
    """Write as many other bytes; the time of modification changes."""
    with path.open("r+b") as file:
        file.write(b"other")
    moment = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(moment, moment))


def replaced_by_a_copy(path: Path) -> None:
    """Replace it by the same bytes with the same time of modification."""
    status = path.stat()
    copy = path.with_name("copy")
    write(copy, CONTENT)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(path)


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(os.devnull)


def moved_behind_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": replaced_by_a_copy,
    "truncated": lambda path: os.truncate(path, len(CONTENT) - 1),
    "grown": lambda path: write(path, CONTENT + b"x"),
    "touched": lambda path: os.utime(path, ns=(0, 1)),
    "changed in place": changed_in_place,
    "replaced by a directory": replaced_by_a_directory,
    "replaced by a link": replaced_by_a_link,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_has_changed_is_noticed(change: str, path: Path) -> None:
    with closing(OpenFile(str(path))) as file:
        file.check()
        CHANGES[change](path)
        with pytest.raises(Failure) as raised:
            file.check()
    assert isinstance(raised.value, ReplacedError)
    assert refused(raised.value) == UNAVAILABLE
    assert raised.value.message.startswith(f"{path} has been changed or replaced since it was")


@pytest.mark.parametrize(
    "harmless",
    [
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("moved")),
        lambda path: path.chmod(0),
        lambda path: path.with_name("hard").hardlink_to(path),
        moved_behind_a_link,
        lambda path: path.read_bytes(),
        lambda _: None,
    ],
    ids=["gone", "moved", "closed", "linked", "moved behind a link", "read", "nothing"],
)
def test_a_file_that_is_what_it_was_is_read_on(
    harmless: Callable[[Path], object], path: Path
) -> None:
    with closing(OpenFile(str(path))) as file:
        harmless(path)
        file.check()
        assert file.read(5, 1) == CONTENT[1:6]


def test_a_path_that_may_not_be_looked_at_any_more_is_no_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: str) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    with closing(OpenFile(str(path))) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", denied)
            file.check()
        os.truncate(path, 1)
        with pytest.raises(Failure):
            file.check()


def test_a_file_without_a_path_is_called_by_its_name(path: Path, tmp_path: Path) -> None:
    """Anything may be at the path from which it was opened by then."""
    with closing(OpenFile(str(path), "/dev/stdin")) as file:
        assert file.path == "/dev/stdin"
        replaced_by_a_copy(path)
        file.check()
    with pytest.raises(Failure) as raised:
        OpenFile(f"{tmp_path}/nothing", "/dev/fd/3")
    assert raised.value.message == "/dev/fd/3: No such file or directory"


def test_a_file_without_a_path_is_looked_at_all_the_same(path: Path) -> None:
    with closing(OpenFile(str(path), "/dev/stdin")) as file:
        os.truncate(path, 1)
        with pytest.raises(Failure) as raised:
            file.check()
    assert raised.value.message.startswith("/dev/stdin has been changed")


def test_bytes_are_read_from_anywhere(path: Path) -> None:
    with closing(OpenFile(str(path))) as file:
        assert file.size == len(CONTENT)
        assert file.read(10, 250) == CONTENT[250:260]
        assert file.read(10, len(CONTENT) - 3) == CONTENT[-3:]
        assert file.read(10, len(CONTENT)) == b""


def test_a_disk_that_fails_at_once_is_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(OpenFile(str(path))) as file:
        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(Failure) as raised:
            file.read(1, 0)
    assert refused(raised.value) == UNAVAILABLE
    assert raised.value.message == f"{path}: Input/output error"


@real_time
async def test_several_may_read_one_file(path: Path) -> None:
    with closing(OpenFile(str(path))) as file:
        buffer = memoryview(bytearray(4))
        for offset in (100, 0, 2000, 100):
            assert await file.receive_into(buffer, offset) == 4
            assert buffer == CONTENT[offset : offset + 4]


# --- bytes at hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 100, len(CONTENT), 2 * len(CONTENT)])
@real_time
async def test_bytes_at_hand_are_read_in_pieces_of_any_size(count: int) -> None:
    with closing(Bytes("the config", CONTENT)) as content:
        assert (content.name, content.size) == ("the config", len(CONTENT))
        with trio.testing.assert_checkpoints():
            assert await content.receive_into(memoryview(bytearray(1))) == 1
        assert await pull(content, count) == CONTENT[1:]
        assert await pull(content, count) == b""
        assert not content.reject(InvalidError("it is wrong"))


@real_time
async def test_bytes_at_hand_have_the_limit_of_a_file() -> None:
    assert await Bytes("it", CONTENT).read(len(CONTENT)) == CONTENT
    with pytest.raises(Failure) as raised:
        await Bytes("it", CONTENT).read(len(CONTENT) - 1)
    assert refused(raised.value) == (422, "SIZE_INVALID", False)
    assert raised.value.message == "it: 2048 bytes are more than the limit of 2047"


# --- reading ------------------------------------------------------------------------------------


async def pull(file: Content, count: int) -> bytes:
    """Read in pieces of so many bytes."""
    content, buffer = bytearray(), memoryview(bytearray(count))
    while received := await file.receive_into(buffer):
        content += buffer[:received]
    return bytes(content)


@pytest.mark.parametrize("count", [1, 100, len(CONTENT), 2 * len(CONTENT)])
@real_time
async def test_a_file_is_read_in_pieces_of_any_size(count: int, path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)))) as file:
        assert file.size == len(CONTENT)
        assert await pull(file, count) == CONTENT
        assert await pull(file, count) == b""


@real_time
async def test_a_link_is_followed(path: Path) -> None:
    path.with_name("link").symlink_to(path)
    assert await LocalFile(OpenFile(str(path.with_name("link")))).read(1 << 20) == CONTENT


def refusing(error: OSError) -> Callable[..., int]:
    """Return an `os.preadv` that cannot read without blocking."""
    real = os.preadv

    def fake(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise error
        assert threading.current_thread() is not threading.main_thread()
        return real(fd, buffers, offset)

    return fake


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
    ],
    ids=["not in memory", "not known by the file system"],
)
@real_time
async def test_what_could_take_time_is_read_in_a_thread(
    error: OSError, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", refusing(error))
    monkeypatch.setattr(mounts, "is_in_memory", lambda _: False)
    with closing(LocalFile(OpenFile(str(path)))) as file:
        assert await pull(file, 1000) == CONTENT


@real_time
async def test_what_a_file_system_in_memory_has_is_read_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def fake(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        assert threading.current_thread() is threading.main_thread()
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fake)
    monkeypatch.setattr(mounts, "is_in_memory", lambda _: True)
    with closing(LocalFile(OpenFile(str(path)))) as file:
        assert await pull(file, 1000) == CONTENT


@pytest.mark.parametrize("flags", [os.RWF_NOWAIT, 0], ids=["at once", "in a thread"])
@real_time
async def test_a_disk_that_fails_is_unavailable(
    flags: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(_fd: int, _buffers: list[memoryview], _offset: int, given: int = 0) -> int:
        number = errno.EIO if given == flags else errno.EAGAIN
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fake)
    with closing(LocalFile(OpenFile(str(path)))) as file:
        with pytest.raises(Failure) as raised:
            await file.receive_into(memoryview(bytearray(1)))
        assert refused(raised.value) == UNAVAILABLE
        assert raised.value.message == f"{path}: Input/output error"


@real_time
async def test_nobody_waits_for_a_disk_that_hangs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, released, read = threading.Event(), threading.Event(), threading.Event()

    def fake(_fd: int, _buffers: list[memoryview], _offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        hanging.set()
        released.wait(5)
        read.set()
        return 0

    monkeypatch.setattr(os, "preadv", fake)
    with closing(LocalFile(OpenFile(str(path)))) as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.receive_into, memoryview(bytearray(1)))
            await trio.to_thread.run_sync(hanging.wait)
            nursery.cancel_scope.cancel()
        assert not read.is_set()
        released.set()


@real_time
async def test_reading_is_a_checkpoint(path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)))) as file, trio.testing.assert_checkpoints():
        await file.receive_into(memoryview(bytearray(1)))


@real_time
async def test_a_whole_file_may_have_as_many_bytes_as_the_limit(path: Path) -> None:
    assert await LocalFile(OpenFile(str(path))).read(len(CONTENT)) == CONTENT
    with pytest.raises(Failure) as raised:
        await LocalFile(OpenFile(str(path))).read(len(CONTENT) - 1)
    assert refused(raised.value) == (422, "SIZE_INVALID", False)
    assert raised.value.message == f"{path}: 2048 bytes are more than the limit of 2047"


@real_time
async def test_an_empty_file_is_empty(path: Path) -> None:
    write(path, b"")
    assert await LocalFile(OpenFile(str(path))).read(0) == b""


@real_time
async def test_a_file_that_grows_is_read_as_it_was(path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)))) as file:
        write(path, CONTENT + b"more")
        assert await file.read(1 << 20) == CONTENT


@real_time
async def test_a_file_that_shrinks_is_read_as_far_as_it_goes(path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)))) as file:
        os.truncate(path, 100)
        assert await file.read(1 << 20) == CONTENT[:100]


@real_time
async def test_a_file_that_is_replaced_is_read_as_it_was_opened(path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)))) as file:
        os.unlink(path)
        write(path, b"another")
        assert await file.read(1 << 20) == CONTENT


@real_time
async def test_nothing_stands_in_for_a_file_that_is_wrong(path: Path) -> None:
    with closing(LocalFile(OpenFile(str(path)), "the layer")) as file:
        assert file.name == "the layer"
        assert not file.reject(InvalidError("it is wrong"))
    with closing(LocalFile(OpenFile(str(path)))) as file:
        assert file.name == str(path)


@real_time
async def test_nothing_is_left_open(path: Path) -> None:
    before = open_descriptors()
    await LocalFile(OpenFile(str(path))).read(1 << 20)
    with pytest.raises(Failure):
        await LocalFile(OpenFile(str(path))).read(1)
    file = LocalFile(OpenFile(str(path)))
    file.close()
    file.close()
    assert open_descriptors() == before

"""A directory that appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.errors import ShortageError
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import beside as besides
from imgproxy.unpacking import destination as destinations
from imgproxy.unpacking.destination import Destination

if TYPE_CHECKING:
    from pathlib import Path


def fill(destination: Destination) -> None:
    os.mkdir(b"d", dir_fd=destination.fd)
    os.close(os.open(b"d/f", os.O_WRONLY | os.O_CREAT, dir_fd=destination.fd))


def snapshot(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.fixture(params=["absent", "empty"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "empty":
        (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_it_appears_whole(place: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with closing(Destination(f"{place}/")) as destination:
        fill(destination)
        (beside,) = set(os.listdir(place.parent))
        assert stat.S_IMODE(os.fstat(destination.fd).st_mode) == 0o700 or beside == "out"
        destination.finish(lambda fd: os.utime(fd, ns=(5, 5)))
    assert snapshot(place) == ["d", "d/f"]
    assert os.listdir(place.parent) == ["out"]
    assert place.stat().st_mtime_ns == 5
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_an_end_nothing_is_left(place: Path) -> None:
    was_there = place.exists()
    before = len(os.listdir("/proc/self/fd"))
    with closing(Destination(str(place))) as destination:
        fill(destination)
        if was_there:
            assert snapshot(place) == [".imgproxy-incomplete", "d", "d/f"]
            with pytest.raises(DestinationError, match=r"not whole.*Remove what is in it"):
                Destination(str(place))
    assert snapshot(place.parent) == ["out"] * was_there
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_relative_name_is_one_in_the_working_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.parent)
    with closing(Destination("out")) as destination:
        destination.finish()
    assert place.is_dir()


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo", "full"])
def test_anything_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    match kind:
        case "file":
            out.write_text("")
        case "link":
            (tmp_path / "empty").mkdir()
            out.symlink_to("empty")
        case "dangling":
            out.symlink_to("nothing")
        case "fifo":
            os.mkfifo(out)
        case "full":
            (out / "x").mkdir(parents=True)
    before, fds = snapshot(tmp_path), len(os.listdir("/proc/self/fd"))
    kind = "a symbolic link" if out.is_symlink() else "not"
    for path in (f"{out}", f"{out}/"):
        with pytest.raises(DestinationError, match=f"{path} exists, and is {kind}"):
            Destination(path)
    assert (snapshot(tmp_path), len(os.listdir("/proc/self/fd"))) == (before, fds)


def test_a_place_that_is_absent_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=f"{tmp_path}/a: No such file"):
        Destination(f"{tmp_path}/a/b")
    assert os.listdir(tmp_path) == []
    with pytest.raises(DestinationError, match=r"not empty: it has .* and more"):
        Destination("/")


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    """A new ext4 has `lost+found`."""
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(DestinationError, match=r"is not empty: it has lost\+found$"):
        Destination(str(tmp_path))


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    with closing(Destination(f"{tmp_path}/{'x' * 255}")) as destination:
        destination.finish()
    assert os.listdir(tmp_path) == ["x" * 255]


def test_what_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with closing(Destination(f"{tmp_path}/out")) as destination:
        (tmp_path / "out").mkdir()
        with pytest.raises(DestinationError, match="exists by now"):
            destination.finish()
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_moved_meanwhile_is_left_where_it_is(tmp_path: Path) -> None:
    with closing(Destination(f"{tmp_path}/out")) as destination:
        fill(destination)
        (beside,) = tmp_path.iterdir()
        beside.rename(tmp_path / "moved")
        with pytest.raises(DestinationError, match="out: No such file"):
            destination.finish()
    assert snapshot(tmp_path) == ["moved", "moved/d", "moved/d/f"]


def test_what_cannot_be_taken_away_is_the_destination_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = Destination(f"{tmp_path}/out")

    def broken(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(besides.removal, "remove", broken)
    with pytest.raises(DestinationError, match="out: Read-only file system"):
        destination.close()


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with closing(Destination(f"{tmp_path}/out")) as first:
        with closing(Destination(f"{tmp_path}/out")) as second:
            assert len(os.listdir(tmp_path)) == 2
            second.finish()
        with pytest.raises(DestinationError, match="exists by now"):
            first.finish()
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_directory_that_another_process_marks_first_is_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_in = destinations.removal.names_in

    def late(fd: int) -> list[bytes]:
        found = names_in(fd)
        (tmp_path / ".imgproxy-incomplete").write_text("")
        return found

    monkeypatch.setattr(destinations.removal, "names_in", late)
    with pytest.raises(DestinationError, match="by another process"):
        Destination(str(tmp_path))


_KILLED = """
import os, signal, sys
from imgproxy.unpacking.destination import Destination
destination = Destination(sys.argv[1])
os.mkdir(b"d", dir_fd=destination.fd)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_not_taken_for_whole(place: Path) -> None:
    was_there = place.exists()
    child = subprocess.run([sys.executable, "-c", _KILLED, place], check=False)
    assert child.returncode == -signal.SIGKILL
    if was_there:
        with pytest.raises(DestinationError, match=r"\.imgproxy-incomplete as well"):
            Destination(str(place))
        return
    assert len(os.listdir(place.parent)) == 1
    assert not place.exists()
    with closing(Destination(str(place))) as destination:
        destination.finish()
    assert snapshot(place.parent) == ["out"]


class OldLibc:
    """A C library or a kernel without renameat2(2)."""

    number = errno.EINVAL

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self.number)
        return -1

    def syncfs(self, _: int) -> int:
        return 0


def test_without_the_system_call_a_name_that_exists_is_not_taken_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(besides, "_libc", OldLibc())
    with closing(Destination(f"{tmp_path}/out")) as destination:
        destination.finish()
    with closing(Destination(f"{tmp_path}/other")) as destination:
        (tmp_path / "other").mkdir()
        with pytest.raises(DestinationError, match="exists by now"):
            destination.finish()
    monkeypatch.setattr(OldLibc, "number", errno.EROFS)
    with (
        closing(Destination(f"{tmp_path}/third")) as destination,
        pytest.raises(DestinationError, match="Read-only"),
    ):
        destination.finish()
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_disk_that_fails_at_the_end_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, __: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    was_there = place.exists()
    monkeypatch.setattr(OldLibc, "syncfs", fail)
    monkeypatch.setattr(besides, "_libc", OldLibc())
    with closing(Destination(str(place))) as destination:
        fill(destination)
        with pytest.raises(DestinationError, match="Input/output error"):
            destination.finish()
    assert snapshot(place.parent) == ["out"] * was_there


def test_a_shortage_of_descriptors_is_not_the_destination_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(besides.fcntl, "flock", fail)
    with pytest.raises(ShortageError):
        Destination(f"{tmp_path}/out")


def test_what_was_made_can_be_made_anew(place: Path) -> None:
    with closing(Destination(str(place))) as destination:
        fill(destination)
        destination.empty()
        fill(destination)
        destination.finish()
    assert snapshot(place) == ["d", "d/f"]

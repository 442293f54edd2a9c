"""What a path names below a directory: by the system call, and without it."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import pytest

from imgproxy.unpacking import resolution
from imgproxy.unpacking.resolution import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgproxy.unpacking.resolution import Opener

WAYS = [pytest.param(way, id=way.__name__) for way in (resolution.openat2, resolution.walk)]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    top = tmp_path / "outside" / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "file").write_text("")
    (tmp_path / "outside" / "secret").mkdir()
    for name, target in {
        "absolute": "/a/b",
        "dotdot": "../secret",
        "around": "a/b/../../a/./b//c",
        "here": ".",
        "climbing": "a/b/../../../secret",
        "through": "here/around",
        "nothing": "missing/x",
        "loop": "loop",
        "to-file": "file",
        "top": "..",
        "beyond": "a/up/..",
    }.items():
        (top / name).symlink_to(target)
    (top / "a/up").symlink_to("..")
    os.mkfifo(top / "fifo")
    fd = os.open(top, os.O_PATH)
    yield fd
    os.close(fd)


# A path; what it names inside of the root with either scope, or the error.
FOUND: list[tuple[bytes, str | int, str | int]] = [
    (b"a/b", "a/b", "a/b"),
    (b".", "", ""),
    (b"./a//b/.", "a/b", "a/b"),
    (b"around", "a/b/c", "a/b/c"),
    (b"through/..", "a/b", "a/b"),
    (b"here/here/a", "a", "a"),
    (b"absolute", errno.EXDEV, "a/b"),
    (b"absolute/c", errno.EXDEV, "a/b/c"),
    (b"dotdot", errno.EXDEV, errno.ENOENT),
    (b"climbing", errno.EXDEV, errno.ENOENT),
    (b"top/a", errno.EXDEV, "a"),
    (b"beyond/a", errno.EXDEV, "a"),
    (b"..", errno.EXDEV, ""),
    (b"nothing", errno.ENOENT, errno.ENOENT),
    (b"loop", errno.ELOOP, errno.ELOOP),
    (b"file", errno.ENOTDIR, errno.ENOTDIR),
    (b"to-file", errno.ENOTDIR, errno.ENOTDIR),
    (b"file/x", errno.ENOTDIR, errno.ENOTDIR),
    (b"file/..", errno.ENOTDIR, errno.ENOTDIR),
    (b"file/.", errno.ENOTDIR, errno.ENOTDIR),
    (b"fifo", errno.ENOTDIR, errno.ENOTDIR),
    (b"a" * 300, errno.ENAMETOOLONG, errno.ENAMETOOLONG),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize(("path", "beneath", "in_root"), FOUND)
def test_a_path_names_what_it_names_inside(  # noqa: PLR0913, PLR0917  (a table)
    root: int,
    tmp_path: Path,
    way: Opener,
    scope: Scope,
    path: bytes,
    beneath: object,
    in_root: object,
) -> None:
    expected = beneath if scope is Scope.BENEATH else in_root
    before = len(os.listdir("/proc/self/fd"))
    try:
        fd = way(root, path, scope, os.O_DIRECTORY)
    except OSError as error:
        assert error.errno == expected  # noqa: PT017  (a descriptor is as likely)
    else:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "outside/top" / str(expected))
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", [b"file", b"to-file", b"fifo"])
def test_what_is_no_directory_is_opened_where_any_will_do(
    root: int, way: Opener, path: bytes
) -> None:
    os.close(way(root, path, Scope.BENEATH, 0))


@pytest.mark.parametrize("way", WAYS)
def test_a_path_through_too_many_links_is_an_error(root: int, tmp_path: Path, way: Opener) -> None:
    for n in range(45):
        (tmp_path / f"outside/top/l{n}").symlink_to(f"l{n + 1}")
    (tmp_path / "outside/top/l45").mkdir()
    os.close(way(root, b"l10", Scope.BENEATH, os.O_DIRECTORY))
    with pytest.raises(OSError, match="symbolic links"):
        way(root, b"l1", Scope.BENEATH, os.O_DIRECTORY)


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSYS, resolution.walk), (errno.EPERM, resolution.walk)]
)
def test_a_system_without_the_call_walks(
    root: int, monkeypatch: pytest.MonkeyPatch, number: int, expected: Opener
) -> None:
    assert resolution.opener(root) is resolution.openat2

    class Libc:
        def syscall(self, *_: object) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(resolution, "_libc", Libc())
    assert resolution.opener(root) is expected


def test_another_error_at_the_first_call_is_raised(root: int) -> None:
    closed = os.dup(root)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        resolution.opener(closed)


def test_a_call_that_is_disturbed_is_made_again(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Libc:
        def syscall(self, *_: object) -> int:
            calls.append(1)
            ctypes.set_errno(errno.EAGAIN)
            return -1 if len(calls) < 3 else 77

    monkeypatch.setattr(resolution, "_libc", Libc())
    assert resolution.openat2(root, b"a", Scope.BENEATH, os.O_DIRECTORY) == 77
    calls[:] = [0] * -1000
    monkeypatch.setattr(Libc, "syscall", lambda *_: calls.append(1) or -1)
    with pytest.raises(BlockingIOError):
        resolution.openat2(root, b"a", Scope.BENEATH, os.O_DIRECTORY)

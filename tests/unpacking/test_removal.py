"""Trees are removed, however deep they are and whatever modes are inside."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from typing import TYPE_CHECKING

import pytest

from imgproxy.unpacking import removal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# A file system in memory, where there is one: a deep tree takes a while on others.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def nest(parent: int, name: bytes, depth: int) -> None:
    """Make a directory with others in it, so deep that no path leads to the last."""
    fd = os.dup(parent)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_depth_costs_no_descriptors_and_no_stack() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        parent = os.open(place, os.O_PATH)
        nest(parent, b"d", 1100)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = len(os.listdir("/proc/self/fd")) + 4
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        try:
            removal.remove(b"d", parent)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            os.close(parent)
        assert os.listdir(place) == []


def test_names_that_are_numbers_are_in_nobody_s_way(parent: int, tmp_path: Path) -> None:
    """What is moved up has a number for its name."""
    for path in ("t/0/0/0/x", "t/1/1/y/z", "t/0/1/2/3", "t/2/3/4", "t/4/5", "t/6"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "t/5").write_text("")
    (tmp_path / "t/4/6").symlink_to("..")
    removal.remove(b"t", parent)
    assert os.listdir(tmp_path) == []


def test_closed_directories_are_removed(parent: int, tmp_path: Path) -> None:
    for path in ("t/a/b/c", "t/a/d/e"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "f").write_text("")
    for path in ("t/a/b/c", "t/a/b", "t/a/d", "t/a", "t"):
        (tmp_path / path).chmod(0)
    removal.remove(b"t", parent)
    assert os.listdir(tmp_path) == []


def test_links_are_removed_and_not_what_they_lead_to(parent: int, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/f").write_text("")
    (tmp_path / "t/u").mkdir(parents=True)
    (tmp_path / "t/u/l").symlink_to(tmp_path / "victim")
    (tmp_path / "t/l").symlink_to(tmp_path / "victim")
    removal.remove(b"t", parent)
    assert os.listdir(tmp_path / "victim") == ["f"]
    assert removal.names_in(parent) == [b"victim"]


def test_what_cannot_be_removed_is_an_error(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t/a/b/c").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        removal.remove(b"nothing", parent)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "a file system is mounted there")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="mounted"):
        removal.remove(b"t", parent)
    monkeypatch.undo()
    (tmp_path / "t").chmod(0o500)
    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(OSError, match="mounted"):
        removal.remove(b"t", parent)

"""A directory beside others, and what is left of one."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.unpacking import beside as besides
from imgproxy.unpacking.beside import Beside
from imgproxy.unpacking.destination import Destination

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def test_only_what_is_left_over_is_removed(
    tmp_path: Path, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [".out.imgproxy-01234567", ".other.imgproxy-01234567", ".out.imgproxy-0123456"]
    for name in left:
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / ".out.imgproxy-76543210").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 12345)
        assert besides._locked(left[0].encode(), parent) is None
    beside = Beside(parent, b".out.")
    kept = {*left[1:], ".out.imgproxy-76543210"}
    assert set(os.listdir(tmp_path)) == {*kept, os.fsdecode(beside.name)}
    beside.close()
    assert set(os.listdir(tmp_path)) == kept


def test_without_locks_nothing_is_taken_for_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which has none for directories."""

    def fail(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    (tmp_path / ".out.imgproxy-01234567").mkdir()
    monkeypatch.setattr(besides.fcntl, "flock", fail)
    with closing(Destination(f"{tmp_path}/out")) as destination:
        destination.finish()
    assert sorted(os.listdir(tmp_path)) == [".out.imgproxy-01234567", "out"]


def test_a_name_that_is_taken_is_passed_over(
    tmp_path: Path, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["00000000", "00000001", "00000002"])
    monkeypatch.setattr(besides.secrets, "token_hex", lambda _: next(names))
    (tmp_path / "ximgproxy-00000000").write_text("")
    locked = besides._locked
    monkeypatch.setattr(
        besides,
        "_locked",
        lambda name, fd, **more: None if name.endswith(b"1") else locked(name, fd, **more),
    )
    beside = Beside(parent, b"x")
    assert beside.name == b"ximgproxy-00000002"
    beside.close()

"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.store.files import DestinationError
from imgproxy.store.new_file import NewFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["whatever there is", "names alone", "names without links"], autouse=True)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take from the system what some file systems do not have; return what is left."""
    kind: str = request.param
    true_open = os.open

    def open_named(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return true_open(path, flags, mode)

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if kind != "whatever there is":
        monkeypatch.setattr(os, "open", open_named)
    if kind == "names without links":
        monkeypatch.setattr(os, "link", link)
    return kind


def test_it_appears_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(NewFile(str(path))) as file:
        file.write(b"one ")
        file.write(memoryview(b"two"))
        assert not path.exists()
        file.finish()
        assert path.read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_left_of_one_that_is_not_finished(tmp_path: Path) -> None:
    with closing(NewFile(str(tmp_path / "file"))) as file:
        file.write(b"half")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_what_is_there_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.touch() if kind == "file" else path.symlink_to("nothing")
    with pytest.raises(DestinationError, match="exists"):
        NewFile(str(path))


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with closing(NewFile(str(tmp_path / "file"))) as file:
        (tmp_path / "file").write_bytes(b"other")
        with pytest.raises(DestinationError):
            file.finish()
    assert (tmp_path / "file").read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["file"]


def test_it_has_no_name_before_where_that_can_be(tmp_path: Path, file_system: str) -> None:
    """Else it lies beside, and a killed process leaves it there."""
    with closing(NewFile(str(tmp_path / "file"))) as file:
        file.write(b"half")
        beside = [] if file_system == "whatever there is" else [f"file.imgproxy-{os.getpid()}"]
        assert os.listdir(tmp_path) == beside


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / f"file.imgproxy-{os.getpid()}").write_bytes(b"much of an older one")
    with closing(NewFile(str(tmp_path / "file"))) as file:
        file.write(b"new")
        file.finish()
    assert (tmp_path / "file").read_bytes() == b"new"

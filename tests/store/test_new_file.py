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


@pytest.mark.parametrize("has_links", [True, False])
def test_what_came_meanwhile_is_not_replaced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_links: bool,  # noqa: FBT001  (a parameter)
) -> None:
    if not has_links:
        forbid_links(monkeypatch)
    with closing(NewFile(str(tmp_path / "file"))) as file:
        (tmp_path / "file").write_bytes(b"other")
        with pytest.raises(DestinationError):
            file.finish()
    assert (tmp_path / "file").read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_system_may_have_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_links(monkeypatch)
    with closing(NewFile(str(tmp_path / "file"))) as file:
        file.finish()
    assert os.listdir(tmp_path) == ["file"]


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / f"file.imgproxy-{os.getpid()}").write_bytes(b"much of an older one")
    with closing(NewFile(str(tmp_path / "file"))) as file:
        file.write(b"new")
        file.finish()
    assert (tmp_path / "file").read_bytes() == b"new"

"""Who may change what is served: inode(7), path_resolution(7)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgproxy.host.ownership import Known, changeable_by_others

if TYPE_CHECKING:
    from pathlib import Path

OTHER = 4711

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    for each in (tmp_path / "a", directory):
        each.chmod(0o755)
    file = directory / "file"
    file.touch(0o644)
    file.chmod(0o644)
    return file


def reason(path: Path) -> str:
    """Return the answer, which is the same in a look at many files."""
    found, known = changeable_by_others(str(path)), Known()
    for _ in ("what is known is found out", "what is known is used"):
        assert changeable_by_others(str(path), known) == found
    assert known
    return found or ""


def test_what_is_ours_alone_is_nobody_else_s_word(file: Path) -> None:
    assert reason(file) == reason(file.parent) == ""


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert reason(file) == f"others may write {file}"


@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("above", [1, 2])
def test_a_directory_in_which_others_may_replace_it(file: Path, mode: int, above: int) -> None:
    directory = file.parents[above - 1]
    directory.chmod(mode)
    assert reason(file) == f"others may write {directory}"
    directory.chmod(mode | 0o1000)
    assert reason(file) == ""


@as_root
@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_belongs_to_another_user(file: Path, above: int) -> None:
    path = [file, *file.parents][above]
    os.chown(path, OTHER, -1)
    assert reason(file) == f"{path} belongs to the user {OTHER}"


@pytest.mark.parametrize("where", ["absolute", "relative", "in a directory"])
def test_links_are_followed_step_by_step(file: Path, tmp_path: Path, where: str) -> None:
    """Whoever may replace a link on the way decides what is served."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    if where == "in a directory":
        (shared / "link").symlink_to(file.parent)
        (tmp_path / "first").symlink_to(shared / "link")
        path = tmp_path / "first" / "file"
    else:
        (shared / "link").symlink_to(file if where == "absolute" else "../a/./b/../b/file")
        (tmp_path / "first").symlink_to("shared/link")
        path = tmp_path / "first"
    assert reason(path) == ""
    shared.chmod(0o777)
    assert reason(path) == f"others may write {shared}"
    shared.chmod(0o755)
    file.chmod(0o666)
    assert reason(path) == f"others may write {file}"


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, expected in (("absent", FileNotFoundError), ("loop", OSError)):
        with pytest.raises(expected):
            changeable_by_others(str(tmp_path / name))


def test_a_way_back_from_a_link_is_that_of_the_system(file: Path, tmp_path: Path) -> None:
    """`link/..` is the directory above the one that the link leads to."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "inside").mkdir(parents=True)
    (elsewhere / file.name).write_bytes(b"")
    (file.parent / "link").symlink_to(elsewhere / "inside")
    path = f"{file.parent}/link/../{file.name}"
    assert os.path.samefile(path, elsewhere / file.name)
    assert changeable_by_others(path) is None
    elsewhere.chmod(0o757)
    assert changeable_by_others(path) == f"others may write {elsewhere}"

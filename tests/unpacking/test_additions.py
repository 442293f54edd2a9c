"""Files for a directory that has others already."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imgproxy.store.files import DestinationError
from imgproxy.unpacking.additions import Additions, is_filled

if TYPE_CHECKING:
    from pathlib import Path


def snapshot(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


def test_additions_replace_files_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "f").write_text("old")
    (out / "kept").write_text("old")
    before = len(os.listdir("/proc/self/fd"))
    with closing(Additions(f"{out}/")) as additions:
        assert stat.S_IMODE(os.fstat(additions.fd).st_mode) == 0o700
        for name in ("f", "new"):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=additions.fd))
        additions.finish([b"f"], 0o755)
    assert snapshot(out) == ["d", "f", "kept"]
    assert ((out / "f").read_text(), (out / "kept").read_text()) == ("", "old")
    assert len(os.listdir("/proc/self/fd")) == before


def test_additions_are_for_a_directory_that_is_there(tmp_path: Path) -> None:
    assert not is_filled(str(tmp_path))
    assert not is_filled(f"{tmp_path}/out")
    (tmp_path / "file").write_text("")
    assert is_filled(str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for name in ("out", "file", "link"):
        with pytest.raises(DestinationError):
            Additions(f"{tmp_path}/{name}")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_made_can_be_made_anew(tmp_path: Path) -> None:
    with closing(Additions(str(tmp_path))) as additions:
        os.mkdir("x", dir_fd=additions.fd)
        additions.empty()
        assert os.listdir(additions.fd) == []
    assert snapshot(tmp_path) == []

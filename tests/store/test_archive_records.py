"""What is known of archives, on disk: for one state of a file, and never more than that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgproxy.host.files import FileState
from imgproxy.specs.oci import digest as digests
from imgproxy.store import archive_records
from imgproxy.store.archive_records import ArchiveRecords
from imgproxy.store.files import DestinationError

if TYPE_CHECKING:
    from pathlib import Path

STATE = FileState(1, 2, 3, 4, 5)
LAYERS = {512: digests.compute(b"one"), 4096: digests.compute(b"two")}


def test_what_was_kept_is_known_of_that_state_alone(tmp_path: Path) -> None:
    ArchiveRecords(str(tmp_path)).keep(STATE, LAYERS)
    records = ArchiveRecords(str(tmp_path))
    assert records.layers(STATE) == LAYERS
    for n in range(len(STATE)):
        other = FileState(*(each + (n == k) for k, each in enumerate(STATE)))
        assert records.layers(other) == {}


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    records = ArchiveRecords(str(tmp_path))
    records.keep(STATE, LAYERS)
    (file,) = (tmp_path / ".imgproxy/archives").iterdir()
    sound = file.read_bytes()
    for n in range(len(sound)):
        file.write_bytes(sound[:n])
        assert records.layers(STATE) == {}
    for content in (b"[]", sound.replace(b"1 2 3", b"1 2 4"), sound.replace(b"sha256:", b"sha256")):
        file.write_bytes(content)
        assert records.layers(STATE) == {}


def test_a_file_that_was_changed_just_now_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    now = os.stat(file)
    state = FileState(now.st_dev, now.st_ino, 0, now.st_mtime_ns, now.st_ctime_ns)
    records = ArchiveRecords(str(tmp_path))
    records.keep(state, LAYERS)
    assert records.layers(state) == {}


def test_the_number_of_records_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_records, "_MAX_RECORDS", 3)
    records = ArchiveRecords(str(tmp_path))
    states = [STATE._replace(inode=n) for n in range(6)]
    for n, state in enumerate(states):
        records.keep(state, LAYERS)
        os.utime(records._record(state), (n, n))
    assert [each for each in states if records.layers(each)] == states[3:]


def test_a_place_that_is_none_is_told_of(tmp_path: Path) -> None:
    (tmp_path / ".imgproxy").write_bytes(b"")
    with pytest.raises(DestinationError):
        ArchiveRecords(str(tmp_path)).keep(STATE, LAYERS)

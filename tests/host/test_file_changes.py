"""What is made of files, and when it is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.streams import real_time

from imgproxy.errors import ConfigurationError, Failure, ShortageError
from imgproxy.host import file_changes
from imgproxy.host.file_changes import Reread, SeenFiles

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_changes, "INTERVAL", 0.0)


class Content:
    """The content of a file, and how often it was read; a failure is raised in its place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reads = 0
        self.failure: Failure | None = None
        self.said: list[str] = []

    def read(self) -> str:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return self.file.read_text()

    def reread(self) -> Reread[str]:
        return Reread(self.read, [str(self.file)], self.said.append)


@pytest.fixture
def content(tmp_path: Path) -> Content:
    file = tmp_path / "file"
    file.write_text("one")
    return Content(file)


@real_time
async def test_it_is_made_anew_when_the_file_changes(content: Content) -> None:
    reread = content.reread()
    assert await reread.current() == await reread.current() == "one"
    assert content.reads == 1
    content.file.write_text("other")
    assert await reread.current() == "other"
    replacement = content.file.with_name("new")
    replacement.write_text("third")
    replacement.rename(content.file)
    assert (await reread.current(), content.reads) == ("third", 3)


@real_time
async def test_a_link_that_leads_elsewhere_is_a_change(content: Content, tmp_path: Path) -> None:
    """As Kubernetes changes the files of a volume."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "data"
    link.symlink_to("first")
    content.file = link / "file"
    reread = content.reread()
    assert reread.value == "first"
    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").rename(link)
    assert await reread.current() == "second"


@real_time
async def test_a_broken_one_is_one_line_and_the_last_stays(content: Content) -> None:
    reread = content.reread()
    content.failure = ConfigurationError("broken", file="file")
    content.file.write_text("two")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="broken"):
            await reread.current()
    assert (reread.value, content.said, content.reads) == ("one", ["broken"], 2)
    content.failure = None
    content.file.write_text("three")
    assert await reread.current() == "three"


@real_time
async def test_a_shortage_passes(content: Content) -> None:
    reread = content.reread()
    content.failure = ShortageError("no descriptors")
    content.file.write_text("two")
    with pytest.raises(ShortageError):
        await reread.current()
    content.failure = None
    assert await reread.current() == "two"


def test_a_broken_one_at_the_start_is_raised(content: Content) -> None:
    content.failure = ConfigurationError("broken", file="file")
    with pytest.raises(ConfigurationError):
        content.reread()


@real_time
async def test_it_is_not_looked_at_more_often(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_changes, "INTERVAL", 1e6)
    reread = content.reread()
    content.file.write_text("other")
    assert await reread.current() == "one"
    seen = SeenFiles()
    seen.note(str(content.file))
    content.file.unlink()
    assert not seen.have_changed()


def test_what_was_seen_is_told_from_what_is(tmp_path: Path) -> None:
    file, absent, directory = (tmp_path / each for each in ("file", "absent", "directory"))
    file.write_text("one")
    directory.mkdir()
    seen = SeenFiles()

    def note() -> None:
        for each in (file, absent, directory):
            seen.note(str(each))

    note()
    assert not seen.have_changed()
    for change in (
        lambda: file.write_text("other"),
        lambda: absent.write_text("here"),
        lambda: (directory / "new").write_text(""),
        file.unlink,
    ):
        change()
        note()  # what is noted already stays as it was
        assert seen.have_changed()
        assert not seen.have_changed(), "it is forgotten"
        note()
        assert not seen.have_changed()

"""What a request looks at, where hundreds of files lie at the paths of `--images`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import layer, pack, saved, skopeo, write_file
from support.images import Layout, named
from support.local_places import image_files, name, shown
from support.streams import real_time

from imgproxy.host import files
from imgproxy.transports import image_paths
from imgproxy.transports.places import Files

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.transports.places import FileIdentity

FILES = 20


def archive(tag: int, content: str = "") -> bytes:
    return pack(skopeo(saved(layer(content or f"{tag}"), tags=[f"x.io/a:{tag}"])))


ONE = name("x.io/a:1")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for n in range(FILES):
        write_file(tmp_path / "images" / f"{n}.tar", archive(n))
    return tmp_path / "images"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the files that are looked at; of the directories, any change shows at once."""
    looked: list[str] = []
    look = Files.look

    def watched(self: Files, path: str, *known: object) -> FileIdentity | None:
        looked.append(os.path.basename(path))
        return look(self, path, *known)  # type: ignore[arg-type]

    monkeypatch.setattr(Files, "look", watched)
    monkeypatch.setattr(files, "_TICK", 0)
    monkeypatch.setattr(image_paths, "FRESH", 1e9)
    return looked


@real_time
async def test_a_name_that_is_known_costs_a_look_at_its_file(
    directory: Path, looked_at: list[str]
) -> None:
    async with image_files(directory) as place:
        first = await place.find(ONE)
        looked_at.clear()
        assert await place.find(ONE) == first != []
        assert looked_at == ["1.tar"]
        looked_at.clear()
        assert await place.find(name("x.io/a:absent")) == []
        assert len(looked_at) == FILES


@real_time
@pytest.mark.usefixtures("looked_at")
async def test_what_comes_changes_or_goes_counts_at_the_next_request(directory: Path) -> None:
    async with image_files(directory, directory / "later", directory / "link.tar") as place:
        (first,) = await place.find(ONE)

        async def count() -> int:
            assert await place.find(ONE) == await place.find(ONE)
            return len(await place.find(ONE))

        write_file(directory / "1.tar", archive(1, "another"))  # in its place
        (second,) = await place.find(ONE)
        assert second != first
        write_file(directory / "also.tar", archive(1))
        assert await count() == 2
        (directory / "also.tar").unlink()
        assert await count() == 1
        write_file(directory / ".new", archive(1))
        (directory / ".new").rename(directory / "2.tar")
        assert await count() == 2
        write_file(directory / "2.tar", archive(2))
        assert await count() == 1
        write_file(directory / "later" / "deeper.tar", archive(1))  # both paths that were named
        assert await count() == 3
        (directory / "later" / "deeper.tar").unlink()
        assert await count() == 1
        write_file(directory.parent / "elsewhere", archive(1))
        (directory / "link.tar").symlink_to("../elsewhere")
        assert await count() == 3
        (directory / "link.tar").unlink()
        (directory / "1.tar").unlink()
        assert await count() == 0


@real_time
@pytest.mark.usefixtures("looked_at")
async def test_a_file_that_others_may_write_by_now_is_refused_at_once(directory: Path) -> None:
    said: list[str] = []
    async with image_files(directory, said=said) as place:
        assert len(await place.find(ONE)) == 1
        (directory / "1.tar").chmod(0o666)
        assert await place.find(ONE) == []
        assert "others may write" in said[0]
        (directory / "1.tar").chmod(0o644)
        assert len(await place.find(ONE)) == 1
        os.chmod(directory, 0o777)  # noqa: S103  (the point of it)
        assert await place.find(ONE) == []
        os.chmod(directory, 0o755)  # noqa: S103
        assert len(await place.find(ONE)) == 1


@real_time
@pytest.mark.usefixtures("looked_at")
async def test_a_name_that_a_file_gets_in_its_place_counts_after_a_moment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with image_files(directory) as place:
        assert len(await place.find(ONE)) == 1
        write_file(directory / "5.tar", archive(1))
        assert len(await place.find(ONE)) == 1
        monkeypatch.setattr(image_paths, "FRESH", 0)
        assert len(await place.find(ONE)) == 2


@real_time
async def test_a_directory_that_changed_just_now_is_looked_at_whole(
    directory: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TICK", 1 << 62)
    async with image_files(directory) as place:
        assert await place.find(ONE)
        looked_at.clear()
        assert await place.find(ONE)
        assert len(looked_at) == FILES


@real_time
@pytest.mark.usefixtures("looked_at")
async def test_a_layout_is_looked_at_by_its_index(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images/layout")
    image = layout.image(b"x")
    layout.save(named(image, "x.io/a:1"))
    async with image_files(tmp_path / "images") as place:
        (first,) = await place.find(ONE)
        layout.save(named(image, "x.io/a:2"), named(image, "x.io/a:1"))
        (second,) = await place.find(ONE)
        assert second != first
        assert shown(await place.find(name("x.io/a:2"))) == ["x.io/a:2"]

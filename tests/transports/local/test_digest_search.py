"""Search by digest: through nested indexes, within bounds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import write_dir
from support.images import Json, Layout, on
from support.streams import real_time

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.reference import DirectoryName
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.local.digest_search import find_by_digest
from imgproxy.transports.local.dir_format import ImageDirectory
from imgproxy.transports.source import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.transports.source import Document, Source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


def written(layout: Layout, top: Json, path: Path) -> Source:
    """Write a document, with everything it leads to, and open it as a source."""
    write_dir(path, layout, top)
    return ImageDirectory(DirectoryName(str(path)), Directory(str(path)), Identity("dir", []))


async def search(layout: Layout, top: Json, path: Path, digest: Digest) -> Document:
    source = written(layout, top, path)
    return await find_by_digest(source, await source.root(), digest)


def many(layout: Layout) -> tuple[Json, list[Json]]:
    """Return an index with indexes in it, four deep, and what it leads to from the top down."""
    found: list[Json] = []
    entry = on(layout.image(b"at the bottom"), "linux/amd64")
    for _ in range(4):
        found.insert(0, entry)
        entry = layout.index(entry, layout.image(b"beside %d" % len(found)))
    return entry, found


@real_time
async def test_a_digest_is_found_through_nested_indexes(layout: Layout, path: Path) -> None:
    top, below = many(layout)
    for each in [top, *below]:
        document = await search(layout, top, path, digests.parse(each["digest"]))
        assert document.raw == layout.read(each["digest"])
        assert digests.parse(each["digest"]) in document.digests


@real_time
async def test_a_digest_is_not_searched_for_any_deeper(layout: Layout, path: Path) -> None:
    top, below = many(layout)
    deeper = layout.index(top)
    document = await search(layout, deeper, path, digests.parse(below[-1]["digest"]))
    assert document.raw == layout.read(deeper["digest"])


@real_time
async def test_an_index_that_is_missing_is_no_obstacle(layout: Layout, path: Path) -> None:
    wanted = layout.image(b"wanted")
    missing = layout.index(layout.image(b"missing"))
    top = layout.index(missing, layout.index(wanted))
    source = written(layout, top, path)
    os.unlink(path / f"{missing['digest'].partition(':')[2]}.manifest.json")
    wanted_digest = digests.parse(wanted["digest"])
    document = await find_by_digest(source, await source.root(), wanted_digest)
    assert document.raw == layout.read(wanted["digest"])


@real_time
async def test_where_nothing_has_the_digest_the_top_is_returned_under_it(
    layout: Layout, path: Path
) -> None:
    entry = layout.image(b"x")
    wanted = digests.compute(b"another")
    document = await search(layout, entry, path, wanted)
    assert document.raw == layout.read(entry["digest"])
    assert document.digests == (wanted,)


@pytest.mark.parametrize("count", [63, 64])
@real_time
async def test_so_many_indexes_of_a_level_are_searched(
    layout: Layout, path: Path, count: int
) -> None:
    wanted = layout.image(b"wanted")
    others = [layout.index(annotations={"n": str(n)}) for n in range(count)]
    top = layout.index(*others, layout.index(wanted))
    document = await search(layout, top, path, digests.parse(wanted["digest"]))
    found = wanted if count < 64 else top
    assert document.raw == layout.read(found["digest"])

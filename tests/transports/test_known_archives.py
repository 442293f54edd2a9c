"""What was found out about an archive is not found out again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import gzipped, layer, pack, saved, skopeo, write_file
from support.local_places import files, name
from support.streams import real_time

from imgproxy.config import sideload_pattern
from imgproxy.host import files as host_files
from imgproxy.specs.oci import digest as digests
from imgproxy.store.archive_records import ArchiveRecords
from imgproxy.transports.image_files import ImageFiles
from imgproxy.transports.known_archives import KnownArchives
from imgproxy.transports.sideload_places import SideloadPlace

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Source


def no_registry(_: Reference) -> Source:
    raise AssertionError("no registry is asked")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """Return the algorithms of what is hashed in pieces: compressed layers."""
    found, hasher = [], digests.hasher

    def noting(digest: Digest) -> object:
        found.append(digest)
        return hasher(digest)

    monkeypatch.setattr(digests, "hasher", noting)
    monkeypatch.setattr(host_files, "_TICK", 0)
    return found


@real_time
async def test_a_layer_is_hashed_once_for_all_places_and_starts(
    tmp_path: Path, hashed: list[Digest]
) -> None:
    file = tmp_path / "at/os-1.tar"
    write_file(file, pack(skopeo(saved(gzipped(layer("one")), tags=["x.io/os:1"]))))
    pattern = sideload_pattern.parse(f"{tmp_path}/at/<basename>-<ref>.tar")
    manifests = []

    async def open_with(known: KnownArchives) -> int:
        hashed.clear()
        place = SideloadPlace(pattern, files(), no_registry, "x.io", known)
        (found,) = await place.find(name("x.io/os:1"))
        source = await found.open_source()
        manifests.append((await source.root()).raw)
        source.close()
        return len(hashed)

    for k in range(2):
        known = KnownArchives(ArchiveRecords(str(tmp_path / "store")))
        assert await open_with(known) == (k == 0), "it is known after a restart"
        assert await open_with(known) == 0
        assert ImageFiles([str(file)], files(), print, known)
    assert await open_with(KnownArchives()) == 1
    assert len(set(manifests)) == 1
    os.utime(file, (1, 1))
    assert await open_with(known) == 1, "it may be another one"


@real_time
async def test_records_that_cannot_be_written_are_told_of_once(
    tmp_path: Path, hashed: list[Digest]
) -> None:
    write_file(tmp_path / "store", b"")
    said: list[str] = []
    known = KnownArchives(ArchiveRecords(str(tmp_path / "store")), said.append)
    pattern = sideload_pattern.parse(f"{tmp_path}/<basename>-<ref>.tar")
    place = SideloadPlace(pattern, files(), no_registry, "x.io", known)
    for each in ("one", "two"):
        image = saved(gzipped(layer(each)), tags=["x.io/os:1"])
        write_file(tmp_path / f"os-{each}.tar", pack(skopeo(image)))
        (found,) = await place.find(name(f"x.io/os:{each}"))
        source = await found.open_source()
        assert await source.root()
        source.close()
    assert len(hashed) == 2
    assert len(said) == 1
    assert "going on without a record" in said[0]

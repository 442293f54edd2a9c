"""The check of a store: what is wrong, and who needs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.damage import flip, lose
from support.images import Layout, named
from support.streams import real_time

from imgproxy.store.content_store import ContentStore
from imgproxy.verification import stored_blobs
from imgproxy.verification.stored_blobs import Finding, StoreCheck

if TYPE_CHECKING:
    from pathlib import Path


def sizes_of(layout: Layout) -> list[int]:
    return [file.stat().st_size for file in layout.path.glob("blobs/*/*")]


async def findings(layout: Layout) -> tuple[StoreCheck, list[Finding]]:
    found: list[Finding] = []
    check = StoreCheck(ContentStore(str(layout.path)), found.append)
    await check.run()
    return check, found


@real_time
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
async def test_every_blob_is_hashed_whatever_its_size(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_blobs, "_PIECE", piece)
    layout = Layout(tmp_path)
    layout.save(layout.image(b"", b"x", os.urandom(2000), algorithm="sha512"), layout.image(b"y"))
    check, found = await findings(layout)
    sizes = sizes_of(layout)
    assert (found, check.blobs, check.bytes) == ([], len(sizes), sum(sizes))


@real_time
async def test_a_blob_is_told_once_with_all_that_need_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    one = layout.image(b"shared", b"one")
    index = layout.index(layout.image(b"shared", b"two"))
    layout.save(named(one, "a"), named(one, "b"), named(index, "c"), one)
    shared, own = layout.layers(one)
    flip(layout.file(shared["digest"]))
    lose(layout.file(own["digest"]))
    _, found = await findings(layout)
    told = {str(each.digest): (each.failure.code, each.names) for each in found}
    assert told == {
        shared["digest"]: ("DIGEST_INVALID", ("a", "b", "c", "@3")),
        own["digest"]: ("BLOB_UNKNOWN", ("a", "b", "@3")),
    }
    assert len(found) == 2


@real_time
async def test_a_file_that_goes_meanwhile_is_wrong_only_if_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    layout.save(named(image := layout.image(b"needed"), "os"))
    gone = [layout.add(b"unnamed", "x/y"), layout.layers(image)[0]]
    listed = stored_blobs.inventory.blobs

    def list_and_lose(store: ContentStore, unknown: list[str]) -> object:
        files = list(listed(store, unknown))
        for each in gone:
            lose(layout.file(each["digest"]))
        return files

    monkeypatch.setattr(stored_blobs.inventory, "blobs", list_and_lose)
    _, found = await findings(layout)
    assert [(str(each.digest), each.failure.code) for each in found] == [
        (gone[1]["digest"], "BLOB_UNKNOWN")
    ]

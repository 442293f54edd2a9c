"""What a name leads to, as it is described."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.archives import COMPRESSIONS, DIALECTS, pack, saved, write_dir
from support.damage import flip, lose
from support.images import OCI_MANIFEST, Json, Layout, encode, named, on
from support.opened import place_of, refusing
from support.sources import MemorySource, Store
from support.streams import real_time

from imgproxy.images import listing
from imgproxy.images.listing import Item, items_of, unique_sizes
from imgproxy.images.selection import MAX_DEPTH

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = "application/vnd.oci.empty.v1+json"
KIND = "application/vnd.acme.kind"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


async def items(name: str, *, all_documents: bool = False) -> list[Item]:
    place = await place_of(name)
    try:
        return await items_of(place, all_documents=all_documents)
    finally:
        place.close()


def artifact(layout: Layout, **fields: object) -> Json:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(b"{}", EMPTY),
        "layers": [layout.add(b"content", "text/plain")],
        **fields,
    }
    return layout.add(encode(document), OCI_MANIFEST)


def kinds(found: list[Item]) -> list[tuple[str, str]]:
    return [(each.kind, each.artifact_type) for each in found]


@real_time
async def test_all_that_a_layout_holds_is_described(layout: Layout) -> None:
    image = layout.image(b"one" * 100, platform="linux/arm/v7")
    index = layout.index(on(image, "linux/arm/v7"), annotations={"a": "b"})
    other = artifact(
        layout, artifactType=KIND, annotations={listing._CREATED: "2024-01-02T03:04:05Z"}
    )
    unknown = layout.add(b"<a/>", "application/xml")
    layout.save(named(image, "os"), named(index, "all"), named(other, "acme"), unknown)
    found = await items(f"oci:{layout.path}")
    assert kinds(found) == [
        ("image", ""),
        ("index", ""),
        ("artifact", KIND),
        ("artifact", "application/xml"),
    ]
    assert [each.names for each in found] == [("os",), ("all",), ("acme",), ()]
    assert [str(found[0].platform), str(found[1].items[0].platform)] == ["linux/arm/v7"] * 2
    assert found[2].created == "2024-01-02T03:04:05Z"
    manifest = layout.document(image)
    size = image["size"] + manifest["config"]["size"] + 300
    assert [found[0].size, found[1].size] == [size, size + index["size"]]
    assert found[3].size == 4
    assert unique_sizes(found) == [0, index["size"], found[2].size, 4]


@pytest.mark.parametrize(("ref", "expected"), [(":os", ["os"]), (":@1", ["all"])])
@real_time
async def test_a_ref_or_a_position_is_all_that_is_listed(
    layout: Layout, ref: str, expected: list[str]
) -> None:
    image = layout.image(b"one")
    layout.save(named(image, "os"), named(image, "all"))
    found = await items(f"oci:{layout.path}{ref}")
    assert [each.names[0] for each in found] == expected


@real_time
async def test_two_entries_of_one_name_are_both_listed(layout: Layout) -> None:
    layout.save(named(layout.image(b"1"), "os"), named(layout.image(b"2"), "os"))
    assert len(await items(f"oci:{layout.path}:os")) == 2


@real_time
async def test_a_name_that_is_not_there_is_an_error(layout: Layout) -> None:
    layout.save(named(layout.image(b"1"), "os"))
    with refusing((404, "MANIFEST_UNKNOWN")):
        await items(f"oci:{layout.path}:other")
    with refusing((404, "MANIFEST_UNKNOWN")):
        await items(f"oci:{layout.path}:@1")


@real_time
async def test_what_is_odd_or_broken_is_an_item_that_says_so(layout: Layout) -> None:
    good, wrong, gone = (layout.image(each) for each in (b"good", b"wrong", b"gone"))
    no_config = layout.image(b"no config", platform="linux/386")
    flip(layout.file(wrong["digest"]))
    lose(layout.file(gone["digest"]))
    lose(layout.file(layout.document(no_config)["config"]["digest"]))
    odd: list[Json] = [{"annotations": named({}, "odd")["annotations"]}, 7]  # type: ignore[list-item]
    layout.save(*odd, wrong, gone, no_config, good)
    found = await items(f"oci:{layout.path}")
    assert [each.kind for each in found] == ["?", "?", "?", "?", "image", "image"]
    assert found[0].names == ("odd",)
    expected = [
        "mediaType|size|digest",
        "expected an object",
        "do not have",
        "not there",
        "not there",
    ]
    for each, words in zip(found, expected, strict=False):
        assert any(word in each.problem for word in words.split("|")), each.problem
    assert found[5].problem == ""
    assert (await items(f"oci:{layout.path}:@1"))[0].problem


@real_time
async def test_an_index_with_what_is_not_there_has_no_size(layout: Layout) -> None:
    here, gone = layout.image(b"here"), layout.image(b"gone")
    layout.save(layout.index(on(here, "linux/amd64"), on(gone, "linux/arm64")))
    lose(layout.file(gone["digest"]))
    (index,) = await items(f"oci:{layout.path}")
    assert index.size is None
    assert [each.size is None for each in index.items] == [False, True]


@real_time
async def test_indexes_in_one_another_end(layout: Layout) -> None:
    index = layout.index(layout.image(b"x"))
    for _ in range(MAX_DEPTH):
        index = layout.index(index)
    layout.save(index)
    (item,) = await items(f"oci:{layout.path}")
    for _ in range(MAX_DEPTH):
        assert not item.problem
        (item,) = item.items
    assert "indexes in one another" in item.problem


@real_time
async def test_entries_are_counted(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_ENTRIES", 5)
    image = layout.image(b"x")
    layout.save(layout.index(*[image] * 3), layout.index(*[image] * 4))
    problems = {each.problem for each in await items(f"oci:{layout.path}")}
    assert problems == {"", "more than 5 entries in all"}


@pytest.mark.parametrize("compression", ["plain", "gzip"])
@real_time
async def test_the_images_of_a_docker_archive_are_described(
    compression: str, tmp_path: Path
) -> None:
    file = tmp_path / "archive"
    images = [saved(b"1" * 100, tags=["a:1", "b:2"]), saved(b"2" * 100, platform="linux/arm64")]
    file.write_bytes(COMPRESSIONS[compression](pack(DIALECTS["skopeo"](*images))))
    found = await items(f"docker-archive:{file}")
    assert [(each.names, str(each.platform)) for each in found] == [
        (("a:1", "b:2"), "linux/amd64"),
        ((), "linux/arm64"),
    ]
    assert len(await items(f"docker-archive:{file}:b:2")) == 1
    with refusing((404, "MANIFEST_UNKNOWN")):
        await items(f"docker-archive:{file}:c:2")


@real_time
async def test_a_broken_image_of_a_docker_archive_is_an_item(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    members = DIALECTS["skopeo"](saved(b"1", tags=["a:1"]), saved(b"2", tags=["b:1"]))
    lost = next(each for each in members if each.name.endswith(".tar"))
    file.write_bytes(pack(each for each in members if each != lost))
    assert sorted(each.kind for each in await items(f"docker-archive:{file}")) == ["?", "image"]


@real_time
async def test_a_directory_has_one_image(layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"x")
    write_dir(tmp_path / "dir", layout, image)
    (item,) = await items(f"dir:{tmp_path / 'dir'}")
    assert (item.kind, item.position, item.names) == ("image", None, ())


@pytest.mark.parametrize("all_documents", [False, True])
@real_time
async def test_of_a_registry_s_index_only_what_is_needed_is_asked_for(
    all_documents: bool,  # noqa: FBT001  (a parameter)
) -> None:
    store = Store()
    known, unknown = store.image(b"1"), store.image(b"2", platform="linux/arm64")
    source = MemorySource(store, store.index(on(known, "linux/amd64"), unknown))
    (index,) = await items_of(source, all_documents=all_documents)
    assert [str(each.platform) for each in index.items] == ["linux/amd64", "linux/arm64"]
    assert [each.size is None for each in index.items] == [not all_documents, False]
    layers = {each["digest"] for image in (known, unknown) for each in store.layers(image)}
    assert not layers & set(source.asked)
    assert len(source.asked) == (5 if all_documents else 3)


@real_time
async def test_requests_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_REQUESTS", 5)
    store = Store()
    images = [store.image(bytes([n])) for n in range(4)]
    (index,) = await items_of(MemorySource(store, store.index(*images)), all_documents=True)
    assert [bool(each.problem) for each in index.items].count(True) > 0
    assert len(index.items) == 4


@real_time
async def test_a_config_that_is_too_large_is_not_read() -> None:
    store = Store()
    manifest = store.image(b"1")
    document = store.document(manifest)
    document["config"]["size"] = 5 << 20
    source = MemorySource(store, store.add(encode(document), OCI_MANIFEST))
    (item,) = await items_of(source, all_documents=True)
    assert item.kind == "image"
    assert "bytes" in item.problem

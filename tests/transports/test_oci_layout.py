"""`oci:`: which of a layout's images a name fits, and what lies in its files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Json, Layout, digest_of, encode, named, on
from sources import describe
from wires import real_time, refused

from imgproxy.errors import Failure
from imgproxy.spec.manifest import MAX_DOCUMENT_SIZE
from imgproxy.spec.reference import LayoutName
from imgproxy.transports.oci_layout import OciLayout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.source import Document

INVALID = (422, "MANIFEST_INVALID", False)
AMBIGUOUS = (409, "AMBIGUOUS", False)
UNKNOWN = (404, "MANIFEST_UNKNOWN", False)


async def root_of(
    layout: Layout, ref_name: str | None = None, position: int | None = None
) -> Document:
    return await OciLayout(LayoutName(str(layout.path), ref_name, position)).root()


async def failure_of(
    layout: Layout, ref_name: str | None = None, position: int | None = None
) -> Failure:
    with pytest.raises(Failure) as raised:
        await root_of(layout, ref_name, position)
    return raised.value


def three(layout: Layout) -> list[Json]:
    """Offer three images: `a`, `b`, and one without a name."""
    images = [layout.image(bytes([n])) for n in range(3)]
    entries = [named(images[0], "a"), on(named(images[1], "b"), "linux/arm/v7"), images[2]]
    layout.save(*entries)
    return entries


# --- which image --------------------------------------------------------------------------------


@real_time
async def test_the_only_image_needs_no_name(layout: Layout) -> None:
    entry = layout.image(b"x")
    layout.save(named(entry, "whatever"))
    document = await root_of(layout)
    assert document.raw == layout.read(entry["digest"])
    assert document.media_type == OCI_MANIFEST
    assert [str(digest) for digest in document.digests] == [entry["digest"]]
    assert document.size == entry["size"]
    assert document.name == f"oci:{layout.path}: manifest {entry['digest']}"


@pytest.mark.parametrize(
    ("ref_name", "position", "at"),
    [("a", None, 0), ("b", None, 1), (None, 0, 0), (None, 1, 1), (None, 2, 2)],
)
@real_time
async def test_an_image_is_chosen_by_name_or_position(
    layout: Layout, ref_name: str | None, position: int | None, at: int
) -> None:
    entries = three(layout)
    document = await root_of(layout, ref_name, position)
    assert document.raw == layout.read(entries[at]["digest"])


@pytest.mark.parametrize(("ref_name", "position"), [("c", None), ("A", None), (None, 3)])
@real_time
async def test_an_image_that_is_not_there_is_answered_with_those_that_are(
    layout: Layout, ref_name: str | None, position: int | None
) -> None:
    entries = three(layout)
    failure = await failure_of(layout, ref_name, position)
    assert refused(failure) == UNKNOWN
    assert_offers(failure, entries)


def assert_offers(failure: Failure, entries: list[Json]) -> None:
    """Assert that a failure of `three` lists them, for a program and for a person."""
    platforms = [None, "linux/arm/v7", None]
    names = ["a", "b", None]
    assert failure.detail["choices"] == [
        {"position": f"@{n}", "name": name, "digest": entry["digest"], "platform": platform}
        for n, (name, entry, platform) in enumerate(zip(names, entries, platforms, strict=True))
    ]
    for position, entry in enumerate(entries):
        assert f":@{position}" in failure.message
        assert entry["digest"] in failure.message


@real_time
async def test_several_images_and_no_name_are_ambiguous(layout: Layout) -> None:
    entries = three(layout)
    failure = await failure_of(layout)
    assert refused(failure) == AMBIGUOUS
    assert_offers(failure, entries)


@real_time
async def test_a_name_of_several_images_is_ambiguous(layout: Layout) -> None:
    a, b, c = (layout.image(bytes([n])) for n in range(3))
    layout.save(named(a, "x"), named(b, "y"), named(c, "x"))
    failure = await failure_of(layout, "x")
    assert refused(failure) == AMBIGUOUS
    assert [choice["position"] for choice in failure.detail["choices"]] == ["@0", "@2"]
    assert "fits 2 images" in failure.message


@real_time
async def test_one_image_that_is_offered_twice_is_one(layout: Layout) -> None:
    entry = layout.image(b"x")
    layout.save(named(entry, "x"), named(entry, "x"), named(entry, "y"))
    for name in ("x", None):
        assert (await root_of(layout, name)).raw == layout.read(entry["digest"])


@real_time
async def test_a_message_lists_no_more_than_helps(layout: Layout) -> None:
    entries = [named(layout.image(bytes([n])), f"n{n}") for n in range(25)]
    layout.save(*entries)
    failure = await failure_of(layout)
    assert "(:n19)" in failure.message
    assert "n20" not in failure.message
    assert failure.message.endswith(" and 5 more")
    assert len(failure.detail["choices"]) == 25


@real_time
async def test_a_name_with_control_characters_is_offered_without_them(layout: Layout) -> None:
    layout.save(named(layout.image(b"x"), "\x1b[31mred\n"), layout.image(b"y"))
    failure = await failure_of(layout)
    assert failure.message.isprintable()
    assert "[31mred" in failure.message


@real_time
async def test_an_empty_layout_has_no_image(layout: Layout) -> None:
    layout.save()
    failure = await failure_of(layout)
    assert refused(failure) == UNKNOWN
    assert failure.message.endswith("(there are: none)")
    assert failure.detail["choices"] == []


@real_time
async def test_images_that_differ_by_platform_alone_are_an_index(layout: Layout) -> None:
    layout.save(
        on(layout.image(b"1"), "linux/amd64"),
        on(layout.image(b"2"), "linux/arm64"),
    )
    document = await root_of(layout)
    assert document.raw == (layout.path / "index.json").read_bytes()
    assert (document.media_type, document.digests, document.size) == (OCI_INDEX, (), None)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [entries[0], on(entries[1], "linux/amd64")],
        lambda entries: [entries[0], {**entries[1], "platform": None}],
        lambda entries: [named(entries[0], "a"), named(entries[1], "b")],
        lambda entries: [named(entries[0], "a"), entries[1]],
    ],
    ids=["the same platform", "no platform", "two names", "one name"],
)
@real_time
async def test_images_that_differ_otherwise_are_several(
    layout: Layout, change: Callable[[list[Json]], list[Json]]
) -> None:
    entries = [on(layout.image(b"1"), "linux/amd64"), on(layout.image(b"2"), "linux/arm64")]
    layout.save(*change(entries))
    assert refused(await failure_of(layout)) == AMBIGUOUS


@real_time
async def test_entries_of_other_kinds_are_no_error(layout: Layout) -> None:
    other = layout.add(b"anything", "application/vnd.example+json")
    layout.save(other, named(layout.image(b"x"), "a"))
    assert (await root_of(layout, "a")).media_type == OCI_MANIFEST
    assert (await root_of(layout, position=0)).media_type == "application/vnd.example+json"


# --- index.json ---------------------------------------------------------------------------------

INDEXES = {
    "not JSON": (b"{", INVALID, "not JSON"),
    "no object": (b"[]", INVALID, "expected an object"),
    "a manifest": (
        encode({"schemaVersion": 2, "config": {}, "layers": []}),
        INVALID,
        "ambiguous",
    ),
    "of another type": (
        encode({"mediaType": OCI_MANIFEST, "manifests": []}),
        INVALID,
        "but came as",
    ),
    "an entry without a digest": (encode({"manifests": [{"size": 1}]}), INVALID, "manifests[0]"),
    "a digest that leads elsewhere": (
        encode({"manifests": [{"size": 1, "digest": "sha256:../../../etc/passwd"}]}),
        INVALID,
        "is not a digest",
    ),
    "an algorithm that leads elsewhere": (
        encode({"manifests": [{"size": 1, "digest": "..:passwd"}]}),
        INVALID,
        "is not a digest",
    ),
    "too large": (
        b" " * (MAX_DOCUMENT_SIZE + 1),
        (422, "SIZE_INVALID", False),
        "more than the limit",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
@real_time
async def test_a_broken_index_is_refused(layout: Layout, case: str) -> None:
    content, wanted, words = INDEXES[case]
    (layout.path / "index.json").write_bytes(content)
    failure = await failure_of(layout)
    assert refused(failure) == wanted
    assert words in failure.message
    assert f"{layout.path}/index.json" in failure.message


@real_time
async def test_a_layout_without_an_index_is_not_there(layout: Layout) -> None:
    failure = await failure_of(layout)
    assert refused(failure) == (404, "NOT_FOUND", False)
    assert failure.message == f"{layout.path}/index.json: No such file or directory"


@real_time
async def test_no_null_is_needed_to_say_that_there_is_nothing(layout: Layout) -> None:
    (layout.path / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":null}')
    assert refused(await failure_of(layout)) == UNKNOWN


# --- documents and blobs ------------------------------------------------------------------------


@real_time
async def test_a_document_that_is_missing_is_unknown(layout: Layout) -> None:
    entry = layout.image(b"x")
    layout.save(entry)
    layout.file(entry["digest"]).unlink()
    failure = await failure_of(layout)
    assert refused(failure) == UNKNOWN
    assert f"manifest {entry['digest']} is not there" in failure.message
    assert "No such file" in failure.message


@real_time
async def test_a_document_beyond_the_limit_is_not_read(layout: Layout) -> None:
    layout.save(layout.add(b" " * (MAX_DOCUMENT_SIZE + 1), OCI_MANIFEST))
    assert refused(await failure_of(layout)) == (422, "SIZE_INVALID", False)


@real_time
async def test_no_document_is_left_open(layout: Layout) -> None:
    layout.save(layout.image(b"x"), layout.add(b" " * (MAX_DOCUMENT_SIZE + 1), OCI_MANIFEST))
    before = os.listdir("/proc/self/fd")
    await root_of(layout, position=0)
    await failure_of(layout, position=1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@real_time
async def test_a_blob_is_read_where_its_digest_says(layout: Layout, algorithm: str) -> None:
    blob = layout.add(b"content", OCI_LAYER, algorithm=algorithm)
    reader = await OciLayout(LayoutName(str(layout.path))).blob(describe(blob))
    assert reader.size == 7
    buffer = memoryview(bytearray(100))
    assert bytes(buffer[: await reader.receive_into(buffer)]) == b"content"
    reader.close()


BLOBS: dict[str, tuple[Callable[[Path], object], tuple[int, str, bool]]] = {
    "missing": (lambda _: None, (404, "BLOB_UNKNOWN", False)),
    "a FIFO": (os.mkfifo, (415, "UNSUPPORTED", False)),
    "a directory": (lambda at: at.mkdir(), (415, "UNSUPPORTED", False)),
    "a loop of links": (lambda at: at.symlink_to(at), (422, "PATH_INVALID", False)),
}


@pytest.mark.parametrize("case", BLOBS)
@real_time
async def test_a_blob_that_is_no_file_is_refused(layout: Layout, case: str) -> None:
    make, wanted = BLOBS[case]
    blob = layout.add(b"content", OCI_LAYER)
    layout.file(blob["digest"]).unlink()
    make(layout.file(blob["digest"]))
    with pytest.raises(Failure) as raised:
        await OciLayout(LayoutName(str(layout.path))).blob(describe(blob))
    assert refused(raised.value) == wanted


@real_time
async def test_links_are_followed(layout: Layout, tmp_path: Path) -> None:
    entry = layout.image(b"x")
    layout.save(entry)
    elsewhere = tmp_path / "elsewhere"
    os.rename(layout.file(entry["digest"]), elsewhere)
    layout.file(entry["digest"]).symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(layout.path)
    source = OciLayout(LayoutName(str(tmp_path / "link")))
    document = await source.root()
    assert digest_of(document.raw) == entry["digest"]
    source.close()


def test_policies_know_a_layout_by_its_real_path(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout.path)
    source = OciLayout(LayoutName(f"{tmp_path}/link/../link/", "a"))
    assert source.name == f"oci:{tmp_path}/link/../link/:a"
    assert source.identity.transport == "oci"
    assert source.identity.scopes[:2] == [str(layout.path), str(tmp_path)]

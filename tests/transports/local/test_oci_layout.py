"""`oci:`: which of a layout's images a name fits, and what lies in its files."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from support.images import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from support.sources import describe
from support.streams import real_time, refused

from imgproxy.errors import Failure
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.specs.oci.reference import LayoutName, parse_reference
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.local.oci_layout import OciLayout
from imgproxy.transports.source import Identity
from imgproxy.verification import documents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.source import Document

INVALID = (422, "MANIFEST_INVALID", False)
AMBIGUOUS = (409, "AMBIGUOUS", False)
UNKNOWN = (404, "MANIFEST_UNKNOWN", False)


IDENTITY = Identity("oci", ["/the/layout"])


def source_of(
    path: Path,
    ref_name: str | None = None,
    position: int | None = None,
    reference: str | None = None,
) -> OciLayout:
    """Return the layout at a path; `reference` is the registry's image that it stands in for."""
    name = LayoutName("oci", str(path), ref_name, position)
    stands_for = parse_reference(reference) if reference else None
    return OciLayout(name, Directory(str(path)), IDENTITY, stands_for)


async def root_of(
    layout: Layout,
    ref_name: str | None = None,
    position: int | None = None,
    reference: str | None = None,
) -> Document:
    return await source_of(layout.path, ref_name, position, reference).root()


async def failure_of(
    layout: Layout,
    ref_name: str | None = None,
    position: int | None = None,
    reference: str | None = None,
) -> Failure:
    with pytest.raises(Failure) as raised:
        await root_of(layout, ref_name, position, reference)
    return raised.value


def three(layout: Layout) -> list[Json]:
    """Offer three images: `a`, `b`, and one without a name."""
    images = [layout.image(bytes([n])) for n in range(3)]
    entries = [named(images[0], "a"), on(named(images[1], "b"), "linux/arm/v7"), images[2]]
    layout.save(*entries)
    return entries


@real_time
async def test_all_of_it_is_searched_where_no_image_is_named(layout: Layout) -> None:
    first, second, third = three(layout)
    layout.save(first, named(second, "b"), third)
    index = (layout.path / "index.json").read_bytes()
    assert (await source_of(layout.path).everything()).raw == index
    for found in (source_of(layout.path, "b"), source_of(layout.path, position=1)):
        assert (await found.everything()).raw == layout.read(second["digest"])


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
    platforms = ["linux/amd64", "linux/arm/v7", "linux/amd64"]  # in configs, but for the second
    names = ["a", "b", None]
    assert failure.detail["choices"] == [
        {
            "position": f"@{n}",
            "name": name,
            "names": [name] if name else [],
            "digest": entry["digest"],
            "kind": "image",
            "mediaType": entry["mediaType"],
            "artifactType": None,
            "platform": platform,
            "annotations": entry.get("annotations", {}),
            "size": entry["size"],
            "path": [],
        }
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
    assert "(:n9)" in failure.message
    assert "n10" not in failure.message
    assert failure.message.endswith(" and 15 more")
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


EMPTY = "application/vnd.oci.empty.v1+json"
COSIGN = "dev.cosignproject.cosign"


def artifact(layout: Layout, **fields: object) -> Json:
    """Return an artifact whose entry does not say that it is one."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(b"{}", EMPTY),
        "layers": [layout.add(encode(fields), "text/plain")],
        **fields,
    }
    return layout.add(encode(document), OCI_MANIFEST)


def of_oras(layout: Layout) -> tuple[Json, list[Json]]:
    """Return an index, and what oras lists beside it: its children, and what refers to it."""
    children = [on(layout.image(p.encode(), platform=p), p) for p in ("linux/amd64", "linux/arm64")]
    index = named(layout.index(*children), "v1")
    referrer = artifact(layout, artifactType="application/spdx+json", subject=children[0])
    return index, [index, *children, referrer]


def of_cosign(layout: Layout) -> tuple[Json, list[Json]]:
    """Return an image, and what `cosign save` lists beside it."""
    entries = [
        {**layout.image(kind.encode()), "annotations": {"kind": f"{COSIGN}/{kind}"}}
        for kind in ("sigs", "image", "atts")
    ]
    return entries[1], entries


def of_silence(layout: Layout) -> tuple[Json, list[Json]]:
    """Return an image, and artifacts whose entries do not say what they are."""
    image = layout.image(b"image")
    attached = layout.image(b"attached", subject=image)
    typed = artifact(layout, artifactType="application/spdx+json")
    return image, [artifact(layout), attached, image, typed]


@pytest.mark.parametrize("write", [of_oras, of_cosign, of_silence])
@pytest.mark.parametrize("reference", [None, "quay.io/acme/os:1"])
@real_time
async def test_the_only_image_is_told_from_what_accompanies_it(
    layout: Layout, write: Callable[[Layout], tuple[Json, list[Json]]], reference: str | None
) -> None:
    image, entries = write(layout)
    for order in (entries, entries[::-1]):
        layout.save(*order)
        found = await root_of(layout, reference=reference)
        assert found.raw == layout.read(image["digest"])
    for position, entry in enumerate(entries):  # whoever asks for another by its position has it
        layout.save(*entries)
        assert (await root_of(layout, position=position)).raw == layout.read(entry["digest"])


@real_time
async def test_several_artifacts_and_no_image_are_a_choice(layout: Layout) -> None:
    spdx = "application/spdx+json"
    entries = [
        {
            **artifact(layout, artifactType=spdx, n="1"),
            "annotations": {"io.containerd.image.name": "a/b"},
        },
        artifact(layout, n="2"),
        {**artifact(layout, n="3"), "artifactType": "application/x.y"},
    ]
    layout.save(*entries)
    failure = await failure_of(layout)
    assert refused(failure) == AMBIGUOUS
    choices = failure.detail["choices"]
    assert [each["artifactType"] for each in choices] == [spdx, None, "application/x.y"]
    assert [each["kind"] for each in choices] == ["artifact", "image", "artifact"]
    assert [each["names"] for each in choices] == [["a/b"], [], []]
    for words in (f"({spdx})", "(application/x.y)", ":@1"):
        assert words in failure.message


@real_time
async def test_a_document_that_is_broken_or_missing_is_no_companion(layout: Layout) -> None:
    broken = layout.add(b"{", OCI_MANIFEST)
    missing = {**layout.image(b"x"), "digest": digest_of(b"missing")}
    layout.save(broken, missing)
    failure = await failure_of(layout)
    assert refused(failure) == AMBIGUOUS
    assert [each["digest"] for each in failure.detail["choices"]] == [
        broken["digest"],
        missing["digest"],
    ]


@real_time
async def test_entries_of_other_kinds_are_no_error(layout: Layout) -> None:
    other = layout.add(b"anything", "application/vnd.example+json")
    layout.save(other, named(layout.image(b"x"), "a"))
    assert (await root_of(layout, "a")).media_type == OCI_MANIFEST
    assert (await root_of(layout, position=0)).media_type == "application/vnd.example+json"


# --- what containerd calls an image, and what a registry would ----------------------------------


def called(descriptor: Json, image_name: str, ref_name: str) -> Json:
    """Return the entry as containerd writes it: with the whole name, and the tag for OCI."""
    annotations = {"io.containerd.image.name": image_name, REF_NAME: ref_name}
    return {**descriptor, "annotations": annotations}


@pytest.mark.parametrize(
    ("ref_name", "at"),
    [
        ("docker.io/library/os:1", 0),
        ("os:1", 0),
        ("quay.io/os:1", 1),
        ("quay.io/os", 2),
        ("latest", 2),  # by the annotation that is OCI's
    ],
)
@real_time
async def test_an_image_is_found_by_what_containerd_calls_it(
    layout: Layout, ref_name: str, at: int
) -> None:
    entries = [
        called(layout.image(b"0"), "docker.io/library/os:1", "1"),
        called(layout.image(b"1"), "quay.io/os:1", "1"),
        called(layout.image(b"2"), "quay.io/os:latest", "latest"),
        layout.image(b"3"),
    ]
    layout.save(*entries)
    document = await root_of(layout, ref_name)
    assert document.raw == layout.read(entries[at]["digest"])


@real_time
async def test_the_annotation_of_the_layout_stands_before_containerd_s(layout: Layout) -> None:
    first = called(layout.image(b"0"), "quay.io/os:1", "1")
    second = named(layout.image(b"1"), "quay.io/os:1")
    layout.save(first, second)
    assert (await root_of(layout, "quay.io/os:1")).raw == layout.read(second["digest"])


@real_time
async def test_a_tag_of_two_repositories_is_ambiguous(layout: Layout) -> None:
    layout.save(
        called(layout.image(b"0"), "quay.io/a:1", "1"),
        called(layout.image(b"1"), "quay.io/b:1", "1"),
    )
    assert refused(await failure_of(layout, "1")) == AMBIGUOUS
    assert refused(await failure_of(layout, "quay.io/c:1")) == UNKNOWN
    assert refused(await failure_of(layout, "not--a---reference")) == UNKNOWN


OS = "quay.io/acme/os:1"


@pytest.mark.parametrize(
    "fits",
    [
        lambda entry: named(entry, OS),
        lambda entry: called(entry, OS, "other"),
        lambda entry: named(entry, "1"),
        lambda entry: called(entry, "not a reference", "1"),
    ],
    ids=["by its name", "by containerd's", "by its tag", "by its tag alone"],
)
@real_time
async def test_where_a_layout_stands_in_for_a_registry_the_image_is_found_by_its_name(
    layout: Layout, fits: Callable[[Json], Json]
) -> None:
    other, wanted = named(layout.image(b"0"), "2"), fits(layout.image(b"1"))
    layout.save(other, wanted)
    assert (await root_of(layout, reference=OS)).raw == layout.read(wanted["digest"])


@real_time
async def test_the_whole_name_stands_before_the_tag(layout: Layout) -> None:
    other, wanted = named(layout.image(b"0"), "1"), named(layout.image(b"1"), OS)
    layout.save(other, wanted)
    assert (await root_of(layout, reference=OS)).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize("reference", [OS, f"quay.io/acme/os@{digest_of(b'x')}"])
@real_time
async def test_the_only_image_need_not_be_called_like_the_registry_s(
    layout: Layout, reference: str
) -> None:
    entry = named(layout.image(b"x"), "whatever")
    layout.save(entry)
    assert (await root_of(layout, reference=reference)).raw == layout.read(entry["digest"])


@real_time
async def test_several_images_that_are_called_otherwise_are_ambiguous(layout: Layout) -> None:
    entries = three(layout)
    failure = await failure_of(layout, reference=OS)
    assert refused(failure) == AMBIGUOUS
    assert_offers(failure, entries)


@real_time
async def test_a_digest_names_no_entry_that_has_no_tag(layout: Layout) -> None:
    """It is searched for, and not matched by an annotation that is missing too."""
    entries = three(layout)
    failure = await failure_of(layout, reference=f"quay.io/os@{digest_of(b'x')}")
    assert refused(failure) == AMBIGUOUS
    assert_offers(failure, entries)


# --- by digest ----------------------------------------------------------------------------------


async def found_in(layout: Layout, wanted: str) -> Document:
    return await source_of(layout.path).find(digests.parse(wanted))


@pytest.mark.parametrize("depth", range(5))
@real_time
async def test_a_digest_is_found_in_the_indexes(layout: Layout, depth: int) -> None:
    wanted = entry = layout.image(b"wanted")
    for level in range(depth):
        entry = layout.index(layout.image(bytes([level])), entry)
    layout.save(entry, layout.image(b"other"))
    document = await found_in(layout, wanted["digest"])
    if depth < 4:
        assert document.raw == layout.read(wanted["digest"])
        assert [str(each) for each in document.digests] == [wanted["digest"]]
    else:  # deeper nesting is not in use, and a search must end
        assert document.raw == (layout.path / "index.json").read_bytes()


@real_time
async def test_the_only_entry_has_the_digest_or_does_not_verify(layout: Layout) -> None:
    entry = layout.save_image(b"x")
    document = await found_in(layout, entry["digest"])
    assert document.raw == layout.read(entry["digest"])
    other = digest_of(b"something else")
    document = await found_in(layout, other)
    assert document.raw == layout.read(entry["digest"])
    assert [str(each) for each in document.digests] == [entry["digest"], other]
    with pytest.raises(Failure) as raised:
        documents.verify(await found_in(layout, other))
    assert refused(raised.value) == (422, "DIGEST_INVALID", False)
    assert entry["digest"] in raised.value.message
    assert other in raised.value.message


@real_time
async def test_among_several_a_digest_that_none_has_does_not_verify(layout: Layout) -> None:
    three(layout)
    with pytest.raises(Failure) as raised:
        documents.verify(await found_in(layout, digest_of(b"something else")))
    assert refused(raised.value) == (422, "DIGEST_INVALID", False)


@real_time
async def test_an_index_that_is_missing_is_no_obstacle_to_a_search(layout: Layout) -> None:
    missing, wanted = layout.index(layout.image(b"0")), layout.image(b"1")
    layout.file(missing["digest"]).unlink()
    layout.save(missing, layout.index(wanted))
    assert (await found_in(layout, wanted["digest"])).raw == layout.read(wanted["digest"])


@real_time
async def test_a_search_looks_into_so_many_indexes_and_no_more(layout: Layout) -> None:
    wanted = layout.image(b"wanted")
    others = [layout.index(annotations={"n": str(n)}) for n in range(64)]
    layout.save(*others[1:], layout.index(wanted))
    assert (await found_in(layout, wanted["digest"])).raw == layout.read(wanted["digest"])
    layout.save(*others, layout.index(wanted))
    assert (await found_in(layout, wanted["digest"])).media_type == OCI_INDEX


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
        "but the document was sent as",
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
    assert re.search(f"{layout.path}(/|: )index.json", failure.message)


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
    reader = await source_of(layout.path).blob(describe(blob))
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
        await source_of(layout.path).blob(describe(blob))
    assert refused(raised.value) == wanted


@real_time
async def test_links_are_followed(layout: Layout, tmp_path: Path) -> None:
    entry = layout.image(b"x")
    layout.save(entry)
    elsewhere = tmp_path / "elsewhere"
    os.rename(layout.file(entry["digest"]), elsewhere)
    layout.file(entry["digest"]).symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(layout.path)
    source = source_of(tmp_path / "link")
    document = await source.root()
    assert digest_of(document.raw) == entry["digest"]
    source.close()


def test_a_layout_is_called_as_it_was_asked_for(tmp_path: Path) -> None:
    source = source_of(tmp_path / "\x1b[31m", "a")
    assert source.name == f"oci:{tmp_path}/ [31m:a"
    assert source.identity == IDENTITY

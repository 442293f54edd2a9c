"""A registry as files: manifests by tag and digest, blobs in every arrangement."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import BLOB_PATHS, layer, write_registry_tree
from support.images import OCI_LAYER, Json, Layout, digest_of, encode, on
from support.opened import (
    BLOB_UNKNOWN,
    INVALID,
    NOT_FOUND,
    TOO_LARGE,
    UNKNOWN,
    UNSUPPORTED,
    drained,
    open_descriptors,
    refusing,
    served_from,
)
from support.sources import describe
from support.streams import real_time

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.local.registry_tree import RegistryTree
from imgproxy.transports.source import Identity

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = (layer("first"), layer("second", 300_000))
WRONG = (422, "DIGEST_INVALID")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def source_at(path: Path) -> RegistryTree:
    return RegistryTree(str(path), Identity("docker", []))


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("repository", ["os", "org/team/os"])
@pytest.mark.parametrize("blobs", BLOB_PATHS)
@real_time
async def test_an_image_is_read_however_blobs_lie(
    layout: Layout, root: Path, blobs: str, repository: str
) -> None:
    entry = layout.image(*LAYERS)
    path = write_registry_tree(root, repository, "1", layout, entry, blobs=blobs)
    for each in (path, path.parent / entry["digest"]):
        source = source_at(each)
        before = open_descriptors()
        document = await source.root()
        assert document.raw == layout.read(entry["digest"])
        assert [str(digest) for digest in document.digests] == [entry["digest"]]
        assert (await served_from(source)).layers == list(LAYERS)
        assert open_descriptors() == before
        assert source.name == str(each)
        source.close()


@real_time
async def test_blobs_need_no_link(layout: Layout, root: Path) -> None:
    path = write_registry_tree(root, "os", "1", layout, layout.image(*LAYERS))
    os.unlink(root / "os" / "blobs")
    os.rename(root / "blobs", root / "os" / "blobs")
    assert (await served_from(source_at(path))).layers == list(LAYERS)


@real_time
async def test_an_index_leads_to_its_images(layout: Layout, root: Path) -> None:
    entry = on(layout.image(b"amd"), "linux/amd64")
    index = layout.index(on(layout.image(b"arm"), "linux/arm64"), layout.index(entry))
    path = write_registry_tree(root, "os", "1", layout, index)
    assert (await served_from(source_at(path))).layers == [b"amd"]


@real_time
async def test_a_manifest_may_lie_among_the_blobs(layout: Layout, root: Path) -> None:
    entry = on(layout.image(b"amd"), "linux/amd64")
    path = write_registry_tree(root, "os", "1", layout, layout.index(entry))
    os.rename(path.parent / entry["digest"], root / "blobs" / entry["digest"])
    assert (await served_from(source_at(path))).layers == [b"amd"]


@pytest.mark.parametrize("is_said", [True, False])
@real_time
async def test_a_manifest_need_not_say_what_it_is(
    layout: Layout, root: Path, *, is_said: bool
) -> None:
    document = layout.document(layout.image(*LAYERS))
    if not is_said:
        del document["mediaType"]
    entry = layout.add(encode(document), "application/vnd.oci.image.manifest.v1+json")
    path = write_registry_tree(root, "os", "1", layout, entry)
    assert (await served_from(source_at(path))).layers == list(LAYERS)


@real_time
async def test_a_tag_that_is_a_file_has_no_digest_of_its_own(layout: Layout, root: Path) -> None:
    entry = layout.image(*LAYERS)
    path = write_registry_tree(root, "os", "1", layout, entry)
    os.unlink(path)
    write(path, layout.read(entry["digest"]))
    source = source_at(path)
    assert (await source.root()).digests == ()
    assert (await served_from(source)).layers == list(LAYERS)


@pytest.mark.parametrize("name", ["latest", "sha256-0", "sha999:00", "blake3:" + "0" * 64])
@real_time
async def test_a_link_that_names_no_digest_that_can_be_computed_names_none(
    layout: Layout, root: Path, name: str
) -> None:
    entry = layout.image(*LAYERS)
    path = write_registry_tree(root, "os", "1", layout, entry)
    os.rename(path.parent / entry["digest"], path.parent / name)
    link(path, name)
    assert (await source_at(path).root()).digests == ()


@real_time
async def test_the_digest_that_a_link_leads_to_counts(layout: Layout, root: Path) -> None:
    entry, other = layout.image(*LAYERS), layout.image(b"other")
    path = write_registry_tree(root, "os", "1", layout, entry)
    write(path.parent / entry["digest"], layout.read(other["digest"]))
    with refusing(WRONG, entry["digest"], other["digest"]):
        await served_from(source_at(path))


MANIFESTS: dict[str, tuple[bytes, tuple[int, str], str]] = {
    "not JSON": (b"{", INVALID, "parsing"),
    "twice": (b'{"config":{},"config":{},"layers":[]}', INVALID, "config"),
    "nothing": (b"{}", INVALID, "mediaType"),
    "schema-1": (b'{"schemaVersion":1,"fsLayers":[]}', UNSUPPORTED, "schema 1"),
    "the tooling's own test": (b'{"mediaType":"Pass"}', UNSUPPORTED, '"Pass"'),
    "huge": (b" " * (MAX_DOCUMENT_SIZE + 1), TOO_LARGE, "more than the limit"),
}


@pytest.mark.parametrize("case", MANIFESTS)
@real_time
async def test_a_broken_manifest_is_refused(layout: Layout, root: Path, case: str) -> None:
    content, wanted, words = MANIFESTS[case]
    path = write_registry_tree(root, "os", "1", layout, layout.image(*LAYERS))
    os.unlink(path)
    write(path, content)
    with refusing(wanted, str(path), words):
        await served_from(source_at(path))


@real_time
async def test_a_tag_that_is_missing_is_not_found(layout: Layout, root: Path) -> None:
    path = write_registry_tree(root, "os", "1", layout, layout.image(*LAYERS))
    with refusing(NOT_FOUND, f"{path.parent}/2: No such file"):
        await source_at(path.parent / "2").root()


@real_time
async def test_a_message_says_where_a_blob_was_sought(layout: Layout, root: Path) -> None:
    path = write_registry_tree(root, "os", "1", layout, layout.image(*LAYERS))
    digest = digest_of(b"missing")
    encoded = digest.partition(":")[2]
    descriptor = describe({"mediaType": OCI_LAYER, "digest": digest, "size": 7})
    places = [
        f"{root}/os/blobs/{digest}",
        f"{root}/os/blobs/sha256/{encoded}",
        f"{root}/os/blobs/sha256/{encoded[:2]}/{encoded}/data",
    ]
    with refusing(BLOB_UNKNOWN, f"blob {digest} is not there", *places):
        await source_at(path).blob(descriptor)
    with refusing(UNKNOWN, f"{root}/os/manifests/{digest}", *places):
        await source_at(path).document(descriptor)


@real_time
async def test_a_blob_that_is_wrong_is_not_sought_in_other_places(
    layout: Layout, root: Path
) -> None:
    path = write_registry_tree(root, "os", "1", layout, layout.image(b"x"), blobs="as a layout")
    os.mkfifo(root / "blobs" / digest_of(b"x"))
    with refusing(UNSUPPORTED, "is a FIFO"):
        await source_at(path).blob(
            describe({"mediaType": OCI_LAYER, "digest": digest_of(b"x"), "size": 1})
        )


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("blobs", BLOB_PATHS)
@real_time
async def test_a_blob_of_any_algorithm_is_read(
    layout: Layout, root: Path, blobs: str, algorithm: str
) -> None:
    entry = layout.image(b"content", algorithm=algorithm)
    path = write_registry_tree(root, "os", "1", layout, entry, blobs=blobs)
    described: Json = layout.layers(entry)[0]
    reader = await source_at(path).blob(describe(described))
    assert reader.name == f"{path}: blob {described['digest']}"
    assert await drained(reader) == b"content"


@real_time
async def test_a_digest_is_sought(layout: Layout, root: Path) -> None:
    wanted = layout.image(b"wanted")
    index = layout.index(layout.index(wanted), layout.image(b"other"))
    path = write_registry_tree(root, "os", "1", layout, index)
    document = await source_at(path).find(digests.parse(wanted["digest"]))
    assert document.raw == layout.read(wanted["digest"])
    other = digests.compute(b"another")
    document = await source_at(path).find(other)
    assert document.raw == layout.read(index["digest"])
    assert document.digests == (digests.parse(index["digest"]), other)

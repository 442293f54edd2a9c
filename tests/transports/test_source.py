"""Every source fulfils the contract of `transports.source`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from support.archives import (
    gzipped,
    layer,
    pack,
    packed,
    saved_from,
    skopeo,
    write_dir,
    write_file,
    write_registry_tree,
)
from support.blobs import pieces_of, small_pieces
from support.images import OCI_LAYER, OCI_MANIFEST, Json, Layout, digest_of, named, on
from support.opened import BLOB_UNKNOWN, UNKNOWN, drained, open_descriptors, place_of, refusing
from support.registries import image_at, place
from support.sources import describe
from support.streams import Script, Step, answer, real_time

from imgproxy.errors import BadUpstreamError, InvalidError
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.http.ranges import Part
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.store.content_store import ContentStore
from imgproxy.store.keeper import Keeper
from imgproxy.transports.cached import CachedSource
from imgproxy.transports.kept_blobs import KeptBlobs
from imgproxy.transports.sideload import open_sideloaded
from imgproxy.verification import documents
from imgproxy.verification.known_blobs import KnownBlobs
from imgproxy.verification.verified_blob import LargeBlobs
from imgproxy.verification.verified_parts import VerifiedParts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from imgproxy.transports.source import SearchableSource, Source

LAYERS = (layer("first"), layer("second", 300_000))
REFERENCE = "registry.test/acme/os:1"
NOTHING = b"what nothing holds"


class Written(NamedTuple):
    """An image in a layout; the functions below write it to `path` in other formats."""

    layout: Layout
    image: Json
    index: Json
    path: Path


@pytest.fixture
def written(layout: Layout, tmp_path: Path) -> Written:
    image = on(layout.image(*LAYERS), "linux/amd64")
    index = layout.index(image)
    layout.save(named(index, "1"))
    return Written(layout, image, index, tmp_path / "written")


class LayoutRegistry(Script):
    """A registry that serves the content of a layout, and 404 for everything else."""

    def __init__(self, written: Written) -> None:
        super().__init__()
        self._written = written

    def play(self, origin: str, request: bytes, form: bytes) -> tuple[Step, ...]:  # noqa: ARG002
        """See `Script`."""
        kind, name = request.split(b" ", 2)[1].decode().split("/")[-2:]
        digest = self._written.index["digest"] if name == "1" else name
        if not self._written.layout.file(digest).exists():
            return (answer(404),)
        content = self._written.layout.read(digest)
        is_document = kind == "manifests"
        media_type = manifests.parse(content, "", name).media_type if is_document else None
        return (answer(body=content, content_type=media_type),)


async def open_oci(written: Written) -> Source:
    return await place_of(f"oci:{written.layout.path}:1")


async def open_oci_archive(written: Written) -> Source:
    return await place_of(f"oci-archive:{write_file(written.path, packed(written.layout))}:1")


async def open_compressed(written: Written) -> Source:
    path = write_file(written.path, gzipped(packed(written.layout)))
    return await place_of(f"oci-archive:{path}:1")


async def open_docker_archive(written: Written) -> Source:
    image = saved_from(written.layout, written.image, REFERENCE)
    return await place_of(f"docker-archive:{write_file(written.path, pack(skopeo(image)))}")


async def open_compressed_docker_archive(written: Written) -> Source:
    image = saved_from(written.layout, written.image, REFERENCE)
    path = write_file(written.path, gzipped(pack(skopeo(image))))
    return await place_of(f"docker-archive:{path}")


async def open_dir(written: Written) -> Source:
    write_dir(written.path, written.layout, written.index)
    return await place_of(f"dir:{written.path}")


async def open_sideloaded_layout(written: Written) -> Source:
    return await open_sideloaded(
        str(written.layout.path),
        parse_reference(REFERENCE),
        lambda: open_registry(written),
    )


async def open_sideloaded_tree(written: Written) -> Source:
    tree = write_registry_tree(written.path, "acme/os", "1", written.layout, written.index)
    return await open_sideloaded(str(tree), parse_reference(REFERENCE))


def open_registry(written: Written) -> Source:
    return image_at(LayoutRegistry(written), [place(REFERENCE)], REFERENCE)


async def open_docker(written: Written) -> Source:
    return open_registry(written)


async def open_stored(written: Written) -> Source:
    """Open an image of a registry whose layers are in a store."""
    store = ContentStore(str(written.path))
    store.create()
    for content in LAYERS:
        store.put(digests.compute(content), content)
    return CachedSource(open_registry(written), KeptBlobs(store, Keeper().keep))


LOCAL: dict[str, Callable[[Written], Awaitable[Source]]] = {
    "oci": open_oci,
    "oci-archive": open_oci_archive,
    "oci-archive, compressed": open_compressed,
    "docker-archive": open_docker_archive,
    "docker-archive, compressed": open_compressed_docker_archive,
    "dir": open_dir,
}
SOURCES = {
    **LOCAL,
    "sideloaded layout": open_sideloaded_layout,
    "sideloaded tree": open_sideloaded_tree,
    "docker": open_docker,
    "docker, stored": open_stored,
}
# A Docker archive has no manifests but those that are made of it.
WITH_DOCUMENTS = [kind for kind in SOURCES if not kind.startswith("docker-archive")]


async def manifest_of(source: Source) -> Manifest:
    """Return the manifest of the image, which must be the only one."""
    document = await source.root()
    parsed = manifests.parse(document.raw, document.media_type, document.name)
    if not isinstance(parsed, Manifest):
        (entry,) = parsed.manifests
        document = await source.document(entry)
        parsed = manifests.parse(document.raw, document.media_type, document.name)
    assert isinstance(parsed, Manifest)
    return parsed


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_a_source_has_a_name_and_an_identity(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    assert source.name.isprintable()
    assert kind.partition(",")[0] in source.name or " from " in source.name
    transport, scopes, reference = source.identity
    assert transport == source.name.partition(":")[0]
    assert isinstance(scopes, list)
    assert reference == (parse_reference(REFERENCE) if transport == "docker" else None)
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_the_root_is_what_the_name_refers_to(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    for _ in range(2):
        document = await source.root()
        assert document.name.isprintable()
        for each in document.digests:
            assert digests.compute(document.raw, each.algorithm) == each
        if kind in WITH_DOCUMENTS:
            assert document.raw == written.layout.read(written.index["digest"])
    assert document.reject(InvalidError("it is wrong")) is False
    source.close()


@pytest.mark.parametrize("kind", WITH_DOCUMENTS)
@real_time
async def test_a_document_is_named_by_its_descriptor(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    wanted = describe(written.image)
    document = await source.document(wanted)
    assert document.raw == written.layout.read(written.image["digest"])
    assert document.media_type == OCI_MANIFEST
    assert document.digests[0] == wanted.digest
    assert document.size == wanted.size
    assert str(wanted.digest) in document.name
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_a_blob_is_read_to_its_end_and_closed_by_the_caller(
    kind: str, written: Written
) -> None:
    source = await SOURCES[kind](written)
    for descriptor, content in zip((await manifest_of(source)).layers, LAYERS, strict=True):
        reader = await source.blob(descriptor)
        assert reader.size in (None, len(content))
        assert str(descriptor.digest) in reader.name
        assert await drained(reader, 10_000) == content
        reader.close()
        is_replaced = kind == "docker, stored"
        assert reader.reject(InvalidError("it is wrong")) is is_replaced
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_any_part_of_a_blob_is_read(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    for descriptor, content in zip((await manifest_of(source)).layers, LAYERS, strict=True):
        for offset in (1, 0, len(content) // 2, 2, len(content) - 1, len(content)):
            for stop in (None, offset + 1, offset + 40_000, len(content)):
                expected = content[offset:stop]
                if not expected:
                    continue
                reader = await source.blob(descriptor, offset, stop)
                assert reader.size in (None, len(expected))
                assert str(descriptor.digest) in reader.name
                assert await drained(reader, 10_000) == expected
    source.close()


@pytest.mark.parametrize("kind", LOCAL)
@real_time
async def test_where_a_blob_lies_is_the_same_for_each_reader_of_it(
    kind: str, written: Written
) -> None:
    source = await LOCAL[kind](written)
    origins = []
    for descriptor in (await manifest_of(source)).layers:
        readers = [await source.blob(descriptor, offset) for offset in (0, 1)]
        assert await drained(readers[0])
        origins += [each.origin for each in readers]
        readers[1].close()
    first, same, second, same_as_second = origins
    assert first is not None
    assert (first, second) == (same, same_as_second)
    assert first != second
    source.close()


@pytest.mark.parametrize("kind", ["docker", "docker, stored"])
@real_time
async def test_what_is_replaced_where_it_is_wrong_lies_nowhere(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    for descriptor in (await manifest_of(source)).layers:
        reader = await source.blob(descriptor)
        assert reader.origin is None
        reader.close()
    source.close()


# For parts of the larger layer, in place of a mebibyte.
BLOCK = 64 * 1024


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_parts_of_a_blob_are_verified_wherever_it_lies(kind: str, written: Written) -> None:
    source, (_, content) = await SOURCES[kind](written), LAYERS
    _, descriptor = (await manifest_of(source)).layers
    with small_pieces(BLOCK):
        async with trio.open_nursery() as nursery:
            known = KnownBlobs()
            large_blobs = LargeBlobs(known)
            parts = VerifiedParts(nursery, large_blobs, known)
            verified = VerifiedSource(source, large_blobs)
            size = len(content)
            for start, stop in ((200_000, 250_000), (0, 1), (size - 1, size), (0, size)):
                part = await verified.part(descriptor, Part(start, stop, size), parts)
                assert b"".join(await pieces_of(part, [])) == content[start:stop]
    source.close()


@pytest.mark.parametrize("kind", [*LOCAL, "sideloaded layout", "sideloaded tree"])
@real_time
async def test_a_layer_that_is_wrong_is_gone_wherever_it_lies(kind: str, written: Written) -> None:
    manifest = json.loads(written.layout.read(written.image["digest"]))
    layer_file = written.layout.file(manifest["layers"][1]["digest"])
    layer_file.write_bytes(LAYERS[1][:-1000] + b"!" + LAYERS[1][-999:])
    source = await SOURCES[kind](written)
    first, second = (await manifest_of(source)).layers
    with small_pieces(BLOCK):
        async with trio.open_nursery() as nursery:
            known = KnownBlobs()
            large_blobs = LargeBlobs(known)
            parts = VerifiedParts(nursery, large_blobs, known)
            verified = VerifiedSource(source, large_blobs)
            with pytest.raises(InvalidError):
                await pieces_of(await verified.blob(second), [])
            with pytest.raises(BadUpstreamError, match="found wrong before"):
                await verified.blob(second)
            with pytest.raises(BadUpstreamError, match="found wrong before"):
                await verified.part(second, Part(1, 2, second.size), parts)
            assert b"".join(await pieces_of(await verified.blob(first), [])) == LAYERS[0]
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_a_reader_may_be_closed_before_its_end(kind: str, written: Written) -> None:
    source = await SOURCES[kind](written)
    descriptor = (await manifest_of(source)).layers[-1]
    before = open_descriptors()
    unread, begun = [await source.blob(descriptor) for _ in range(2)]
    assert await begun.receive_into(memoryview(bytearray(10))) in range(1, 11)
    for reader in (unread, begun, unread, begun):
        reader.close()
    assert open_descriptors() == before
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_missing_content_is_not_found_and_nothing_stays_open(
    kind: str, written: Written
) -> None:
    source = await SOURCES[kind](written)
    await source.root()
    before = open_descriptors()
    missing = {"digest": digest_of(NOTHING), "size": len(NOTHING)}
    with refusing(UNKNOWN, missing["digest"]):
        await source.document(describe({"mediaType": OCI_MANIFEST, **missing}))
    with refusing(BLOB_UNKNOWN, missing["digest"]):
        await source.blob(describe({"mediaType": OCI_LAYER, **missing}))
    assert open_descriptors() == before
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_locations_of_signatures_have_names_and_are_not_read_yet(
    kind: str, written: Written
) -> None:
    source = await SOURCES[kind](written)
    digest = describe(written.image).digest
    before = open_descriptors()
    assert all(each.name.isprintable() for each in source.signatures(digest))
    assert open_descriptors() == before
    source.close()


@pytest.mark.parametrize("kind", SOURCES)
@real_time
async def test_a_source_may_be_closed_twice_and_holds_nothing_then(
    kind: str, written: Written
) -> None:
    before = open_descriptors()
    source = await SOURCES[kind](written)
    source.signatures(describe(written.image).digest)
    await manifest_of(source)
    for _ in range(2):
        source.close()
        assert open_descriptors() == before


@pytest.mark.parametrize("kind", LOCAL)
@real_time
async def test_a_local_source_can_be_searched_by_digest(kind: str, written: Written) -> None:
    source: SearchableSource = await LOCAL[kind](written)  # type: ignore[assignment]
    root = await source.root()
    found = await source.find(digests.compute(root.raw))
    assert found.raw == root.raw
    if kind in WITH_DOCUMENTS:
        image = await source.find(describe(written.image).digest)
        assert image.raw == written.layout.read(written.image["digest"])
    source.close()


@pytest.mark.parametrize("kind", LOCAL)
@real_time
async def test_a_search_without_success_is_rejected_by_verification(
    kind: str, written: Written
) -> None:
    source: SearchableSource = await LOCAL[kind](written)  # type: ignore[assignment]
    missing = digests.parse(digest_of(NOTHING))
    with pytest.raises(InvalidError, match=f"{missing}"):
        documents.verify(await source.find(missing))
    source.close()

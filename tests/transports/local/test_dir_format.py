"""`dir:`: skopeo's directories, whole and broken."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import layer, write_dir
from support.images import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    on,
)
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

from imgproxy.errors import AbsentError, NotFoundError
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.specs.oci.reference import DirectoryName
from imgproxy.specs.signing.signature import SigstoreSignature, SimpleSignature
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.local.dir_format import ImageDirectory
from imgproxy.transports.source import Identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = (layer("first"), layer("second", 300_000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dir"


def source_at(path: Path) -> ImageDirectory:
    return ImageDirectory(DirectoryName(str(path)), Directory(str(path)), Identity("dir", []))


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("is_docker", [False, True])
@real_time
async def test_an_image_is_read(layout: Layout, path: Path, *, is_docker: bool) -> None:
    entry = layout.image(*LAYERS, docker=is_docker)
    write_dir(path, layout, entry)
    source = source_at(path)
    document = await source.root()
    assert document.raw == layout.read(entry["digest"])
    assert (document.media_type, document.digests, document.size) == ("", (), None)
    assert document.name == f"dir:{path}: manifest.json"
    before = open_descriptors()
    served = await served_from(source)
    assert served.layers == list(LAYERS)
    assert open_descriptors() == before
    source.close()


@real_time
async def test_an_index_leads_to_its_images(layout: Layout, path: Path) -> None:
    index = layout.index(
        on(layout.image(b"arm", platform="linux/arm64"), "linux/arm64"),
        layout.index(on(layout.image(b"amd"), "linux/amd64")),
    )
    write_dir(path, layout, index)
    assert (await served_from(source_at(path))).layers == [b"amd"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@real_time
async def test_a_blob_is_named_by_its_digest(path: Path, algorithm: str) -> None:
    digest = digest_of(b"content", algorithm)
    descriptor = {"mediaType": OCI_LAYER, "digest": digest, "size": 7}
    os.mkdir(path)
    prefix = "" if algorithm == "sha256" else "sha512-"
    write(path / (prefix + digest.partition(":")[2]), b"content")
    reader = await source_at(path).blob(describe(descriptor))
    assert reader.name == f"dir:{path}: blob {digest}"
    assert await drained(reader) == b"content"


@pytest.mark.parametrize("version", [b"1.0\n", b"1.1\n", b"1.2\n", b"1.1", None])
@real_time
async def test_known_versions_and_none_are_read(
    layout: Layout, path: Path, version: bytes | None
) -> None:
    write_dir(path, layout, layout.image(*LAYERS))
    if version is None:
        os.unlink(path / "version")
    else:
        write(path / "version", b"Directory Transport Version: " + version)
    assert (await served_from(source_at(path))).layers == list(LAYERS)


VERSIONS: dict[str, tuple[bytes, tuple[int, str], str]] = {
    "later": (b"Directory Transport Version: 2.0\n", UNSUPPORTED, "Version: 2.0"),
    "later by little": (b"Directory Transport Version: 1.3\n", UNSUPPORTED, "unsupported version"),
    "empty": (b"", UNSUPPORTED, "unsupported version"),
    "no text": (b"\xff\x1b[31m\n", UNSUPPORTED, "unsupported version"),
    "more": (b"Directory Transport Version: 1.1\n\n", UNSUPPORTED, "unsupported version"),
    "huge": (b"x" * 5000, TOO_LARGE, "5000 bytes are more than the limit"),
}


@pytest.mark.parametrize("case", VERSIONS)
@real_time
async def test_other_versions_are_refused(layout: Layout, path: Path, case: str) -> None:
    content, wanted, words = VERSIONS[case]
    write_dir(path, layout, layout.image(*LAYERS))
    write(path / "version", content)
    with refusing(wanted, f"{path}", words):
        await source_at(path).root()


MANIFESTS: dict[str, tuple[bytes, tuple[int, str], str]] = {
    "not JSON": (b"{", INVALID, "parsing dir:"),
    "bom": (b"\xef\xbb\xbf{}", INVALID, "parsing dir:"),
    "twice": (b'{"config":{},"config":{},"layers":[]}', INVALID, "config"),
    "lookalike": (b'{"config":{},"Layers":[]}', INVALID, "keys are case-sensitive"),
    "nothing": (b"{}", INVALID, "mediaType"),
    "schema-1": (b'{"schemaVersion":1,"fsLayers":[]}', UNSUPPORTED, "schema 1"),
    "prettyjws": (
        b'{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1'
        b'+prettyjws"}',
        UNSUPPORTED,
        "schema 1",
    ),
    "huge": (b" " * (MAX_DOCUMENT_SIZE + 1), TOO_LARGE, "more than the limit"),
}


@pytest.mark.parametrize("case", MANIFESTS)
@real_time
async def test_a_broken_manifest_is_refused(layout: Layout, path: Path, case: str) -> None:
    content, wanted, words = MANIFESTS[case]
    write_dir(path, layout, layout.image(*LAYERS))
    write(path / "manifest.json", content)
    with refusing(wanted, f"{path}", "manifest.json", words):
        await served_from(source_at(path))


@pytest.mark.parametrize("change", ["missing", "changed", "a FIFO", "truncated"])
@real_time
async def test_a_layer_that_is_not_whole_is_refused(
    layout: Layout, path: Path, change: str
) -> None:
    write_dir(path, layout, layout.image(*LAYERS))
    place = path / digest_of(LAYERS[1]).partition(":")[2]
    os.unlink(place)
    if change == "changed":
        write(place, LAYERS[1][::-1])
    elif change == "truncated":
        write(place, LAYERS[1][:-1])
    elif change == "a FIFO":
        os.mkfifo(place)
    wanted = {
        "missing": BLOB_UNKNOWN,
        "changed": (422, "DIGEST_INVALID"),
        "truncated": TOO_LARGE,
        "a FIFO": UNSUPPORTED,
    }
    with refusing(wanted[change], digest_of(LAYERS[1]) if change != "a FIFO" else str(place)):
        await served_from(source_at(path))


@real_time
async def test_a_manifest_that_is_missing_is_unknown(layout: Layout, path: Path) -> None:
    entry = layout.image(b"amd")
    write_dir(path, layout, layout.index(on(entry, "linux/amd64")))
    os.unlink(path / f"{entry['digest'].partition(':')[2]}.manifest.json")
    with refusing(UNKNOWN, f"manifest {entry['digest']} is not there"):
        await served_from(source_at(path))


@real_time
async def test_what_is_no_directory_of_an_image_is_not_found(path: Path) -> None:
    with refusing(NOT_FOUND, f"{path}/manifest.json: No such file"):
        await source_at(path).root()


# --- by digest ----------------------------------------------------------------------------------


DESCRIBED: dict[str, Callable[[Layout], Json]] = {
    OCI_MANIFEST: lambda layout: layout.image(b"x"),
    DOCKER_MANIFEST: lambda layout: layout.image(b"x", docker=True),
}


@pytest.mark.parametrize("media_type", DESCRIBED)
@real_time
async def test_a_document_comes_as_it_was_described(
    layout: Layout, path: Path, media_type: str
) -> None:
    entry = DESCRIBED[media_type](layout)
    write_dir(path, layout, layout.index(entry))
    document = await source_at(path).document(describe(entry))
    assert document.media_type == media_type
    assert document.size == entry["size"]
    assert [str(each) for each in document.digests] == [entry["digest"]]
    assert document.name == f"dir:{path}: manifest {entry['digest']}"


@real_time
async def test_signatures_lie_beside_it_by_number(layout: Layout, path: Path) -> None:
    """The names of signatures of documents below the root begin with the digest."""
    chosen, wide = layout.image(b"x"), layout.image(b"y", algorithm="sha512")
    root = layout.index(chosen, wide)
    write_dir(path, layout, root)
    source = source_at(path)
    encoded = chosen["digest"].partition(":")[2]
    wide_name = wide["digest"].replace(":", "-")
    for name, content in (
        ("signature-1", b"\x90 of the root"),
        ("signature-2", b"\0simple-signing\nalso of the root"),
        ("signature-4", b"\x90 after a gap"),
        (f"{encoded}.signature-1", b'\0sigstore-json\n{"mimeType":"a/b","payload":"e30="}'),
        (f"{wide_name}.signature-1", b"\x90 of the other"),
    ):
        write(path / name, content)
    await source.root()
    found = {}
    for each in (root, chosen, wide):
        (place,) = source.signatures(describe(each).digest)
        found[place.name] = await place.read()
    assert found == {
        f"{path}/": [
            SimpleSignature(f"{path}/signature-1", b"\x90 of the root"),
            SimpleSignature(f"{path}/signature-2", b"also of the root"),
        ],
        f"{path}/{encoded}.": [
            SigstoreSignature(f"{path}/{encoded}.signature-1", "a/b", b"{}", {})
        ],
        f"{path}/{wide_name}.": [
            SimpleSignature(f"{path}/{wide_name}.signature-1", b"\x90 of the other")
        ],
    }


@real_time
async def test_a_config_is_no_manifest(layout: Layout, path: Path) -> None:
    write_dir(path, layout, layout.image(b"x"))
    with refusing(UNKNOWN, "manifest"):
        await source_at(path).document(
            describe({"mediaType": OCI_CONFIG, "digest": digest_of(b"x"), "size": 1})
        )


@pytest.mark.parametrize("exists", [False, True])
@real_time
async def test_an_absent_directory_is_an_absent_image(path: Path, *, exists: bool) -> None:
    if exists:
        os.mkdir(path)
    source = source_at(path)
    with pytest.raises(NotFoundError) as raised:
        await source.root()
    source.close()
    assert isinstance(raised.value, AbsentError) != exists
    assert raised.value.message == f"{path}/manifest.json: No such file or directory"

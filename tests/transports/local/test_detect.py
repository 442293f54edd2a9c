"""What a path holds, detected by its content."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    WITH_INDEX,
    Member,
    control,
    directory,
    docker_containerd,
    docker_graphdriver,
    docker_legacy,
    gzipped,
    layer,
    once,
    pack,
    packed,
    replaced,
    saved,
    skopeo,
    stored,
    write_dir,
    write_file,
    zstd_compressed,
)
from support.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from support.opened import (
    AMBIGUOUS,
    BROKEN,
    INVALID,
    NOT_FOUND,
    UNKNOWN,
    UNSUPPORTED,
    open_descriptors,
    place_of,
    refusing,
    served_from,
)
from support.streams import real_time

from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.local.detect import open_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = (layer("first"), layer("second", 300_000))
IMAGE = saved(*LAYERS, tags=["example.com/os:1"])
OTHER = saved(layer("other"), tags=["nginx:latest"])
WRONG = (422, "DIGEST_INVALID")

# The name of a file does not matter.
NAMES = ["image", "image.tar", "image.tar.gz", "image.zst", "image.json", "manifest.json"]


# --- what a path is -----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["oci", "docker"])
@real_time
async def test_an_archive_is_recognised_in_every_compression(
    layout: Layout, tmp_path: Path, kind: str, compression: str
) -> None:
    layout.save(named(layout.image(*LAYERS), "os"))
    content = packed(layout) if kind == "oci" else pack(skopeo(IMAGE))
    name = random.Random(compression).choice(NAMES)
    path = write_file(tmp_path / name, COMPRESSIONS[compression](content))
    source = await place_of(path)
    assert source.name == f"{kind}-archive:{path}"
    assert (await served_from(source)).layers == list(LAYERS)
    source.close()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tail", ["", ":example.com/os:1", ":@0"])
@real_time
async def test_an_archive_of_docker_is_recognised(tmp_path: Path, dialect: str, tail: str) -> None:
    path = write_file(tmp_path / "image", pack(DIALECTS[dialect](IMAGE)))
    source = await place_of(path + tail)
    transport = "oci-archive" if dialect in WITH_INDEX else "docker-archive"
    assert source.name == f"{transport}:{path}{tail}"
    served = await served_from(source)
    assert served.config == IMAGE.config
    assert served.layers == [stored(dialect, each) for each in LAYERS]
    source.close()


@real_time
async def test_directories_are_recognised(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    write_dir(tmp_path / "dir", layout, entry)
    for path, transport in ((layout.path, "oci"), (tmp_path / "dir", "dir")):
        source = await place_of(str(path))
        assert source.name == f"{transport}:{path}"
        assert source.identity.transport == transport
        assert source.identity.scopes[:2] == [str(path), str(tmp_path)]
        assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_links_to_images_are_followed(layout: Layout, tmp_path: Path) -> None:
    layout.save_image(*LAYERS)
    archive = write_file(tmp_path / "store" / "archive", gzipped(packed(layout)))
    for target in (str(layout.path), archive):
        link = tmp_path / "link"
        os.symlink(target, link)
        source = await place_of(str(link))
        assert source.identity.scopes[0] == target
        assert (await served_from(source)).layers == list(LAYERS)
        source.close()
        os.unlink(link)


@real_time
async def test_what_policies_call_an_archive(layout: Layout, tmp_path: Path) -> None:
    layout.save_image(*LAYERS)
    path = write_file(tmp_path / "x" / "oci", packed(layout))
    source = await place_of(f"oci-archive:{path}")
    assert source.identity.transport == "oci-archive"
    assert source.identity.scopes[:2] == [path, str(tmp_path / "x")]
    path = write_file(tmp_path / "docker", pack(skopeo(IMAGE)))
    assert (await place_of(f"docker-archive:{path}")).identity == ("docker-archive", [], None)


PLACES: dict[str, tuple[Callable[[Path], object], tuple[int, str], str]] = {
    "missing": (lambda _: None, NOT_FOUND, "No such file or directory"),
    "fifo": (os.mkfifo, UNSUPPORTED, "is a FIFO, not a regular file"),
    "device": (
        lambda path: path.symlink_to("/dev/null"),
        UNSUPPORTED,
        "is a character device, not a regular file",
    ),
    "directory": (
        os.mkdir,
        UNSUPPORTED,
        "is a directory, but neither an OCI layout (it has no index.json) nor a dir: (it has no",
    ),
    "a loop": (lambda path: path.symlink_to(path), (422, "PATH_INVALID"), "Too many levels"),
    "text": (lambda path: write_file(path, b"#!/bin/sh\n"), UNSUPPORTED, "is not a tar archive"),
    "empty": (lambda path: write_file(path, b""), UNSUPPORTED, "is not a tar archive"),
    "compressed text": (
        lambda path: write_file(path, gzipped(b"x" * 999)),
        UNSUPPORTED,
        "not a tar",
    ),
    "nothing": (
        lambda path: write_file(path, pack([Member("etc/passwd"), Member("x")])),
        UNSUPPORTED,
        "has neither manifest.json nor index.json, so it is not an image (it has: etc/passwd, x)",
    ),
    "nothing-at-all": (
        lambda path: write_file(path, pack([])),
        UNSUPPORTED,
        "so it is not an image (it has: nothing)",
    ),
    "repositories": (
        lambda path: write_file(path, pack(replaced(docker_legacy(IMAGE), "manifest.json"))),
        UNSUPPORTED,
        "was saved by Docker before version 1.10, in a format that is not supported; load it",
    ),
}


@pytest.mark.parametrize("case", PLACES)
@real_time
async def test_what_is_no_image_is_refused(tmp_path: Path, case: str) -> None:
    make, wanted, words = PLACES[case]
    path = tmp_path / "place"
    make(path)
    before = open_descriptors()
    with refusing(wanted, str(path), words):
        await place_of(str(path))
    reference = parse_reference("example.com/os:1")
    with refusing(wanted, str(path), words):
        await open_path(str(path), reference)
    assert open_descriptors() == before


@pytest.mark.parametrize("form", ["oci:{}", "oci:{}:os", "dir:{}"])
@pytest.mark.parametrize("is_link", [False, True])
@real_time
async def test_a_file_is_no_directory_and_the_way_out_is_told(
    tmp_path: Path, form: str, *, is_link: bool
) -> None:
    path = write_file(tmp_path / "file", pack(skopeo(IMAGE)))
    if is_link:
        os.symlink(path, tmp_path / "link")
        path = str(tmp_path / "link")
    with refusing(
        UNSUPPORTED,
        f"{path} is a file, not a directory; read it with oci-archive: or docker-archive:",
    ):
        await place_of(form.format(path))


# --- what was probably meant ---------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["", "oci:", "oci-archive:", "docker-archive:"])
@real_time
async def test_a_path_that_was_cut_at_a_colon_is_told(tmp_path: Path, transport: str) -> None:
    (tmp_path / "localhost:5000/acme/app:1.36").mkdir(parents=True)
    way_out = f"there is {tmp_path}/localhost:5000, but what follows a colon is no part of the path"
    with refusing(NOT_FOUND, f"{tmp_path}/localhost", way_out, "or use dir:") as raised:
        source = await place_of(f"{transport}{tmp_path}/localhost:5000/acme/app")
        await source.root()
    assert raised.value.code == "NOT_FOUND"
    with refusing(NOT_FOUND) as raised:
        await (await place_of(f"{transport}{tmp_path}/other:5000")).root()
    assert "colon" not in raised.value.message


def renamed(members: list[Member], rename: Callable[[str], str]) -> list[Member]:
    return [each._replace(name=rename(each.name)) for each in members]


@pytest.mark.parametrize("control", ["manifest.json", "index.json"])
@pytest.mark.parametrize("transport", ["", "oci-archive:", "docker-archive:"])
@real_time
async def test_an_archive_that_was_packed_with_its_directory_is_told(
    tmp_path: Path, control: str, transport: str
) -> None:
    members = [
        each for each in docker_graphdriver(IMAGE) if each.name.startswith(("blobs", control))
    ]
    for prefix in ("./saved/", "saved/"):
        packed = pack(renamed(members, lambda name: f"{prefix}{name}"))  # noqa: B023  (called here)
        path = write_file(tmp_path / "image", packed)
        with refusing(UNSUPPORTED, f"it has saved/{control}", "pack it again with tar -C saved"):
            await place_of(f"{transport}{path}")


@pytest.mark.parametrize("names", [[".dockerenv", "x"], ["bin", "etc", "usr", "var"]])
@real_time
async def test_the_files_of_a_container_are_told(tmp_path: Path, names: list[str]) -> None:
    path = write_file(tmp_path / "image", pack([directory(each) for each in names]))
    with refusing(UNSUPPORTED, "docker export writes", "docker save"):
        await place_of(path)


@pytest.mark.parametrize("form", ["{}", "dir:{}"])
@real_time
async def test_what_docker_save_wrote_and_was_unpacked_is_told(tmp_path: Path, form: str) -> None:
    for member in docker_legacy(IMAGE):
        if member.kind == b"0":
            write_file(tmp_path / "saved" / member.name, member.content)
    with refusing(UNSUPPORTED, "docker save", "unpacked", "tar -C", "docker-archive:FILE"):
        await (await place_of(form.format(tmp_path / "saved"))).root()


@pytest.mark.parametrize("is_archive", [True, False])
@real_time
async def test_backslashes_in_names_are_told(
    tmp_path: Path, layout: Layout, *, is_archive: bool
) -> None:
    layout.save_image(b"x")
    if is_archive:
        members = [
            Member(str(file.relative_to(layout.path)).replace("/", "\\"), file.read_bytes())
            for file in layout.path.rglob("*")
            if file.is_file()
        ]
        name = f"oci-archive:{write_file(tmp_path / 'image', pack(members))}"
    else:
        for file in [*layout.path.glob("blobs/*/*")]:
            file.rename(layout.path / str(file.relative_to(layout.path)).replace("/", "\\"))
        name = f"oci:{layout.path}"
    with refusing(UNKNOWN, "with backslashes in its name", "Windows"):
        await (await place_of(name)).root()


# --- archives that can be read in two ways ------------------------------------------------------


def index_of(*entries: Json) -> Member:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return control("index.json", document)


def without_layers() -> list[Member]:
    """Return what Docker 25.0.0 wrote: an OCI manifest without layers beside a manifest.json."""
    config = {"mediaType": OCI_CONFIG, "digest": digest_of(IMAGE.config)}
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {**config, "size": len(IMAGE.config)},
            "layers": [],
        }
    )
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    members = replaced(docker_graphdriver(IMAGE), "index.json", index_of(entry))
    return [*members, Member(f"blobs/sha256/{entry['digest'][7:]}", manifest)]


def with_sizes(change: Callable[[Json], None]) -> list[Member]:
    """Return what Docker 25.0.1 wrote: a manifest that an index.json names, with wrong sizes."""
    layers = [
        {"mediaType": OCI_LAYER, "digest": digest_of(each), "size": len(each)} for each in LAYERS
    ]
    config = {
        "mediaType": OCI_CONFIG,
        "digest": digest_of(IMAGE.config),
        "size": len(IMAGE.config),
    }
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": layers,
    }
    change(document)
    manifest = encode(document)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    change(entry)
    members = replaced(docker_graphdriver(IMAGE), "index.json", index_of(entry))
    return once([*members, Member(f"blobs/sha256/{entry['digest'][7:]}", manifest)])


def wrong_layer(document: Json) -> None:
    if "layers" in document:
        document["layers"][1]["size"] += 1


def wrong_config(document: Json) -> None:
    if "config" in document:
        document["config"]["size"] = 0


def wrong_manifest(document: Json) -> None:
    if "layers" not in document:
        document["size"] -= 1


def lacking(members: list[Member], content: bytes) -> list[Member]:
    return [each for each in members if each.content != content]


FALLING_BACK: dict[str, list[Member]] = {
    "null": replaced(
        docker_graphdriver(IMAGE), "index.json", control("index.json", {"manifests": None})
    ),
    "nothing": replaced(docker_graphdriver(IMAGE), "index.json", index_of()),
    "no layers": without_layers(),
    "manifests-not-there": [
        *replaced(skopeo(IMAGE), "x"),
        index_of({"mediaType": OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1}),
    ],
    "the size of a layer is wrong": with_sizes(wrong_layer),
    "the size of the config is wrong": with_sizes(wrong_config),
    "the size of the manifest is wrong": with_sizes(wrong_manifest),
    "index.json is broken": replaced(
        docker_graphdriver(IMAGE), "index.json", Member("index.json", b"{")
    ),
    "another format": replaced(
        docker_graphdriver(IMAGE),
        "index.json",
        Member("index.json", b'{"schemaVersion":1}'),
    ),
}


@pytest.mark.parametrize("case", FALLING_BACK)
@real_time
async def test_manifest_json_is_read_where_index_json_leads_nowhere(
    tmp_path: Path, case: str
) -> None:
    path = write_file(tmp_path / "image", pack(FALLING_BACK[case]))
    source = await place_of(path)
    assert source.name == f"docker-archive:{path}"
    assert (await served_from(source)).layers == list(LAYERS)
    source.close()


@real_time
async def test_an_archive_whose_sizes_are_right_is_a_layout(tmp_path: Path) -> None:
    path = write_file(tmp_path / "image", pack(with_sizes(lambda _: None)))
    source = await place_of(path)
    assert source.name == f"oci-archive:{path}"
    source.close()


@real_time
async def test_an_archive_whose_indexes_lead_to_an_image_is_a_layout(tmp_path: Path) -> None:
    """Other content that they name is missing, and is not requested."""
    path = write_file(tmp_path / "image", pack(docker_containerd(IMAGE)))
    source = await place_of(path)
    assert source.name == f"oci-archive:{path}"
    assert (await served_from(source)).config == IMAGE.config
    source.close()


@real_time
async def test_either_reading_of_an_archive_can_be_asked_for(tmp_path: Path) -> None:
    path = write_file(tmp_path / "image", pack(docker_containerd(IMAGE)))
    contents = []
    for transport in ("oci-archive", "docker-archive"):
        source = await place_of(f"{transport}:{path}")
        assert source.name == f"{transport}:{path}"
        served = await served_from(source)
        contents.append((served.config, served.layers))
        source.close()
    assert contents[0] == contents[1]


@real_time
async def test_a_docker_archive_without_manifest_json_is_read_by_its_index(
    tmp_path: Path,
) -> None:
    members = replaced(docker_graphdriver(IMAGE, OTHER), "manifest.json")
    path = write_file(tmp_path / "image", pack(members))
    for tail, image in ((":nginx", OTHER), (":example.com/os:1", IMAGE), (":@1", OTHER)):
        source = await place_of(f"docker-archive:{path}{tail}")
        assert source.identity == ("docker-archive", [], None)
        assert (await served_from(source)).config == image.config
        source.close()
    with refusing(AMBIGUOUS, ":@0", ":@1"):
        await (await place_of(f"docker-archive:{path}")).root()


@real_time
async def test_an_oci_archive_without_index_json_names_the_way_out(tmp_path: Path) -> None:
    path = write_file(tmp_path / "image", pack(skopeo(IMAGE)))
    before = open_descriptors()
    with refusing(UNSUPPORTED, f"{path} has no index.json", "read it with docker-archive:"):
        await place_of(f"oci-archive:{path}")
    path = write_file(tmp_path / "image", pack([Member("x")]))
    with refusing(UNSUPPORTED, "(it has: x)") as raised:
        await place_of(f"oci-archive:{path}")
    assert "docker-archive" not in raised.value.message
    assert open_descriptors() == before


@real_time
async def test_a_layout_with_a_broken_index_and_nothing_else_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "image", pack([Member("index.json", b'{"a":1,"a":2}')]))
    with refusing(INVALID, "index.json"):
        await (await place_of(path)).root()


@real_time
async def test_an_index_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    members = [Member("index.json", kind=b"2", target="/etc/passwd"), *skopeo(IMAGE)]
    path = write_file(tmp_path / "image", pack(members))
    with refusing(BROKEN, "leads out of the archive"):
        await (await place_of(f"oci-archive:{path}")).root()


# --- layouts in archives ------------------------------------------------------------------------


@real_time
async def test_what_an_archive_lacks_is_answered_with_what_it_has(
    layout: Layout, tmp_path: Path
) -> None:
    wanted, other = layout.image(b"amd"), layout.image(b"arm", platform="linux/arm64")
    layout.save(layout.index(on(wanted, "linux/amd64"), on(other, "linux/arm64")))
    os.unlink(layout.file(wanted["digest"]))
    source = await place_of(write_file(tmp_path / "image", packed(layout)))
    words = f"manifest {wanted['digest']} is not there"
    with refusing(UNKNOWN, words, "(there are manifests for: linux/arm64)"):
        await served_from(source)


@pytest.mark.parametrize("is_same", [True, False])
@real_time
async def test_a_name_that_stands_twice(layout: Layout, tmp_path: Path, *, is_same: bool) -> None:
    first = layout.image(*LAYERS)
    second = first if is_same else layout.image(b"another")
    layout.save(named(first, "os"), named(second, "os"))
    source = await place_of(f"oci-archive:{write_file(tmp_path / 'image', packed(layout))}:os")
    if is_same:
        assert (await served_from(source)).layers == list(LAYERS)
    else:
        with refusing(AMBIGUOUS, first["digest"], second["digest"]):
            await source.root()


@real_time
async def test_images_for_several_platforms_are_told_apart(layout: Layout, tmp_path: Path) -> None:
    layout.save(
        on(layout.image(b"arm", platform="linux/arm64"), "linux/arm64"),
        on(layout.image(b"amd"), "linux/amd64"),
    )
    source = await place_of(write_file(tmp_path / "image", zstd_compressed(packed(layout))))
    assert (await served_from(source)).layers == [b"amd"]


@real_time
async def test_several_images_and_no_name_are_ambiguous(layout: Layout, tmp_path: Path) -> None:
    entries = [layout.image(bytes([n])) for n in range(3)]
    layout.save(named(entries[0], "a"), named(entries[1], "b"), entries[2])
    path = write_file(tmp_path / "image", packed(layout))
    with refusing(AMBIGUOUS, *(each["digest"] for each in entries), ":@0 (:a)", ":@2"):
        await (await place_of(path)).root()
    served = await served_from(await place_of(f"{path}:@1"))
    assert served.layers == [b"\1"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@real_time
async def test_indexes_are_in_indexes(layout: Layout, tmp_path: Path, depth: int) -> None:
    entry = on(layout.image(*LAYERS), "linux/amd64")
    for _ in range(depth):
        entry = layout.index(entry)
    layout.save(entry)
    source = await place_of(write_file(tmp_path / "image", packed(layout)))
    assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_indexes_are_not_in_indexes_without_end(layout: Layout, tmp_path: Path) -> None:
    entry = on(layout.image(*LAYERS), "linux/amd64")
    for _ in range(5):
        entry = layout.index(entry)
    layout.save(entry)
    source = await place_of(write_file(tmp_path / "image", packed(layout)))
    with refusing(INVALID, "more than 4 indexes in one another"):
        await served_from(source)


@real_time
async def test_an_index_that_leads_to_itself_ends(tmp_path: Path) -> None:
    """No document can contain its own digest, so that one that does is not verified."""
    digest = digest_of(b"a digest of anything")
    entry = {"mediaType": OCI_INDEX, "digest": digest, "size": 0}
    inner = index_of(entry).content
    members = [index_of({**entry, "size": len(inner)}), Member(f"blobs/sha256/{digest[7:]}", inner)]
    path = write_file(tmp_path / "image", pack(members))
    with refusing(WRONG, digest):
        await served_from(await place_of(path))
    # and with a manifest.json beside it, the other reading is found without an end
    path = write_file(tmp_path / "image", pack([*members, *skopeo(IMAGE)]))
    assert (await served_from(await place_of(path))).layers == list(LAYERS)


@pytest.mark.parametrize(
    "attestation",
    [
        {"platform": {"os": "unknown", "architecture": "unknown"}},
        {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
    ],
    ids=["by platform", "by annotation"],
)
@pytest.mark.parametrize("is_there", [True, False])
@real_time
async def test_attestations_are_left_out(
    layout: Layout, tmp_path: Path, attestation: Json, *, is_there: bool
) -> None:
    beside = layout.image(b"in-toto")
    layout.save(layout.index({**beside, **attestation}, on(layout.image(*LAYERS), "linux/amd64")))
    if not is_there:
        os.unlink(layout.file(beside["digest"]))
    source = await place_of(write_file(tmp_path / "image", packed(layout)))
    assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_an_artifact_is_served_as_it_is(layout: Layout, tmp_path: Path) -> None:
    config = layout.add(b"{}", "application/vnd.oci.empty.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example+type",
        "config": config,
        "layers": [layout.add(b"anything", "application/vnd.example.layer")],
    }
    entry = layout.add(encode(manifest), OCI_MANIFEST)
    layout.save(entry)
    served = await served_from(await place_of(write_file(tmp_path / "image", packed(layout))))
    assert served.manifest == layout.read(entry["digest"])
    assert served.layers == [b"anything"]

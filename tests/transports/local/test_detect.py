"""What lies at a path, told by its content; and images of a registry that lie here."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    IMAGE_NAME,
    WITH_INDEX,
    Member,
    Saved,
    control,
    docker_containerd,
    docker_graphdriver,
    docker_legacy,
    gzipped,
    layer,
    nix_layered,
    of_directory,
    pack,
    replaced,
    saved,
    saved_from,
    skopeo,
    stored,
    write_dir,
    write_registry_tree,
    zstd_compressed,
)
from support.images import (
    OCI_CONFIG,
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
from support.sources import describe
from support.streams import real_time

from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.local.detect import open_sideloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.local.detect import Sideloaded

LAYERS = (layer("first"), layer("second", 300_000))
IMAGE = saved(*LAYERS, tags=["example.com/os:1"])
OTHER = saved(layer("other"), tags=["nginx:latest"])
WRONG = (422, "DIGEST_INVALID")

# No name says what a file is.
NAMES = ["image", "image.tar", "image.tar.gz", "image.zst", "image.json", "manifest.json"]


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def packed(layout: Layout) -> bytes:
    return pack(of_directory(layout.path))


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
    path = write(tmp_path / name, COMPRESSIONS[compression](content))
    source = await place_of(path)
    assert source.name == f"{kind}-archive:{path}"
    assert (await served_from(source)).layers == list(LAYERS)
    source.close()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tail", ["", ":example.com/os:1", ":@0"])
@real_time
async def test_an_archive_of_docker_is_recognised(tmp_path: Path, dialect: str, tail: str) -> None:
    path = write(tmp_path / "image", pack(DIALECTS[dialect](IMAGE)))
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
    archive = write(tmp_path / "store" / "archive", gzipped(packed(layout)))
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
    path = write(tmp_path / "x" / "oci", packed(layout))
    source = await place_of(f"oci-archive:{path}")
    assert source.identity.transport == "oci-archive"
    assert source.identity.scopes[:2] == [path, str(tmp_path / "x")]
    path = write(tmp_path / "docker", pack(skopeo(IMAGE)))
    assert (await place_of(f"docker-archive:{path}")).identity == ("docker-archive", [], None)


PLACES: dict[str, tuple[Callable[[Path], object], tuple[int, str], str]] = {
    "missing": (lambda _: None, NOT_FOUND, "No such file or directory"),
    "E45-fifo": (os.mkfifo, UNSUPPORTED, "is a FIFO, not a regular file"),
    "E45-device": (
        lambda path: path.symlink_to("/dev/null"),
        UNSUPPORTED,
        "is a character device, not a regular file",
    ),
    "E45-directory": (
        os.mkdir,
        UNSUPPORTED,
        "is a directory and no OCI layout (it has no index.json), nor does it have the manifest",
    ),
    "a loop": (lambda path: path.symlink_to(path), (422, "PATH_INVALID"), "Too many levels"),
    "text": (lambda path: write(path, b"#!/bin/sh\n"), UNSUPPORTED, "is no tar archive"),
    "empty": (lambda path: write(path, b""), UNSUPPORTED, "is no tar archive"),
    "compressed text": (lambda path: write(path, gzipped(b"x" * 999)), UNSUPPORTED, "no tar"),
    "E15-nothing": (
        lambda path: write(path, pack([Member("etc/passwd"), Member("x")])),
        UNSUPPORTED,
        "has neither manifest.json nor index.json, so it is no image (it has: etc/passwd, x)",
    ),
    "E15-nothing-at-all": (
        lambda path: write(path, pack([])),
        UNSUPPORTED,
        "so it is no image (it has: nothing)",
    ),
    "E15-repositories": (
        lambda path: write(path, pack(replaced(docker_legacy(IMAGE), "manifest.json"))),
        UNSUPPORTED,
        "was saved by Docker before version 1.10, in a format that is not read; load it",
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
        await open_sideloaded(str(path), reference)
    assert open_descriptors() == before


@pytest.mark.parametrize("form", ["oci:{}", "oci:{}:os", "dir:{}"])
@pytest.mark.parametrize("is_link", [False, True])
@real_time
async def test_a_file_is_no_directory_and_the_way_out_is_told(
    tmp_path: Path, form: str, *, is_link: bool
) -> None:
    path = write(tmp_path / "file", pack(skopeo(IMAGE)))
    if is_link:
        os.symlink(path, tmp_path / "link")
        path = str(tmp_path / "link")
    with refusing(
        UNSUPPORTED,
        f"{path} is a file, and no directory; read it with oci-archive: or docker-archive:",
    ):
        await place_of(form.format(path))


# --- archives that can be read in two ways ------------------------------------------------------


def index_of(*entries: Json) -> Member:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return control("index.json", document)


def without_layers() -> list[Member]:
    """Give what Docker 25.0.0 wrote: an OCI manifest without layers beside a manifest.json."""
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


def lacking(members: list[Member], content: bytes) -> list[Member]:
    return [each for each in members if each.content != content]


FALLING_BACK: dict[str, list[Member]] = {
    "E35-null": replaced(
        docker_graphdriver(IMAGE), "index.json", control("index.json", {"manifests": None})
    ),
    "E35-nothing": replaced(docker_graphdriver(IMAGE), "index.json", index_of()),
    "no layers": without_layers(),
    "E36-manifests-not-there": [
        *replaced(skopeo(IMAGE), "x"),
        index_of({"mediaType": OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1}),
    ],
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
    path = write(tmp_path / "image", pack(FALLING_BACK[case]))
    source = await place_of(path)
    assert source.name == f"docker-archive:{path}"
    assert (await served_from(source)).layers == list(LAYERS)
    source.close()


@real_time
async def test_an_archive_whose_indexes_lead_to_an_image_is_a_layout_e36(tmp_path: Path) -> None:
    """What else they name is not there, and nobody asks for it."""
    path = write(tmp_path / "image", pack(docker_containerd(IMAGE)))
    source = await place_of(path)
    assert source.name == f"oci-archive:{path}"
    assert (await served_from(source)).config == IMAGE.config
    source.close()


@real_time
async def test_either_reading_of_an_archive_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "image", pack(docker_containerd(IMAGE)))
    contents = []
    for transport in ("oci-archive", "docker-archive"):
        source = await place_of(f"{transport}:{path}")
        assert source.name == f"{transport}:{path}"
        served = await served_from(source)
        contents.append((served.config, served.layers))
        source.close()
    assert contents[0] == contents[1]


@real_time
async def test_a_docker_archive_without_manifest_json_is_read_by_its_index_e15(
    tmp_path: Path,
) -> None:
    members = replaced(docker_graphdriver(IMAGE, OTHER), "manifest.json")
    path = write(tmp_path / "image", pack(members))
    for tail, image in ((":nginx", OTHER), (":example.com/os:1", IMAGE), (":@1", OTHER)):
        source = await place_of(f"docker-archive:{path}{tail}")
        assert source.identity == ("docker-archive", [], None)
        assert (await served_from(source)).config == image.config
        source.close()
    with refusing(AMBIGUOUS, ":@0", ":@1"):
        await (await place_of(f"docker-archive:{path}")).root()


@real_time
async def test_an_oci_archive_without_index_json_names_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "image", pack(skopeo(IMAGE)))
    before = open_descriptors()
    with refusing(UNSUPPORTED, f"{path} has no index.json", "read it with docker-archive:"):
        await place_of(f"oci-archive:{path}")
    path = write(tmp_path / "image", pack([Member("x")]))
    with refusing(UNSUPPORTED, "(it has: x)") as raised:
        await place_of(f"oci-archive:{path}")
    assert "docker-archive" not in raised.value.message
    assert open_descriptors() == before


@real_time
async def test_a_layout_with_a_broken_index_and_nothing_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "image", pack([Member("index.json", b'{"a":1,"a":2}')]))
    with refusing(INVALID, "index.json"):
        await (await place_of(path)).root()


@real_time
async def test_an_index_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    members = [Member("index.json", kind=b"2", target="/etc/passwd"), *skopeo(IMAGE)]
    path = write(tmp_path / "image", pack(members))
    with refusing(BROKEN, "leads out of the archive"):
        await (await place_of(f"oci-archive:{path}")).root()


# --- layouts in archives ------------------------------------------------------------------------


@real_time
async def test_what_an_archive_lacks_is_answered_with_what_it_has_e36(
    layout: Layout, tmp_path: Path
) -> None:
    wanted, other = layout.image(b"amd"), layout.image(b"arm", platform="linux/arm64")
    layout.save(layout.index(on(wanted, "linux/amd64"), on(other, "linux/arm64")))
    os.unlink(layout.file(wanted["digest"]))
    source = await place_of(write(tmp_path / "image", packed(layout)))
    words = f"manifest {wanted['digest']} is not there"
    with refusing(UNKNOWN, words, "(there are manifests for: linux/arm64)"):
        await served_from(source)


@pytest.mark.parametrize("is_same", [True, False])
@real_time
async def test_a_name_that_stands_twice_e34(
    layout: Layout, tmp_path: Path, *, is_same: bool
) -> None:
    first = layout.image(*LAYERS)
    second = first if is_same else layout.image(b"another")
    layout.save(named(first, "os"), named(second, "os"))
    source = await place_of(f"oci-archive:{write(tmp_path / 'image', packed(layout))}:os")
    if is_same:
        assert (await served_from(source)).layers == list(LAYERS)
    else:
        with refusing(AMBIGUOUS, first["digest"], second["digest"]):
            await source.root()


@real_time
async def test_images_for_several_platforms_are_told_apart_e33(
    layout: Layout, tmp_path: Path
) -> None:
    layout.save(
        on(layout.image(b"arm", platform="linux/arm64"), "linux/arm64"),
        on(layout.image(b"amd"), "linux/amd64"),
    )
    source = await place_of(write(tmp_path / "image", zstd_compressed(packed(layout))))
    assert (await served_from(source)).layers == [b"amd"]


@real_time
async def test_several_images_and_no_name_are_ambiguous_e1(layout: Layout, tmp_path: Path) -> None:
    entries = [layout.image(bytes([n])) for n in range(3)]
    layout.save(named(entries[0], "a"), named(entries[1], "b"), entries[2])
    path = write(tmp_path / "image", packed(layout))
    with refusing(AMBIGUOUS, *(each["digest"] for each in entries), ":@0 (:a)", ":@2"):
        await (await place_of(path)).root()
    served = await served_from(await place_of(f"{path}:@1"))
    assert served.layers == [b"\1"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@real_time
async def test_indexes_are_in_indexes_e5(layout: Layout, tmp_path: Path, depth: int) -> None:
    entry = on(layout.image(*LAYERS), "linux/amd64")
    for _ in range(depth):
        entry = layout.index(entry)
    layout.save(entry)
    source = await place_of(write(tmp_path / "image", packed(layout)))
    assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_indexes_are_not_in_indexes_without_end_e5(layout: Layout, tmp_path: Path) -> None:
    entry = on(layout.image(*LAYERS), "linux/amd64")
    for _ in range(5):
        entry = layout.index(entry)
    layout.save(entry)
    source = await place_of(write(tmp_path / "image", packed(layout)))
    with refusing(INVALID, "more than 4 indexes in one another"):
        await served_from(source)


@real_time
async def test_an_index_that_leads_to_itself_ends_e5(tmp_path: Path) -> None:
    """No digest can be that of a document that names it; what says so does not verify."""
    digest = digest_of(b"a digest of anything")
    entry = {"mediaType": OCI_INDEX, "digest": digest, "size": 0}
    inner = index_of(entry).content
    members = [index_of({**entry, "size": len(inner)}), Member(f"blobs/sha256/{digest[7:]}", inner)]
    path = write(tmp_path / "image", pack(members))
    with refusing(WRONG, digest):
        await served_from(await place_of(path))
    # and with a manifest.json beside it, the other reading is found without an end
    path = write(tmp_path / "image", pack([*members, *skopeo(IMAGE)]))
    assert (await served_from(await place_of(path))).layers == list(LAYERS)


@pytest.mark.parametrize(
    "attestation",
    [
        {"platform": {"os": "unknown", "architecture": "unknown"}},
        {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
    ],
    ids=["E7", "E8"],
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
    source = await place_of(write(tmp_path / "image", packed(layout)))
    assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_an_artifact_is_served_as_it_is_e30(layout: Layout, tmp_path: Path) -> None:
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
    served = await served_from(await place_of(write(tmp_path / "image", packed(layout))))
    assert served.manifest == layout.read(entry["digest"])
    assert served.layers == [b"anything"]


# --- images of a registry -----------------------------------------------------------------------


async def sideloaded(path: str | Path, name: str) -> Sideloaded:
    return await open_sideloaded(str(path), parse_reference(name))


@real_time
async def test_its_signatures_lie_beside_it_or_where_those_of_the_registry_s_are(
    layout: Layout, tmp_path: Path
) -> None:
    class Elsewhere:
        closed = 0

        def signatures(self, digest: object) -> list[object]:
            return [f"the registry's for {digest}"]

        def close(self) -> None:
            self.closed += 1

    entry = layout.save_image(b"x")
    for where, path in written(layout, entry, tmp_path).items():
        elsewhere = Elsewhere()
        source = await open_sideloaded(path, parse_reference("r.io/team/os:1"), lambda: elsewhere)  # type: ignore[arg-type, return-value]  # noqa: B023
        await source.root()
        digest = describe(entry).digest
        *beside, last = source.signatures(digest)
        assert last == f"the registry's for {digest}"
        assert [each.name for each in beside] == ([f"{path}/"] if where == "dir" else [])
        source.close()
        assert elsewhere.closed == 1


def written(layout: Layout, entry: Json, at: Path) -> dict[str, str]:
    """Write an image (or an index) of a layout in every way that it may lie here."""
    write_dir(at / "dir", layout, entry)
    return {
        "layout": str(layout.path),
        "oci-archive": write(at / "archive", packed(layout)),
        "compressed": write(at / "compressed", gzipped(packed(layout))),
        "dir": str(at / "dir"),
        "tree": str(write_registry_tree(at / "tree", "team/os", "1", layout, entry)),
        "tree by digest": str(at / "tree/team/os/manifests" / entry["digest"]),
    }


@real_time
async def test_an_image_of_a_registry_lies_here_in_any_form(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    paths = written(layout, entry, tmp_path / "at")
    paths["docker-archive"] = write(tmp_path / "docker", pack(skopeo(saved_from(layout, entry))))
    for path in paths.values():
        source = await sideloaded(path, "example.com/team/os:1")
        assert source.name.startswith("docker://example.com/team/os:1 from ")
        assert path in source.name
        served = await served_from(source)
        assert served.layers == list(LAYERS)
        source.close()


@real_time
async def test_what_policies_call_it_is_what_the_registry_calls_it(
    layout: Layout, tmp_path: Path
) -> None:
    entry = layout.save_image(*LAYERS)
    for path in written(layout, entry, tmp_path / "at").values():
        source = await sideloaded(path, "example.com/team/os:1")
        assert source.identity.transport == "docker"
        assert source.identity.scopes[:3] == [
            "example.com/team/os:1",
            "example.com/team/os",
            "example.com/team",
        ]
        source.close()


@pytest.mark.parametrize("depth", range(4))
@real_time
async def test_a_digest_is_sought_through_nested_indexes(
    layout: Layout, tmp_path: Path, depth: int
) -> None:
    wanted = on(layout.image(*LAYERS), "linux/amd64")
    entry = wanted
    for n in range(depth):
        entry = layout.index(layout.image(b"beside %d" % n), entry)
    layout.save(entry)
    for path in written(layout, entry, tmp_path / "at").values():
        source = await sideloaded(path, f"example.com/os@{wanted['digest']}")
        served = await served_from(source)
        assert served.layers == list(LAYERS)
        assert digest_of(served.manifest) == wanted["digest"]
        source.close()


@real_time
async def test_the_digest_of_an_index_leads_to_its_image(layout: Layout, tmp_path: Path) -> None:
    index = layout.index(on(layout.image(*LAYERS), "linux/amd64"))
    layout.save(index)
    for path in written(layout, index, tmp_path / "at").values():
        source = await sideloaded(path, f"example.com/os:1@{index['digest']}")
        assert (await served_from(source)).layers == list(LAYERS)
        source.close()


@real_time
async def test_an_image_that_does_not_have_the_digest_is_refused_with_both(
    layout: Layout, tmp_path: Path
) -> None:
    entry = layout.save_image(*LAYERS)
    wanted = digest_of(b"another manifest")
    for path in written(layout, entry, tmp_path / "at").values():
        source = await sideloaded(path, f"example.com/os:1@{wanted}")
        with refusing(WRONG, wanted, entry["digest"]):
            await served_from(source)
        source.close()


@real_time
async def test_an_archive_that_does_not_have_the_digest_is_refused_with_both(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "image", pack(nix_layered(IMAGE)))
    made = digest_of((await (await place_of(path)).root()).raw)
    wanted = digest_of(b"another manifest")
    with refusing(WRONG, wanted, made):
        await served_from(await sideloaded(path, f"example.com/os@{wanted}"))
    served = await served_from(await sideloaded(path, f"example.com/os@{made}"))
    assert served.layers == list(LAYERS)
    path = write(tmp_path / "image", pack(skopeo(IMAGE, OTHER)))
    with refusing(WRONG, wanted, made):
        await served_from(await sideloaded(path, f"example.com/os@{wanted}"))


@real_time
async def test_the_image_of_the_right_name_is_taken(layout: Layout, tmp_path: Path) -> None:
    """By the whole name, by containerd's, by the tag; or there is only one."""
    images = [layout.image(b"%d" % n) for n in range(4)]
    layout.save(
        named(images[0], "2"),
        named(images[1], "example.com/os:1"),
        {**images[2], "annotations": {IMAGE_NAME: "example.com/os:3", REF_NAME: "2"}},
        named(images[3], "4"),
    )
    for content in (packed(layout), gzipped(packed(layout))):
        path = write(tmp_path / "image", content)
        for tag, wanted in (("1", b"1"), ("3", b"2"), ("4", b"3")):
            source = await sideloaded(path, f"example.com/os:{tag}")
            assert (await served_from(source)).layers == [wanted]
            source.close()
        with refusing(AMBIGUOUS, "fits 2 images"):
            await (await sideloaded(path, "example.com/os:2")).root()
        with refusing(AMBIGUOUS, "fits 4 images"):
            await (await sideloaded(path, "example.com/os:5")).root()


@pytest.mark.parametrize("tags", [(), ("other:5",), ("example:0gqxjn7v2dprwmsk",)])
@real_time
async def test_the_only_image_need_not_be_called_so(tmp_path: Path, tags: tuple[str, ...]) -> None:
    """Nix calls the tag by a hash that is not the one in the name of the file."""
    image: Saved = IMAGE._replace(tags=tags)
    path = write(tmp_path / "hash-example.tar.gz", gzipped(pack(nix_layered(image))))
    served = await served_from(await sideloaded(path, "ghcr.io/acme/example:hash"))
    assert served.layers == list(LAYERS)


@real_time
async def test_a_manifest_is_one_by_its_directory_and_its_content(
    layout: Layout, tmp_path: Path
) -> None:
    entry = layout.save_image(*LAYERS)
    path = write_registry_tree(tmp_path / "tree", "os", "1", layout, entry)
    raw = layout.read(entry["digest"])
    os.unlink(path)
    write(path, b" \t\r\n" * 10 + raw)
    assert (await served_from(await sideloaded(path, "os:1"))).layers == list(LAYERS)
    archive = write(path.parent / "archive", pack(skopeo(IMAGE)))
    source = await sideloaded(archive, "os:1")
    assert source.name.endswith(f"from docker-archive:{archive}:docker.io/library/os:1")
    source.close()
    other = write(tmp_path / "elsewhere" / "1", raw)
    with refusing(UNSUPPORTED, "is no tar archive"):
        await sideloaded(other, "os:1")


@real_time
async def test_a_layout_may_lie_where_manifests_do(layout: Layout, tmp_path: Path) -> None:
    layout.save_image(*LAYERS)
    os.mkdir(tmp_path / "manifests")
    os.rename(layout.path, tmp_path / "manifests" / "1")
    source = await sideloaded(tmp_path / "manifests" / "1", "os:1")
    assert (await served_from(source)).layers == list(LAYERS)


@real_time
async def test_a_manifest_is_verified_like_the_registrys(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    path = write_registry_tree(tmp_path / "tree", "os", "1", layout, entry)
    document = json.loads(layout.read(entry["digest"]))
    document["layers"].pop()
    write(path.parent / entry["digest"], encode(document))
    with refusing(WRONG, entry["digest"]):
        await served_from(await sideloaded(path, "os:1"))
    with refusing(WRONG, entry["digest"]):
        await served_from(await sideloaded(path, f"os@{entry['digest']}"))


@real_time
async def test_a_layer_that_lies_nowhere_is_unknown(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    missing = layout.layers(entry)[1]["digest"]
    os.unlink(layout.file(missing))
    path = write(tmp_path / "image", packed(layout))
    with refusing((404, "BLOB_UNKNOWN"), f"blob {missing} is not there"):
        await served_from(await sideloaded(path, "os:1"))


@real_time
async def test_a_layer_is_described_by_its_own_type(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    path = write(tmp_path / "image", pack(skopeo(saved_from(layout, entry))))
    served = await served_from(await sideloaded(path, "os:1"))
    assert {each["mediaType"] for each in served.described} == {OCI_LAYER}

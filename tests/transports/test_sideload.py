"""Images of a registry that are read from local sources."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from support.archives import (
    IMAGE_NAME,
    Saved,
    gzipped,
    layer,
    nix_layered,
    pack,
    packed,
    saved,
    saved_from,
    skopeo,
    write_dir,
    write_file,
    write_registry_tree,
)
from support.images import (
    OCI_LAYER,
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
    UNSUPPORTED,
    place_of,
    refusing,
    served_from,
)
from support.sources import describe
from support.streams import real_time

from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports.sideload import open_sideloaded

if TYPE_CHECKING:
    from pathlib import Path

    from imgproxy.transports.sideload import Sideloaded

LAYERS = (layer("first"), layer("second", 300_000))
IMAGE = saved(*LAYERS, tags=["example.com/os:1"])
OTHER = saved(layer("other"), tags=["nginx:latest"])
WRONG = (422, "DIGEST_INVALID")


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
        in_tree = {"dir": [f"{path}/"]}.get(where, [])
        in_layout = [f"attached in {source._local.name}", f"bundles in {source._local.name}"]
        expected = in_tree if where in {"dir", "tree", "tree by digest"} else in_layout
        assert [each.name for each in beside] == expected
        source.close()
        assert elsewhere.closed == 1


def written(layout: Layout, entry: Json, at: Path) -> dict[str, str]:
    """Write an image (or an index) of a layout in every form that can be sideloaded."""
    write_dir(at / "dir", layout, entry)
    return {
        "layout": str(layout.path),
        "oci-archive": write_file(at / "archive", packed(layout)),
        "compressed": write_file(at / "compressed", gzipped(packed(layout))),
        "dir": str(at / "dir"),
        "tree": str(write_registry_tree(at / "tree", "team/os", "1", layout, entry)),
        "tree by digest": str(at / "tree/team/os/manifests" / entry["digest"]),
    }


@real_time
async def test_an_image_of_a_registry_lies_here_in_any_form(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    paths = written(layout, entry, tmp_path / "at")
    paths["docker-archive"] = write_file(
        tmp_path / "docker", pack(skopeo(saved_from(layout, entry)))
    )
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
    path = write_file(tmp_path / "image", pack(nix_layered(IMAGE)))
    made = digest_of((await (await place_of(path)).root()).raw)
    wanted = digest_of(b"another manifest")
    with refusing(WRONG, wanted, made):
        await served_from(await sideloaded(path, f"example.com/os@{wanted}"))
    served = await served_from(await sideloaded(path, f"example.com/os@{made}"))
    assert served.layers == list(LAYERS)
    path = write_file(tmp_path / "image", pack(skopeo(IMAGE, OTHER)))
    with refusing(WRONG, wanted, made):
        await served_from(await sideloaded(path, f"example.com/os@{wanted}"))


@real_time
async def test_the_image_of_the_right_name_is_taken(layout: Layout, tmp_path: Path) -> None:
    """By the full name, by that of containerd, by the tag, or as the only one."""
    images = [layout.image(b"%d" % n) for n in range(4)]
    layout.save(
        named(images[0], "2"),
        named(images[1], "example.com/os:1"),
        {**images[2], "annotations": {IMAGE_NAME: "example.com/os:3", REF_NAME: "2"}},
        named(images[3], "4"),
    )
    for content in (packed(layout), gzipped(packed(layout))):
        path = write_file(tmp_path / "image", content)
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
    """Nix uses a hash as the tag, and a different one in the name of the file."""
    image: Saved = IMAGE._replace(tags=tags)
    path = write_file(tmp_path / "hash-example.tar.gz", gzipped(pack(nix_layered(image))))
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
    write_file(path, b" \t\r\n" * 10 + raw)
    assert (await served_from(await sideloaded(path, "os:1"))).layers == list(LAYERS)
    archive = write_file(path.parent / "archive", pack(skopeo(IMAGE)))
    source = await sideloaded(archive, "os:1")
    assert source.name.endswith(f"from docker-archive:{archive}:docker.io/library/os:1")
    source.close()
    other = write_file(tmp_path / "elsewhere" / "1", raw)
    with refusing(UNSUPPORTED, "is not a tar archive"):
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
    write_file(path.parent / entry["digest"], encode(document))
    with refusing(WRONG, entry["digest"]):
        await served_from(await sideloaded(path, "os:1"))
    with refusing(WRONG, entry["digest"]):
        await served_from(await sideloaded(path, f"os@{entry['digest']}"))


@real_time
async def test_a_layer_that_lies_nowhere_is_unknown(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    missing = layout.layers(entry)[1]["digest"]
    os.unlink(layout.file(missing))
    path = write_file(tmp_path / "image", packed(layout))
    with refusing((404, "BLOB_UNKNOWN"), f"blob {missing} is not there"):
        await served_from(await sideloaded(path, "os:1"))


@real_time
async def test_a_layer_is_described_by_its_own_type(layout: Layout, tmp_path: Path) -> None:
    entry = layout.save_image(*LAYERS)
    path = write_file(tmp_path / "image", pack(skopeo(saved_from(layout, entry))))
    served = await served_from(await sideloaded(path, "os:1"))
    assert {each["mediaType"] for each in served.described} == {OCI_LAYER}

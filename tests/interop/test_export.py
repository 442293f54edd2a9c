"""`export`: archives of what layouts have, read by others, and never half of one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from support.archives import COMPRESSIONS, layer
from support.commands import Done, run
from support.damage import flip, lose
from support.images import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
    on,
)
from support.parent import COMMAND, INSECURE
from support.servers import skopeo_copy

if TYPE_CHECKING:
    from pathlib import Path

ZSTD = f"{OCI_LAYER}+zstd"
GZIP = f"{OCI_LAYER}+gzip"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def export(layout: Layout, file: Path, *options: str, ref: str = "", docker: bool = False) -> Done:
    kind = "docker-archive" if docker else "oci-archive"
    return run("export", *options, f"oci:{layout.path}{ref}", f"{kind}:{file}")


def members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {
            each.name: file.read()
            for each in archive
            if (file := archive.extractfile(each)) is not None
        }


def compressed_image(layout: Layout, *layers: tuple[bytes, str, str]) -> Json:
    """Write an image with layers as these compressions and types have them."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(content) for content, _, _ in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": [layout.add(COMPRESSIONS[how](each), kind) for each, how, kind in layers],
    }
    return layout.add(encode(manifest), OCI_MANIFEST)


def test_the_same_images_are_the_same_bytes(layout: Layout, tmp_path: Path) -> None:
    """In whatever order they came, into a file or a pipe."""
    image, other = layout.image(b"1" * 5000), layout.image(b"2" * 5000, platform="linux/arm64")
    index = layout.index(on(image, "linux/amd64"), on(other, "linux/arm64"))
    entries = [named(index, "all"), named(image, "one"), named(other, "two")]
    layout.save(*entries)
    done = export(layout, tmp_path / "a", "--format=json")
    assert done.status == 0, done.stderr
    content = (tmp_path / "a").read_bytes()
    assert done.json() == {"names": ["all", "one", "two"], "size": len(content), "missing": []}
    layout.save(*reversed(entries))
    command = [*COMMAND, "export", f"oci:{layout.path}", "oci-archive:-"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content
    found = members(content)
    assert list(found)[:3] == ["oci-layout", "index.json", "blobs/sha256/" + index["digest"][7:]]
    assert {f"sha256:{name[13:]}" for name in found if name.startswith("blobs/")} == {
        digest_of(each) for each in list(found.values())[2:]
    }
    assert json.loads(found["index.json"])["manifests"] == entries
    assert sorted(os.listdir(tmp_path)) == ["a", "layout"]


@pytest.mark.slow
def test_one_name_is_all_that_is_exported(layout: Layout, tmp_path: Path) -> None:
    wanted, other = layout.image(b"wanted"), layout.image(b"other")
    layout.save(named(wanted, "os"), named(other, "other"))
    assert export(layout, tmp_path / "a", ref=":os").status == 0
    listed = run("list", "--format=json", f"oci-archive:{tmp_path / 'a'}").json()["items"]
    assert [(each["names"], each["digest"]) for each in listed] == [(["os"], wanted["digest"])]
    skopeo_copy(f"oci-archive:{tmp_path / 'a'}", f"dir:{tmp_path / 'copy'}")


@pytest.mark.slow
def test_what_is_exported_is_not_collected_meanwhile(layout: Layout, tmp_path: Path) -> None:
    """A pipe takes less than a layer: what follows it is read after the collection."""
    layers = [bytes([n]) * 1_000_000 for n in (1, 2)]
    layout.save(named(layout.image(*layers), "os"))
    store = f"oci:{tmp_path}/store"
    assert run("pull", INSECURE, f"oci:{layout.path}:os", store).status == 0
    command = [*COMMAND, "export", f"{store}:os", "oci-archive:-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        content = process.stdout.read(1)
        assert run("rm", f"{store}:os").status == 0
        assert run("gc", store, "--grace=0", "--format=json").json()["files"] == 0
        content += process.stdout.read()
    assert process.returncode == 0
    assert {digest_of(each) for each in layers} <= {
        digest_of(each) for each in members(content).values()
    }
    assert len(run("gc", store, "--grace=0", "--format=json").json()["blobs"]) == 4


@pytest.mark.slow
def test_an_index_may_name_what_is_not_there(layout: Layout, tmp_path: Path) -> None:
    """Other tools keep some platforms of an index, and the index as it was."""
    here, gone = layout.image(b"here"), layout.image(b"gone")
    layout.save(layout.index(on(here, "linux/amd64"), on(gone, "linux/arm64")))
    lose(layout.file(gone["digest"]))
    done = export(layout, tmp_path / "a", "--format=json")
    assert (done.status, done.json()["missing"]) == (0, [gone["digest"]])
    assert gone["digest"] in done.stderr


@pytest.mark.parametrize("docker", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wrong_bytes_are_in_no_archive(layout: Layout, tmp_path: Path, *, docker: bool) -> None:
    """Not in a file, and what a pipe has got does not end as an archive does."""
    image = layout.save_image(os.urandom(3_000_000))
    (blob,) = layout.layers(image)
    flip(layout.file(blob["digest"]), 1000)
    done = export(layout, tmp_path / "a", "--format=json", docker=docker)
    assert (done.status, done.json()["errors"][0]["code"]) == (4, "DIGEST_INVALID")
    assert os.listdir(tmp_path) == ["layout"]
    kind = "docker-archive" if docker else "oci-archive"
    command = [*COMMAND, "export", f"oci:{layout.path}", f"{kind}:-"]
    piped = subprocess.run(command, capture_output=True, check=False)
    assert piped.returncode == 4
    with pytest.raises(tarfile.ReadError):
        members(piped.stdout)


@pytest.mark.slow
def test_compressed_layers_are_plain_in_a_docker_archive(layout: Layout, tmp_path: Path) -> None:
    contents = [layer("one", 3_000_000), layer("two"), layer("three")]
    image = compressed_image(
        layout,
        (contents[0], "gzip", GZIP),
        (contents[1], "zstd", ZSTD),
        (contents[2], "plain", OCI_LAYER),
    )
    layout.save(named(image, "quay.io/acme/os:1"), named(image, "plainly"))
    file = tmp_path / "a"
    done = export(layout, file, docker=True)
    assert done.status == 0, done.stderr
    found = members(file.read_bytes())
    (item,) = json.loads(found["manifest.json"])
    assert item["RepoTags"] == ["quay.io/acme/os:1"]
    assert [found[name] for name in item["Layers"]] == contents
    command = [*COMMAND, "export", f"oci:{layout.path}", "docker-archive:-"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == file.read_bytes()
    skopeo_copy(f"docker-archive:{file}:quay.io/acme/os:1", f"dir:{tmp_path / 'copy'}")
    again = run("pull", INSECURE, f"docker-archive:{file}", f"oci:{tmp_path / 'other'}:os")
    assert again.status == 0, again.stderr


@pytest.mark.slow
def test_what_inflates_to_something_else_is_refused(layout: Layout, tmp_path: Path) -> None:
    image = compressed_image(layout, (layer("one", 2_000_000), "gzip", GZIP))
    (blob,) = layout.layers(image)
    layout.file(blob["digest"]).write_bytes(COMPRESSIONS["gzip"](layer("two", 2_000_000)))
    layout.save(image)
    done = export(layout, tmp_path / "a", "--format=json", docker=True)
    assert done.status == 4
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.slow
def test_a_docker_archive_is_for_one_platform(layout: Layout, tmp_path: Path) -> None:
    one, two = layout.image(b"1"), layout.image(b"2", platform="linux/arm64")
    layout.save(layout.index(on(one, "linux/amd64"), on(two, "linux/arm64")))
    done = export(layout, tmp_path / "a", "--format=json", docker=True)
    (error,) = done.json()["errors"]
    assert (done.status, error["code"]) == (3, "AMBIGUOUS")
    assert len(error["detail"]["choices"]) == 2
    assert "--platform" in error["message"]
    done = export(layout, tmp_path / "a", "--platform=linux/arm64", docker=True)
    assert done.status == 0, done.stderr
    assert b"2" in members((tmp_path / "a").read_bytes()).values()


@pytest.mark.slow
def test_an_index_of_one_image_needs_no_choice(layout: Layout, tmp_path: Path) -> None:
    layout.save(layout.index(on(layout.image(b"1"), "linux/s390x")))
    assert export(layout, tmp_path / "a", docker=True).status == 0
    layout.save(layout.index(layout.image(b"1")))
    assert export(layout, tmp_path / "b", docker=True).status == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.slow
def test_what_docker_does_not_have_is_refused(layout: Layout, tmp_path: Path) -> None:
    artifact = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(b"{}", "application/vnd.acme.config"),
        "layers": [],
    }
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    without = {
        **artifact,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": [layout.add(b"1", OCI_LAYER)],
    }
    layout.save(
        named(layout.add(encode(artifact), OCI_MANIFEST), "artifact"),
        named(layout.add(encode(without), OCI_MANIFEST), "without"),
    )
    for ref, status, words in ((":artifact", 3, "no image"), (":without", 4, "names 0 layers")):
        done = export(layout, tmp_path / "a", ref=ref, docker=True)
        assert (done.status, words in done.stderr) == (status, True), done.stderr


@pytest.mark.slow
def test_several_layouts_are_one_archive_with_each_name_once(tmp_path: Path) -> None:
    one, two = Layout(tmp_path / "1"), Layout(tmp_path / "2")
    one.save(named(one.image(b"1"), "one"), named(one.image(b"3"), "three"))
    two.save(named(two.image(b"2"), "two"), named(two.image(b"3"), "three"))
    archive = f"oci-archive:{tmp_path / 'a'}"
    done = run("export", f"oci:{one.path}", f"oci:{two.path}", archive, "--format=json")
    assert done.json()["names"] == ["one", "three", "two"]
    two.save(named(two.image(b"2"), "one"))
    done = run("export", f"oci:{one.path}", f"oci:{two.path}", f"{archive}2")
    assert (done.status, "two images are called one" in done.stderr) == (3, True)


@pytest.mark.slow
def test_foreign_layers_may_lie_elsewhere(layout: Layout, tmp_path: Path) -> None:
    image = layout.image(b"1")
    document = layout.document(image)
    document["layers"][0]["urls"] = ["https://example.org/layer"]
    lose(layout.file(document["layers"][0]["digest"]))
    layout.save(layout.add(encode(document), OCI_MANIFEST))
    assert export(layout, tmp_path / "a").status == 0
    assert export(layout, tmp_path / "b", docker=True).status == 3


FAILED = {
    "exists": ("oci-archive:{path}/layout/index.json", "", 6, "exists"),
    "no directory": ("oci-archive:{path}/absent/a", "", 6, "No such file"),
    "absent": ("oci-archive:{path}/a", ":other", 3, "no such image"),
    "blob": ("oci-archive:{path}/a", "", 3, "is not there"),
    "platform": ("oci-archive:{path}/a --platform=linux/amd64", "", 2, "--platform chooses"),
    "json": ("oci-archive:- --format=json", "", 2, "standard output is for the archive"),
    "name": ("docker-archive:{path}/a:name:tag", "", 2, "expected oci-archive:FILE"),
    "kind": ("dir:{path}/a", "", 2, "expected oci-archive:FILE"),
    "policy": ("oci-archive:{path}/a --policy=x", "", 2, "unknown option: --policy"),
}


@pytest.mark.parametrize("case", FAILED)
def test_what_cannot_be_exported_is_told(case: str, layout: Layout, tmp_path: Path) -> None:
    arguments, ref, status, words = FAILED[case]
    image = layout.image(b"1")
    layout.save(named(image, "os"))
    lose(layout.file(layout.document(image)["config"]["digest"]))
    done = run("export", f"oci:{layout.path}{ref}", *arguments.format(path=tmp_path).split())
    assert (done.status, words in done.stderr) == (status, True), done
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.slow
def test_a_full_disk_is_the_destination_s(layout: Layout) -> None:
    """A device that is always full stands for it, which needs no root."""
    layout.save_image(os.urandom(3_000_000))
    full = os.open("/dev/full", os.O_WRONLY)
    command = [*COMMAND, "export", f"oci:{layout.path}", "oci-archive:-"]
    piped = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    os.close(full)
    assert (piped.returncode, b"No space left" in piped.stderr) == (6, True)

"""Layouts that the ecosystem's own tools have written: umoci, buildah and skopeo."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.images import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Layout,
    digest_of,
    named,
    on,
)
from support.servers import require, skopeo_copy

if TYPE_CHECKING:
    from conftest import Serve
    from support.parent import Child

Write = Callable[[Path], Layout]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Write], Layout]:
    """Return what a tool has written; it writes once, and no test changes it."""
    return functools.cache(lambda write: write(tmp_path_factory.mktemp(write.__name__)))


def run(*arguments: str) -> str:
    """Run a tool; what it prints is shown if it fails."""
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def by_umoci(directory: Path) -> Layout:
    """Make an image of two layers, one of them by an unpacked bundle."""
    umoci = require("umoci")
    path = directory / "umoci"
    image = f"{path}:one"
    run(umoci, "init", "--layout", str(path))
    run(umoci, "new", "--image", image)
    file = directory / "file"
    file.write_bytes(b"inserted" * 1000)
    run(umoci, "insert", "--rootless", "--image", image, str(file), "/file")
    run(umoci, "unpack", "--rootless", "--image", image, str(directory / "bundle"))
    (directory / "bundle/rootfs/added").write_bytes(bytes(3 << 20))
    run(umoci, "repack", "--image", image, str(directory / "bundle"))
    run(umoci, "config", "--image", image, "--config.cmd", "/bin/true")
    return Layout(path)


def by_buildah(directory: Path) -> Layout:
    """Commit a container made from nothing, in both formats, and an index of it."""
    storage = ["--storage-driver=vfs", f"--root={directory}/root", f"--runroot={directory}/run"]
    buildah = [require("buildah"), *storage]
    path = directory / "buildah"
    (directory / "file").write_bytes(b"copied" * 1000)
    container = run(*buildah, "from", "scratch").strip()
    run(*buildah, "copy", container, str(directory / "file"), "/file")
    run(*buildah, "config", "--cmd=/file", container)
    run(*buildah, "commit", "--format=oci", container, "image")
    run(*buildah, "push", "image", f"oci:{path}:one")
    run(*buildah, "commit", "--format=docker", container, f"oci:{path}:converted")
    run(*buildah, "manifest", "create", "list")
    run(*buildah, "manifest", "add", "list", "image")
    run(*buildah, "manifest", "push", "--all", "list", f"oci:{path}:index")
    return Layout(path)


def by_skopeo(directory: Path) -> Layout:
    """Copy an index with all its images, and one image of it."""
    ours = Layout(directory / "ours")
    images = [
        on(ours.image(f"for {name}".encode() * 100, platform=name), name)
        for name in ("linux/amd64", "linux/arm64", "linux/s390x")
    ]
    ours.save(named(ours.index(*images), "index"))
    path = directory / "skopeo"
    skopeo_copy(f"oci:{ours.path}:index", f"oci:{path}:index", "--all")
    skopeo_copy(f"oci:{ours.path}:index", f"oci:{path}:one", "--preserve-digests")
    return Layout(path)


def entries(layout: Layout) -> dict[str, Any]:
    """Return what the layout's index.json offers, by name."""
    document = json.loads((layout.path / "index.json").read_bytes())
    return {entry["annotations"][REF_NAME]: entry for entry in document["manifests"]}


def assert_all_is_served(child: Child, layout: Layout, digest: str) -> None:
    """Compare the manifest, the config and every layer with the layout's files."""
    reply = child.client.get("/manifest")
    content = layout.read(digest)
    assert (reply.status, reply.body) == (200, content)
    assert reply.get("Content-Type") == OCI_MANIFEST
    assert reply.get("Manifest-Digest") == digest
    assert reply.get("Manifest-Media-Type") == OCI_MANIFEST
    manifest = json.loads(content)
    config = child.client.get("/config")
    assert config.body == layout.read(manifest["config"]["digest"])
    assert config.get("Content-Type") == manifest["config"]["mediaType"]
    assert manifest["layers"]
    for layer in manifest["layers"]:
        blob = child.client.get(f"/blobs/{layer['digest']}")
        assert (blob.status, blob.body) == (200, layout.read(layer["digest"]))
        assert blob.get("Docker-Content-Digest") == layer["digest"] == digest_of(blob.body)


@pytest.mark.parametrize("write", [by_umoci, by_buildah, by_skopeo])
def test_every_image_of_a_real_layout_is_served_byte_for_byte(
    write: Write, written: Callable[[Write], Layout], serve: Serve
) -> None:
    layout = written(write)
    images = {
        name: entry for name, entry in entries(layout).items() if entry["mediaType"] != OCI_INDEX
    }
    assert images
    for name, entry in images.items():
        child = serve(f"oci:{layout.path}:{name}")
        assert_all_is_served(child, layout, entry["digest"])
        assert child.client.get("/manifest").get("Index-Digest") is None
        assert child.finish() == 0
        assert child.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("write", [by_buildah, by_skopeo])
def test_an_index_of_a_real_layout_leads_to_the_image_for_the_platform(
    write: Write, written: Callable[[Write], Layout], serve: Serve
) -> None:
    layout = written(write)
    index = entries(layout)["index"]
    for entry in layout.document(index)["manifests"]:
        wanted = f"{entry['platform']['os']}/{entry['platform']['architecture']}"
        child = serve(f"oci:{layout.path}:index", f"--platform={wanted}")
        assert_all_is_served(child, layout, entry["digest"])
        assert child.client.get("/manifest").get("Index-Digest") == index["digest"]
        assert child.finish() == 0


def test_without_an_option_the_image_for_this_host_is_chosen(layout: Layout, serve: Serve) -> None:
    machines = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "s390x": "s390x"}
    ours = machines.get(platform.machine(), platform.machine())
    images = {
        name: layout.image(name.encode(), platform=name)
        for name in ("linux/mips64", f"linux/{ours}", f"windows/{ours}")
    }
    layout.save(layout.index(*(on(image, name) for name, image in images.items())))
    child = serve(f"oci:{layout.path}")
    assert_all_is_served(child, layout, images[f"linux/{ours}"]["digest"])
    assert child.finish() == 0


def test_a_real_layout_without_a_name_asks_for_a_choice(
    written: Callable[[Write], Layout], serve: Serve
) -> None:
    layout = written(by_buildah)
    child = serve(f"oci:{layout.path}")
    reply = child.client.get("/manifest")
    assert reply.status == 409
    shown = json.dumps(reply.error["detail"]["choices"])
    for name, entry in entries(layout).items():
        assert name in shown
        assert entry["digest"] in shown
        assert name in reply.message
    assert child.finish() == 0


@pytest.mark.slow
def test_a_position_chooses_as_well_as_a_name(
    written: Callable[[Write], Layout], serve: Serve
) -> None:
    layout = written(by_buildah)
    for position, entry in enumerate(entries(layout).values()):
        child = serve(f"oci:{layout.path}:@{position}")
        reply = child.client.get("/manifest")
        expected = reply.get("Index-Digest") or reply.get("Manifest-Digest")
        assert expected == entry["digest"]
        assert child.finish() == 0
    child = serve(f"oci:{layout.path}:@{len(entries(layout))}")
    assert child.client.get("/manifest").status == 404
    assert child.finish() == 0


def test_a_name_that_is_not_there_is_a_404(
    written: Callable[[Write], Layout], serve: Serve
) -> None:
    layout = written(by_umoci)
    child = serve(f"oci:{layout.path}:two")
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    assert "one" in reply.message, "the names there are"
    assert child.finish() == 0


def test_a_layout_that_is_not_there_is_a_404(tmp_path: Path, serve: Serve) -> None:
    child = serve(f"oci:{tmp_path}/missing")
    reply = child.client.get("/manifest")
    assert reply.status == 404
    assert f"{tmp_path}/missing" in reply.message
    assert child.finish() == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_every_registered_algorithm_is_served(algorithm: str, layout: Layout, serve: Serve) -> None:
    descriptor = layout.save_image(b"one", bytes(3 << 20), algorithm=algorithm)
    child = serve(f"oci:{layout.path}")
    reply = child.client.get("/manifest")
    assert reply.get("Docker-Content-Digest") == descriptor["digest"]
    for layer in layout.layers(descriptor):
        blob = child.client.get(f"/blobs/{layer['digest']}")
        assert blob.body == layout.read(layer["digest"])
        assert blob.get("Docker-Content-Digest") == layer["digest"]
    assert child.finish() == 0


def test_a_docker_image_in_a_layout_is_relabelled(layout: Layout, serve: Serve) -> None:
    descriptor = layout.save_image(b"layer", docker=True)
    child = serve(f"oci:{layout.path}")
    reply = child.client.get("/manifest")
    assert reply.json()["mediaType"] == reply.get("Content-Type") == OCI_MANIFEST
    assert reply.get("Manifest-Media-Type") == DOCKER_MANIFEST
    assert reply.get("Manifest-Digest") == descriptor["digest"]
    assert reply.get("Docker-Content-Digest") == digest_of(reply.body)
    original = child.client.get(f"/manifests/{descriptor['digest']}")
    assert original.body == layout.read(descriptor["digest"])
    assert original.get("Content-Type") == DOCKER_MANIFEST
    assert child.finish() == 0


def test_what_the_tools_wrote_can_be_read_while_they_add_to_it(
    tmp_path: Path, serve: Serve
) -> None:
    """A layout grows by writing blobs and replacing index.json; an image that is open stays."""
    layout = by_umoci(tmp_path)
    child = serve(f"oci:{layout.path}:one")
    before = child.client.get("/manifest")
    run(require("umoci"), "config", "--image", f"{layout.path}:one", "--author", "somebody else")
    after = child.client.get("/manifest")
    assert (after.body, after.fields) == (before.body, before.fields)
    assert child.finish() == 0

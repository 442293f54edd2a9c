"""Layouts and archives between this program and others: each reads what the other has written."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.archives import gzipped, layer
from support.commands import Done, run
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
from support.parent import INSECURE
from support.registry_clients import require
from support.servers import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow  # each case starts several tools

NAME = "quay.io/acme/os:1"


class Place:
    """What a test has: an image and its index in a layout, a registry, and what was made of it."""

    def __init__(self, path: Path, address: str) -> None:
        self.path = path
        self.address = address
        self.layout = Layout(path / "layout")
        image = with_tar(self.layout, "amd64")
        index = self.layout.index(
            on(image, "linux/amd64"), on(with_tar(self.layout, "arm64"), "linux/arm64")
        )
        self.image: Json = image
        self.layout.save(named(image, "os"), named(index, "all"))
        self.run(
            "skopeo",
            "copy",
            "oci:{path}/layout:os",
            "docker://{address}/os:1",
            "--dest-tls-verify=false",
        )
        self.policy = path / "policy.json"

    def run(self, tool: str, *arguments: str) -> str:
        """Run a tool; `{path}` and `{address}` are put into its arguments."""
        filled = [
            each.format(path=self.path, address=self.address, name=NAME) for each in arguments
        ]
        done = subprocess.run(
            [require(tool), *filled],
            env={**os.environ, "HOME": str(self.path), "BUILDAH_ISOLATION": "chroot"},
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (filled, done.stderr)
        return done.stdout

    def ours(self, *arguments: str) -> Done:
        """Run this program, which has to succeed."""
        filled = [
            each.format(path=self.path, address=self.address, name=NAME) for each in arguments
        ]
        done = run(*filled)
        assert done.status == 0, (filled, done.stderr)
        return done


def with_tar(layout: Layout, architecture: str) -> Json:
    """Write an image with a true file system, compressed; return its descriptor."""
    content = layer(f"for {architecture}", 5000)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(content)]},
        "history": [{"created_by": "a test"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": [layout.add(gzipped(content), f"{OCI_LAYER}+gzip")],
    }
    return layout.add(encode(manifest), OCI_MANIFEST)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require("skopeo")
    with docker_registry(tmp_path / "registry") as address:
        yield Place(tmp_path, address)


STORAGE = ("--storage-driver=vfs", "--root={path}/storage", "--runroot={path}/run")

# What others do with a store, and with both kinds of archives.
READERS = {
    "skopeo": ("skopeo", "copy", "oci:{path}/store:{name}", "dir:{path}/copy"),
    "skopeo, all": ("skopeo", "copy", "--all", "oci:{path}/store:all", "dir:{path}/copy"),
    "skopeo, archive": ("skopeo", "copy", "oci-archive:{path}/oci.tar:{name}", "dir:{path}/copy"),
    "skopeo, all in one": ("skopeo", "copy", "--all", "oci-archive:{path}/oci.tar:all", "dir:copy"),
    "skopeo, docker": ("skopeo", "copy", "docker-archive:{path}/docker.tar:{name}", "dir:copy"),
    "umoci": (
        "umoci",
        "raw",
        "unpack",
        "--rootless",
        "--image",
        "{path}/store:{name}",
        "{path}/root",
    ),
    "umoci, list": ("umoci", "list", "--layout", "{path}/store"),
    "buildah": ("buildah", *STORAGE, "pull", "oci:{path}/store:{name}"),
    "buildah, archive": ("buildah", *STORAGE, "pull", "oci-archive:{path}/oci.tar:{name}"),
    "buildah, docker": ("buildah", *STORAGE, "pull", "docker-archive:{path}/docker.tar"),
    "crane": ("crane", "push", "--insecure", "{path}/single", "{address}/crane:1"),
    "crane, docker": ("crane", "validate", "--tarball", "{path}/docker.tar"),
    "oras": ("oras", "manifest", "fetch", "--oci-layout-path={path}/store", "{name}"),
    "oras, copy": (
        *("oras", "copy", "--from-oci-layout-path={path}/store", "--to-oci-layout"),
        *("{name}", "{path}/oras:1"),
    ),
    "regctl": ("regctl", "manifest", "get", "ocidir://{path}/single:tag"),
    "regctl, archive": (
        "regctl",
        "image",
        "import",
        "ocidir://{path}/regctl:1",
        "{path}/single.tar",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_others_read_what_was_pulled_and_exported(reader: str, place: Place) -> None:
    pull = ("pull", INSECURE, "--platform=linux/amd64", "oci:{path}/layout:os")
    place.ours(*pull, "oci:{path}/store:{name}")
    place.ours(
        "pull",
        INSECURE,
        "--platform=linux/amd64",
        "--all-platforms",
        "oci:{path}/layout:all",
        "oci:{path}/store",
    )
    place.ours(*pull, "oci:{path}/single:tag")
    place.ours("export", "oci:{path}/store", "oci-archive:{path}/oci.tar")
    place.ours("export", "oci:{path}/single", "oci-archive:{path}/single.tar")
    place.ours("export", "oci:{path}/store:{name}", "docker-archive:{path}/docker.tar")
    place.run(*READERS[reader])


# What others write, and by which name it is read.
WRITERS = {
    "skopeo": (
        [("skopeo", "copy", "oci:{path}/layout:os", "oci:{path}/made:made")],
        "oci:{path}/made:made",
    ),
    "skopeo, all": (
        [("skopeo", "copy", "--all", "oci:{path}/layout:all", "oci:{path}/made:made")],
        "oci:{path}/made:made",
    ),
    "umoci": (
        [
            ("umoci", "init", "--layout", "{path}/made"),
            ("umoci", "new", "--image", "{path}/made:made"),
        ],
        "oci:{path}/made:made",
    ),
    "buildah": (
        [
            ("buildah", *STORAGE, "pull", "oci:{path}/layout:os"),
            ("buildah", *STORAGE, "from", "--name=c", "scratch"),
            ("buildah", *STORAGE, "commit", "c", "oci:{path}/made:made"),
        ],
        "oci:{path}/made:made",
    ),
    "crane": (
        [("crane", "pull", "--insecure", "--format=oci", "{address}/os:1", "{path}/made")],
        "oci:{path}/made",
    ),
    "crane, docker": (
        [("crane", "pull", "--insecure", "{address}/os:1", "{path}/made.tar")],
        "docker-archive:{path}/made.tar",
    ),
    "oras": (
        [
            (
                "oras",
                "copy",
                "--from-plain-http",
                "--to-oci-layout",
                "{address}/os:1",
                "{path}/made:made",
            )
        ],
        "oci:{path}/made:made",
    ),
    "oras, artifact": (
        [
            (
                "oras",
                "push",
                "--oci-layout",
                "--artifact-type=application/vnd.acme",
                "{path}/made:made",
                "policy.json:text/plain",
            )
        ],
        "oci:{path}/made:made",
    ),
    "regctl": (
        [
            (
                "regctl",
                "image",
                "copy",
                "--host=reg={address},tls=disabled",
                "{address}/os:1",
                "ocidir://{path}/made:made",
            )
        ],
        "oci:{path}/made:made",
    ),
    "regctl, archive": (
        [("regctl", "image", "export", "ocidir://{path}/layout:os", "{path}/made.tar")],
        "oci-archive:{path}/made.tar",
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_others_write_is_listed_pulled_and_exported(writer: str, place: Place) -> None:
    commands, name = WRITERS[writer]
    place.policy.write_text("{}")
    for command in commands:
        place.run(*command)
    listed = place.ours("list", "--format=json", name).json()["items"]
    assert listed
    assert not any(each["problem"] for each in listed)
    every = ["--all-platforms"] if listed[0]["kind"] == "index" else []
    done = place.ours("pull", INSECURE, "--format=json", *every, name, "oci:{path}/store:os").json()
    assert done["digest"] in {each["digest"] for each in listed}
    if name.startswith("oci:"):
        place.ours("export", name, "oci-archive:{path}/a.tar")
        again = place.ours("list", "--format=json", "oci-archive:{path}/a.tar").json()["items"]
        assert [each["digest"] for each in again] == [each["digest"] for each in listed]

"""A real registry filled by skopeo with images of every kind."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.images import OCI_INDEX, Json, Layout, named, on
from support.servers import docker_registry, put_manifest, require, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@dataclass(frozen=True)
class Registry:
    """A registry at `address` over `directory`; what it was filled with, by tag.

    Everything lies in the repository `images/all`, and in `layout` as files.
    """

    address: str
    directory: Path
    layout: Layout
    images: dict[str, Json]

    def name(self, reference: str = "", address: str | None = None) -> str:
        """Give IMAGE for a reference that begins with `:` or `@`."""
        return f"docker://{address or self.address}/images/all{reference}"

    def layers(self, tag: str) -> list[Json]:
        return self.layout.layers(self.images[tag])


def noise(size: int) -> bytes:
    """Give bytes that do not compress, the same in every run."""
    source = random.Random(size)
    whole, rest = divmod(size, 64 * MIB)  # as much as it makes at once has a limit
    return b"".join(source.randbytes(each) for each in [64 * MIB] * whole + [rest])


def as_directory(layout: Layout, descriptor: Json, directory: Path) -> str:
    """Write skopeo's directory format, from which it copies Docker images as they are."""
    directory.mkdir()
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    os.link(layout.file(descriptor["digest"]), directory / "manifest.json")
    for file in layout.path.glob("blobs/sha256/*"):
        os.link(file, directory / file.name)
        os.link(file, directory / f"{file.name}.manifest.json")
    return f"dir:{directory}"


def several(layout: Layout, *, docker: bool) -> list[Json]:
    return [
        on(layout.image(f"layer for {name}".encode() * 50, platform=name, docker=docker), name)
        for name in PLATFORMS
    ]


@contextmanager
def filled_registry(directory: Path, shared: Path) -> Iterator[Registry]:
    """Run a registry with images and lists as they are, conversions by skopeo, nested indexes.

    It is filled once, in a directory that several processes share; each serves a copy.
    """
    shared.mkdir(exist_ok=True)
    listed = shared / "images.json"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not listed.exists():
            listed.write_text(json.dumps(fill(shared)))
    for part in ("data", "layout"):
        shutil.copytree(shared / part, directory / part)
    with docker_registry(directory / "data") as address:
        layout = Layout(directory / "layout")
        yield Registry(address, directory / "data", layout, json.loads(listed.read_text()))


def fill(directory: Path) -> dict[str, Json]:
    """Fill a registry over `data`, by way of a layout; return what is in it, by tag."""
    require("skopeo")
    layout = Layout(directory / "layout")
    oci, docker = several(layout, docker=False), several(layout, docker=True)
    images = {
        "latest": layout.image(b"one layer" * 99, b"and another" * 99),
        "docker": layout.image(b"one layer" * 99, noise(5000), docker=True),
        "large": layout.image(noise(12 * MIB)),
        "index": layout.index(*oci),
        "list": layout.index(*docker, docker=True),
    }
    with docker_registry(directory / "data") as address:
        registry = Registry(address, directory / "data", layout, images)
        for tag, descriptor in images.items():
            source = as_directory(layout, descriptor, directory / tag)
            skopeo_copy(source, registry.name(f":{tag}"), "--all", "--preserve-digests")
        # of layers the registry does not have, because skopeo would use those it has
        layout.save(named(layout.image(b"to compress" * 99, b"and to relabel" * 99), "source"))
        for form in ("v2s2", "oci"):
            source = f"oci:{layout.path}:source"
            skopeo_copy(source, registry.name(f":converted-{form}"), f"--format={form}")
        outer = images["index"]
        for depth in range(1, 6):
            outer = layout.index(outer, annotations={"depth": str(depth)})
            images[f"nested-{depth}"] = outer
            content = layout.read(outer["digest"])
            put_manifest(address, "images/all", f"nested-{depth}", content, OCI_INDEX)
    return images

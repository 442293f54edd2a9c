"""A registry behind a slow line, `imgproxy registry --upstream` before it, and real clients.

IMGPROXY_TEST_UPSTREAM_MIB is how large the image is.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import registry_clients, upstreams
from support.archives import Member, pack
from support.filled import MIB, Registry
from support.home import Home
from support.images import Layout
from support.servers import docker_registry, put_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.images import Json
    from support.networks import Cut
    from support.registry_clients import Containerd, Pulled
    from support.registry_doors import Door
    from support.upstreams import Scene

SIZE = int(os.environ.get("IMGPROXY_TEST_UPSTREAM_MIB", "24")) * MIB
RATE = 20e6  # bytes per second

# What is sent besides blobs: documents and heads.
SLACK = 256 * 1024

# In seconds: what all clients together may take. One that takes longer hangs.
HANGING = 300.0


@dataclass
class Stage:
    """A slow registry with an image, a cache before it, and clients at homes of their own."""

    scene: Scene
    daemon: Containerd
    directory: Path

    @property
    def layout(self) -> Layout:
        return self.scene.registry.layout

    @property
    def image(self) -> Json:
        return self.scene.registry.images["1"]

    @property
    def layers(self) -> list[str]:
        """The digests of the layers; the first one is the largest."""
        return [each["digest"] for each in self.scene.registry.layers("1")]

    @property
    def size(self) -> int:
        document = self.layout.document(self.image)
        return sum(each["size"] for each in (document["config"], *document["layers"]))

    @contextmanager
    def door(self, *options: str) -> Iterator[Door]:
        """Run the cache; clients find the image at its address."""
        where = f"--default-registry={self.scene.line.address}"
        with self.scene.door(where, *options) as door:
            yield door

    def home(self, client: str) -> Home:
        home = Home(self.directory / client)
        home.path.mkdir(exist_ok=True)
        return home

    def begin_anew(self) -> None:
        """Let all clients forget what they have, and forget what the registry was asked for."""
        for client in PULLS:
            shutil.rmtree(self.directory / client, ignore_errors=True)
        self.forget()
        line = self.scene.line
        line.passed = 0
        line.asked.clear()

    def forget(self) -> None:
        """Remove all images of containerd's."""
        for image in self.daemon.run("images", "ls", "-q").output.split():
            self.daemon.remove(image)

    def kept(self) -> int:
        """Return how many bytes of blobs the cache has, those of blobs under way as well."""
        files = [*self.scene.cache.glob("blobs/*/*"), *self.scene.cache.glob(".imgproxy/partial/*")]
        return sum(each.stat().st_size for each in files)

    def pull(self, door: Door, *clients: str) -> dict[str, Pulled]:
        """Pull the image by these clients at once, by default by all."""
        image = f"{door.address}/team/app:1"
        chosen = clients or ("containerd", *PULLS)
        with ThreadPoolExecutor(len(chosen)) as pool:
            futures = {
                each: pool.submit(self.daemon.pull, image)
                if each == "containerd"
                else pool.submit(PULLS[each], image, self.home(each))
                for each in chosen
            }
            return {each: future.result(HANGING) for each, future in futures.items()}

    def assert_pulled(self, pulled: dict[str, Pulled]) -> None:
        """Assert that all clients have the image; they have verified it themselves."""
        for client, result in pulled.items():
            assert result.status == 0, (client, result.output)
        if "skopeo" in pulled:
            copied = Layout(self.directory / "skopeo/skopeo")
            for digest in (self.image["digest"], *self.layers):
                assert copied.read(digest) == self.layout.read(digest)
        if "containerd" in pulled:
            assert {self.image["digest"], *self.layers} <= {*self.daemon.content()}

    def assert_failed(self, pulled: dict[str, Pulled]) -> None:
        """Assert that no client has the image."""
        for client, result in pulled.items():
            assert result.status != 0, (client, result.output)
        assert not {*self.layers} <= {*self.daemon.content()}

    def asked_from(self) -> dict[str, list[int]]:
        """Return from which bytes on each blob was asked for, in order."""
        found = defaultdict(list)
        for each in self.scene.line.asked:
            _, kind, digest = each.target.rpartition("/blobs/")
            if kind:
                start = each.range.removeprefix("bytes=").partition("-")[0]
                found[digest].append(int(start or 0))
        return found

    def assert_asked_once(self) -> None:
        """Assert that each blob was asked for once, and that each byte has come once."""
        assert {*map(tuple, self.asked_from().values())} == {(0,)}
        assert self.size <= self.scene.line.passed < self.size + SLACK

    def assert_gone_on_with(self, kept: int = 0) -> None:
        """Assert that what had come, `kept` bytes of it before, was never asked for again."""
        for starts in self.asked_from().values():
            assert starts == sorted(starts)
        assert self.scene.line.passed < self.size - kept + SLACK


# Those that are no daemons.
PULLS: dict[str, Callable[[str, Home], Pulled]] = {
    "skopeo": registry_clients.skopeo,
    "podman": registry_clients.podman,
    "crane": registry_clients.crane,
}


def fill(directory: Path) -> Registry:
    """Return a registry that does not run, with one image of two large layers and small ones."""
    layout = Layout(directory / "layout")
    sizes = SIZE * 2 // 3, SIZE // 3, 70_000, 10
    layers = [pack([Member(f"usr/{n}", os.urandom(size))]) for n, size in enumerate(sizes)]
    image = layout.image(*layers, platform="linux/amd64")
    with docker_registry(directory / "data") as address:
        put_image(address, "team/app:1", layout, image)
    return Registry("", directory / "data", layout, {"1": image})


@contextmanager
def staged(filled: Registry, daemon: Containerd, directory: Path, *cuts: Cut) -> Iterator[Stage]:
    """Run the registry behind a slow line with these cuts."""
    with docker_registry(filled.directory) as address:
        registry = Registry(address, filled.directory, filled.layout, filled.images)
        with upstreams.scene(registry, directory, *cuts) as scene:
            scene.line.rate = RATE
            stage = Stage(scene, daemon, directory)
            yield stage
    stage.forget()

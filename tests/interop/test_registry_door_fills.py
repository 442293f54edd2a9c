"""Blobs that many want at once from `imgproxy registry --upstream`: each byte is asked for once."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from support import upstreams
from support.damage import flip
from support.filled import MIB, noise
from support.images import Layout
from support.networks import Cut
from support.parent import eventually
from support.registry_doors import blob, manifest
from support.servers import Answering, docker_registry, http_server, put_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.filled import Registry
    from support.registry_doors import Door
    from support.upstreams import Scene

CLIENTS = 8
TAG = "large"
KEPT = "going on without the cache"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def scene(registry: Registry, tmp_path: Path) -> Iterator[Scene]:
    with upstreams.scene(registry, tmp_path) as scene:
        yield scene


@pytest.fixture
def layer(registry: Registry) -> str:
    digest: str = registry.layers(TAG)[0]["digest"]
    return digest


def layers_asked(scene: Scene, layer: str) -> list[str]:
    """Return the `Range` of each request for a layer."""
    return [each.range for each in scene.line.asked if each.target.endswith(f"/blobs/{layer}")]


def is_stored(scene: Scene, layer: str) -> bool:
    return (scene.cache / "blobs" / layer.replace(":", "/")).exists()


def assert_is_had(scene: Scene, door: Door, layer: str) -> None:
    assert door.ask(blob(scene.name, layer)).body == scene.registry.layout.read(layer)


def begin(scene: Scene, door: Door, layer: str) -> None:
    """Ask for the layer, read a part, and hang up."""
    client = door.connect()
    client.ask("GET", blob(scene.name, layer))
    assert client.head().status == 200
    client.read(64 * 1024)
    client.close()
    door.child.clients.remove(client)


# --- single flight --------------------------------------------------------------------------------


def test_many_clients_at_once_ask_for_each_byte_once(scene: Scene, layer: str) -> None:
    with scene.door() as door:
        upstreams.all_at_once(CLIENTS, lambda: scene.pull(door, TAG))
        assert layers_asked(scene, layer) == [""]
        assert scene.line.passed < len(scene.registry.layout.read(layer)) + MIB
        assert is_stored(scene, layer)  # before the end of each reply


def test_a_fill_goes_on_when_its_client_leaves(registry: Registry, tmp_path: Path) -> None:
    (layer,) = (each["digest"] for each in registry.layers(TAG))
    with upstreams.scene(registry, tmp_path) as scene, scene.door() as door:
        assert door.status(manifest(scene.name, TAG)) == 200
        begin(scene, door, layer)
        assert eventually(lambda: is_stored(scene, layer))
        assert_is_had(scene, door, layer)
        assert layers_asked(scene, layer) == [""]


@pytest.mark.slow
def test_two_processes_with_one_cache_ask_once(scene: Scene, layer: str) -> None:
    with scene.door() as one, scene.door() as two:
        doors = iter((one, two) * 2)
        turns = threading.Lock()

        def pull() -> None:
            with turns:
                door = next(doors)
            scene.pull(door, TAG)

        upstreams.all_at_once(4, pull)
        assert layers_asked(scene, layer) == [""]


# --- a registry that dies, or lies ----------------------------------------------------------------


def test_what_breaks_off_is_gone_on_with(registry: Registry, tmp_path: Path, layer: str) -> None:
    cuts = [Cut(5 * MIB, "end"), Cut(3 * MIB, "end")]
    with upstreams.scene(registry, tmp_path, *cuts) as scene, scene.door() as door:
        upstreams.all_at_once(3, lambda: scene.pull(door, TAG))
        first, *rest = layers_asked(scene, layer)
        assert first == ""
        assert len(rest) == 2
        starts = [int(each.removeprefix("bytes=").partition("-")[0]) for each in rest]
        assert starts == sorted(starts)
        assert scene.line.passed < len(registry.layout.read(layer)) + MIB


@pytest.mark.slow
def test_a_registry_that_dies_and_comes_back(
    registry: Registry, tmp_path: Path, layer: str
) -> None:
    whole = registry.layout.read(layer)
    with upstreams.scene(registry, tmp_path, Cut(5 * MIB, "reset")) as scene:
        with scene.door("--retries=0") as door:
            assert door.status(manifest(scene.name, TAG)) == 200
            reply = door.ask(blob(scene.name, layer))
            assert reply.ending == "end"
            assert whole.startswith(reply.body)
            assert len(reply.body) < len(whole)
            # What clients ask next is no part of anything that was verified, and so no 206.
            rest = door.ask(blob(scene.name, layer), f"Range: bytes={len(reply.body)}-")
            assert rest.status == 206
            assert rest.body == whole[len(reply.body) :]
        asked = layers_asked(scene, layer)
        assert len(asked) == 2
        assert asked[1].startswith("bytes=")  # it was gone on with


def test_what_is_wrong_at_its_end_is_not_given_out(scene: Scene, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    content = noise(3 * MIB)
    image = layout.image(content)
    (layer,) = layout.layers(image)
    lies = bytearray(content)
    lies[-1] ^= 1

    def get(request: Answering) -> None:
        digest = request.path.rpartition("/")[2]
        if digest == layer["digest"]:
            request.answer(200, bytes(lies))
        elif digest == "1":
            request.answer(200, layout.read(image["digest"]), Content_Type=image["mediaType"])
        else:
            request.answer(200, layout.read(digest))

    with http_server(get) as address, scene.door("--retries=0", upstream=address) as door:
        where = blob(f"{address}/x", layer["digest"])
        assert door.status(manifest(f"{address}/x", "1")) == 200

        def ask() -> None:
            reply = door.ask(where)
            assert reply.status != 200 or not reply.complete
            assert len(reply.body) < len(content)

        upstreams.all_at_once(3, ask)
        assert not is_stored(scene, layer["digest"])
        for wanted in ("0-", "1-2", "-5"):
            rest = door.ask(where, f"Range: bytes={wanted}")
            assert rest.status != 206
            assert rest.status != 200 or not rest.complete


# --- ranges ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranges_of_what_is_not_here_yet(scene: Scene, layer: str) -> None:
    whole = scene.registry.layout.read(layer)
    with scene.door() as door:
        assert door.status(manifest(scene.name, TAG)) == 200
        first = door.ask(blob(scene.name, layer), "Range: bytes=0-")
        assert (first.status, first.body) == (200, whole)
        scene.line.asked.clear()
        part = door.ask(blob(scene.name, layer), "Range: bytes=100-199")
        assert (part.status, part.body) == (206, whole[100:200])
    with scene.door() as door:
        part = door.ask(blob(scene.name, layer), "Range: bytes=5-9")
        assert (part.status, part.body) == (206, whole[5:10])
    assert layers_asked(scene, layer) == []


def test_a_range_of_what_was_removed_fetches_it_once_for_all(scene: Scene, layer: str) -> None:
    whole = scene.registry.layout.read(layer)
    with scene.door() as door:
        scene.pull(door, TAG)
        (scene.cache / "blobs" / layer.replace(":", "/")).unlink()
        scene.line.asked.clear()
        for start in (len(whole) // 2, 5, 0):
            part = door.ask(blob(scene.name, layer), f"Range: bytes={start}-{start + 99}")
            assert (part.status, part.body) == (206, whole[start : start + 100])
        assert layers_asked(scene, layer) == [""]


@pytest.mark.slow
def test_a_range_that_comes_first_waits_for_all_of_it(scene: Scene, layer: str) -> None:
    whole = scene.registry.layout.read(layer)
    with scene.door() as door:
        assert door.status(manifest(scene.name, TAG)) == 200

        def ask() -> None:
            part = door.ask(blob(scene.name, layer), "Range: bytes=1000-")
            assert (part.status, part.body) == (206, whole[1000:])

        upstreams.all_at_once(4, ask)
        assert layers_asked(scene, layer) == [""]


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_pulled_before_makes_room_for_what_is_pulled_now(scene: Scene, layer: str) -> None:
    """One image alone fills the cache; another one takes its place once it is not in use."""
    other = scene.registry.layers("latest")[0]["digest"]
    with scene.door("--cache-size=12MiB") as door:
        scene.pull(door, TAG)

        def is_gone() -> bool:
            for each in (scene.cache / "blobs").glob(f"*/{other.partition(':')[2]}"):
                each.unlink()
            assert door.status(manifest(scene.name, "latest")) == 200
            assert_is_had(scene, door, other)  # which makes room
            return not is_stored(scene, layer)

        assert not is_gone()
        assert eventually(is_gone, 300)
        assert_is_had(scene, door, layer)


def test_rot_on_disk_is_noticed_and_fetched_again(scene: Scene, layer: str) -> None:
    small = scene.registry.layers("latest")[0]["digest"]
    with scene.door() as door:
        for tag in (TAG, "latest"):
            scene.pull(door, tag)
        for digest in (layer, small):
            file = scene.cache / "blobs" / digest.replace(":", "/")
            file.chmod(0o600)
            flip(file, -3)
        # A small one is verified before its head, and so fetched again for the same request.
        assert_is_had(scene, door, small)
        reply = door.ask(blob(scene.name, layer))
        assert len(reply.body) < reply.length or reply.status != 200  # type: ignore[operator]
        assert_is_had(scene, door, layer)


@root_only
@pytest.mark.slow
def test_a_full_disk_fails_nobody(scene: Scene, layer: str) -> None:
    scene.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", scene.cache], check=True)
    try:
        with scene.door() as door:
            upstreams.all_at_once(3, lambda: scene.pull(door, TAG))
            assert not is_stored(scene, layer)
            assert KEPT in door.child.stderr
            scene.pull(door, "latest")
    finally:
        subprocess.run(["umount", "-l", scene.cache], check=True)


@pytest.mark.slow
def test_an_upstream_that_is_off_afterwards(scene: Scene, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(noise(2 * MIB), b"small")
    with docker_registry(tmp_path / "data") as address:
        put_image(address, "team/app:1", layout, image)
        name = f"{address}/team/app"
        with scene.door(upstream=address) as door:
            assert door.status(manifest(name, "1")) == 200
            for each in layout.layers(image):
                assert door.ask(blob(name, each["digest"])).complete
    with scene.door(upstream=address) as door:
        assert door.ask(manifest(name, "1")).body == layout.read(image["digest"])
        for each in layout.layers(image):
            assert door.ask(blob(name, each["digest"])).body == layout.read(each["digest"])

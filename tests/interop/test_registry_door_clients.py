"""Real clients pull from `imgproxy registry`, from all that it serves; and what is damaged fails.

The images are those of Nix, of K3s's air gap, of minimal-registry's tree and of a layout, with true
tars as layers. Clients that are not installed come from `.ci/clients`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support import registry_clients, registry_doors
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    Member,
    copy_layout,
    layer,
    pack,
    saved,
    write_registry_tree,
)
from support.damage import flip, respace
from support.home import mirror, table
from support.images import Layout, digest_of, named, on
from support.registry_clients import CHUNK, containerd, run, write_hosts
from support.registry_doors import manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.home import Home
    from support.images import Json
    from support.registry_clients import Containerd, Pulled
    from support.registry_doors import Door

pytestmark = pytest.mark.slow

HASH = "fq1rvcn0lrcs8b2n8xzr8r0wmg2zpzaq"  # of a path in /nix/store

BUNDLE = ("rancher/mirrored-pause:3.6", "rancher/mirrored-coredns:1.12.0")
REGISTRY = "registry.example"

PULLS: dict[str, Callable[[str, Home], Pulled]] = {
    each.__name__: each
    for each in (
        registry_clients.skopeo,
        registry_clients.buildah,
        registry_clients.podman,
        registry_clients.crane,
        registry_clients.oras,
        registry_clients.regctl,
    )
}


class Shelf(NamedTuple):
    """What is served, and by which options."""

    directory: Path
    layout: Layout
    app: Json
    index: Json

    @property
    def options(self) -> list[str]:
        return [
            *("--sideload", f"{self.directory}/nix/store/<ref>-<basename>.tar.gz"),
            *("--sideload", f"{self.directory}/tree/<name>/manifests/<ref>"),
            *("--images", f"{self.directory}/agent/images"),
            *("--images", str(self.layout.path)),
        ]

    def images(self) -> dict[str, str]:
        """Return the images by what they come from, as paths below the address of the registry."""
        return {
            "a Nix archive": f"example:{HASH}",
            **{f"K3s's bundle, {each}": each for each in BUNDLE},
            "a tree": "team/tree:1",
            "a layout": f"{REGISTRY}/team/app:1",
            "an index": f"{REGISTRY}/team/index:1",
        }


def noise(size: int) -> bytes:
    """Return a layer that does not compress."""
    return pack([Member("usr/share/noise", os.urandom(size))])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    directory = tmp_path_factory.mktemp("shelf")
    # Each has a layer of several chunks, which need not be verified before its head is sent.
    nix = saved(noise(2 << 20), layer("above it"), tags=["example:1zzz"])
    (directory / "nix/store").mkdir(parents=True)
    archive = COMPRESSIONS["gzip"](pack(DIALECTS["nix layered"](nix)))
    (directory / f"nix/store/{HASH}-example.tar.gz").write_bytes(archive)
    bundled = [saved(layer(each, 9000), noise(2 << 20), tags=[each]) for each in BUNDLE]
    (directory / "agent/images").mkdir(parents=True)
    archive = COMPRESSIONS["zstd"](pack(DIALECTS["skopeo"](*bundled)))
    (directory / "agent/images/airgap.tar.zst").write_bytes(archive)
    layout = Layout(directory / "layout")
    app = layout.image(layer("of a layout"), noise(5 << 20), layer("the last", 70_000))
    platforms = ("linux/amd64", "linux/arm64")
    index = layout.index(
        *(on(layout.image(noise(2 << 20), platform=each), each) for each in platforms)
    )
    layout.save(named(app, f"{REGISTRY}/team/app:1"), named(index, f"{REGISTRY}/team/index:1"))
    write_registry_tree(directory / "tree", "team/tree", "1", layout, index)
    return Shelf(directory, layout, app, index)


@pytest.fixture(scope="module")
def door(shelf: Shelf) -> Iterator[Door]:
    with registry_doors.running(*shelf.options) as door:
        yield door


def assert_pulled(pulled: Pulled) -> None:
    assert pulled.status == 0, pulled.output


# --- one registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("client", PULLS)
def test_a_client_pulls_everything(client: str, door: Door, shelf: Shelf, home: Home) -> None:
    home.path.mkdir()
    for kind, image in shelf.images().items():
        pulled = PULLS[client](f"{door.address}/{image}", home)
        assert pulled.status == 0, (kind, pulled.output)
    written = Layout(home.path / client)
    if client in {"skopeo", "oras", "regctl"}:  # it has the last image whole, as it was served
        for each in (shelf.index, *shelf.layout.document(shelf.index)["manifests"]):
            assert written.read(each["digest"]) == shelf.layout.read(each["digest"])


@pytest.mark.parametrize("client", PULLS)
def test_a_client_does_not_take_what_is_damaged(client: str, home: Home, tmp_path: Path) -> None:
    home.path.mkdir()
    layout = Layout(tmp_path / "layout")
    for kind, size in (("small", 90_000), ("large", 3 << 20)):
        content = noise(size)
        app = layout.image(layer("sound"), content)
        layout.save(named(app, f"{REGISTRY}/team/{kind}:1"))
        flip(layout.file(digest_of(content)), size // 2)
        with registry_doors.running("--images", str(layout.path)) as door:
            image = f"{door.address}/{REGISTRY}/team/{kind}:1"
            pulled = PULLS[client](image, home)
            assert pulled.status != 0, (kind, pulled.output)
            flip(layout.file(digest_of(content)), size // 2)
            assert_pulled(PULLS[client](image, home))


def test_tags_and_referrers_are_listed_by_clients(door: Door, shelf: Shelf, home: Home) -> None:
    home.path.mkdir()
    name = f"{door.address}/{REGISTRY}/team/app"
    skopeo, crane = registry_clients.require("skopeo"), registry_clients.require("crane")
    listed = run([skopeo, "list-tags", "--tls-verify=false", f"docker://{name}"], home)
    assert '"1"' in listed.output, listed
    assert run([crane, "ls", name], home).output.split() == ["1"]
    assert run([crane, "digest", f"{name}:1"], home).output.strip() == shelf.app["digest"]
    oras = registry_clients.require("oras")
    assert_pulled(run([oras, "discover", "--plain-http", f"{name}:1"], home))


# --- mirrors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["skopeo", "buildah", "podman"])
def test_a_mirror_in_registries_conf(client: str, door: Door, home: Home) -> None:
    here = mirror(f"{door.address}/{REGISTRY}", "insecure = true")
    hub = mirror(door.address, "insecure = true")
    home.write(
        ".config/containers/registries.conf",
        table(REGISTRY, "127.0.0.1:1", here) + table("docker.io", "127.0.0.1:1", hub),
    )
    assert_pulled(PULLS[client](f"{REGISTRY}/team/app:1", home))
    assert_pulled(PULLS[client](f"docker.io/{BUNDLE[0]}", home))
    assert_pulled(PULLS[client](f"docker.io/library/example:{HASH}", home))
    missing = PULLS[client](f"{REGISTRY}/team/absent:1", home)
    assert missing.status != 0
    assert "127.0.0.1:1" in missing.output, "the registry itself was asked after the mirror"


@pytest.mark.parametrize("client", ["skopeo", "podman"])
def test_a_mirror_with_a_damaged_manifest_is_passed_over(
    client: str, door: Door, shelf: Shelf, home: Home, tmp_path: Path
) -> None:
    copy = copy_layout(shelf.layout, tmp_path / "copy")
    respace(copy.file(shelf.app["digest"]))
    with registry_doors.running("--images", str(copy.path)) as broken:
        mirrors = [
            mirror(f"{each.address}/{REGISTRY}", "insecure = true") for each in (broken, door)
        ]
        conf = table(REGISTRY, "127.0.0.1:1", *mirrors)
        home.write(".config/containers/registries.conf", conf)
        assert broken.status(manifest(f"{REGISTRY}/team/app", "1")) == 502
        assert_pulled(PULLS[client](f"{REGISTRY}/team/app:1", home))


# --- containerd -----------------------------------------------------------------------------------

VERSIONS = {"1.6": (1, False), "2": (2, False), "2 in chunks": (2, True)}


@pytest.fixture(params=VERSIONS)
def daemon(request: pytest.FixtureRequest, home: Home) -> Iterator[Containerd]:
    version, in_chunks = VERSIONS[request.param]
    home.path.mkdir()
    with containerd(home, version, in_chunks=in_chunks) as daemon:
        yield daemon


def test_containerd_pulls_everything(daemon: Containerd, door: Door, shelf: Shelf) -> None:
    for kind, image in shelf.images().items():
        pulled = daemon.pull(f"{door.address}/{image}")
        assert pulled.status == 0, (kind, pulled.output)
    assert {each["digest"] for each in shelf.layout.layers(shelf.app)} <= set(daemon.content())


def test_containerd_has_it_as_a_mirror(
    daemon: Containerd, door: Door, shelf: Shelf, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    for registry in ("docker.io", REGISTRY):
        options = write_hosts(hosts, registry, door.address)
    for image in (
        f"docker.io/library/example:{HASH}",
        *(f"docker.io/{each}" for each in BUNDLE),
        f"{REGISTRY}/team/app:1",
        f"{REGISTRY}/team/app@{shelf.app['digest']}",
        f"{REGISTRY}/team/index:1",
    ):
        pulled = daemon.pull(image, *options)
        assert pulled.status == 0, (image, pulled.output)


# A client goes on where a blob broke off: that a large one is wrong must be remembered by then.
@pytest.mark.parametrize("size", [90_000, 4 * CHUNK + 77])
def test_containerd_takes_what_is_damaged_from_the_next_host(
    daemon: Containerd, tmp_path: Path, size: int
) -> None:
    content = noise(size)
    layouts = [Layout(tmp_path / each) for each in ("damaged", "sound")]
    for layout in layouts:
        layout.save(named(layout.image(layer("small"), content), f"{REGISTRY}/team/app:1"))
    flip(layouts[0].file(digest_of(content)), size // 2)
    image = f"{REGISTRY}/team/app:1"
    with (
        registry_doors.running("--images", str(layouts[0].path)) as damaged,
        registry_doors.running("--images", str(layouts[1].path)) as sound,
    ):
        alone = write_hosts(tmp_path / "alone", REGISTRY, damaged.address)
        pulled = daemon.pull(image, *alone)
        assert pulled.status != 0, pulled.output
        assert digest_of(content) not in daemon.content()
        both = write_hosts(tmp_path / "both", REGISTRY, damaged.address, sound.address)
        assert_pulled(daemon.pull(image, *both))
        assert digest_of(content) in daemon.content()


# --- Docker ---------------------------------------------------------------------------------------


def test_docker_has_it_as_a_mirror(door: Door, home: Home, tmp_path: Path) -> None:
    home.path.mkdir()
    content = noise(90_000)
    layout = Layout(tmp_path / "layout")
    layout.save(named(layout.image(content), f"{REGISTRY}/team/damaged:1"))
    flip(layout.file(digest_of(content)))
    with (
        registry_doors.running("--images", str(layout.path)) as damaged,
        containerd(home, 1) as daemon,
        registry_clients.dockerd(home, daemon, f"http://{door.address}") as pull,
    ):
        for image in (f"library/example:{HASH}", *BUNDLE):
            assert_pulled(pull(image))
        assert_pulled(pull(f"{door.address}/{REGISTRY}/team/app:1"))
        assert pull("library/absent:1").status != 0
        assert pull(f"{damaged.address}/{REGISTRY}/team/damaged:1").status != 0

"""The guide's configuration of clients, with nothing but the addresses in it changed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from support import registry_clients, registry_doors
from support.archives import DIALECTS, gzipped, layer, pack, saved, write_file
from support.home import REGISTRIES_CONF, Home, table
from support.parent import COMMAND, INSECURE, ROOT
from support.registry_clients import containerd
from support.servers import docker_registry, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.images import Layout
    from support.registry_clients import Pulled

pytestmark = pytest.mark.slow

IMAGE = "registry.example/team/app:1"
HASH = "fq1rvcn0lrcs8b2n8xzr8r0wmg2zpzaq"
ADDRESS = "127.0.0.1:5000"
NOWHERE = "127.0.0.1:1"

GUIDE = (ROOT / "GUIDE.md").read_text().partition("\n## A registry over what lies here\n")[2]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE.partition("\n## ")[0], re.DOTALL | re.MULTILINE)


def block(part: str) -> str:
    """Return the only block that contains `part`."""
    (found,) = (text for _, text in BLOCKS if part in text)
    return str(found)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Return the options of the guide, over directories of the test's, which have images."""
    images, store = tmp_path / "images", tmp_path / "store"
    app = saved(layer("of the guide"), tags=[IMAGE])
    write_file(images / "app.tar.gz", gzipped(pack(DIALECTS["skopeo"](app))))
    nix = saved(layer("of Nix"))
    write_file(store / f"{HASH}-example.tar.gz", gzipped(pack(DIALECTS["nix layered"](nix))))
    command = block("--sideload").replace("/srv/images", str(images))
    words = command.replace("/nix/store", str(store)).replace("'", "").split()
    assert words[:2] == ["imgproxy", "registry"]
    return words[2:]


def test_containerd(options: list[str], home: Home) -> None:
    home.path.mkdir()
    with registry_doors.running(*options) as door, containerd(home, 2) as daemon:
        hosts = block("capabilities").replace(ADDRESS, door.address)
        hosts = hosts.replace("https://registry.example", f"http://{NOWHERE}")
        for registry in ("registry.example", "docker.io"):
            home.write(f"certs.d/{registry}/hosts.toml", hosts)
        for image in (IMAGE, f"docker.io/library/example:{HASH}"):
            pulled = daemon.pull(image, "--hosts-dir", f"{home.path}/certs.d")
            assert pulled.status == 0, pulled.output


def test_containerd_for_all_registries(options: list[str], home: Home) -> None:
    home.path.mkdir()
    with registry_doors.running(*options) as door, containerd(home, 1) as daemon:
        hosts = block("capabilities").replace(ADDRESS, door.address)
        lines = [line for line in hosts.splitlines() if not line.startswith("server")]
        home.write("certs.d/_default/hosts.toml", "\n".join(lines))
        pulled = daemon.pull(IMAGE, "--hosts-dir", f"{home.path}/certs.d")
        assert pulled.status == 0, pulled.output


@pytest.mark.parametrize("client", [registry_clients.podman, registry_clients.skopeo])
def test_registries_conf(
    options: list[str], home: Home, client: Callable[[str, Home], Pulled]
) -> None:
    with registry_doors.running(*options) as door:
        text = block("[[registry.mirror]]").replace(ADDRESS, door.address)
        home.write(REGISTRIES_CONF, text)
        pulled = client(IMAGE, home)
        assert pulled.status == 0, pulled.output


def test_docker_and_k3s_have_well_formed_files() -> None:
    assert json.loads(block("registry-mirrors")) == {"registry-mirrors": [f"http://{ADDRESS}"]}
    document = yaml.safe_load(block("endpoint"))
    assert document == {"mirrors": {"docker.io": {"endpoint": [f"http://{ADDRESS}"]}}}


def test_a_list_of_images_becomes_a_directory_that_is_served(
    tmp_path: Path, home: Home, layout: Layout
) -> None:
    layout.save_image(layer("pulled"))
    with docker_registry(tmp_path / "data") as address:
        names = [f"registry.example/team/{each}:1" for each in ("one", "two")]
        for name in names:
            there = name.replace("registry.example", f"{address}/there")
            skopeo_copy(f"oci:{layout.path}", f"docker://{there}")
        location = table("registry.example", f"{address}/there", "insecure = true")
        home.write(REGISTRIES_CONF, location)
        images = tmp_path / "srv"
        images.mkdir()
        script = block("while read").replace("/srv/images", str(images))
        home.program("imgproxy", f'exec {" ".join((*COMMAND, INSECURE))} "$@"')
        home.write("images.txt", "\n".join([*names, ""]))
        done = registry_clients.run(["sh", "-ec", script], home)
        assert done.status == 0, done.output
    with registry_doors.running("--images", str(images)) as door:
        for name in names:
            repository, _, tag = name.rpartition(":")
            assert door.status(registry_doors.manifest(repository, tag)) == 200

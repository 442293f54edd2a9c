"""The image of demo/registry/Containerfile: buildah builds it, and runs what it starts.

The usual base is at a registry that cannot be reached from everywhere. Here it is a Debian that
debootstrap has made, whose pip takes what it installs from a directory.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from support import machines, registry_clients
from support.parent import ROOT
from support.protected_doors import curl
from support.registry_doors import NAME
from support.servers import free_port, require, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.home import Home
    from support.registry_doors import Stock

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "demo/registry"
PIP = """[global]
no-index = true
find-links = /srv/wheels
"""

BUILDING = 600.0


class Buildah(NamedTuple):
    """buildah, with what it stores in a directory."""

    directory: Path

    @property
    def words(self) -> list[str]:
        """Return what its command lines begin with."""
        places = ("--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run")
        return [require("buildah"), "--storage-driver=overlay", *places]

    def run(self, *words: str | Path) -> str:
        """Return the output of a command that has to succeed."""
        result = subprocess.run(
            [*self.words, *words], capture_output=True, text=True, timeout=BUILDING, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Return buildah with the image, which takes a gigabyte while the tests run."""
    system = machines.operating_system()
    directory = tmp_path_factory.mktemp("buildah")
    buildah = Buildah(directory)
    (directory / "pip.conf").write_text(PIP)
    try:
        base = buildah.run("from", "scratch")
        buildah.run("copy", "--quiet", base, system, "/")
        buildah.run("copy", "--quiet", base, directory / "pip.conf", "/etc/")
        buildah.run("copy", "--quiet", base, machines.wheels(directory), "/srv/wheels")
        buildah.run("commit", "--quiet", "--rm", base, "localhost/base")
        options = ("--isolation=chroot", "--build-arg=BASE=localhost/base")
        tag = ("--tag=localhost/registry", "-f", EXAMPLES / "Containerfile")
        buildah.run("build", *options, *tag, ROOT)
        yield buildah
    finally:
        buildah.run("rm", "--all")
        buildah.run("rmi", "--all", "--force")


@pytest.fixture
def config(buildah: Buildah) -> dict[str, Any]:
    inspected = json.loads(buildah.run("inspect", "--type=image", "localhost/registry"))
    return dict(inspected["OCIv1"]["config"])


def test_the_image_serves_as_the_daemon_set_starts_it(
    buildah: Buildah, config: dict[str, Any], stock: Stock, home: Home
) -> None:
    text = (EXAMPLES / "daemonset.yaml").read_text()
    documents = {each["kind"]: each for each in yaml.safe_load_all(text)}
    for name, content in documents["ConfigMap"]["data"].items():
        home.write(f"config/{name}", content)
    (container,) = documents["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    port = free_port()
    arguments = [each.replace(":5000", f":{port}") for each in container["args"]]
    sources = {"images": stock.layout.path, "configuration": home.path / "config"}
    volumes = [
        f"--volume={sources[each['name']]}:{each['mountPath']}:ro"
        for each in container["volumeMounts"]
    ]
    words = ("run", "--isolation=chroot", *volumes, buildah.run("from", "localhost/registry"))
    command = [*buildah.words, *words, "--", *config["Entrypoint"], *arguments]
    with running(command, port, home.path / "log"):
        probe = container["readinessProbe"]["httpGet"]
        assert curl(f"http://127.0.0.1:{port}{probe['path']}").body == "ready\n"
        pulled = registry_clients.skopeo(f"127.0.0.1:{port}/{NAME}:1", home)
        assert pulled.status == 0, pulled.output
        assert "imgproxy_images_total" in curl(f"http://127.0.0.1:{port}/metrics").body


def test_the_image_has_the_program_alone(buildah: Buildah, config: dict[str, Any]) -> None:
    assert config["User"] == "65532:65532"
    words = ("run", "--isolation=chroot", buildah.run("from", "localhost/registry"), "--")
    assert buildah.run(*words, "id", "-u") == "65532"
    assert buildah.run(*words, "ls", "/opt") == "imgproxy"
    assert "src" not in buildah.run(*words, "ls", "/").split()

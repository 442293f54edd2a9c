"""Runs every command in the EXAMPLES of imgproxy(1), and the guide's for hosts without a network.

Their registries and directories are not available to a test: registries.conf maps the registries to
one of the test's, and paths are replaced by some in its own directory.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.archives import gzipped, nix_layered, pack, saved, write_registry_tree
from support.home import REGISTRIES_CONF, Home, table
from support.images import digest_of
from support.parent import COMMAND, LIMIT, ROOT
from support.servers import PASSWORD, READER, docker_registry, require

if TYPE_CHECKING:
    from conftest import Sample
    from support.filled import Registry
    from support.images import Layout

REQUEST = b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\n"
ANY = {"default": [{"type": "insecureAcceptAnything"}]}
INSECURE = "insecure = true"
LAYER = b"the layer of an example" * 50
IMAGE = saved(LAYER)


def examples() -> list[str]:
    """Return the examples of the manual page, as a reader sees them."""
    page = (ROOT / "man/imgproxy.1").read_text()
    section = page.partition("\n.SH EXAMPLES\n")[2].partition("\n.SH ")[0]
    found = re.findall(r"^\.nf\n(.*?)^\.fi$", section, re.DOTALL | re.MULTILINE)
    return [text.replace(r"\-", "-").replace(r"\e", "\\") for text in found]


def sideloading() -> list[str]:
    """Return the commands of the guide's section on hosts without a network."""
    text = (ROOT / "GUIDE.md").read_text().partition("\n## In place of a registry\n")[2]
    block = re.findall(r"^```\n(.*?)^```$", text.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    lines: list[str] = block[0].splitlines()
    return lines


def example(part: str) -> str:
    """Return the only example that contains `part`."""
    (found,) = (text for text in examples() if part in text)
    return found


@pytest.fixture
def home(home: Home) -> Home:
    """Return a home with a policy, and with the program on `PATH`."""
    home.write(".config/containers/policy.json", ANY)
    home.program("imgproxy", f'exec {" ".join(COMMAND)} --platform=linux/amd64 "$@"')
    return home


def run(home: Home, script: str, **environment: str) -> str:
    """Run an example in bash with a request as standard input, and return what it prints."""
    result = subprocess.run(
        [require("bash"), "-euc", script],
        input=REQUEST,
        env=home.environment(PYTHONPATH=str(ROOT), **environment),
        cwd=home.path,
        capture_output=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.decode()


def manifest_digest(printed: str) -> str:
    assert printed.startswith("HTTP/1.1 200 ")
    (digest,) = re.findall(r"^Manifest-Digest: (.*)\r$", printed, re.MULTILINE)
    return str(digest)


def test_every_example_has_a_test() -> None:
    assert len(examples()) == 7
    assert len(sideloading()) == 2


def test_a_shell(home: Home, registry: Registry) -> None:
    location = registry.name()[len("docker://") :]
    home.write(REGISTRIES_CONF, table("quay.io/libpod/alpine", location, INSECURE))
    printed = run(home, example("printf 'GET"))
    assert manifest_digest(printed) == registry.images["latest"]["digest"]


def test_a_socket_in_the_file_system(home: Home, sample: Sample) -> None:
    for program in ("systemd-socket-activate", "curl"):
        require(program)
    script = example("systemd-socket-activate").replace("/run/", f"{home.path}/")
    # curl waits for the socket, and the listener, which the example does not stop, is stopped.
    script = script.replace(
        "curl ", f"until [ -e {home.path}/image.sock ]; do sleep 0.05; done\ncurl "
    )
    script = script.replace("oci:/srv/image", sample.name)
    assert json.loads(run(home, f"trap 'kill %1' EXIT\n{script}"))["rootfs"]


def test_a_parent_in_python(home: Home, sample: Sample) -> None:
    lines = [
        "import http.client, json, socket, subprocess",
        example("socketpair").replace("oci:/srv/image", sample.name),
        "print(json.dumps(manifest)); ours.close(); sys.exit(child.wait())",
    ]
    home.write("parent.py", "import sys\n" + "\n".join(lines))
    assert json.loads(run(home, f"{sys.executable} parent.py")) == json.loads(sample.manifest)


def archived(home: Home, name: str) -> None:
    """Write the image to a file at home, as a gzipped Docker archive such as Nix makes."""
    home.write(name, gzipped(pack(nix_layered(IMAGE))))


def layers(home: Home, script: str) -> list[str]:
    """Run an example, and return the digests of the layers in the manifest that it prints."""
    head, _, body = run(home, script).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    return [layer["digest"] for layer in json.loads(body)["layers"]]


@pytest.mark.parametrize("script", [*sideloading(), example("nix/store"), example("rancher")])
def test_a_host_without_a_network(script: str, home: Home, layout: Layout) -> None:
    """Runs both commands of the guide, and both of the manual page."""
    script = script.replace("docker://IMAGE", "docker://docker.io/rancher/mirrored-pause:3.6")
    (name,) = re.findall(r"docker://(\S+)", script)
    repository, _, tag = name.partition("/")[2].partition(":")
    archived(home, f"nix/store/{tag}-{repository.rpartition('/')[2]}.tar.gz")
    tree = home.path / "k3s"
    write_registry_tree(tree, repository, tag, layout, layout.image(LAYER))
    script = script.replace("/var/lib/rancher/k3s/server/registry/", f"{tree}/")
    script = script.replace("/nix/store/", f"{home.path}/nix/store/")
    assert layers(home, script) == [digest_of(LAYER)]


def test_an_image_that_another_program_writes(home: Home) -> None:
    """A script in place of podman writes an archive as `podman save` does."""
    archived(home, "acme.tar.gz")
    home.program("podman", f'[ "$*" = "save localhost/acme" ] && exec zcat {home.path}/acme.tar.gz')
    assert layers(home, example("podman save")) == [digest_of(LAYER)]


def test_credentials_that_are_in_no_file(home: Home, registry: Registry) -> None:
    with docker_registry(registry.directory, auth="htpasswd") as guarded:
        location = registry.name(address=guarded)[len("docker://") :]
        home.write(REGISTRIES_CONF, table("quay.io/acme/os", location, INSECURE))
        script = example("$AUTH").replace("os:1", "os:latest")
        secret = base64.b64encode(f"{READER}:{PASSWORD}".encode()).decode()
        auths = json.dumps({"auths": {guarded: {"auth": secret}}})
        digest = manifest_digest(run(home, script, AUTH=auths))
        assert digest == registry.images["latest"]["digest"]
        refused = run(home, script, AUTH="{}")
    assert refused.startswith("HTTP/1.1 403 ")

"""Clients of skopeo's protocol that are written in Go, as skopeo's own are, with this program.

`tests/clients/skopeo_go` reads an image in every way there is, verifies it, and insists on what
clients rely on; a skopeo that is installed is read by the same client. The suite of skopeo itself
is run where it is: no Go module has it, but Debian's source package does.

    apt-get source --download-only skopeo && tar xf skopeo_*.orig.tar.xz
    export IMGPROXY_TEST_SLOW=1 IMGPROXY_TEST_SKOPEO=/tmp/skopeo-1.22.0
    tests/run tests/interop/test_skopeo_go.py
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.archives import DIALECTS, gzipped, pack, saved_from, write_dir, write_oci_archive
from support.filled import MIB, noise
from support.home import Home, table
from support.images import OCI_CONFIG, OCI_MANIFEST, Json, Layout, encode, named, on
from support.parent import COMMAND, INSECURE, ROOT
from support.servers import docker_registry, require, skopeo_copy
from support.sigstores import PAYLOAD, Signer, annotated, b64, compact, payload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.slow

CLIENTS = ROOT / "tests/clients"
SKOPEO = os.environ.get("IMGPROXY_TEST_SKOPEO", "")
BUILDING = 600.0
READING = 60.0

LAYERS = (noise(5 * MIB), b"a small layer", noise(70_000))  # the first does not fit into a pipe
AMD64, ARM64 = "--override-arch=amd64", "--override-arch=arm64"

# The images that the suite of skopeo reads; the first is no index.
SINGLE, INDEX, NONE = (
    "quay.io/coreos/11bot:latest",
    "registry.fedoraproject.org/fedora-minimal:38",
    "quay.io/centos/centos:opensusewindowsubuntu",
)
NAME = "registry.example/team/app:1"


class Read(NamedTuple):
    """What the client says of an image."""

    version: str
    digest: str  # the reply to GetManifest
    manifest: str
    config: Json
    layers: list[str]
    left: str  # the words after an early close


class Client(NamedTuple):
    """The client at home."""

    program: Path
    home: Home

    def run(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *words],
            cwd=cwd,
            env=self.home.environment(),
            capture_output=True,
            text=True,
            timeout=READING,
            check=False,
        )

    def read(
        self, image: str, *options: str, absent: str, program: Sequence[str] = COMMAND
    ) -> Read:
        """Read an image whole; the options come before the command of the proxy."""
        ended = self.run("-absent", absent, image, *program, INSECURE, *options)
        assert ended.returncode == 0, ended.stderr
        return Read(**json.loads(ended.stdout))

    def refused(self, image: str, *options: str, cwd: Path) -> str:
        """Open an image, and return the reason why that fails, empty where it does not."""
        ended = self.run("-open", image, *COMMAND, *options, cwd=cwd)
        assert ended.returncode in {0, 1}, ended.stderr
        return ended.stderr


def build(directory: Path, *words: str) -> None:
    """Run the compiler as the user has set it up: it has settings and caches at home."""
    result = subprocess.run(
        [require("go"), *words],
        cwd=directory,
        env={**os.environ, "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("client") / "skopeo_go"
    build(CLIENTS / "skopeo_go", "build", "-o", str(built))
    return built


@pytest.fixture
def client(program: Path, home: Home) -> Client:
    return Client(program, home)


class Offline(NamedTuple):
    """A registry in place of those on the Internet, by the registries.conf that is `option`."""

    layout: Layout
    single: Json
    instances: dict[str, Json]
    registries_conf: Path

    @property
    def option(self) -> str:
        return f"--registries-conf={self.registries_conf}"


def image(layout: Layout, *layers: bytes, platform: str = "linux/amd64") -> Json:
    """Write an image with a command; return the manifest's descriptor."""
    made = layout.image(*layers, platform=platform)
    manifest = layout.document(made)
    config = json.loads(layout.read(manifest["config"]["digest"]))
    config["config"] = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}
    manifest["config"] = layout.add(encode(config), OCI_CONFIG)
    return layout.add(encode(manifest), OCI_MANIFEST)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    directory = tmp_path_factory.mktemp("offline")
    layout = Layout(directory / "layout")
    single = image(layout, *LAYERS)
    instances = {
        each: image(layout, each.encode() * 999, platform=each)
        for each in ("linux/amd64", "linux/arm64")
    }
    index = layout.index(*(on(each, name) for name, each in instances.items()))
    layout.save(named(single, "single"), named(index, "index"))
    with docker_registry(directory / "data") as address:
        for tag, name, options in [
            ("single", SINGLE, ["--format=v2s2"]),
            ("index", INDEX, ["--all", "--preserve-digests"]),
        ]:
            skopeo_copy(f"oci:{layout.path}:{tag}", f"docker://{address}/{name}", *options)
        hosts = {name.partition("/")[0] for name in (SINGLE, INDEX)}
        registries_conf = directory / "registries.conf"
        registries_conf.write_text(
            "".join(table(host, f"{address}/{host}", "insecure = true") for host in hosts)
        )
        yield Offline(layout, single, instances, registries_conf)


# --- every image -----------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("form", ["oci", "dir", "oci-archive", "docker-archive"])
def test_a_local_image(client: Client, tmp_path: Path, form: str, *, docker: bool) -> None:
    layout = Layout(tmp_path / "layout")
    manifest = layout.save_image(*LAYERS, docker=docker)
    path = tmp_path / form
    if form == "oci":
        path = layout.path
    elif form == "dir":
        write_dir(path, layout, manifest)
    elif form == "oci-archive":
        write_oci_archive(path, layout, gzipped)
    else:
        members = DIALECTS["skopeo"](saved_from(layout, manifest, "registry.example/app:1"))
        path.write_bytes(gzipped(pack(members)))
    read = client.read(f"{form}:{path}", AMD64, absent=f"oci:{layout.path}:absent")
    assert_is(read, layout, manifest)
    if form != "docker-archive":
        assert read.digest == manifest["digest"]
    if not docker and form != "docker-archive":
        assert read.manifest.encode() == layout.read(manifest["digest"])


def assert_is(read: Read, layout: Layout, manifest: Json) -> None:
    document = layout.document(manifest)
    assert read.version == "0.2.8"
    assert read.config == json.loads(layout.read(document["config"]["digest"]))
    assert read.layers == [layer["digest"] for layer in document["layers"]]
    assert read.left.endswith("broken pipe")


def test_an_image_of_a_registry_by_a_name_on_the_internet(client: Client, offline: Offline) -> None:
    read = client.read(f"docker://{SINGLE}", offline.option, absent=f"docker://{NONE}")
    assert len(read.layers) == len(LAYERS)  # compressed
    assert read.config["config"]["Cmd"] == ["/bin/sh"]
    assert json.loads(read.manifest)["mediaType"] == OCI_MANIFEST
    assert read.left.endswith("broken pipe")


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_an_image_of_an_index(client: Client, offline: Offline, architecture: str) -> None:
    override = f"--override-arch={architecture}"
    options = (offline.option, override)
    read = client.read(f"docker://{INDEX}", *options, absent=f"docker://{NONE}")
    chosen = offline.instances[f"linux/{architecture}"]
    assert read.digest == chosen["digest"]
    assert read.manifest.encode() == offline.layout.read(chosen["digest"])
    assert read.config["architecture"] == architecture


def test_the_installed_skopeo_says_the_same(client: Client, offline: Offline) -> None:
    skopeo = (require("skopeo"),)
    for name in (f"oci:{offline.layout.path}:single", f"docker://{INDEX}"):
        ours, theirs = (
            client.read(name, offline.option, AMD64, absent=f"docker://{NONE}", program=program)
            for program in (COMMAND, skopeo)
        )
        assert ours[1:5] == theirs[1:5]
        assert theirs.version.startswith("0.2.")


# --- policies --------------------------------------------------------------------------------


class Signed(NamedTuple):
    """A directory in which policies name the key by a relative path, and its layout."""

    path: Path
    layout: Layout
    signer: Signer

    def policy(self, *requirements: Json) -> str:
        self.path.joinpath("policy.json").write_text(json.dumps({"default": requirements}))
        return "--policy=policy.json"

    @property
    def wanted(self) -> Json:
        identity = {"type": "exactRepository", "dockerRepository": NAME.rpartition(":")[0]}
        return {"type": "sigstoreSigned", "keyPath": "keys/it.pub", "signedIdentity": identity}

    def sign(self, file: str, digest: str) -> None:
        """Write the signature of a manifest as `dir:` has it."""
        content = payload(digest, NAME)
        document = {
            "mimeType": PAYLOAD,
            "payload": b64(content),
            "annotations": annotated(content, self.signer),
        }
        (self.path / file).write_bytes(b"\0sigstore-json\n" + compact(document))


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    signed = Signed(tmp_path, Layout(tmp_path / "layout"), Signer())
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/it.pub").write_bytes(signed.signer.pem)
    return signed


def manifest_alone(directory: Path, layout: Layout, *descriptors: Json) -> None:
    """Write manifests as `dir:`, the first as that of the image, without config and layers."""
    directory.mkdir()
    first, *others = (layout.read(each["digest"]) for each in descriptors)
    (directory / "manifest.json").write_bytes(first)
    for content, each in zip(others, descriptors[1:], strict=True):
        (directory / f"{each['digest'].partition(':')[2]}.manifest.json").write_bytes(content)


def test_a_signature_is_found_and_demanded(client: Client, signed: Signed) -> None:
    manifest = signed.layout.image(b"a layer")
    manifest_alone(signed.path / "image", signed.layout, manifest)
    policy = signed.policy(signed.wanted)
    assert "signature" in client.refused("dir:image", policy, cwd=signed.path)
    signed.sign("image/signature-1", manifest["digest"])
    assert client.refused("dir:image", policy, cwd=signed.path) == ""
    rejecting = signed.policy({"type": "reject"})
    assert "reject" in client.refused("dir:image", rejecting, cwd=signed.path)


def test_the_signature_of_the_chosen_instance_is_enough(client: Client, signed: Signed) -> None:
    layout = signed.layout
    amd64, arm64 = (layout.image(b"x", platform=f"linux/{each}") for each in ("amd64", "arm64"))
    index = layout.index(on(amd64, "linux/amd64"), on(arm64, "linux/arm64"))
    manifest_alone(signed.path / "image", layout, index, amd64, arm64)
    signed.sign(f"image/{amd64['digest'].partition(':')[2]}.signature-1", amd64["digest"])
    policy = signed.policy(signed.wanted)
    assert client.refused("dir:image", policy, AMD64, cwd=signed.path) == ""
    assert "signature" in client.refused("dir:image", policy, ARM64, cwd=signed.path)


# --- skopeo's own suite ----------------------------------------------------------------------


@pytest.mark.skipif(not SKOPEO, reason="IMGPROXY_TEST_SKOPEO names no sources of skopeo")
def test_the_suite_of_skopeo(home: Home, offline: Offline, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    shutil.copytree(CLIENTS / "skopeo_suite", suite)
    for pattern in ("proxy_test.go", "procutils*_test.go"):
        for file in Path(SKOPEO, "integration").glob(pattern):
            shutil.copy(file, suite)
    tags = "containers_image_openpgp exclude_graphdriver_btrfs"
    build(suite, "test", "-c", "-tags", tags, "-o", str(tmp_path / "suite.test"))
    home.program("imgproxy", f'exec {shlex.join([*COMMAND, INSECURE, offline.option])} "$@"')
    ended = subprocess.run(
        [str(tmp_path / "suite.test"), "-test.run=^TestProxy$", "-test.v"],
        cwd=tmp_path,
        env=home.environment(SKOPEO_BINARY=str(home.path / "bin/imgproxy")),
        capture_output=True,
        text=True,
        timeout=READING,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for case in ("TestProxyMetadata", "TestProxyGetBlob"):
        assert f"--- PASS: TestProxy/{case}" in ended.stdout

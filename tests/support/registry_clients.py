"""Clients of registries that are installed, or that `.ci/clients` has put into `build/clients`.

Each pulls into a directory of its own, without a configuration of this host, and verifies what it
pulls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from support.parent import ROOT, eventually
from support.servers import skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.home import Home

_BUILT = ROOT / "build/clients"
_DEBIAN = tuple(str(_BUILT / "debian" / each) for each in ("usr/bin", "usr/sbin"))

# A pull of a few megabytes, on a machine that does other things as well.
PULLING = 120.0

ANYTHING = {"default": [{"type": "insecureAcceptAnything"}]}


def require(program: str, *places: str) -> str:
    """Return the path of a client; skip the test if it is not there.

    It is looked for in `places`, by default everywhere.
    """
    path = os.pathsep.join(places or (str(_BUILT / "bin"), os.environ["PATH"], *_DEBIAN))
    return shutil.which(program, path=path) or skip(f"{program} is not here: see .ci/clients")


class Pulled(NamedTuple):
    """What a client has done."""

    status: int
    output: str


def run(arguments: Sequence[str], home: Home, **changes: str) -> Pulled:
    """Run a client at home to its end."""
    path = os.pathsep.join((os.environ["PATH"], *_DEBIAN))
    result = subprocess.run(
        arguments,
        cwd=home.path,
        env=home.environment(PATH=path, **changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PULLING,
        check=False,
    )
    return Pulled(result.returncode, result.stdout + result.stderr)


# Each takes a name, with the address of a registry on plain HTTP or one that the home's
# registries.conf has a mirror for, and pulls all platforms where it can.


def skopeo(image: str, home: Home) -> Pulled:
    options = ("--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false")
    return run([require("skopeo"), *options, f"docker://{image}", "oci:skopeo:x"], home)


def buildah(image: str, home: Home) -> Pulled:
    return _into_storage("buildah", image, home)


def podman(image: str, home: Home) -> Pulled:
    options = ("--tmpdir", "tmp", "--cgroup-manager", "cgroupfs", "--events-backend", "none")
    return _into_storage("podman", image, home, *options)


def _into_storage(program: str, image: str, home: Home, *options: str) -> Pulled:
    trust = ("--tls-verify=false", f"--signature-policy={home.write('policy.json', ANYTHING)}")
    with TemporaryDirectory() as storage:  # podman refuses a path of more than 50 characters
        places = ("--root", f"{storage}/root", "--runroot", f"{storage}/run")
        command = [require(program), *places, "--storage-driver", "vfs", *options, "pull"]
        return run([*command, *trust, image], home)


def crane(image: str, home: Home) -> Pulled:
    return run([require("crane"), "pull", "--format=oci", image, "crane"], home)


def oras(image: str, home: Home) -> Pulled:
    options = ("copy", "--from-plain-http", "--to-oci-layout")
    return run([require("oras"), *options, image, "oras:x"], home)


def regctl(image: str, home: Home) -> Pulled:
    program, host = require("regctl"), image.partition("/")[0]
    run([program, "registry", "set", "--tls", "disabled", host], home)
    return run([program, "image", "copy", image, "ocidir://regctl:x"], home)


# --- containerd -----------------------------------------------------------------------------------

_OTHER_SNAPSHOTTERS = ("btrfs", "zfs", "devmapper", "aufs", "erofs", "blockfile")

# Each chunk is a request of its own, from its first byte on; the rest is not read.
CHUNK = 512 << 10


class Containerd(NamedTuple):
    """A containerd that runs, and its client."""

    ctr: str
    socket: str
    home: Home

    def run(self, *words: str) -> Pulled:
        return run([self.ctr, "-a", self.socket, *words], self.home)

    def fetch(self, image: str, *options: str) -> Pulled:
        """Fetch content without unpacking it, over plain HTTP where no `--hosts-dir` is given."""
        reach = options or ("--plain-http",)
        return self.run("content", "fetch", *reach, image)

    def pull(self, image: str, *options: str) -> Pulled:
        """Pull and unpack an image."""
        reach = options or ("--plain-http",)
        return self.run("images", "pull", "--snapshotter", "native", *reach, image)

    def content(self) -> list[str]:
        """Return the digests of what it has."""
        return self.run("content", "ls", "-q").output.split()

    def remove(self, image: str) -> None:
        """Remove an image and its content, so that it would have to be fetched again."""
        self.run("images", "rm", "--sync", image)


@contextmanager
def containerd(home: Home, version: int, *, in_chunks: bool = False) -> Iterator[Containerd]:
    """Run containerd in the directories of a home, as root."""
    if os.geteuid() != 0:
        skip("containerd needs root")
    places = _DEBIAN if version == 1 else (str(_BUILT / "bin"),)
    program, ctr = require("containerd", *places), require("ctr", *places)
    socket = f"{home.path}/c.sock"
    config = home.write("config.toml", _config(home.path, version, in_chunks=in_chunks))
    log = home.path / "containerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-c", str(config)],
            cwd=home.path,
            env=home.environment(PATH=os.pathsep.join((os.environ["PATH"], *_DEBIAN))),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        client = Containerd(ctr, socket, home)
        started = eventually(
            lambda: process.poll() is not None or client.run("version").status == 0, PULLING
        )
        if not started or process.poll() is not None:
            raise RuntimeError(log.read_text())
        yield client
    finally:
        process.terminate()
        process.wait(PULLING)


def _config(base: Path, version: int, *, in_chunks: bool) -> str:
    disabled = [f"io.containerd.snapshotter.v1.{each}" for each in _OTHER_SNAPSHOTTERS]
    disabled += (
        ["io.containerd.grpc.v1.cri"]
        if version == 1
        else [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.nri.v1.nri",
        ]
    )
    lines = [
        f"version = {2 if version == 1 else 3}",
        f'root = "{base}/root"',
        f'state = "{base}/state"',
        f"disabled_plugins = {json.dumps(disabled)}",
        f'[grpc]\n  address = "{base}/c.sock"',
        f'[ttrpc]\n  address = "{base}/t.sock"',
        f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{base}/opt"',
    ]
    if version != 1:
        lines += [
            '[plugins."io.containerd.transfer.v1.local"]',
            "  max_concurrent_downloads = 3",
            f"  concurrent_layer_fetch_buffer = {CHUNK if in_chunks else 0}",
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
            '  platform = "linux/amd64"\n  snapshotter = "native"',
        ]
    return "\n".join([*lines, ""])


def write_hosts(directory: Path, registry: str, *addresses: str) -> tuple[str, str]:
    """Write a hosts.toml that asks these hosts in order and no other; return ctr's option."""
    hosts = directory / registry
    hosts.mkdir(parents=True, exist_ok=True)
    # The server is asked last, and would be the registry itself where it is not named.
    lines = [f'server = "http://{addresses[-1]}"']
    for address in addresses:
        lines += [f'[host."http://{address}"]', '  capabilities = ["pull", "resolve"]']
    (hosts / "hosts.toml").write_text("\n".join([*lines, ""]))
    return "--hosts-dir", str(directory)


# --- Docker ---------------------------------------------------------------------------------------


@contextmanager
def dockerd(home: Home, daemon: Containerd, mirror: str) -> Iterator[Callable[[str], Pulled]]:
    """Run Docker's daemon over a containerd of its age, as root; yield what pulls an image."""
    program, docker = require("dockerd", *_DEBIAN), require("docker", *_DEBIAN)
    key = Path("/etc/docker/key.json")  # it writes one where there is none
    had_key = key.exists()
    socket, log = f"unix://{home.path}/docker.sock", home.path / "docker.log"
    words = ["--data-root", "docker", "--exec-root", "docker-run", "-p", "docker.pid", "-H", socket]
    words += ["--containerd", daemon.socket, "--storage-driver", "vfs"]
    words += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    path = os.pathsep.join((os.environ["PATH"], *_DEBIAN))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *words, "--registry-mirror", mirror],
            cwd=home.path,
            env=home.environment(PATH=path),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def ask(*words: str) -> Pulled:
        return run([docker, "-H", socket, *words], home)

    try:
        started = eventually(lambda: process.poll() is not None or ask("info").status == 0, PULLING)
        if not started or process.poll() is not None:
            skip(f"dockerd does not start here: {log.read_text()[-500:]}")
        yield lambda image: ask("pull", image)
    finally:
        process.terminate()
        process.wait(PULLING)
        if not had_key:
            key.unlink(missing_ok=True)

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

import pytest
from support.parent import ROOT, eventually
from support.servers import skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.home import Home

_BUILT = ROOT / "build/clients"
_DEBIAN = tuple(str(_BUILT / "debian" / each) for each in ("usr/bin", "usr/sbin"))
_PATH = os.pathsep.join((os.environ["PATH"], *_DEBIAN))

# A pull of a few megabytes, on a machine that does other things as well.
PULLING = 120.0

# A daemon that has not started or ended by then never will.
STARTING = 30.0

ANYTHING = {"default": [{"type": "insecureAcceptAnything"}]}


def require(program: str, *places: str) -> str:
    """Return the path of a client; skip the test if it is not there.

    It is looked for in `places`, by default everywhere.
    """
    path = os.pathsep.join(places or (str(_BUILT / "bin"), _PATH))
    return shutil.which(program, path=path) or skip(f"{program} is not here: see .ci/clients")


class Pulled(NamedTuple):
    """What a client has done."""

    status: int
    output: str


def run(arguments: Sequence[str], home: Home, **changes: str) -> Pulled:
    """Run a client at home to its end."""
    result = subprocess.run(
        arguments,
        cwd=home.path,
        env=home.environment(PATH=f"{home.path}/bin:{_PATH}", **changes),
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
    client = Containerd(ctr, socket, home)
    words = [program, "-c", str(config)]
    with _daemon(words, home, lambda: client.run("version").status == 0) as log:
        if log is not None:
            raise RuntimeError(log)
        yield client


@contextmanager
def _daemon(words: Sequence[str], home: Home, answers: Callable[[], bool]) -> Iterator[str | None]:
    """Run a daemon until the end of the block; yield what it says if it does not start."""
    log = home.path / "daemon.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            cwd=home.path,
            env=home.environment(PATH=_PATH),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        started = eventually(lambda: process.poll() is not None or answers(), STARTING)
        is_there = started and process.poll() is None
        yield None if is_there else log.read_text()
    finally:
        process.terminate()
        try:
            process.wait(STARTING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


# Where it writes a key if there is none.
_DOCKER_KEY = Path("/etc/docker/key.json")


@contextmanager
def dockerd(home: Home, daemon: Containerd, mirror: str) -> Iterator[Callable[[str], Pulled]]:
    """Run Docker's daemon over a containerd of its age; yield what pulls an image.

    Skip the test where it does not start: it demands more of the kernel than the others.
    """
    program, docker = require("dockerd", *_DEBIAN), require("docker", *_DEBIAN)
    had_key = _DOCKER_KEY.exists()
    base, socket = f"{home.path}/docker", f"unix://{home.path}/docker.sock"

    def ask(*words: str) -> Pulled:
        return run([docker, "-H", socket, *words], home)

    with TemporaryDirectory() as short:  # of sockets, whose paths have a limit
        words = [program, "--data-root", base, "--exec-root", short, "-p", f"{base}.pid"]
        words += ["-H", socket, "--containerd", daemon.socket, "--storage-driver", "vfs"]
        words += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
        words += ["--registry-mirror", mirror]
        try:
            with _daemon(words, home, lambda: ask("info").status == 0) as log:
                if log is not None:
                    pytest.skip(f"dockerd does not start here: {log[-500:]}")
                yield lambda image: ask("pull", image)
        finally:
            if not had_key:
                _DOCKER_KEY.unlink(missing_ok=True)

"""ostree-ext, which is what bootc and rpm-ostree pull by, with imgproxy in the place of skopeo.

A program over that crate puts commits of OSTree into images and pulls them into repositories. It is
built for this, from clients/ostree: Debian's `ostree` has no such commands.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.filled import MIB, noise
from support.home import REGISTRIES_CONF, Home
from support.images import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    Layout,
    digest_of,
    encode,
    named,
)
from support.networks import Cut, line_to
from support.parent import LIMIT, ROOT, eventually
from support.servers import docker_registry, free_port, require, skip, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

CRATE = ROOT / "tests/clients/ostree"
TARGET = ROOT / "build/ostree/target"
BUILDING = 900.0
PULLING = 60.0
LIBRARIES = ("ostree-1", "openssl", "libzstd", "zlib")

ACCEPT = {"default": [{"type": "insecureAcceptAnything"}]}
REJECT = {"default": [{"type": "reject"}]}
PLAIN = "--insecure-skip-tls-verification"

LARGE = noise(3 * MIB)
# By what the path of a file contains: a layer for each, and one for the rest.
CHUNKS = {"large": "the large one", "0": "every tenth", "": "the rest"}

REFUSED = "its bytes do not have the digest"


@pytest.fixture(scope="module")
def ostree_container() -> str:
    """Build the program; what lacks for it is the reason for a skip."""
    for program in ("cargo", "ostree", "pkg-config"):
        require(program)
    for library in LIBRARIES:
        if subprocess.run(["pkg-config", "--exists", library], check=False).returncode:
            skip(f"{library}.pc is not installed")
    if error := cargo("fetch", "--locked"):
        pytest.skip(f"cargo cannot fetch the crates: {error[-300:]}")
    error = cargo("build", "--locked", "--quiet")
    assert not error, error
    return str(TARGET / "debug/ostree-container")


def cargo(*words: str) -> str:
    """Run cargo as the user has set it up; return what it says if it fails."""
    result = subprocess.run(
        ["cargo", *words],
        cwd=CRATE,
        env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)},
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    return result.stderr.strip() or "no reason given" if result.returncode else ""


def run(*arguments: str) -> str:
    """Run a tool; return what it prints."""
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- what is pulled --------------------------------------------------------------------------


@dataclass
class Source:
    """A tree, the repository in which it is committed, and images of that commit in a layout."""

    tree: Path
    repository: Path
    commit: str
    layout: Layout
    images: dict[str, Json] = field(default_factory=dict)

    def name(self, tag: str) -> str:
        return f"oci:{self.layout.path}:{tag}"

    def copy(self, directory: Path) -> Layout:
        """Return a layout of one's own."""
        shutil.copytree(self.layout.path, directory)
        return Layout(directory)


def write(file: Path, content: bytes, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)


def write_tree(tree: Path) -> None:
    """Write what looks like an operating system, if one does not look closely."""
    write(tree / "usr/bin/large", LARGE, 0o755)
    for n in range(200):
        write(tree / f"usr/lib/files/{n}", b"%d\n" % n * n)
    (tree / "usr/bin/link").symlink_to("large")
    (tree / "usr/lib/dangling").symlink_to("../nowhere/at all")
    write(tree / "usr/etc/configuration", b"setting = 1\n", 0o640)
    write(tree / "usr/share/ä ö/\N{GRINNING FACE}", b"a name")
    (tree / "usr/share/empty").mkdir()
    for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


def contents(tree: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything in a tree."""
    found = {}
    for path in tree.rglob("*"):
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(tree))] = (path.lstat().st_mode, content)
    return found


def chunks_of(repository: Path) -> Json:
    """Return which object goes into which layer, as rpm-ostree tells it."""
    mapping = {}
    for line in run("ostree", f"--repo={repository}", "ls", "-R", "-C", "os").splitlines():
        match = re.fullmatch(r"[^d].* ([0-9a-f]{64}) (.*)", line)
        if match:
            mapping[match[1]] = next(name for part, name in CHUNKS.items() if part in match[2])
    return {"version": 1, "layers": {name: name for name in CHUNKS.values()}, "mapping": mapping}


def packed(**files: bytes) -> bytes:
    """Return a tar of these files below usr/share."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"usr/share/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def derived(layout: Layout, base: Json, *layers: tuple[bytes, bytes]) -> Json:
    """Write an image with further layers, each as it is and as it is stored."""
    manifest = layout.document(base)
    config = layout.document(manifest["config"])
    for tar, stored in layers:
        config["rootfs"]["diff_ids"].append(digest_of(tar))
        config["history"].append({"created_by": "a layer"})
        kind = OCI_LAYER if stored == tar else f"{OCI_LAYER}+gzip"
        manifest["layers"].append(layout.add(stored, kind))
    manifest["config"] = layout.add(encode(config), OCI_CONFIG)
    return layout.add(encode(manifest), OCI_MANIFEST)


# --- who pulls it ----------------------------------------------------------------------------


@dataclass
class Ended:
    status: int
    stdout: str
    stderr: str

    @property
    def asked(self) -> list[str]:
        """Return the methods of the protocol that were called, in order."""
        return re.findall(r"^imgproxy: (\w+): answered$", self.stderr, re.MULTILINE)


@dataclass
class Host:
    """A host with a repository and a configuration of its own, where `skopeo` is imgproxy."""

    program: str
    home: Home

    @property
    def repository(self) -> str:
        return str(self.home.path / "repository")

    def popen(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.program, "container", *words],
            env=self.home.environment(RUST_BACKTRACE="0", **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def container(self, *words: str, **env: str) -> Ended:
        """Run `container …` to its end."""
        return end(self.popen(*words, **env))

    def pulling(self, image: str, *options: str, **env: str) -> subprocess.Popen[str]:
        name = f"ostree-unverified-image:{image}"
        words = ("image", "pull", "--quiet", *options, self.repository, name)
        return self.popen(*words, **env)

    def pull(self, image: str, *options: str) -> Ended:
        return end(self.pulling(image, *options, CONTAINERS_IMAGE_PROXY_DEBUG="1"))

    def ostree(self, *words: str) -> str:
        return run("ostree", f"--repo={self.repository}", *words)

    def refs(self, kind: str) -> list[str]:
        """Return the names below ostree/container: of an `image`, of a `blob`."""
        return re.findall(rf"^ostree/container/{kind}/.*", self.ostree("refs"), re.MULTILINE)

    def is_importing(self) -> bool:
        """Return whether objects of a layer have been written, which are not in the image yet."""
        return any(Path(self.repository).glob("tmp/staging-*/*/*"))

    def checked_out(self) -> dict[str, tuple[int, bytes]]:
        """Return what the one image that was pulled has, of which nothing is damaged."""
        assert "no errors found" in self.ostree("fsck")
        (name,) = self.refs("image")
        return self.tree(name)

    def tree(self, name: str) -> dict[str, tuple[int, bytes]]:
        directory = self.home.path / "checked out"
        self.ostree("checkout", "-U", name, str(directory))
        found = contents(directory)
        shutil.rmtree(directory)
        return found

    def is_clean(self) -> bool:
        """Return whether there is no image, and what is there is whole."""
        return "no errors found" in self.ostree("fsck") and not self.refs("image")


def end(process: subprocess.Popen[str], limit: float = PULLING) -> Ended:
    with process:
        try:
            stdout, stderr = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "Traceback" not in stderr, stderr
    return Ended(process.returncode, stdout, stderr)


def new_host(path: Path, program: str, *, skopeo: str = "") -> Host:
    host = Host(program, Home(path))
    host.home.write(".config/containers/policy.json", ACCEPT)
    (path / "bin").mkdir()
    (path / "run").mkdir(mode=0o700)
    (path / "bin/skopeo").symlink_to(skopeo or Path(sys.executable).with_name("imgproxy"))
    run("ostree", f"--repo={host.repository}", "init", "--mode=bare-user")
    return host


@pytest.fixture
def host(ostree_container: str, tmp_path: Path) -> Host:
    return new_host(tmp_path / "host", ostree_container)


@pytest.fixture(scope="module")
def source(ostree_container: str, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Commit a tree, and encapsulate the commit in several layers; no test changes them."""
    directory = tmp_path_factory.mktemp("source")
    host = new_host(directory / "host", ostree_container)
    write_tree(directory / "tree")
    words = ("--owner-uid=0", "--owner-gid=0", "--no-xattrs")
    commit = host.ostree("commit", "-b", "os", f"--tree=dir={directory / 'tree'}", *words).strip()
    source = Source(directory / "tree", Path(host.repository), commit, Layout(directory / "layout"))
    chunks = host.home.write("chunks.json", chunks_of(source.repository))
    options = (f"--repo={source.repository}", f"--contentmeta={chunks}")
    ended = host.container("encapsulate", *options, "os", source.name("base"))
    assert ended.status == 0, ended.stderr
    index = source.layout.path / "index.json"
    (base,) = json.loads(index.read_bytes())["manifests"]
    assert ended.stdout.strip() == base["digest"]  # which it has asked imgproxy for
    more, last = packed(more=b"of it", extra=noise(MIB)), packed(last=b"one")
    top = derived(source.layout, base, (more, gzip.compress(more)), (last, last))
    source.images = {"base": base, "derived": top}
    source.layout.save(base, named(top, "derived"))
    return source


@pytest.fixture(scope="module")
def registry(
    source: Source, ostree_container: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run a registry with the image, pushed by ostree-ext by the skopeo that is installed."""
    directory = tmp_path_factory.mktemp("registry")
    with docker_registry(directory / "data") as address:
        host = new_host(directory / "host", ostree_container, skopeo=require("skopeo"))
        host.home.write(REGISTRIES_CONF, f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        ended = host.container(
            "encapsulate", f"--repo={source.repository}", "os", f"docker://{address}/os:1"
        )
        assert ended.status == 0, ended.stderr
        yield address


# --- what works ------------------------------------------------------------------------------


DOCUMENTS = ["OpenImage", "GetManifest", "FinishPipe", "GetFullConfig", "FinishPipe"]
LAYERS = ["GetLayerInfoPiped", "FinishPipe"]
LAYER = ["GetBlob", "FinishPipe"]


def test_an_image_of_several_layers(host: Host, source: Source) -> None:
    ended = host.pull(source.name("base"))
    assert ended.status == 0, ended.stderr
    assert host.checked_out() == contents(source.tree)
    count = len(source.layout.layers(source.images["base"]))
    assert count > len(CHUNKS)
    assert len(host.refs("blob")) == count
    assert ended.asked == [*DOCUMENTS, *LAYERS, *LAYER * count, *LAYERS, "CloseImage"]


def with_layers_on_top(source: Source) -> dict[str, tuple[int, bytes]]:
    """Return what `derived` has."""
    tree = contents(source.tree)
    mode, _ = tree["usr/lib/files/1"]
    added = {"more": b"of it", "extra": noise(MIB), "last": b"one"}
    return {**tree, **{f"usr/share/{name}": (mode, added[name]) for name in added}}


def test_layers_on_top_that_are_no_commits(host: Host, source: Source) -> None:
    ended = host.pull(source.name("derived"))
    assert ended.status == 0, ended.stderr
    assert host.checked_out() == with_layers_on_top(source)


# skopeo itself has docker-archive: with layers that it says are compressed and are not.
@pytest.mark.parametrize("to", ["oci-archive:", "docker-archive:", "dir:", "docker://"])
def test_what_skopeo_has_made_of_it(
    to: str, host: Host, source: Source, registry: str, tmp_path: Path
) -> None:
    """All but the first are Docker's formats, which have no annotations."""
    image = f"docker://{registry}/docker:1" if to == "docker://" else f"{to}{tmp_path / 'image'}"
    options = ["--format=v2s2"] * (to in {"dir:", "docker://"})
    name = ":os:1" * (to == "docker-archive:")
    skopeo_copy(source.name("derived"), image + name, *options)
    ended = host.pull(image, PLAIN)
    assert ended.status == 0, ended.stderr
    assert host.checked_out() == with_layers_on_top(source)


def test_an_update_fetches_what_is_new_alone(host: Host, source: Source) -> None:
    assert host.pull(source.name("base")).status == 0
    again = host.pull(source.name("base"))
    assert (again.status, again.asked) == (0, DOCUMENTS[:3])
    ended = host.pull(source.name("derived"))
    assert ended.status == 0, ended.stderr
    assert ended.asked.count("GetBlob") == 2


def test_an_image_in_a_registry(host: Host, source: Source, registry: str) -> None:
    ended = host.pull(f"docker://{registry}/os:1", PLAIN)
    assert ended.status == 0, ended.stderr
    assert host.checked_out() == contents(source.tree)


def test_the_commit_itself(host: Host, source: Source, registry: str) -> None:
    """Which has the checksum that it had before."""
    image = f"ostree-unverified-image:docker://{registry}/os:1"
    options = (f"--repo={host.repository}", "--write-ref=os", "--quiet", PLAIN)
    ended = host.container("unencapsulate", *options, image)
    assert ended.status == 0, ended.stderr
    assert host.ostree("rev-parse", "os").strip() == source.commit
    assert "no errors found" in host.ostree("fsck")
    assert host.tree("os") == contents(source.tree)


def test_a_connection_that_breaks_is_nothing_it_hears_of(
    host: Host, source: Source, registry: str
) -> None:
    with line_to(registry, Cut(MIB, "reset"), Cut(MIB, "reset")) as line:
        ended = host.pull(f"docker://{line.address}/os:1", PLAIN)
        assert line.broken == 2
    assert ended.status == 0, ended.stderr
    assert host.checked_out() == contents(source.tree)


# --- what is refused -------------------------------------------------------------------------


# Of a header of gzip the byte with the operating system, which decompressors do not look at.
PLACES: dict[str, Callable[[int], int]] = {
    "header": lambda _: 9,
    "middle": lambda size: size // 2,
    "end": lambda size: size - 1,
}


@pytest.mark.parametrize(
    ("which", "place"),
    [
        ("small", "middle"),
        ("large", "header"),
        ("large", "middle"),
        ("large", "end"),
        ("on top", "header"),
        ("on top", "end"),
        ("plain", "middle"),
    ],
)
def test_a_layer_with_a_wrong_byte(
    which: str, place: str, host: Host, source: Source, tmp_path: Path
) -> None:
    """Nothing of that layer is kept, and the right one is taken afterwards."""
    *of_base, on_top, plain = source.layout.layers(source.images["derived"])
    by_size = sorted(of_base, key=lambda each: int(each["size"]))
    layers = {"small": by_size[0], "large": by_size[-1], "on top": on_top, "plain": plain}
    digest = layers[which]["digest"]
    layout = source.copy(tmp_path / "layout")
    content = bytearray(layout.read(digest))
    content[PLACES[place](len(content))] ^= 1
    layout.file(digest).write_bytes(content)
    image = f"oci:{layout.path}:derived"
    ended = host.pull(image)
    assert ended.status == 1
    assert f"{digest}: {REFUSED}" in ended.stderr
    assert host.is_clean()
    assert not any(digest.partition(":")[2] in name for name in host.refs("blob"))
    shutil.copy(source.layout.file(digest), layout.file(digest))
    assert host.pull(image).status == 0
    assert contents(source.tree).items() <= host.checked_out().items()


def test_the_policy_refuses(host: Host, source: Source) -> None:
    host.home.write(".config/containers/policy.json", REJECT)
    ended = host.pull(source.name("base"))
    assert ended.status == 1
    assert re.search("failed to invoke method OpenImage: .*reject", ended.stderr)
    assert host.is_clean()


def test_no_registry(host: Host) -> None:
    ended = host.pull(f"docker://127.0.0.1:{free_port()}/os:1", PLAIN)
    assert ended.status == 1
    assert re.search(r"failed to invoke method OpenImage: .*127\.0\.0\.1", ended.stderr)
    assert host.is_clean()


def test_a_layer_that_is_no_archive_is_the_error_and_not_the_pipe(
    host: Host, source: Source, tmp_path: Path
) -> None:
    """It closes the pipe then, and knows what follows by the end of the words."""
    layout = source.copy(tmp_path / "layout")
    junk = b"no archive" * MIB
    layout.save(derived(layout, source.images["base"], (junk, junk)))
    ended = host.pull(f"oci:{layout.path}")
    assert ended.status == 1
    assert "proxy failure" not in ended.stderr
    assert "Filtering tar stream" in ended.stderr
    assert host.is_clean()


def test_a_registry_that_is_gone_for_good(host: Host, registry: str) -> None:
    with line_to(registry, Cut(2 * MIB, "reset")) as line:
        process = host.pulling(f"docker://{line.address}/os:1", PLAIN)
        assert eventually(lambda: line.broken == 1)
        line.dead = True
        ended = end(process)
    assert ended.status == 1
    assert re.search(
        r"failed to invoke method (GetBlob|FinishPipe): .*127\.0\.0\.1", ended.stderr
    ), ended.stderr
    assert host.is_clean()


# --- what is killed --------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("who", ["imgproxy", "ostree", "ostree at once"])
def test_a_kill_in_the_middle_of_a_layer(
    who: str, host: Host, source: Source, registry: str
) -> None:
    """The repository is as it was, nobody stays behind, and the next pull succeeds."""
    with line_to(registry, Cut(2 * MIB, "stall")) as line:
        process = host.pulling(f"docker://{line.address}/os:1", PLAIN)
        assert eventually(lambda: line.broken == 1 and host.is_importing())
        (imgproxy,) = children(process.pid)
        if who == "imgproxy":
            os.kill(imgproxy, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM if who == "ostree" else signal.SIGKILL)
        ended = end(process, LIMIT)
        assert eventually(lambda: is_gone(imgproxy))
    if who == "imgproxy":  # its words are those of whatever it notices first
        assert (ended.status, ended.stderr[:16]) == (1, "Error: Importing"), ended
    else:
        assert ended.status < 0
    assert host.is_clean()
    assert host.pull(f"docker://{registry}/os:1", PLAIN).status == 0
    assert host.checked_out() == contents(source.tree)

"""Read archives with skopeo and with imgproxy, and print the results of both.

Each archive is made here of the image in sample.py, in the form that some program writes, or that
an attacker might. `copied` and `served` mean success; where there is an image for arm64 as well,
the one for amd64 is requested, or comes first.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PARENT = Path(__file__).parent / "parent.py"

# In seconds: a program that takes longer is reported to wait for ever.
PATIENCE = 5

LAYERS = sample.layers("amd64")
DOCKER = sample.docker_archive("amd64")
*NAMES, CONFIG, _ = DOCKER  # layers, configuration, manifest.json
TAG = "acme/sample:1"


class Link(NamedTuple):
    """A member without contents: `tarfile.SYMTYPE` or `tarfile.LNKTYPE`, and its target."""

    kind: bytes
    target: str


class Case(NamedTuple):
    """An archive, and the IMAGE that names it, with FILE for its path."""

    title: str
    image: str
    archive: bytes


def tar(members: Iterable[tuple[str, bytes | Link]]) -> bytes:
    """Return an archive of files and links."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as output:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, Link):
                member.type, member.linkname = content
                output.addfile(member)
            else:
                member.size = len(content)
                output.addfile(member, BytesIO(content))
    return archive.getvalue()


def listed(*layers: str, config: str = CONFIG) -> dict[str, object]:
    """Return an image's entry in manifest.json."""
    return {"Config": config, "RepoTags": [TAG], "Layers": layers}


def with_links(links: dict[str, Link]) -> bytes:
    """Return a Docker archive in which the first of these links replaces the first layer."""
    control = sample.encode([listed(next(iter(links)), *NAMES[1:])])
    return tar([*links.items(), *(DOCKER | {"manifest.json": control}).items()])


def docker_archives() -> Iterator[Case]:
    """Yield the Docker archives."""
    image, plain = "docker-archive:FILE", tar(DOCKER.items())
    yield Case("gzipped, as Nix makes it", image, gzip.compress(plain))
    yield Case("gzipped, zeros after it", image, gzip.compress(plain) + bytes(10240))
    yield Case("through a pipe", "docker-archive:/dev/stdin", plain)

    first, again = Link(tarfile.SYMTYPE, "../b/layer.tar"), Link(tarfile.SYMTYPE, f"../{NAMES[0]}")
    links = {"a/layer.tar": first, "b/layer.tar": again}
    yield Case("a layer is a link to a link", image, with_links(links))
    links = {"a/layer.tar": Link(tarfile.LNKTYPE, NAMES[0])}
    yield Case("a layer is a hard link", image, with_links(links))

    large = {"manifest.json": DOCKER["manifest.json"] + b" " * (2 << 20)}
    yield Case("a manifest.json of 2 MiB", image, tar((DOCKER | large).items()))

    layout = Layout()
    yield Case("an index.json alone", image, layout.tar(index(layout.image())))

    other = sample.config("arm64", LAYERS[:1])
    items = [listed(*NAMES), listed(NAMES[0], config="other.json")]
    control = {"other.json": other, "manifest.json": sample.encode(items)}
    yield Case(
        "two images of one name, for two platforms",
        f"{image}:{TAG}",
        tar((DOCKER | control).items()),
    )
    second = ("manifest.json", sample.encode(items[1:]))
    yield Case("two manifest.json", image, tar([*DOCKER.items(), ("other.json", other), second]))


class Layout:
    """An OCI layout under construction, for an archive."""

    def __init__(self) -> None:
        self.members = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]

    def add(self, content: bytes, media_type: str, **fields: object) -> dict[str, Any]:
        """Add a blob, and return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        self.members.append((f"blobs/sha256/{digest}", content))
        described = {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
        return described | fields

    def image(self, architecture: str = "amd64") -> dict[str, Any]:
        """Add an image, and return the descriptor of its manifest."""
        layers = sample.layers(architecture)
        manifest = {
            "schemaVersion": 2,
            "mediaType": sample.MANIFEST,
            "config": self.add(sample.config(architecture, layers), sample.CONFIG),
            "layers": [self.add(each, sample.LAYER) for each in layers],
        }
        platform = {"os": "linux", "architecture": architecture}
        return self.add(sample.encode(manifest), sample.MANIFEST, platform=platform)

    def tar(self, *indexes: bytes) -> bytes:
        """Return the archive, with these index.json members."""
        return tar([*self.members, *(("index.json", each) for each in indexes)])


def index(*descriptors: dict[str, Any]) -> bytes:
    """Return an index of these."""
    document = {"schemaVersion": 2, "mediaType": sample.INDEX, "manifests": descriptors}
    return sample.encode(document)


def oci_archives() -> Iterator[Case]:
    """Yield the OCI archives."""
    image, layout = "oci-archive:FILE", Layout()
    amd64, arm64 = layout.image("amd64"), layout.image("arm64")
    offered = layout.tar(index(arm64, amd64))
    yield Case("an image for each platform", image, offered)
    yield Case("an image by its position", f"{image}:@1", offered)
    inner = layout.add(index(arm64, amd64), sample.INDEX)
    outer = layout.add(index(inner), sample.INDEX)
    yield Case("an index in an index", image, layout.tar(index(outer)))
    one = {"annotations": {"org.opencontainers.image.ref.name": "one"}}
    same = index(amd64 | one, arm64 | one)
    yield Case("two OCI images of one name", f"{image}:one", layout.tar(same))
    yield Case("two index.json", image, layout.tar(index(amd64), index(arm64)))

    layout = Layout()
    descriptor = layout.image()
    name, manifest = layout.members[-1]
    layout.members[-1] = name, manifest.replace(b'"size"', b'"Size"', 1)
    yield Case("a manifest does not match its digest", image, layout.tar(index(descriptor)))


def skopeo(image: str, directory: Path, stdin: bytes) -> str:
    """Copy an image, and return the result."""
    options = ["--insecure-policy", "--override-arch=amd64"]
    try:
        result = run(["skopeo", *options, "copy", image, f"dir:{directory}"], stdin)
    except subprocess.TimeoutExpired:
        return "waits for ever"
    if result.returncode == 0:
        config = json.loads((directory / "manifest.json").read_bytes())["config"]
        content = (directory / config["digest"].removeprefix("sha256:")).read_bytes()
        return f"copied, {json.loads(content)['architecture']}"
    message = result.stderr.decode().rpartition('msg="')[2].strip().rstrip('"')
    return message.replace('\\"', '"')


def imgproxy(image: str, directory: Path, stdin: bytes) -> str:
    """Save an image's layers, and return the result."""
    options = ["--insecure-policy", "--platform=linux/amd64", "--quiet"]
    parent = [sys.executable, str(PARENT), "--output", str(directory), image, *options]
    result = run(parent, stdin)
    errors = result.stderr.decode()
    failed = re.search(r"failed: /\S+ (.*)", errors)
    if failed:
        return failed[1]
    saved = {file.name for file in directory.iterdir()}
    expected = {f"sha256-{hashlib.sha256(layer).hexdigest()}" for layer in LAYERS}
    return "served" if result.returncode == 0 and saved == expected else errors


def run(command: list[str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a program, with a pipe as its standard input."""
    return subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)


def show(title: str, image: str, directory: Path, stdin: bytes = b"") -> None:
    """Print the results of the two programs for an image."""
    directory.mkdir()
    print(title)
    print(f"   skopeo:   {skopeo(image, directory / 'copied', stdin)}")
    print(f"   imgproxy: {imgproxy(image, directory / 'saved', stdin)}", flush=True)


def main() -> None:
    """Make the archives one by one, and show the results."""
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)  # for short paths in messages
        for n, case in enumerate([*docker_archives(), *oci_archives()]):
            file = Path(f"{n}.tar")
            file.write_bytes(case.archive)
            stdin = case.archive if "/dev/stdin" in case.image else b""
            show(case.title, case.image.replace("FILE", str(file)), Path(str(n)), stdin)
            file.unlink()
        os.mkfifo("fifo")
        show("a FIFO", "docker-archive:fifo", Path("none"))


if __name__ == "__main__":
    main()

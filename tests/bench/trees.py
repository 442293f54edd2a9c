"""Images that are root file systems, and programs that unpack them, behind one interface.

The lower bound is GNU tar with each layer, in order and without whiteouts. Destinations lie beside
the images: on a disk, that is measured as well, so that TMPDIR should name a tmpfs.
"""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import subprocess
import tarfile
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Layout, digest_of, encode, named
from support.real_trees import debian

from .child import capture
from .contenders import Contender, Imgproxy
from .stage import MIB, TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from .turns import Sample

TAR = "tar -x of each layer"
PEERS = ("umoci", "umoci raw", "crane export, tar -x")
COMPRESSING = 600.0  # seconds
COMPRESSORS = {"gzip": ["gzip", "-6", "-n"], "zstd": ["zstd", "-q", "-3"]}

FILES = 10_000
LAYERS = 64
LARGE = 1024 * MIB

_ARCHIVE = ("tar", "--xattrs", "--xattrs-include=*", "--format=pax", "-c")


class Work(NamedTuple):
    """A root file system: what it is, the compression, and its layers, which `layers` makes."""

    subject: str
    compression: str
    layers: Callable[[int], Iterator[bytes]]


def _debian(_: int) -> Iterator[bytes]:
    yield _archive(debian(), ".")


def _parts(_: int) -> Iterator[bytes]:
    """Yield the same in parts, and as many layers that take some of them away."""
    source, half = debian(), LAYERS // 2
    parts = sorted((source / "usr/share/doc").iterdir())
    yield _archive(source, "--exclude=./usr/share/doc/*", ".")
    for n in range(half):
        yield _archive(source, *(f"./{each.relative_to(source)}" for each in parts[n::half]))
    for each in parts[: LAYERS - half - 1]:
        yield _written(
            [(f"usr/share/doc/.wh.{each.name}", b""), (f"usr/share/doc/new-{each.name}", b"")]
        )


def _small(_: int) -> Iterator[bytes]:
    source = random.Random(1)
    yield _written([(f"d{n // 100}/file{n}", source.randbytes(1024)) for n in range(FILES)])


def _large(size: int) -> Iterator[bytes]:
    source = random.Random(1)
    block = b"".join(source.randbytes(2048) + bytes(2048) for _ in range(MIB // 4096))
    yield _written([("large", block * (size // MIB))])


WORKS = {
    "debian": Work("a Debian in a layer, gzip", "gzip", _debian),
    "zstd": Work("a Debian in a layer, zstd", "zstd", _debian),
    "layers": Work(f"a Debian in {LAYERS} layers with whiteouts, gzip", "gzip", _parts),
    "small": Work(f"{FILES} files of 1 KiB, gzip", "gzip", _small),
    "large": Work("a large file, half of it random, gzip", "gzip", _large),
}


def _archive(root: Path, *words: str) -> bytes:
    command = [_ARCHIVE[0], "-C", str(root), *_ARCHIVE[1:], *words]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _written(files: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def stage(work: Work, size: int, path: Path) -> list[Path]:
    """Write the image of a work as a layout, and return the files of its layers."""
    layout, layers, diff_ids = Layout(path), [], []
    for raw in work.layers(size):
        plain = path / "layer"
        plain.write_bytes(raw)
        diff_ids.append(digest_of(raw))
        suffix = {"gzip": ".gz", "zstd": ".zst"}[work.compression]
        capture([*COMPRESSORS[work.compression], str(plain)], COMPRESSING)
        packed = plain.with_suffix(suffix)
        layers.append(layout.add(packed.read_bytes(), f"{OCI_LAYER}+{work.compression}"))
        packed.unlink()
        plain.unlink(missing_ok=True)
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": layers,
    }
    layout.save(named(layout.add(encode(manifest), OCI_MANIFEST), TAG))
    os.sync()
    return [layout.file(each["digest"]) for each in layers]


def unpackers(
    contenders: Sequence[Contender], layout: Path, layers: Sequence[Path], remote: str | None
) -> Iterator[tuple[str, Callable[[str], list[str]]]]:
    """Yield names of programs, and their command lines for a directory that is not there.

    `remote` is the name of the image in a registry, for those that need one.
    """
    for contender in contenders:
        if isinstance(contender, Imgproxy):
            options = ["unpack", "--insecure-policy", "--quiet", f"oci:{layout}:{TAG}"]
            yield contender.name, partial(_with, [*contender.command, *options])
    files = shlex.join(map(str, layers))
    script = f'mkdir "$0"; for l in {files}; do tar -x -p --xattrs -C "$0" -f "$l"; done'
    yield TAR, partial(_with, ["sh", "-ec", script])
    if shutil.which("umoci"):
        image = f"{layout}:{TAG}"
        for name in PEERS[:2]:
            words = [*name.split(), "unpack", "--image", image]
            yield name, partial(_with, words)
    if shutil.which("crane") and remote is not None:
        export = f"crane export --insecure {shlex.quote(remote.removeprefix('docker://'))} -"
        pipeline = f'mkdir "$0"; {export} | tar -x -p --xattrs -C "$0"'
        yield PEERS[-1], partial(_with, ["sh", "-ec", pipeline])


def _with(words: Sequence[str], directory: str) -> list[str]:
    return [*words, directory]


def unpack(
    command: Callable[[str], list[str]], folder: Path, measure: Callable[[Sequence[str]], Sample]
) -> Sample:
    """Measure a program that unpacks into a directory, which is removed then."""
    directory = folder / "tree"
    try:
        return measure(command(str(directory)))
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=True)

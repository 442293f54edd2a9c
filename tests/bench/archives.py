"""Docker archives as Nix writes them (manifest.json last), and the lower bounds for reading.

The layers compress about as well as programs do: words of a few bytes in random order, and eight
random bytes in each page.
"""

from __future__ import annotations

import io
import random
import shlex
import sys
import tarfile
from typing import TYPE_CHECKING

from support.images import Layout, encode, named

from .child import capture
from .stage import MIB, TAG, write_layer, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.images import Json

COMPRESSORS = {"gzip": "gzip -1", "zstd": "zstd -q -3"}
SUFFIXES = {"gzip": "gz", "zstd": "zst"}
COMPRESSING = 600.0  # seconds

# The shares of the layers.
SHARES = (0.5, 0.3, 0.2)

# The lower bound for reading a gzip archive with a late manifest.json by zlib: one pass to find
# that, and one for the layers, with the hash in another thread.
ZLIB_NAME = "two passes of zlib, the second hashed"
_ZLIB = """
import hashlib, queue, sys, threading, zlib
def inflate(take):
    inflater = zlib.decompressobj(31)
    with open(sys.argv[1], "rb", buffering=0) as file:
        while data := file.read(131072):
            while data:
                take(inflater.decompress(data, 1 << 20))
                data = inflater.unconsumed_tail
inflate(len)
pieces, hasher = queue.Queue(4), hashlib.sha256()
def hash_all():
    while piece := pieces.get():
        hasher.update(piece)
thread = threading.Thread(target=hash_all)
thread.start()
inflate(lambda piece: piece and pieces.put(piece))
pieces.put(b"")
thread.join()
"""


def zlib_passes(path: Path) -> list[str]:
    """Return the program that reads a gzip file twice and hashes its content once."""
    return [sys.executable, "-c", _ZLIB, str(path)]


def pipeline(path: Path, program: str) -> list[str]:
    """Return the pipeline that decompresses a file and hashes its content."""
    return ["sh", "-c", f"{program} {shlex.quote(str(path))} | sha256sum"]


def stage(path: Path, size: int) -> tuple[dict[str, str], list[Json]]:
    """Write an image as layout and as Docker archives; return their names, and the layers.

    The layout and the archives have the same layers, so that reading them is the same work.
    """
    layout = Layout(path / "layout")
    layers = [_layer(layout, int(size * share)) for share in SHARES]
    manifest = write_manifest(layout, layers)
    layout.save(named(manifest, TAG))
    plain = path / "image.tar"
    config = layout.document(manifest)["config"]["digest"]
    members = [f"{layer['digest'].partition(':')[2]}/layer.tar" for layer in layers]
    name = f"{config.partition(':')[2]}.json"
    with tarfile.open(plain, "w") as archive:
        for layer, member in zip(layers, members, strict=True):
            archive.add(layout.file(layer["digest"]), member)
        _add(archive, name, layout.read(config))
        item = {"Config": name, "RepoTags": [f"bench:{TAG}"], "Layers": members}
        _add(archive, "manifest.json", encode([item]))
    references = {"oci": f"oci:{layout.path}:{TAG}", "plain": f"docker-archive:{plain}"}
    for kind, command in COMPRESSORS.items():
        capture([*command.split(), "-k", str(plain)], COMPRESSING)
        references[kind] = f"docker-archive:{plain}.{SUFFIXES[kind]}"
    return references, layers


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _layer(layout: Layout, size: int) -> Json:
    source = random.Random(size)
    words = [source.randbytes(source.randint(3, 24)) for _ in range(4096)]
    block = bytearray(b"".join(source.choices(words, k=2 * MIB // 12))[:MIB].ljust(MIB, b"\0"))

    def pieces() -> Iterator[memoryview]:
        for start in range(0, size, MIB):
            for page in range(0, MIB, 4096):
                block[page : page + 8] = source.randbytes(8)
            yield memoryview(block)[: size - start]

    return write_layer(layout, pieces(), size)

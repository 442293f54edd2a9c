"""Write a small image for the demo: `sample.py DIRECTORY` makes an OCI image layout there.

Every run gives the same bytes, and so the same digests: nothing in the layout depends on the
clock, on the user or on the version of a compressor.

`sample.py DIRECTORY ARCHIVE` also writes the image for amd64 as a gzipped Docker archive, in the
form that Nix's dockerTools give it: plain layers, and what describes them last.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

# Beyond 1 MiB a blob is verified while it is streamed, and not before.
LARGE = 3 << 20


def add(layout: Path, content: bytes, media_type: str) -> dict[str, object]:
    """Write a blob; give its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def encode(document: Mapping[str, object] | Sequence[object]) -> bytes:
    """Give the document as JSON."""
    return json.dumps(document).encode()


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Give a tar archive of files; what a `TarInfo` is not told, is zero."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as output:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            output.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def layers(architecture: str) -> list[bytes]:
    """Give the layers of the image for the architecture."""
    return [
        # The output of a hash does not compress and repeats on every machine.
        tar([("usr/share/noise", hashlib.shake_256(b"noise").digest(LARGE))]),
        tar([("etc/architecture", architecture.encode() + b"\n")]),
        tar([("etc/greeting", b"Hello from a layer.\n")]),
    ]


def config(architecture: str, layers: Iterable[bytes]) -> bytes:
    """Give the configuration of an image."""
    diff_ids = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in layers]
    return encode(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def image(layout: Path, architecture: str) -> dict[str, object]:
    """Write an image for the architecture; give the descriptor that an index has of it."""
    contents = layers(architecture)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add(layout, config(architecture, contents), CONFIG),
        "layers": [add(layout, content, LAYER) for content in contents],
    }
    platform = {"architecture": architecture, "os": "linux"}
    return {**add(layout, encode(manifest), MANIFEST), "platform": platform}


def docker_archive(architecture: str) -> dict[str, bytes]:
    """Give the members of a Docker archive of the image, in Nix's order."""
    contents = layers(architecture)
    described = config(architecture, contents)
    members = {f"{hashlib.sha256(each).hexdigest()}/layer.tar": each for each in contents}
    name = f"{hashlib.sha256(described).hexdigest()}.json"
    item = {"Config": name, "RepoTags": ["acme/sample:1"], "Layers": list(members)}
    return {**members, name: described, "manifest.json": encode([item])}


def main() -> None:
    """Write what the command line names."""
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit("usage: sample.py DIRECTORY [ARCHIVE]")
    layout, *archives = map(Path, sys.argv[1:])
    (layout / "blobs/sha256").mkdir(parents=True)
    images = [image(layout, architecture) for architecture in ("amd64", "arm64")]
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": images})
    offered = encode({"schemaVersion": 2, "manifests": [add(layout, index, INDEX)]})
    (layout / "index.json").write_bytes(offered)
    (layout / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
    for archive in archives:
        archive.write_bytes(gzip.compress(tar(docker_archive("amd64").items()), mtime=0))


if __name__ == "__main__":
    main()

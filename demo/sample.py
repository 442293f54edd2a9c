"""Write a small image for the demo: `sample.py DIRECTORY` creates an OCI image layout there.

Every run writes the same bytes, and so the same digests: nothing in the layout depends on the
clock, the user or the version of a compressor.

`sample.py DIRECTORY ARCHIVE` also writes the image for amd64 as a gzipped Docker archive, in the
form of Nix's dockerTools: uncompressed layers first, the documents that describe them last.
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

# Blobs of more than 1 MiB are verified while they are streamed, and not before.
LARGE = 3 << 20


def add(layout: Path, content: bytes, media_type: str) -> dict[str, object]:
    """Write a blob, and return its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def encode(document: Mapping[str, object] | Sequence[object]) -> bytes:
    """Return the document as JSON."""
    return json.dumps(document).encode()


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar archive of files; all other fields of a `TarInfo` are zero."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as output:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            output.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def layers(architecture: str) -> list[bytes]:
    """Return the layers of the image for the architecture."""
    return [
        # The output of a hash is incompressible, and the same on every machine.
        tar([("usr/share/noise", hashlib.shake_256(b"noise").digest(LARGE))]),
        tar([("etc/architecture", architecture.encode() + b"\n")]),
        tar([("etc/greeting", b"Hello from a layer.\n")]),
    ]


def config(architecture: str, layers: Iterable[bytes]) -> bytes:
    """Return the configuration of an image."""
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
    """Write an image for the architecture, and return its descriptor for an index."""
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
    """Return the members of a Docker archive of the image, in Nix's order."""
    contents = layers(architecture)
    described = config(architecture, contents)
    members = {f"{hashlib.sha256(each).hexdigest()}/layer.tar": each for each in contents}
    name = f"{hashlib.sha256(described).hexdigest()}.json"
    item = {"Config": name, "RepoTags": ["acme/sample:1"], "Layers": list(members)}
    return {**members, name: described, "manifest.json": encode([item])}


def main() -> None:
    """Write the files that the command line names."""
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

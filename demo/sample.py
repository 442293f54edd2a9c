"""Write a small image for the demo: `sample.py DIRECTORY` makes an OCI image layout there.

Every run gives the same bytes, and so the same digests: nothing in the layout depends on the
clock, on the user or on the version of a compressor.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def encode(document: Mapping[str, object]) -> bytes:
    """Give the document as JSON."""
    return json.dumps(document).encode()


def layer(name: str, content: bytes) -> bytes:
    """Give a tar archive with one file; what a `TarInfo` is not told, is zero."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def image(layout: Path, architecture: str) -> dict[str, object]:
    """Write an image for the architecture; give the descriptor that an index has of it."""
    layers = [
        # The output of a hash does not compress and repeats on every machine.
        layer("usr/share/noise", hashlib.shake_256(b"noise").digest(LARGE)),
        layer("etc/architecture", architecture.encode() + b"\n"),
        layer("etc/greeting", b"Hello from a layer.\n"),
    ]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in layers],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add(layout, encode(config), CONFIG),
        "layers": [add(layout, content, LAYER) for content in layers],
    }
    platform = {"architecture": architecture, "os": "linux"}
    return {**add(layout, encode(manifest), MANIFEST), "platform": platform}


def main() -> None:
    """Write the layout that the command line names."""
    layout = Path(sys.argv[1])
    (layout / "blobs/sha256").mkdir(parents=True)
    images = [image(layout, architecture) for architecture in ("amd64", "arm64")]
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": images})
    offered = encode({"schemaVersion": 2, "manifests": [add(layout, index, INDEX)]})
    (layout / "index.json").write_bytes(offered)
    (layout / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))


if __name__ == "__main__":
    main()

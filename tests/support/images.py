"""Images for the tests, the demo of a reader and the bench, written with the standard library.

A `Layout` is an OCI image layout being filled: blobs first, then manifests and indexes, then
`index.json`. Nothing here is shared with the program, so that a mistake cannot cancel itself.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
REF_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def encode(document: Any) -> bytes:  # noqa: ANN401  (JSON is any)
    return json.dumps(document, indent=1).encode()


def named(descriptor: Json, name: str) -> Json:
    """Return the descriptor with the annotation by which `oci:DIR:REF` finds it."""
    return {**descriptor, "annotations": {REF_NAME: name}}


def on(descriptor: Json, platform: str) -> Json:
    """Return the descriptor with `OS/ARCH[/VARIANT]` as its platform."""
    os, architecture, *variant = platform.split("/")
    fields = {"architecture": architecture, "os": os}
    if variant:
        fields["variant"] = variant[0]
    return {**descriptor, "platform": fields}


class Layout:
    """An OCI image layout at `path`, created if it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def file(self, digest: str) -> Path:
        """Return the path of the blob with this digest."""
        return self.path.joinpath("blobs", *digest.split(":"))

    def read(self, digest: str) -> bytes:
        return self.file(digest).read_bytes()

    def add(
        self, content: bytes, media_type: str, *, algorithm: str = "sha256", **fields: object
    ) -> Json:
        """Write a blob; return its descriptor, with `fields` added."""
        digest = digest_of(content, algorithm)
        self.file(digest).parent.mkdir(parents=True, exist_ok=True)
        self.file(digest).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content), **fields}

    def image(
        self,
        *layers: bytes,
        platform: str = "linux/amd64",
        docker: bool = False,
        algorithm: str = "sha256",
        **fields: object,
    ) -> Json:
        """Write config, layers and manifest of an image; return the manifest's descriptor."""
        os, architecture, *variant = platform.split("/")
        config: Json = {
            "architecture": architecture,
            "os": os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        if variant:
            config["variant"] = variant[0]
        manifest_type, config_type, layer_type = (
            (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER)
            if docker
            else (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER)
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": self.add(encode(config), config_type, algorithm=algorithm),
            "layers": [self.add(layer, layer_type, algorithm=algorithm) for layer in layers],
            **fields,
        }
        return self.add(encode(manifest), manifest_type, algorithm=algorithm)

    def index(self, *descriptors: Json, docker: bool = False, **fields: object) -> Json:
        """Write an index (or manifest list) of these; return its descriptor."""
        media_type = DOCKER_LIST if docker else OCI_INDEX
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(descriptors)}
        return self.add(encode({**document, **fields}), media_type)

    def save(self, *descriptors: Json) -> None:
        """Write `index.json` with these entries."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(descriptors)}
        (self.path / "index.json").write_bytes(encode(document))

    def save_image(self, *layers: bytes, **fields: object) -> Json:
        """Write an image as the only entry; return the manifest's descriptor."""
        descriptor = self.image(*layers, **fields)
        self.save(descriptor)
        return descriptor

    def document(self, descriptor: Json) -> Json:
        """Read a manifest or an index."""
        document: Json = json.loads(self.read(descriptor["digest"]))
        return document

    def layers(self, descriptor: Json) -> list[Json]:
        """Return the descriptors of an image's layers."""
        layers: list[Json] = self.document(descriptor)["layers"]
        return layers

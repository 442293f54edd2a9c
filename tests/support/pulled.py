"""A whole image as a parent receives it from `imgproxy`, verified."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from support.images import OCI_MANIFEST, Json, digest_of

if TYPE_CHECKING:
    from support.parent import Child, Client


class Pulled(NamedTuple):
    """An image: its manifest byte for byte, its config, its layers as they were sent."""

    raw: bytes
    config: bytes
    layers: list[bytes]

    @property
    def manifest(self) -> Json:
        manifest: Json = json.loads(self.raw)
        return manifest

    @property
    def content(self) -> tuple[bytes, list[bytes]]:
        """What does not depend on the format that the image was read from."""
        return self.config, self.layers


def pull(client: Client) -> Pulled:
    """Request the manifest and all it names; every digest, size and type must agree."""
    reply = client.get("/manifest")
    assert reply.status == 200, reply.message
    assert reply.get("Content-Type") == OCI_MANIFEST
    assert reply.get("Docker-Content-Digest") == digest_of(reply.body)
    manifest = reply.json()
    config = client.get("/config")
    assert config.status == 200, config.message
    assert config.get("Content-Type") == manifest["config"]["mediaType"]
    _assert_is(config.body, manifest["config"])
    layers = []
    for descriptor in manifest["layers"]:
        blob = client.get(f"/blobs/{descriptor['digest']}")
        assert blob.status == 200, blob.message
        assert blob.get("Docker-Content-Digest") == descriptor["digest"]
        _assert_is(blob.body, descriptor)
        layers.append(blob.body)
    return Pulled(reply.body, config.body, layers)


def _assert_is(content: bytes, descriptor: Json) -> None:
    algorithm = descriptor["digest"].partition(":")[0]
    assert len(content) == descriptor["size"]
    assert digest_of(content, algorithm) == descriptor["digest"]


def pull_from(child: Child) -> Pulled:
    """Pull, and assert that the program ends without a message."""
    pulled = pull(child.client)
    assert child.finish() == 0
    assert child.stderr == ""
    return pulled


def refused(child: Child, status: int, *words: str) -> Json:
    """Assert that the image is refused with these words; return the error."""
    reply = child.client.get("/manifest")
    assert reply.status == status, reply.body
    for word in words:
        assert word in reply.message, reply.message
    assert child.finish() == 0
    return reply.error

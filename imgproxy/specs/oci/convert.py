"""Conversion of Docker schema 2 manifests and manifest lists to OCI's, by relabelling.

Only media types change: digests, sizes, key order, annotations and unknown types stay, so that
every blob keeps the digest under which its producer stored it (regclient and go-containerregistry
convert in the same way). The output is frozen: the same manifest must result in the same bytes in
every version, since parents store the digest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imgproxy.parsing import strict_json
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgproxy.specs.oci.manifest import Descriptor

_RELABELLED = {
    types.DOCKER_MANIFEST: types.OCI_MANIFEST,
    types.DOCKER_CONFIG: types.OCI_CONFIG,
    types.DOCKER_LAYER: types.OCI_LAYER,
    f"{types.DOCKER_LAYER}.gzip": f"{types.OCI_LAYER}+gzip",
    f"{types.DOCKER_LAYER}.zstd": f"{types.OCI_LAYER}+zstd",
    types.DOCKER_FOREIGN: types.OCI_NONDISTRIBUTABLE,
    f"{types.DOCKER_FOREIGN}.gzip": f"{types.OCI_NONDISTRIBUTABLE}+gzip",
    f"{types.DOCKER_FOREIGN}.zstd": f"{types.OCI_NONDISTRIBUTABLE}+zstd",
}


def media_type(docker: str) -> str:
    """Return OCI's equivalent of one of Docker's media types, any other type unchanged."""
    return _RELABELLED.get(docker, docker)


def manifest(raw: bytes) -> bytes:
    """Convert a Docker schema 2 manifest, which has been parsed before, to an OCI manifest."""
    document: dict[str, Any] = strict_json.loads(raw)
    for described in (document, document["config"], *(document.get("layers") or ())):
        if isinstance(described.get("mediaType"), str):
            described["mediaType"] = media_type(described["mediaType"])
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def index(raw: bytes, converted: Mapping[str, Descriptor]) -> bytes:
    """Convert a manifest list or an index, which has been parsed before, to an OCI index.

    `converted` are its converted entries, by the digest that they had before.
    """
    document: dict[str, Any] = strict_json.loads(raw)
    document["mediaType"] = types.OCI_INDEX
    for entry in document.get("manifests") or ():
        found = converted.get(entry["digest"])
        if found is not None:
            entry.update(mediaType=found.media_type, digest=str(found.digest), size=found.size)
            entry.pop("data", None)  # of what it was before
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

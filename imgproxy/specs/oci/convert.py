"""Docker schema 2 to OCI by relabelling.

Only media types change: digests, sizes, key order, annotations and unknown types stay, so that
every blob can still be had under the digest its producer gave it (regclient and
go-containerregistry convert the same way). The output is frozen: the same manifest must give the
same bytes in every version, since parents keep the digest.
"""

from __future__ import annotations

import json
from typing import Any

from imgproxy.parsing import strict_json
from imgproxy.specs.oci import media_type as types

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
    """Give OCI's name for one of Docker's media types, any other as it is."""
    return _RELABELLED.get(docker, docker)


def manifest(raw: bytes) -> bytes:
    """Give a Docker schema 2 manifest, which must have been parsed before, as an OCI manifest."""
    document: dict[str, Any] = strict_json.loads(raw)
    for described in (document, document["config"], *(document.get("layers") or ())):
        if isinstance(described.get("mediaType"), str):
            described["mediaType"] = media_type(described["mediaType"])
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

"""The chosen manifest as clients receive it: as OCI, whatever it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.oci import convert
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.verification.documents import VerifiedDocument


class OciManifest(NamedTuple):
    """A chosen manifest as it is served: the `original` itself, or one of Docker converted."""

    original: VerifiedDocument
    raw: bytes
    digest: Digest


def oci_manifest(original: VerifiedDocument) -> OciManifest:
    """Return a manifest as OCI: byte for byte if it is that already."""
    if original.media_type != types.DOCKER_MANIFEST:
        return OciManifest(original, original.raw, original.digest)
    raw = convert.manifest(original.raw)
    return OciManifest(original, raw, digests.compute(raw))

"""Docker's manifests and lists of a whole image as OCI's, with digests of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.specs.oci import convert
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Descriptor, Manifest
from imgproxy.verification.documents import VerifiedDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgproxy.specs.oci.digest import Digest


def as_oci(
    root: VerifiedDocument, documents: Mapping[Digest, VerifiedDocument]
) -> list[VerifiedDocument]:
    """Return what a document and those below it become, itself last; nothing where it stays.

    `documents` are those below it.
    """
    if isinstance(root.parsed, Manifest):
        if root.media_type != types.DOCKER_MANIFEST:
            return []
        return [_made(root, convert.manifest(root.raw))]
    made: dict[Digest, VerifiedDocument] = {}
    entries: dict[str, Descriptor] = {}
    for entry in root.parsed.manifests:
        inner = documents.get(entry.digest)
        below = [] if inner is None else as_oci(inner, documents)
        made.update((each.digest, each) for each in below)
        if below:
            new = below[-1]
            described = Descriptor(new.media_type, new.digest, len(new.raw))
            entries[str(entry.digest)] = described
    if not entries and root.media_type == types.OCI_INDEX:
        return []
    return [*made.values(), _made(root, convert.index(root.raw, entries))]


def _made(before: VerifiedDocument, raw: bytes) -> VerifiedDocument:
    digest = digests.compute(raw, before.digest.algorithm)
    return VerifiedDocument(raw, digest, manifests.parse(raw, "", str(digest)))

"""Artifacts that belong to an image: attachments of cosign 1 and 2, and referrers.

OCI image specification 1.1, manifest.md ("Guidelines for Artifact Usage") and descriptor.md;
distribution specification 1.1, "Listing Referrers" and its fallback, the "referrers tag schema".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.signing.signature import SignatureError

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest

_NEXT = re.compile(r'<[^<>?]*\?([!-;=?-~]*)>; *rel="?next"?')


class Part(NamedTuple):
    """A layer of an artifact, or a manifest in a list of referrers, with its annotations.

    `kind` is its media type, for a manifest the artifact type.
    """

    descriptor: Descriptor
    kind: str
    annotations: dict[str, str]


def attachments_tag(digest: Digest) -> str:
    """Return the tag under which cosign 1 and 2 store the signatures of a manifest."""
    return f"{digest.algorithm}-{digest.encoded}.sig"


def referrers_tag(digest: Digest) -> str:
    """Return the tag under which referrers are listed where the registry does not list them."""
    return f"{digest.algorithm}-{digest.encoded}"


def referrers_query(kind: str) -> str:
    """Return the query that limits a list of referrers to artifacts of a media type."""
    return f"artifactType={quote(kind, safe='')}"


def next_query(link: str) -> str | None:
    """Return the query for the next page of a list, None after the last: `Link`, RFC 8288.

    Only the query of the link is used, because nothing else of it may differ.
    """
    match = _NEXT.search(link)
    return None if match is None else match[1]


def layers(raw: bytes) -> list[Part]:
    """Return the layers in a manifest. Raises `SignatureError` for other documents."""
    return _parts(raw, "layers", "mediaType")


def manifests(raw: bytes) -> list[Part]:
    """Return the manifests in a list of referrers. Raises `SignatureError` for other documents."""
    return _parts(raw, "manifests", "artifactType")


def _parts(raw: bytes, key: str, kind: str) -> list[Part]:
    try:
        document = Fields(strict_json.loads(raw))
        if key not in document:
            raise SignatureError(f"expected a document with {key}")
        return [
            Part(_descriptor(each), each.optional_text(kind) or "", each.text_map("annotations"))
            for each in document.objects(key)
        ]
    except ValueError as error:  # of a field, JSON or a digest
        raise SignatureError(str(error)) from None


def _descriptor(fields: Fields) -> Descriptor:
    size = fields.integer("size")
    if size < 0:
        raise FieldError(f"{fields.at('size')}: expected a size, got {size}")
    return Descriptor(fields.text("mediaType"), digests.parse(fields.text("digest")), size)

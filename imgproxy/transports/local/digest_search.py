"""Search for a document by its digest, through nested indexes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Document, Source

# Indexes of one level that are searched, and how many levels.
_MAX_INDEXES = 64
_MAX_DEPTH = 4


async def find_by_digest(source: Source, top: Document, digest: Digest) -> Document:
    """Return the document with a digest: one that `top` leads to, or `top` itself.

    Where no index names the digest, `top` is returned as if named by it; unless it has that digest,
    verification rejects it. Raises what `source.document` raises, and `Failure` for an index that
    does not parse.
    """
    level = [top]
    for _ in range(_MAX_DEPTH):
        entries = [entry for document in level for entry in _entries(document)]
        for entry in entries:
            if entry.digest == digest:
                return await source.document(entry)
        indexes = [entry for entry in entries if entry.media_type in types.INDEXES]
        level = []
        for entry in indexes[:_MAX_INDEXES]:
            # A store may hold a whole index, and only some of the documents that it names.
            with suppress(NotFoundError):
                level.append(await source.document(entry))
    return top._replace(digests=(*top.digests, digest))


def _entries(document: Document) -> tuple[Descriptor, ...]:
    parsed = manifests.parse(document.raw, document.media_type, document.name)
    return parsed.manifests if isinstance(parsed, manifests.Index) else ()

"""A source whose content is kept in a store, and read from there the next time.

This is the half of the cache beneath verification: what it reads from the store is verified like
anything else, and what does not verify is removed and asked for again. What it receives it adds to
the store, where it gets its name once verification has accepted it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.errors import Failure, clean
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import open_local
from imgproxy.transports.source import Document, stale_since

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.kept_blobs import KeptBlobs
    from imgproxy.transports.source import Reader, SignaturePlace, Source


class CachedSource:
    """A source, with a store of what it has, which `blobs` fill. See `Source`."""

    def __init__(self, source: Source, blobs: KeptBlobs) -> None:
        self.name = source.name
        self.identity = source.identity
        self._source = source
        self._blobs = blobs
        self._store = blobs.store

    @property
    def stale_since(self) -> float | None:
        """See `source.stale_since`."""
        return stale_since(self._source)

    async def root(self) -> Document:
        """See `Source`. The source is always asked: a name may stand for another image by now."""
        return self._kept(await self._source.root())

    async def everything(self) -> Document:
        """See `source.everything`."""
        find = getattr(self._source, "everything", None)
        return await self.root() if find is None else self._kept(await find())

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        self._store.use([descriptor.digest])
        stored = await self._stored_document(
            descriptor.digest, descriptor.size, descriptor.media_type
        )
        return stored or self._kept(await self._source.document(descriptor))

    async def _stored_document(self, digest: Digest, size: int, media_type: str) -> Document | None:
        """Return a document that the store has, None where it does not."""
        if size > MAX_DOCUMENT_SIZE or not self._blobs.has(digest, size):
            return None
        try:
            content = await open_local(self._store.blob_path(digest))
            raw = await content.read(MAX_DOCUMENT_SIZE)
        except Failure:  # it is asked for again
            return None
        name = f"{clean(self._store.path)}: manifest {digest}"
        return Document(raw, media_type, (digest,), size, name, partial(self._blobs.remove, digest))

    def _kept(self, found: Document) -> Document:
        def accept(digest: Digest) -> None:
            found.accept(digest)
            self._blobs.put(digest, found.raw)

        return found._replace(accept=accept)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`. A part alone, of a blob that the store does not have, is not kept."""
        receive = partial(self._source.blob, descriptor, stop=stop)
        is_part = offset > 0 or stop is not None
        if is_part and not self._blobs.has(descriptor.digest, descriptor.size):
            return await receive(offset)
        return await self._blobs.open(descriptor, receive, offset, stop)

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`."""
        return self._source.signatures(digest)

    def close(self) -> None:
        """See `Source`."""
        self._source.close()

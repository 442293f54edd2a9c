"""A source whose content is kept in a store, and read from there the next time.

This is the half of the cache beneath verification: what it reads from the store is verified like
anything else, and what does not verify is removed and asked for again. What it receives it adds to
the store, where it gets its name once verification has accepted it. A blob of which a killed
process has left the beginning goes on there; those bytes are hashed again, as all are.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import Failure, clean, closing_on_error
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import open_local
from imgproxy.transports.source import Document

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.store.content_store import ContentStore
    from imgproxy.store.partial_blob import PartialBlob
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Reader, ResumableSource, SignaturePlace, Source

_SKIPPED = 256 * 1024


class CachedSource:
    """A source, with a store of what it has. See `Source`.

    `keep` commits a blob that has been verified: it may take the time that a disk needs.
    """

    def __init__(
        self, source: Source, store: ContentStore, keep: Callable[[PartialBlob], None]
    ) -> None:
        self.name = source.name
        self.identity = source.identity
        self._source = source
        self._store = store
        self._keep = keep

    async def root(self) -> Document:
        """See `Source`. The source is always asked: a name may stand for another image by now."""
        return self._kept(await self._source.root())

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        digest, size = descriptor.digest, descriptor.size
        if size <= MAX_DOCUMENT_SIZE and self._store.has(digest, size):
            with suppress(Failure):  # it is asked for again
                content = await open_local(self._store.blob_path(digest))
                raw = await content.read(MAX_DOCUMENT_SIZE)
                name = f"{clean(self._store.path)}: manifest {digest}"
                reject = partial(self._remove, digest)
                return Document(raw, descriptor.media_type, (digest,), size, name, reject)
        return self._kept(await self._source.document(descriptor))

    def _kept(self, found: Document) -> Document:
        def accept(digest: Digest) -> None:
            found.accept(digest)
            self._store.put(digest, found.raw)

        return found._replace(accept=accept)

    def _remove(self, digest: Digest, _: Failure) -> bool:
        """Remove what did not verify; the source is asked the next time."""
        self._store.remove(digest)
        return True

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        digest, size = descriptor.digest, descriptor.size
        begun = await self._store.partial(digest, size)
        if begun is None:
            stored = await open_local(self._store.blob_path(digest))
            return _Stored(stored, partial(self._remove, digest))
        with closing_on_error(begun):
            begun.check_room()
            rest = await self._rest(descriptor, begun.size)
        return _Kept(descriptor, begun, rest, self._keep)

    async def _rest(self, descriptor: Descriptor, offset: int) -> Reader | None:
        """Return a reader of the bytes that the store does not have, None if it has all."""
        if offset == 0 or offset < descriptor.size:
            if offset and is_resumable(self._source):
                return await self._source.rest_of_blob(descriptor, offset)
            rest = await self._source.blob(descriptor)
            with closing_on_error(rest):
                await _skip(rest, offset)
            return rest
        return None

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`."""
        return self._source.signatures(digest)

    def close(self) -> None:
        """See `Source`."""
        self._source.close()


def is_resumable(source: Source) -> TypeGuard[ResumableSource]:
    """Return whether a source can begin a blob at any byte."""
    return hasattr(source, "rest_of_blob")


async def _skip(reader: Reader, count: int) -> None:
    scratch = memoryview(bytearray(min(count, _SKIPPED)))
    while count and (received := await reader.receive_into(scratch[:count])):
        count -= received


class _Stored:
    """A blob that the store has. See `Reader`."""

    def __init__(self, content: Content, remove: Callable[[Failure], bool]) -> None:
        self.name = content.name
        self.size = content.size
        self._content = content
        self._remove = remove

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        return await self._content.receive_into(buffer)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`."""
        return self._remove(failure)

    def accept(self) -> None:
        """See `Reader`."""

    def close(self) -> None:
        """See `Reader`."""
        self._content.close()


class _Kept:
    """A blob that is received, and added to the store on the way. See `Reader`.

    `begun` is what the store has of it, which comes first; `rest` has what it lacks.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        begun: PartialBlob,
        rest: Reader | None,
        keep: Callable[[PartialBlob], None],
    ) -> None:
        self.size = descriptor.size if rest is None else None if begun.size else rest.size
        self._digest = descriptor.digest
        self._begun = begun
        self._found = begun.size
        self._rest = rest
        self._keep = keep
        self._position = 0
        self._is_kept = False

    @property
    def name(self) -> str:
        """See `Reader`."""
        stored = f"blob {self._digest}, begun in the store"
        return stored if self._rest is None else self._rest.name

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        if self._position < self._found:
            await trio.lowlevel.checkpoint()
            count = self._begun.read_into(buffer[: self._found - self._position], self._position)
        elif self._rest is None:
            return 0
        else:
            count = await self._rest.receive_into(buffer)
            self._begun.append(buffer[:count])
        self._position += count
        return count

    def reject(self, failure: Failure) -> bool:
        """See `Reader`. What a process has left may be wrong: everything is asked for once more."""
        self._begun.truncate()
        if self._found:
            return True
        return self._rest is not None and self._rest.reject(failure)

    def accept(self) -> None:
        """See `Reader`."""
        if self._rest is not None:
            self._rest.accept()
        self._is_kept = True
        self._keep(self._begun)

    def close(self) -> None:
        """See `Reader`. What is kept belongs to whoever keeps it."""
        if self._rest is not None:
            self._rest.close()
        if not self._is_kept:
            self._begun.close()

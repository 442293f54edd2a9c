"""A source whose content is kept in a store, and read from there the next time.

This is the half of the cache beneath verification: what it reads from the store is verified like
anything else, and what does not verify is removed and asked for again. What it receives it adds to
the store, where it gets its name once verification has accepted it. A blob of which a killed
process has left the beginning goes on there; those bytes are hashed again, as all are.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import HOST_FAILURES, Failure, InvalidError, clean, closing_on_error
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.store.partial_blob import BusyError
from imgproxy.transports.readers import open_local
from imgproxy.transports.source import Document, stale_since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeGuard

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.store.content_store import ContentStore
    from imgproxy.store.partial_blob import PartialBlob
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Reader, ResumableSource, SignaturePlace, Source

_SKIPPED = 256 * 1024


def _raise(failure: Failure) -> None:
    raise failure


class CachedSource:
    """A source, with a store of what it has. See `Source`.

    `keep` commits a blob that has been verified: it may take the time that a disk needs. `failed`
    is told what the store fails with, and by default raises it; where it returns, the source is
    read without the store. `patience` is how many seconds to wait for a blob that another task or
    process has under way and does not get on with; then it is read without the store.
    """

    def __init__(
        self,
        source: Source,
        store: ContentStore,
        keep: Callable[[PartialBlob], None],
        failed: Callable[[Failure], None] = _raise,
        patience: float = math.inf,
    ) -> None:
        self.name = source.name
        self.identity = source.identity
        self._source = source
        self._store = store
        self._keep = keep
        self._failed = failed
        self._patience = patience
        # What the store has failed with: it may have something else, and cannot remove it.
        self._wrong: set[Digest] = set()

    @property
    def stale_since(self) -> float | None:
        """See `source.stale_since`."""
        return stale_since(self._source)

    async def root(self) -> Document:
        """See `Source`. The source is always asked: a name may stand for another image by now."""
        return self._kept(await self._source.root())

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        self._store.use([descriptor.digest])
        stored = await self._stored_document(
            descriptor.digest, descriptor.size, descriptor.media_type
        )
        return stored or self._kept(await self._source.document(descriptor))

    async def _stored_document(self, digest: Digest, size: int, media_type: str) -> Document | None:
        """Return a document that the store has, None where it does not."""
        if size > MAX_DOCUMENT_SIZE or not self._has(digest, size):
            return None
        try:
            content = await open_local(self._store.blob_path(digest))
            raw = await content.read(MAX_DOCUMENT_SIZE)
        except Failure:  # it is asked for again
            return None
        name = f"{clean(self._store.path)}: manifest {digest}"
        return Document(raw, media_type, (digest,), size, name, partial(self._remove, digest))

    def _has(self, digest: Digest, size: int) -> bool:
        return digest not in self._wrong and self._store.has(digest, size)

    def _kept(self, found: Document) -> Document:
        def accept(digest: Digest) -> None:
            found.accept(digest)
            try:
                self._store.put(digest, found.raw)
            except Failure as failure:
                self._failed(failure)

        return found._replace(accept=accept)

    def _remove(self, digest: Digest, _: Failure) -> bool:
        """Remove what did not verify; the source is asked the next time."""
        try:
            self._store.remove(digest)
        except Failure as failure:
            self._give_up(digest, failure)
        return True

    def _give_up(self, digest: Digest, failure: Failure) -> None:
        """Do without the store for something, from now on, unless its failure is to be raised."""
        self._wrong.add(digest)
        self._failed(failure)

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        digest, size = descriptor.digest, descriptor.size
        if digest in self._wrong:
            return await self._source.blob(descriptor)
        try:
            if self._has(digest, size):
                return await self._stored_blob(digest)
            begun = await self._store.partial(digest, size, self._patience)
            if begun is None:
                return await self._stored_blob(digest)
            with closing_on_error(begun):
                begun.check_room()
        except BusyError:
            return await self._source.blob(descriptor)
        except Failure as failure:
            self._failed(failure)
            return await self._source.blob(descriptor)
        with closing_on_error(begun):
            rest = await self._rest(descriptor, begun.size)
        return _Kept(descriptor, begun, rest, self._keep, partial(self._give_up, digest))

    async def _stored_blob(self, digest: Digest) -> Reader:
        stored = await open_local(self._store.blob_path(digest))
        return _Stored(stored, partial(self._remove, digest))

    async def _rest(self, descriptor: Descriptor, offset: int) -> Reader | None:
        """Return a reader of the bytes that the store does not have, None if it has all."""
        if offset == 0 or offset < descriptor.size:
            if offset and is_resumable(self._source):
                return await self._source.rest_of_blob(descriptor, offset)
            whole = await self._source.blob(descriptor)
            with closing_on_error(whole):
                await _skip(whole, offset)
            return _Skipped(whole) if offset else whole
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


@contextmanager
def _reading() -> Iterator[None]:
    """Take what the store cannot read for as wrong as what is not what its name says."""
    try:
        yield
    except HOST_FAILURES:
        raise
    except Failure as failure:
        raise InvalidError(f"reading what the store has: {failure.message}") from None


class _Skipped:
    """What is left of a blob whose beginning nobody has verified. See `Reader`."""

    def __init__(self, rest: Reader) -> None:
        self.size: int | None = None
        self._rest = rest

    @property
    def name(self) -> str:
        """See `Reader`."""
        return self._rest.name

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        return await self._rest.receive_into(buffer)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`."""
        return self._rest.reject(failure)

    def accept(self) -> None:
        """See `Reader`. What was verified has another beginning, which may not be this one's."""

    def close(self) -> None:
        """See `Reader`."""
        self._rest.close()


class _Stored:
    """A blob that the store has. See `Reader`."""

    def __init__(self, content: Content, remove: Callable[[Failure], bool]) -> None:
        self.name = content.name
        self.size = content.size
        self._content = content
        self._remove = remove

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        with _reading():
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

    `begun` is what the store has of it, which comes first; `rest` has what it lacks. Once the
    store has `failed`, the blob is received without being kept.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        begun: PartialBlob,
        rest: Reader | None,
        keep: Callable[[PartialBlob], None],
        failed: Callable[[Failure], None],
    ) -> None:
        self.size = descriptor.size if rest is None else None if begun.size else rest.size
        self._digest = descriptor.digest
        self._begun = begun
        self._found = begun.size
        self._rest = rest
        self._keep = keep
        self._failed = failed
        self._position = 0
        self._is_whole = True  # what the store has, as far as it was received
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
            with _reading():
                wanted = buffer[: self._found - self._position]
                count = self._begun.read_into(wanted, self._position)
        elif self._rest is None:
            return 0
        else:
            count = await self._rest.receive_into(buffer)
            if self._is_whole:
                self._append(buffer[:count])
        self._position += count
        return count

    def _append(self, content: memoryview) -> None:
        try:
            self._begun.append(content)
        except Failure as failure:
            self._is_whole = False
            self._failed(failure)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`. What a process has left may be wrong: everything is asked for once more."""
        try:
            self._begun.truncate()
        except Failure as error:
            self._failed(error)
        if self._found:
            return True
        return self._rest is not None and self._rest.reject(failure)

    def accept(self) -> None:
        """See `Reader`."""
        if self._rest is not None:
            self._rest.accept()
        if self._is_whole:
            self._is_kept = True
            self._keep(self._begun)

    def close(self) -> None:
        """See `Reader`. What is kept belongs to whoever keeps it."""
        if self._rest is not None:
            self._rest.close()
        if not self._is_kept:
            self._begun.close()

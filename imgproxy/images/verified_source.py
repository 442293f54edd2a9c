"""The documents and blobs of one source, verified.

Which location to try next is decided in one loop here, above verification: bytes that do not verify
count as a failure of their location. What was found is rejected, and the source is asked again as
long as it has another location.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from imgproxy.errors import InvalidError
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import Bytes
from imgproxy.transports.source import Document, everything, is_distant
from imgproxy.verification import documents, verified_blob

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.errors import Failure
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader, Source
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_blob import Blob, LargeBlobs
    from imgproxy.verification.verified_parts import SmallPart, VerifiedPart, VerifiedParts


class _Found(Protocol):
    """What a source has found: a `Document` or a `Reader`."""

    @property
    def reject(self) -> Callable[[Failure], bool]:
        """Reject what was found, and return whether the source has another location."""


F = TypeVar("F", bound=_Found)
V = TypeVar("V")


async def find_valid(find: Callable[[], Awaitable[F]], verify: Callable[[F], Awaitable[V]]) -> V:
    """Call `find` until `verify` accepts what it found, and return the result of `verify`.

    Raises `InvalidError` for the last that was found where none verifies, and what else `find` and
    `verify` raise.
    """
    while True:
        found = await find()
        try:
            return await verify(found)
        except InvalidError as error:
            if not found.reject(error):
                raise


class VerifiedSource:
    """A source that returns verified content only.

    Content that a descriptor embeds is not requested. `large_blobs` bounds the memory of its blobs.
    """

    def __init__(self, source: Source, large_blobs: LargeBlobs) -> None:
        self.source = source
        self._large_blobs = large_blobs

    @property
    def name(self) -> str:
        """The source in messages."""
        return self.source.name

    async def root(self) -> VerifiedDocument:
        """Return the document that the image's name refers to. Raises `Failure`."""
        return await find_valid(self.source.root, _verify)

    async def everything(self) -> VerifiedDocument:
        """Return the document to search: see `source.everything`. Raises `Failure`."""
        return await find_valid(partial(everything, self.source), _verify)

    async def document(self, descriptor: Descriptor) -> VerifiedDocument:
        """Return a document that another one names. Raises `Failure`."""
        return await find_valid(partial(self._find_document, descriptor), _verify)

    async def _find_document(self, descriptor: Descriptor) -> Document:
        content = documents.embedded(descriptor)
        if content is None:
            return await self.source.document(descriptor)
        name = f"{self.name}: manifest {descriptor.digest}"
        named = (descriptor.digest,)
        return Document(content, descriptor.media_type, named, descriptor.size, name)

    async def blob(
        self, descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]] | None = None
    ) -> Blob:
        """Return a blob that a document names, whose reply can be begun.

        `open_reader` finds its bytes, in place of `reader`. Raises `NotImplementedByUsError` where
        the algorithm of the digest is not available, before anything is fetched, and `Failure`.
        """
        verified_blob.check_algorithm(descriptor)
        return await find_valid(
            open_reader or partial(self.reader, descriptor), partial(self._open_blob, descriptor)
        )

    def held_ahead(self, descriptor: Descriptor) -> int | None:
        """Return how many bytes a blob holds once it is opened, None where that takes no wait."""
        if not is_distant(self.source, descriptor) or documents.embedded(descriptor) is not None:
            return None
        size = descriptor.size
        return size if size <= verified_blob.WHOLE else min(size, self._large_blobs.length)

    async def content(
        self, descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]] | None = None
    ) -> bytes:
        """Return the whole of a blob that is as small as a config; see `blob`. Raises `Failure`."""
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise InvalidError(
                f"{self.name}: {descriptor.digest}: {descriptor.size} bytes are more than"
                f" {MAX_DOCUMENT_SIZE}",
                code="SIZE_INVALID",
            )
        blob = await self.blob(descriptor, open_reader)
        try:
            raw = bytearray()
            while piece := await blob.read():
                raw += piece
        finally:
            blob.close()
        return bytes(raw)

    async def _open_blob(self, descriptor: Descriptor, reader: Reader) -> Blob:
        return await verified_blob.open_blob(descriptor, reader, self._large_blobs)

    async def part(
        self, descriptor: Descriptor, wanted: Part, parts: VerifiedParts
    ) -> VerifiedPart | SmallPart:
        """Return a part of a blob, whose reply can be begun.

        It is given out only of a blob that has been verified whole: where this one has not been,
        that is done first. `parts` has the `large_blobs` of this source. Raises what
        `VerifiedParts.hashes` raises, and `Failure`.
        """
        if descriptor.size <= verified_blob.WHOLE:
            return await parts.of_small(await self.blob(descriptor), wanted)
        open_blob = partial(self.blob, descriptor)
        hashes = await parts.hashes(self.name, descriptor, open_blob)
        open_reader = partial(self.reader, descriptor, *hashes.blocks_of(wanted))
        return await find_valid(open_reader, partial(parts.open, descriptor, hashes, wanted))

    async def reader(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """Return a reader of a blob or of a part, not verified: see `Source`. Raises `Failure`."""
        content = documents.embedded(descriptor)
        if content is None:
            return await self.source.blob(descriptor, offset, stop)
        return Bytes(f"{self.name}: blob {descriptor.digest}", content).between(offset, stop)


async def _verify(found: Document) -> VerifiedDocument:
    verified = documents.verify(found)
    found.accept(verified.digest)
    return verified

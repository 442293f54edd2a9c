"""An image of a registry as a cache has it: imgproxy(1), CACHE.

What has a digest is not asked for again, once it was had under the image's name. What a tag stands
for is, unless that was asked a moment ago, and the answer of that time serves where the registry is
away or may not be asked. Whoever named a document, it is compared with its digest when it is read,
and blobs may be those of other names: their digests come from documents of this one.

Signatures are kept as they are, and judged anew each time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from imgproxy.errors import (
    HOST_FAILURES,
    BadUpstreamError,
    Failure,
    NotFoundError,
    UnaskedError,
    clean,
)
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.signing import kept_signatures
from imgproxy.store.cache_records import CachedDocument, CachedTag
from imgproxy.transports import time_limit
from imgproxy.transports.cached import CachedSource
from imgproxy.transports.kept_blobs import KeptBlobs
from imgproxy.transports.source import SignaturePlace, is_distant

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.store.locks import LockedFile
    from imgproxy.transports.cache import Cache, CacheOptions
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.source import Document, Reader

# Where there is another answer: in seconds, how long connections to a registry may take, and how
# often it is asked again.
_CONNECTING = 5.0
_RETRIES = 1

_UNSAFE = "it came to the cache without verified TLS, which --tls-verify=false accepts"
_PRIVATE = "it came to the cache by a login, which --no-creds does without"

# In seconds: how long a blob that another process fetches may stand still.
_BLOB_PATIENCE = 10.0

# In bytes: what is received as soon as it is opened.
_BRIEF = 1024 * 1024

# An index and its images; more are removed from the cache like those that are not in use.
_MAX_LOCKS = 64


class CachedImage(CachedSource):
    """An image of a registry, and what a cache has of it. See `Source`.

    `pinned` is the document that its name has been found to stand for, where that is not to be
    asked.
    """

    def __init__(
        self, image: RegistryImage, cache: Cache, pinned: CachedDocument | None = None
    ) -> None:
        source = _Unasked(image, cache) if cache.options.offline else image
        super().__init__(source, KeptBlobs(cache.store, cache.keep, cache.failed, _BLOB_PATIENCE))
        self._stale_since: float | None = None
        self._pinned = pinned
        self._image = image
        self._reference: Reference = image.reference
        self._cache = cache
        self._records = cache.records
        self._options = cache.options
        self._is_insecure = self._by_login = False  # the root
        self._locks: dict[Digest, LockedFile] = {}

    @property
    def stale_since(self) -> float | None:
        """See `source.stale_since`."""
        return self._stale_since

    # --- documents ------------------------------------------------------------------------------

    async def root(self) -> Document:
        """See `Source`."""
        reference, self._stale_since = self._reference, None
        if self._pinned is not None:
            return await self._usable(self._pinned) or await self._again(self._pinned)
        if reference.digest is not None:
            known = self._records.document(reference.name, reference.digest)
            return await self._usable(known) or await self._asked(known)
        tag = self._records.tag(reference.name, str(reference.tag))
        stored = await self._usable(tag and tag.document)
        if tag is None or stored is None:
            return await self._asked(tag and tag.document)
        if 0 <= time.time() - tag.asked < self._options.tag_ttl:
            return stored
        return await self._asked_or_stale(tag, stored)

    async def _usable(self, known: CachedDocument | None) -> Document | None:
        """Return a document that was had before, None where it may not or cannot be used now."""
        if known is None or not self._accepts(known):
            return None
        found = await self._stored_document(known.digest, known.size, known.media_type)
        if found is None:
            return None
        return self._used(found._replace(is_insecure=known.is_insecure, by_login=known.by_login))

    async def _again(self, known: CachedDocument) -> Document:
        """Return what the registry has under the digest of a document that was had before."""
        descriptor = Descriptor(known.media_type, known.digest, known.size)
        return self._recorded(self._as_root(await self._source.document(descriptor)))

    def _accepts(self, known: CachedDocument) -> bool:
        is_safe = not known.is_insecure or self._image.accepts_insecure
        return is_safe and self._options.permit(known)

    def _as_root(self, found: Document) -> Document:
        """Return a document whose origin is that of all that it names."""
        self._is_insecure, self._by_login = found.is_insecure, found.by_login
        return found

    def _used(self, found: Document) -> Document:
        """Return a document of the store that is recorded as used, once it has been verified."""

        def accept(digest: Digest) -> None:
            self._lock(digest)

        return self._as_root(found)._replace(accept=accept)

    async def _asked_or_stale(self, tag: CachedTag, stored: Document) -> Document:
        """Return what the registry says, or what it said before where it is away."""
        age = max(time.time() - tag.asked, 0.0)
        if age >= self._options.max_stale:
            limit = _shown(self._options.max_stale)
            too_old = f"the cached one is {_shown(age)} old, and --max-stale is {limit}"
            if self._options.offline:
                raise _unasked(self._options, f"{self.name}: {too_old}")
            return await self._asked(None)
        reason = "--offline"
        if not self._options.offline:
            patience = self._options.patience
            try:
                with time_limit.limited(patience, retries=_RETRIES, connecting=_CONNECTING):
                    return await self._confirmed(tag, stored) or await self._asked(None)
            except Failure as failure:
                if not is_away(failure):
                    raise
                reason = failure.message
        self._stale_since = tag.asked
        self._cache.report(f"{self.name}: using what was there {_shown(age)} ago: {reason}")
        return stored

    async def _asked(self, unsafe: CachedDocument | None) -> Document:
        """Return what the registry says; `unsafe` is what this run may not use of the cache."""
        try:
            found = await self._source.root()
        except NotFoundError:
            if self._options.offline and unsafe is not None and not self._accepts(unsafe):
                why = _UNSAFE if self._options.permit(unsafe) else _PRIVATE
                raise _unasked(self._options, f"{self.name}: {why}") from None
            raise
        return self._recorded(self._as_root(found), self._set_tag)

    async def _confirmed(self, tag: CachedTag, stored: Document) -> Document | None:
        """Return the cached document of a tag where the registry says that it is still that one.

        It sends no document for that. Docker Hub limits how many it sends, and not how often it is
        asked in this way.
        """
        location = await self._image.confirmed_by(tag.document.digest)
        if location is None:
            return None
        confirmed = stored._replace(
            is_insecure=stored.is_insecure or location.is_insecure,
            by_login=stored.by_login or location.has_login,
        )
        return self._recorded(self._as_root(confirmed), self._set_tag)

    def _set_tag(self, document: CachedDocument) -> None:
        """Record what the tag stands for now, if it was one that was asked for."""
        if self._reference.digest is None:
            asked = CachedTag(document, time.time())
            self._records.set_tag(self._reference.name, str(self._reference.tag), asked)

    def _recorded(
        self, found: Document, accepted: Callable[[CachedDocument], None] = lambda _: None
    ) -> Document:
        """Return a document that is kept and recorded under the name once it has been verified."""
        kept = self._kept(found)

        def accept(digest: Digest) -> None:
            document = recorded_as(digest, found)
            try:
                # Before it is written, so that `gc` keeps it from then on.
                self._records.add_document(self._reference.name, document)
                accepted(document)
            except Failure as failure:
                self._blobs.failed(failure)
            kept.accept(digest)
            self._lock(digest)

        return found._replace(accept=accept)

    def _lock(self, digest: Digest) -> None:
        """Record that a document is in use, until the image is closed."""
        if digest not in self._locks and len(self._locks) < _MAX_LOCKS:
            lock = self._records.use(self._reference.name, digest)
            if lock is not None:
                self._locks[digest] = lock

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`. A document of this name names it, so that it may be had under it."""
        digest, size = descriptor.digest, descriptor.size
        stored = await self._stored_document(digest, size, descriptor.media_type)
        if stored is None:
            return self._recorded(await self._source.document(descriptor))
        return self._recorded(
            stored._replace(is_insecure=self._is_insecure, by_login=self._by_login)
        )

    def is_at_hand(self, descriptor: Descriptor) -> bool:
        """See `source.is_at_hand`: what was had under this name."""
        known = self._records.document(self._reference.name, descriptor.digest)
        return known is not None and self._blobs.has(known.digest, known.size)

    # --- blobs and signatures -------------------------------------------------------------------

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        if self._cache.takes(descriptor):
            return await super().blob(descriptor, offset, stop)
        return await self._source.blob(descriptor, offset, stop)

    def is_distant(self, descriptor: Descriptor | None) -> bool:
        """See `source.is_distant`. Nobody else fetches a blob that is on its way into the store.

        One that is received as soon as it is opened does not stay on its way.
        """
        if descriptor is None or not is_distant(self._source, descriptor):
            return is_distant(self._source)
        if not self._cache.takes(descriptor):
            return True
        return descriptor.size <= _BRIEF and not self._store.has(descriptor.digest, descriptor.size)

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Those that were kept come first: no place is asked that they make vain."""
        found = [self._keeping(place, digest) for place in self._source.signatures(digest)]
        kept = [each for those in self._signatures_kept(digest).values() for each in those]

        async def read() -> list[Signature]:
            return kept

        name = f"{clean(self._store.path)}: signatures of {digest}"
        return [SignaturePlace(name, read), *found] if kept else found

    def _signatures_kept(self, digest: Digest) -> kept_signatures.Places:
        limit = kept_signatures.MAX_SIZE
        return kept_signatures.decode(
            self._records.signatures(self._reference.name, digest, limit) or b"{}"
        )

    def _keeping(self, place: SignaturePlace, digest: Digest) -> SignaturePlace:
        """Return a place whose signatures are kept when they are read."""

        async def read() -> list[Signature]:
            found = await place.read()
            kept = self._signatures_kept(digest)
            if found and kept.get(place.name) != found and self._cache.is_usable:
                raw = kept_signatures.encode({**kept, place.name: found})
                try:
                    self._records.keep_signatures(self._reference.name, digest, raw)
                except Failure as failure:
                    self._blobs.failed(failure)
            return found

        return SignaturePlace(place.name, read)

    def close(self) -> None:
        """See `Source`."""
        while self._locks:
            self._locks.popitem()[1].close()
        super().close()


def recorded_as(digest: Digest, found: Document) -> CachedDocument:
    """Return what is recorded of a document that has this digest."""
    size = len(found.raw)
    return CachedDocument(digest, found.media_type, size, found.is_insecure, found.by_login)


def is_away(failure: Failure) -> bool:
    """Return whether a registry did not answer, or with nothing that says anything of the image."""
    is_of_host = isinstance(failure, HOST_FAILURES)
    return not is_of_host and (failure.retryable or isinstance(failure, BadUpstreamError))


def _shown(seconds: float) -> str:
    """Return a time as people say it, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


def _unasked(options: CacheOptions, message: str, code: str = "MANIFEST_UNKNOWN") -> UnaskedError:
    return UnaskedError(f"{message}, and {options.why_offline}", code=code)


class _Unasked:
    """An image of a registry that is not to be asked. See `Source`."""

    def __init__(self, image: RegistryImage, cache: Cache) -> None:
        self.name = image.name
        self.identity = image.identity
        self._image = image
        self._where = f"is not in the cache {clean(cache.store.path)}"
        self._options = cache.options

    async def root(self) -> Document:
        """See `Source`."""
        raise _unasked(self._options, f"{self.name}: it {self._where}")

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        what = f"the manifest {descriptor.digest}"
        raise _unasked(self._options, f"{self.name}: {what} {self._where}")

    async def blob(
        self,
        descriptor: Descriptor,
        offset: int = 0,  # noqa: ARG002
        stop: int | None = None,  # noqa: ARG002
    ) -> Reader:
        """See `Source`."""
        what = f"the blob {descriptor.digest}"
        raise _unasked(self._options, f"{self.name}: {what} {self._where}", "BLOB_UNKNOWN")

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Of an image that is not to be asked, these are on this host."""
        return self._image.signatures(digest)

    def close(self) -> None:
        """See `Source`."""
        self._image.close()

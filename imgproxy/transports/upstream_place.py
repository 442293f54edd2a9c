"""The images of registries that are asked for what is not here, through a cache.

Only registries that were named are asked. Which image a tag stands for is asked by opening what is
found for it; all tasks that want it at that time have one answer. What was had under a name is
known by its digest from then on, from the records of the cache, and from memory where the cache
cannot be written.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from imgproxy.errors import Failure, UnaskedError
from imgproxy.host.blocking_calls import settle
from imgproxy.specs.oci import registry_name
from imgproxy.transports.cached_image import CachedImage, is_away, recorded_as
from imgproxy.transports.places import Candidate
from imgproxy.transports.registry import listings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.artifact import Part
    from imgproxy.store.cache_records import CachedDocument, CachedTag
    from imgproxy.transports.cache import Cache
    from imgproxy.transports.fills import Fills
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.registry.registry_image import RegistryImage
    from imgproxy.transports.source import Document, Reader, Source

T = TypeVar("T")

# In seconds: an image that is open is in use, so that the cache removes nothing of it to make room.
# Between two requests of a client that pulls it, less time passes.
_IDLE_TIME = 60.0

# Images that memory knows, of all names together.
_MAX_KNOWN = 1024

# Documents and tags of one name that are looked through, those that were used last: a client has
# asked for a manifest just before it asks for what that names.
_MAX_HAD = 256
_MAX_TAGS = 64

# Tags that are listed where the registry is away.
_MAX_LISTED = 10_000

# Documents of a name that the store has lost, and that are asked for once more for what they name.
_MAX_LOST = 8

# Referrers of one document; each costs a request.
_MAX_REFERRERS = 64


class UpstreamPlace:
    """The images of registries, which are called `upstreams`. See `Place`.

    Without `fills`, no blob is received, and none is waited for that somebody else receives.
    """

    def __init__(
        self, upstreams: Iterable[str], network: Network, cache: Cache, fills: Fills | None
    ) -> None:
        self._fills = fills
        self._places = {registry_name.place(each) for each in upstreams}
        self._network = network
        self._cache = cache
        # What is being asked for; who comes later asks again.
        self._asking: dict[Reference, object] = {}
        self._known: OrderedDict[Candidate, None] = OrderedDict()

    async def has_registry(self, registry: str) -> bool:
        """See `Place`. Nothing is asked of any other."""
        return registry_name.place(registry) in self._places

    async def find(self, reference: Reference) -> list[Candidate]:
        """See `Place`. Whether there is such an image is asked by opening it."""
        if reference.digest is not None:
            return [self._by_digest(reference, reference.digest)]
        key = self._asking.setdefault(reference, object())
        ask = partial(self._ask, reference, key)
        return [Candidate(reference, key, ask, _always, is_passing=True)]

    async def everything(self, repository: Reference) -> list[Candidate]:
        """See `Place`. That is what was had under the name, what was used last first."""
        name = repository.name
        had, tags = self._had(name), self._tags(name, _MAX_TAGS)
        lost = [each for each in had if not self._is_in_store(each)]
        return [
            *(each for each in self._known if each.reference.name == name),
            *(self._by_digest(repository, each) for each in had if each not in lost),
            # For a policy that wants to know the tag.
            *(self._pinned(repository._replace(tag=tag), tags[tag].document) for tag in tags),
            *(self._by_digest(repository, each) for each in lost[:_MAX_LOST]),
        ]

    async def repositories(self) -> list[Reference]:
        """See `Place`. Nobody says what a registry has."""
        return []

    async def tags(self, repository: Reference) -> list[str]:
        """See `AskedPlace`. Those that the cache knows serve where the registry is away."""
        oldest = time.time() - self._cache.options.max_stale
        try:
            return await self._listed(repository._replace(tag="latest"), listings.tags)
        except Failure as failure:
            known = self._tags(repository.name, _MAX_LISTED)
            fresh = [tag for tag, each in known.items() if each.asked > oldest]
            if not fresh or not _is_unanswered(failure):
                raise
            return fresh

    async def referrers(self, repository: Reference, digest: Digest) -> list[Candidate]:
        """See `AskedPlace`. Where the registry is away, it is all that may be one and is here."""

        async def ask(image: RegistryImage) -> list[Part]:
            return await listings.referrers(image, repository.name, digest)

        try:
            listed = await self._listed(repository._replace(digest=digest), ask)
        except Failure as failure:
            had = self._had(repository.name)
            if not had or not _is_unanswered(failure):
                raise
            found = [each for each in had if self._is_in_store(each)]
        else:
            found = [each.descriptor.digest for each in listed[:_MAX_REFERRERS]]
        return [self._by_digest(repository, each) for each in dict.fromkeys(found)]

    # --- images -----------------------------------------------------------------------------------

    def _by_digest(self, repository: Reference, digest: Digest) -> Candidate:
        reference = repository._replace(tag=None, digest=digest)
        return _kept_candidate(reference, digest, partial(self._open, reference))

    def _pinned(self, reference: Reference, document: CachedDocument) -> Candidate:
        """Return what a tag was found to stand for."""
        open_source = partial(self._open, reference, document)
        return _kept_candidate(reference, document.digest, open_source)

    def _note(self, reference: Reference, document: CachedDocument) -> None:
        """Remember what a name was found to stand for."""
        if reference.digest is None:
            found = self._pinned(reference, document)
        else:
            found = self._by_digest(reference, document.digest)
        self._known[found] = None
        self._known.move_to_end(found, last=False)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem()

    async def _open(self, reference: Reference, pinned: CachedDocument | None = None) -> Source:
        image = await settle(self._network.repository, reference)
        note = partial(self._note, reference)
        return UpstreamImage(image, self._cache, self._fills, note, pinned)

    async def _ask(self, reference: Reference, key: object) -> Source:
        def answered() -> None:
            if self._asking.get(reference) is key:
                del self._asking[reference]

        try:
            image = await settle(self._network.repository, reference)
        except BaseException:
            answered()
            raise
        note = partial(self._note, reference)
        return UpstreamImage(image, self._cache, self._fills, note, answered=answered)

    async def _listed(
        self, reference: Reference, ask: Callable[[RegistryImage], Awaitable[T]]
    ) -> T:
        """Return what the registry of an image lists."""
        if self._cache.options.offline:
            raise UnaskedError(f"{reference.name}: --offline forbids asking the registry")
        image = await settle(self._network.repository, reference)
        try:
            return await ask(image)
        finally:
            image.close()

    def _had(self, name: str) -> list[Digest]:
        """Return the documents that were had under a name, and may be given out."""
        records, options = self._cache.records, self._cache.options
        had = records.had(name, _MAX_HAD)
        if not options.anonymous:
            return had
        known = {each: records.document(name, each) for each in had}
        return [each for each, document in known.items() if document and options.permit(document)]

    def _tags(self, name: str, most: int) -> dict[str, CachedTag]:
        """Return what tags of a name stood for, as far as that may be given out."""
        found = self._cache.records.tags(name, most)
        permit = self._cache.options.permit
        return {tag: each for tag, each in found.items() if permit(each.document)}

    def _is_in_store(self, digest: Digest) -> bool:
        return os.path.exists(self._cache.store.blob_path(digest))


class UpstreamImage(CachedImage):
    """An image of a registry and what a cache has of it, for several clients. See `Source`.

    `note` is told what the name has been found to stand for, and `answered` when that was asked.
    """

    def __init__(
        self,
        image: RegistryImage,
        cache: Cache,
        fills: Fills | None,
        note: Callable[[CachedDocument], None],
        pinned: CachedDocument | None = None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(image, cache, pinned)
        self._fills = fills
        self._note = note
        self._answered = answered

    async def root(self) -> Document:
        """See `Source`."""
        try:
            found = await super().root()
        finally:
            self._answered()

        def accept(digest: Digest) -> None:
            found.accept(digest)
            self._note(recorded_as(digest, found))

        return found._replace(accept=accept)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`. One that is not here is received once for all.

        It comes as a whole, also where it was here before and a part is wanted: clients go on to
        ask for the others.
        """
        digest = descriptor.digest
        is_alone = self._blobs.has(digest, descriptor.size) or self._blobs.is_wrong(digest)
        if not is_alone and self._cache.takes(descriptor):
            receive = partial(self._source.blob, descriptor)
            if self._fills is None:
                return await receive()
            if offset == 0 and stop is None:
                return self._fills.follow(descriptor, receive, self._blobs)
            await self._fills.wait_stored(descriptor, receive, self._blobs)
        return await super().blob(descriptor, offset, stop)

    def close(self) -> None:
        """See `Source`. It may have been given up before it was asked."""
        self._answered()
        super().close()


def _kept_candidate(
    reference: Reference, digest: Digest, open_source: Callable[[], Awaitable[Source]]
) -> Candidate:
    return Candidate(reference, digest, open_source, _always, idle_time=_IDLE_TIME)


async def _always() -> bool:
    """Return that a candidate is current: what has a digest stays, and a tag is asked each time."""
    return True


def _is_unanswered(failure: Failure) -> bool:
    return isinstance(failure, UnaskedError) or is_away(failure)

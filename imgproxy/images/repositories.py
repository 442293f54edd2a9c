"""What may be had under a name, over the images that lie on this host.

To have bytes gives nobody a right to them: a document may be had under a name only if a tag or a
file of that name leads to it, and a blob only if a document that was released under that name names
it. The policy decides by the name that was asked for. Nothing is chosen and nothing converted.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from imgproxy.errors import (
    HOST_FAILURES,
    AmbiguousError,
    DeniedError,
    Failure,
    NotFoundError,
    NotReadyError,
    ReplacedError,
    UnaskedError,
    closing_on_error,
)
from imgproxy.single_flight import WAIT, BackgroundFlights
from imgproxy.transports import time_limit
from imgproxy.transports.places import is_asked, is_prepared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from imgproxy.images.catalog import Catalog
    from imgproxy.images.image import Image
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.net.streams import Buffer
    from imgproxy.server.handler import Body
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import AskedPlace, Candidate, Place, PreparedPlace
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_parts import VerifiedParts

T = TypeVar("T")

# What one image takes before a reply, in seconds: how long registries are waited for, connections
# to them among it; and how often they are asked again. All images that a request looks through have
# `WAIT` together: containerd waits for 30 seconds, and asks again itself.
_PATIENCE = 20.0
_CONNECTING = 5.0
_RETRIES = 1

# Images that are kept open between requests; each may hold a descriptor.
_MAX_KEPT = 64

# In seconds: how often those are looked for that nobody has asked for.
_IDLE_INTERVAL = 5.0


class Repositories:
    """The repositories of all places together; the first place that has a tag decides.

    `catalog` opens the images, of which nothing is chosen; `parts` gives out parts of their blobs.
    `judged` is called when an image was opened, with the failure if it could not be. `run` must be
    running.
    """

    def __init__(
        self,
        places: Sequence[Place],
        catalog: Catalog[Candidate],
        parts: VerifiedParts,
        judged: Callable[[Failure | None], None] = lambda _: None,
    ) -> None:
        self._places = places
        self._catalog = catalog
        self._parts = parts
        self._judged = judged
        self._kept: OrderedDict[Candidate, _KeptImage] = OrderedDict()
        self._openings: BackgroundFlights[None] = BackgroundFlights()
        self._generation = 0  # of what is kept

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open images that are asked for, from now on, and close them in the end."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._openings.run)
                task_status.started()
                await self._close_idle()
        finally:
            self.forget()

    async def _close_idle(self) -> None:
        """Close what is kept open for nobody, from now on."""
        while True:
            await trio.sleep(_IDLE_INTERVAL)
            for candidate, kept in [*self._kept.items()]:
                if trio.current_time() - kept.used >= candidate.idle_time:
                    self._kept.pop(candidate).image.close()

    def forget(self) -> None:
        """Judge every image anew, from the next request on: policy or keys may be others now."""
        self._generation += 1
        self._catalog.forget()
        while self._kept:
            self._kept.popitem()[1].image.close()

    def limited(self) -> AbstractContextManager[None]:
        """Return a block with the time limit of what precedes a reply: `transports.time_limit`."""
        return time_limit.limited(WAIT)

    def close(self) -> None:
        """Close the sources of all images."""
        self._catalog.close()

    async def manifest(self, reference: Reference) -> VerifiedDocument:
        """Return the document with a tag or a digest. Raises `Failure`.

        Two different images with one tag are an `AmbiguousError`.
        """
        digest = reference.digest
        if digest is not None:

            async def get(opened: OpenedImage, _: Candidate) -> VerifiedDocument:
                return await opened.document(digest)

            return await self._search(reference, "MANIFEST_UNKNOWN", get, by_name=True)
        found: dict[Digest, VerifiedDocument] = {}
        failures: list[Failure] = []
        for candidate in await self._find(reference):
            try:
                async with self._opened(candidate) as opened:
                    with _limited():
                        document = await opened.root()
                    found.setdefault(document.digest, document._replace(age=opened.age))
            except (NotReadyError, *HOST_FAILURES):
                raise  # see `_search`
            except Failure as failure:
                failures.append(failure)
        if len(found) > 1:
            raise AmbiguousError(
                f"{reference} stands for {len(found)} different images here:"
                f" {', '.join(map(str, found))}",
                choices=[{"digest": str(each)} for each in found],
            )
        if found:
            return next(iter(found.values()))
        raise failures[0] if failures else _absent(reference, "MANIFEST_UNKNOWN")

    async def blob(self, repository: Reference, digest: Digest) -> Descriptor:
        """Return the descriptor of a blob. Raises `Failure`."""

        async def get(opened: OpenedImage, _: Candidate) -> Descriptor:
            return opened.find_blob(digest)

        return await self._search(repository._replace(digest=digest), "BLOB_UNKNOWN", get)

    def is_ready(self, descriptor: Descriptor) -> bool:
        """Return whether a part of a blob can be had without a pass over the whole."""
        return self._parts.is_ready(descriptor)

    async def open_blob(
        self, repository: Reference, digest: Digest, part: Part | None = None
    ) -> HeldBody:
        """Return a blob or a part of it, whose reply can be begun; close it in any case.

        Raises `Failure`.
        """

        async def get(opened: OpenedImage, candidate: Candidate) -> HeldBody:
            descriptor = opened.find_blob(digest)
            body: Body
            if part is None:
                body = await opened.open_blob(descriptor)
            else:
                body = await opened.open_part(descriptor, part, self._parts)
            return HeldBody(body, self._catalog.image(candidate, None))

        return await self._search(repository._replace(digest=digest), "BLOB_UNKNOWN", get)

    async def tags(self, repository: Reference) -> list[str]:
        """Return the tags of a repository in the order of their code points. Raises `Failure`."""
        found: set[str] = set()
        failure: Failure | None = _absent(repository, "NAME_UNKNOWN")
        for place in await self._answering(repository, "NAME_UNKNOWN"):
            if is_asked(place):
                try:
                    with _limited():
                        found.update(await place.tags(repository))
                except NotFoundError as error:
                    failure = failure and error
                else:
                    failure = None
            elif listed := await place.everything(repository):
                found.update(each.reference.tag for each in listed if each.reference.tag)
                failure = None
        if failure is not None:
            raise failure
        return sorted(found)

    async def referrers(self, repository: Reference, digest: Digest) -> list[VerifiedDocument]:
        """Return the documents of a repository that refer to one, none where there are none.

        Images that cannot be opened are passed over, unless none can: raises `Failure` then.
        """
        found: dict[Digest, VerifiedDocument] = {}
        failures: list[Failure] = []
        places = await self._answering(repository, "NAME_UNKNOWN")
        listed = [
            each
            for place in places
            if not is_asked(place)
            for each in await place.everything(repository._replace(tag=None, digest=None))
        ]
        for candidate in self._open_first(listed):
            try:
                async with self._opened(candidate) as opened:
                    found |= {each.digest: each for each in await opened.referrers(digest)}
            except (NotReadyError, *HOST_FAILURES):
                raise  # see `_search`
            except Failure as failure:
                failures.append(failure)
        for place in places:
            if is_asked(place):
                found |= await self._asked_referrers(place, repository, digest)
        if failures and not found and len(failures) == len(listed):
            raise failures[0]
        return list(found.values())

    async def names(self) -> list[Reference]:
        """Return all repositories, as far as places can list them. Raises `Failure`."""
        return [each for place in self._places for each in await place.repositories()]

    # --- candidates -----------------------------------------------------------------------------

    async def _find(self, reference: Reference) -> list[Candidate]:
        """Return what has a tag, or a digest in its name, in the first place that has any."""
        for place in await self._answering(reference, "MANIFEST_UNKNOWN"):
            found = await place.find(reference)
            if found:
                return found
        return []

    async def _asked_referrers(
        self, place: AskedPlace, repository: Reference, digest: Digest
    ) -> dict[Digest, VerifiedDocument]:
        """Return those that registries list; one that cannot be reached makes no shorter list."""
        found: dict[Digest, VerifiedDocument] = {}
        with _limited():
            listed = await place.referrers(repository, digest)
        for candidate in listed:
            with suppress(NotFoundError, DeniedError):
                async with self._opened(candidate) as opened:
                    with _limited():
                        root = await opened.root()
                    subject = root.parsed.subject
                    if subject is not None and subject.digest == digest:
                        found[root.digest] = root
        return found

    async def _still_open(self, repository: Reference) -> list[Candidate]:
        """Return the images of a repository that are open and whose files are as they were."""
        kept = [each for each in self._kept if each.reference.name == repository.name]
        return [each for each in kept if await each.is_current()]

    async def _where_digest_may_be(
        self, reference: Reference, place: Place, unknown: list[PreparedPlace], *, by_name: bool
    ) -> list[Candidate]:
        """Return what is known; where that is not all, add the place to those `unknown`."""
        named = await place.find(reference) if by_name else []
        everything = await place.everything(reference._replace(tag=None, digest=None))
        if is_prepared(place) and not place.is_complete:
            unknown.append(place)
        return self._open_first([*named, *everything])

    async def _in_the_rest(
        self, reference: Reference, unknown: list[PreparedPlace]
    ) -> list[Candidate]:
        """Wait until all files are known before a digest is said to be in none."""
        for place in unknown:
            await place.wait_until_complete()
        repository = reference._replace(tag=None, digest=None)
        return [each for place in unknown for each in await place.everything(repository)]

    def _open_first(self, found: Iterable[Candidate]) -> list[Candidate]:
        """Return images once each, those that are open first."""
        return sorted(dict.fromkeys(found), key=lambda each: each not in self._kept)

    async def _answering(self, reference: Reference, code: str) -> list[Place]:
        answering = [each for each in self._places if await each.has_registry(reference.registry)]
        if not answering:
            raise NotFoundError(f"{reference.name}: that registry is not served here", code=code)
        return answering

    async def _search(
        self,
        reference: Reference,
        code: str,
        get: Callable[[OpenedImage, Candidate], Awaitable[T]],
        *,
        by_name: bool = False,
    ) -> T:
        """Return what `get` finds in the images of a repository, for a digest in the reference.

        What is open is asked first, as it is; only then is everything listed, which may be many
        files, and looked through, place by place, `by_name` also what the digest is given to in
        its name. Raises the failure of an image that could not be looked through where no other one
        has the digest.
        """
        failure: Failure = _absent(reference, code)
        steps: list[tuple[bool, Callable[[], Awaitable[list[Candidate]]]]]
        steps = [(False, partial(self._still_open, reference))]
        for place in await self._answering(reference, code):
            unknown: list[PreparedPlace] = []
            deep = partial(self._where_digest_may_be, reference, place, unknown, by_name=by_name)
            steps += [(True, deep), (True, partial(self._in_the_rest, reference, unknown))]
        for is_deep, images in steps:
            for candidate in await images():
                broken: Failure | None = None
                try:
                    async with self._opened(candidate) as opened:
                        with _limited():
                            if is_deep:
                                broken = await opened.expand()
                            return await get(opened, candidate)
                except NotFoundError as error:
                    failure = broken or (error if isinstance(error, UnaskedError) else failure)
                except (NotReadyError, *HOST_FAILURES):
                    raise  # whoever asks has waited long enough
                except Failure as error:
                    failure = error
        raise failure

    @asynccontextmanager
    async def _opened(self, candidate: Candidate) -> AsyncIterator[OpenedImage]:
        """Open an image for the block, and keep it open after that unless it is a passing one."""
        while True:
            generation = self._generation
            image = self._catalog.image(candidate, None)
            with closing(image):
                if candidate not in self._kept:
                    opening = partial(self._open, candidate, generation)
                    key = candidate, generation
                    left = time_limit.time_left()
                    await self._openings.get(key, str(candidate.reference), opening, left)
                if generation != self._generation:  # it may be judged by what was read before
                    continue
                yield await image.open()
                # What was looked through in vain has not been used.
                if candidate in self._kept:
                    self._kept.move_to_end(candidate)
                    self._kept[candidate].used = trio.current_time()
                return

    async def _open(self, candidate: Candidate, generation: int) -> None:
        image = self._catalog.image(candidate, None)
        try:
            with closing_on_error(image), _limited():
                await image.open()
                if not await candidate.is_current():
                    raise ReplacedError(f"{candidate.reference}: its file was replaced meanwhile")
        except Failure as failure:
            self._judged(failure)
            raise
        self._judged(None)
        # It may have been judged by what was read before.
        if candidate.is_passing or generation != self._generation:
            image.close()
            return
        self._kept[candidate] = _KeptImage(image)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)[1].image.close()


class _KeptImage:
    """An image that is kept open, and when it was last `used`, by the event loop's clock."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.used = trio.current_time()


class HeldBody:
    """A body whose image is held open until it is closed. See `handler.Body`."""

    def __init__(self, body: Body, image: Image) -> None:
        self._body = body
        self._image: Image | None = image

    async def read(self) -> Buffer:
        """See `Body`."""
        return await self._body.read()

    def close(self) -> None:
        """See `Body`. May be called again."""
        self._body.close()
        image, self._image = self._image, None
        if image is not None:
            image.close()


def _limited() -> AbstractContextManager[None]:
    """Return a block that waits for registries only as long as clients wait for a reply."""
    return time_limit.limited(_PATIENCE, retries=_RETRIES, connecting=_CONNECTING)


def _absent(reference: Reference, code: str) -> NotFoundError:
    return NotFoundError(f"{reference} is not here", code=code)

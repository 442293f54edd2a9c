"""Places with images on this host, and what is found there."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from support.sources import accept_anything

from imgproxy.images.catalog import Catalog
from imgproxy.images.repositories import Repositories
from imgproxy.specs.oci.reference import Reference, parse_named
from imgproxy.transports.image_files import ImageFiles
from imgproxy.transports.places import Candidate, Files
from imgproxy.verification.known_blobs import KnownBlobs
from imgproxy.verification.verified_blob import LargeBlobs
from imgproxy.verification.verified_parts import VerifiedParts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from imgproxy.config.policy import Policy
    from imgproxy.errors import NotFoundError
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.places import Place
    from imgproxy.transports.source import Reader, Source


def files(said: list[str] | None = None, *, trusting: bool = False) -> Files:
    return Files([].append if said is None else said.append, trusts_writable=trusting)


@asynccontextmanager
async def image_files(*paths: object, said: list[str] | None = None) -> AsyncIterator[ImageFiles]:
    """Prepare the images at paths, for the block."""
    lines = [] if said is None else said
    place = ImageFiles(map(str, paths), files(lines), lines.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.run)
        try:
            yield place
        finally:
            nursery.cancel_scope.cancel()
            place.close()


@asynccontextmanager
async def repositories(
    places: Sequence[Place], load_policy: Callable[[], Policy] = accept_anything
) -> AsyncIterator[Repositories]:
    """Serve from places, for the block."""

    async def sources(candidate: Candidate) -> list[Source]:
        return [await candidate.open_source()]

    async def nowhere(_: Descriptor, failure: NotFoundError) -> Reader:
        raise failure

    known = KnownBlobs()
    large_blobs = LargeBlobs(known)
    catalog: Catalog[Candidate] = Catalog(sources, load_policy, nowhere, large_blobs=large_blobs)
    async with trio.open_nursery() as nursery:
        served = Repositories(places, catalog, VerifiedParts(nursery, large_blobs, known))
        await nursery.start(served.run)
        try:
            yield served
        finally:
            nursery.cancel_scope.cancel()
            catalog.close()


class Shelf:
    """A place with images in memory, by their names; see `Candidate` for `idle_time`."""

    def __init__(self, sources: dict[Reference, Source], idle_time: float = math.inf) -> None:
        self._sources = sources
        self._idle_time = idle_time

    async def has_registry(self, _: str) -> bool:
        return True

    async def find(self, reference: Reference) -> list[Candidate]:
        return [each for each in self._all() if each.reference == reference]

    async def everything(self, repository: Reference) -> list[Candidate]:
        return [each for each in self._all() if each.reference.name == repository.name]

    async def repositories(self) -> list[Reference]:
        return list(self._sources)

    def _all(self) -> list[Candidate]:
        async def is_current() -> bool:
            return True

        return [
            Candidate(each, 0, partial(_given, source), is_current, idle_time=self._idle_time)
            for each, source in self._sources.items()
        ]


async def _given(source: Source) -> Source:
    await trio.lowlevel.checkpoint()
    return source


def name(text: str) -> Reference:
    return parse_named(text)


def shown(candidates: Sequence[Candidate]) -> list[str]:
    return sorted(str(each.reference) for each in candidates)

"""What a name leads to, described and not chosen: the images, indexes and artifacts there.

Nothing is given out but descriptions, so the policy is not asked. What cannot be read, or does not
verify, is an item that says so.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from imgproxy.errors import Failure, InvalidError
from imgproxy.images.selection import MAX_DEPTH, MAX_ENTRIES
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Descriptor, Index, Manifest
from imgproxy.transports import time_limit as time_limits
from imgproxy.transports.source import Entry, is_listable
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.transports.source import Source
    from imgproxy.verification.documents import VerifiedDocument

# Manifests and configs of a registry that are asked for, together, and at the same time.
MAX_REQUESTS = 128
AT_ONCE = 8

_CREATED = "org.opencontainers.image.created"


class Item(NamedTuple):
    """An image, an index, an artifact, or what cannot be told.

    `position` is that in a layout or an archive, None elsewhere. `kind` is `image`, `index`,
    `artifact`, `attestation`, or `?`; `artifact_type` is empty for what is no artifact. `blobs` are
    the sizes of all content, its own document's too, None where that is not known. `problem` says
    why there is not more. `items` are the entries of an index.
    """

    position: int | None
    names: tuple[str, ...]
    kind: str
    descriptor: Descriptor | None
    platform: Platform | None = None
    artifact_type: str = ""
    created: str = ""
    blobs: dict[Digest, int] | None = None
    layers: tuple[Descriptor, ...] = ()
    items: tuple[Item, ...] = ()
    problem: str = ""

    @property
    def size(self) -> int | None:
        """The bytes of all its content, each blob counted once."""
        return None if self.blobs is None else sum(self.blobs.values())


def unique_sizes(items: Sequence[Item]) -> list[int | None]:
    """Return for each item how many bytes no other one needs."""
    users = Counter(digest for each in items for digest in each.blobs or ())
    return [
        None
        if each.blobs is None
        else sum(size for digest, size in each.blobs.items() if users[digest] == 1)
        for each in items
    ]


async def items_of(source: Source, *, all_documents: bool) -> list[Item]:
    """Return what a source holds of what its name fits.

    `all_documents`: the manifests and configs of an index are read as well; else only where their
    descriptors do not say what they are, since a registry counts such requests. Raises `Failure`
    where nothing can be read.
    """
    lister = _Lister(VerifiedSource(source, LargeBlobs()), all_documents=all_documents)
    if is_listable(source):
        entries = await source.entries()
        lister.all_documents = True
        return await lister.each([partial(lister.entry, each) for each in entries])
    with time_limits.limited(time_limits.TIME_LIMIT):
        root = await lister.source.root()
    reference = source.identity.reference
    descriptor = Descriptor(root.media_type, root.digest, len(root.raw))
    names = () if reference is None else (str(reference),)
    found = await lister.described(Entry(0, names, descriptor), root, 1)
    return [found._replace(position=None)]


class _Lister:
    """The description of what one source holds."""

    def __init__(self, source: VerifiedSource, *, all_documents: bool) -> None:
        self.source = source
        self.all_documents = all_documents
        self._requests = math.inf if is_listable(source.source) else MAX_REQUESTS
        self._left = MAX_ENTRIES
        self._places = trio.CapacityLimiter(AT_ONCE)

    async def each(self, describe: Sequence[partial[Coroutine[None, None, Item]]]) -> list[Item]:
        """Call these at the same time; return what they return, in order."""
        items: dict[int, Item] = {}

        async def put(position: int) -> None:
            items[position] = await describe[position]()

        async with trio.open_nursery() as nursery:
            for position in range(len(describe)):
                nursery.start_soon(put, position)
        return [items[position] for position in range(len(describe))]

    async def entry(self, entry: Entry, depth: int = 1) -> Item:
        """Return what an entry names, which is always something."""
        described = entry.descriptor
        if described is None:
            return Item(entry.position, entry.names, "?", None, problem=entry.problem)
        stated = _stated(entry, described)
        if described.media_type not in types.KNOWN_DOCUMENTS | {""}:
            return stated
        if not self.all_documents and stated.kind != "?" and described.platform is not None:
            return stated
        try:
            document = await self._document(described)
            return await self.described(entry, document, depth)
        except Failure as failure:
            return stated._replace(kind="?", problem=failure.message)

    async def described(self, entry: Entry, document: VerifiedDocument, depth: int) -> Item:
        """Return what an entry names, whose document has been read."""
        assert entry.descriptor is not None  # noqa: S101  (it led to the document)
        found = _stated(entry, entry.descriptor)
        if isinstance(document.parsed, Index):
            return await self._index(found, document, document.parsed, depth)
        manifest = document.parsed
        blobs = {document.digest: len(document.raw), manifest.config.digest: manifest.config.size}
        blobs.update((layer.digest, layer.size) for layer in manifest.layers)
        artifact_type = found.artifact_type or manifest.artifact_type
        is_image = manifest.config.media_type in types.CONFIGS and not artifact_type
        if found.kind != "attestation":
            found = found._replace(kind="image" if is_image else "artifact")
        found = found._replace(
            artifact_type=artifact_type,
            created=found.created or manifests.parse_annotations(document.raw).get(_CREATED, ""),
            blobs=blobs,
            layers=manifest.layers,
        )
        if is_image and found.kind == "image" and not (found.platform and found.created):
            return await self._with_config(found, manifest)
        return found

    async def _index(
        self, found: Item, document: VerifiedDocument, index: Index, depth: int
    ) -> Item:
        found = found._replace(
            kind="index",
            created=found.created or manifests.parse_annotations(document.raw).get(_CREATED, ""),
        )
        self._left -= len(index.manifests)
        if depth > MAX_DEPTH or self._left < 0:
            return found._replace(
                problem=f"more than {MAX_DEPTH} indexes in one another"
                if depth > MAX_DEPTH
                else f"more than {MAX_ENTRIES} entries in all"
            )
        items = await self.each(
            [
                partial(self.entry, Entry(n, (), each), depth + 1)
                for n, each in enumerate(index.manifests)
            ]
        )
        items = [each._replace(position=None) for each in items]
        blobs: dict[Digest, int] | None = {document.digest: len(document.raw)}
        for each in items:
            blobs = None if blobs is None or each.blobs is None else blobs | each.blobs
        return found._replace(items=tuple(items), blobs=blobs)

    async def _with_config(self, found: Item, manifest: Manifest) -> Item:
        """Return an image with what its config says: its platform, and when it was created."""
        try:
            raw = await self._config(manifest.config)
        except Failure as failure:
            return found._replace(problem=failure.message)
        platform = found.platform or manifests.parse_platform(raw)
        return found._replace(
            platform=platform, created=found.created or manifests.parse_created(raw)
        )

    async def _document(self, descriptor: Descriptor) -> VerifiedDocument:
        self._count_request()
        async with self._places:
            with time_limits.limited(time_limits.TIME_LIMIT):
                return await self.source.document(descriptor)

    async def _config(self, descriptor: Descriptor) -> bytes:
        self._count_request()
        async with self._places:
            with time_limits.limited(time_limits.TIME_LIMIT):
                return await self.source.content(descriptor)

    def _count_request(self) -> None:
        self._requests -= 1
        if self._requests < 0:
            raise InvalidError(f"not asked for: {MAX_REQUESTS} requests are the limit")


def _stated(entry: Entry, descriptor: Descriptor) -> Item:
    """Return what a descriptor says alone."""
    artifact_type = "" if descriptor.artifact_type in types.CONFIGS else descriptor.artifact_type
    if descriptor.media_type in types.INDEXES:
        kind = "index"
    elif descriptor.is_attestation:
        kind = "attestation"
    elif artifact_type or descriptor.media_type not in types.KNOWN_DOCUMENTS | {""}:
        kind = "artifact"
    else:
        kind = "image" if descriptor.platform else "?"
    return Item(
        entry.position,
        entry.names,
        kind,
        descriptor,
        descriptor.platform,
        artifact_type or ("" if kind != "artifact" else descriptor.media_type),
        descriptor.annotation(_CREATED) or "",
        {descriptor.digest: descriptor.size} if kind == "artifact" and not artifact_type else None,
    )

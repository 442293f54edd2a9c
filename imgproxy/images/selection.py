"""The choice of a manifest for a platform: OCI image specification, image-index.md.

An index may contain indexes; the walk goes through those that may fit, in document order, and
`specs.oci.platform` chooses among the manifests that they name.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import AmbiguousError, Failure, InvalidError, NotFoundError, clean
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Index, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.images.verified_source import VerifiedSource
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.verification.documents import VerifiedDocument

# Indexes in one another. Images are not built with more, and a walk must end.
MAX_DEPTH = 4

# Indexes in one image; each costs a request.
MAX_INDEXES = 64

# All of these together, in bytes and in entries, of which each takes half a kilobyte of memory. The
# indexes of published images have some tens of entries, and one of the largest size 16,000 of the
# usual length.
MAX_TOTAL_SIZE = 32 * 1024 * 1024
MAX_ENTRIES = 65536

# Manifests that are read because their descriptors do not say what they are.
_MAX_LOOKED_INTO = 64

# Manifests that are looked for to list what is there, where the chosen one is missing.
_MAX_LOOKED_FOR = 16

# A message with thousands of platforms is too long to be read.
_MAX_LISTED = 64


class _Candidate(NamedTuple):
    """An entry that could be chosen, or an index whose entries could be.

    `position` is its place in the index that names it. `platform` is its own, or that of the index
    around it; `is_companion` holds if either is one.
    """

    position: int
    descriptor: Descriptor
    platform: Platform | None
    is_companion: bool = False


class IndexWalk:
    """The walk through an index and the indexes in it, in document order.

    `indexes` are those that were entered, `known` the descriptors that they contain. `way` has the
    documents of those that lead to the chosen manifest, the root first. `leads_to_subjects`: the
    subject of a document may be read as well.
    """

    def __init__(self, source: VerifiedSource, *, leads_to_subjects: bool = True) -> None:
        self.source = source
        self._leads_to_subjects = leads_to_subjects
        self.indexes: dict[Digest, Index] = {}
        self.way: list[VerifiedDocument] = []
        self.known: dict[Digest, Descriptor] = {}
        self._candidates: list[_Candidate] = []
        self._entered: set[Digest] = set()
        self._documents: list[VerifiedDocument] = []
        self._size = self._entries = 0
        self._missing: list[NotFoundError] = []

    async def choose(self, root: VerifiedDocument, wanted: Platform) -> VerifiedDocument:
        """Return the manifest for a platform from an index and the indexes in it.

        What accompanies images (`Descriptor.is_companion`) is chosen only where there are none.
        Raises `NotFoundError` with the platforms that there are, where none fits, and
        `AmbiguousError` where entries without a platform are all that fits.
        """
        await self._enter(root, wanted, None, 1)
        images = [each for each in self._candidates if not each.is_companion]
        self._candidates = images or self._candidates
        chosen = await self._fetch_best(wanted)
        self.way = self._way(chosen.digest)
        return chosen

    def named_by(self, document: VerifiedDocument) -> list[Descriptor]:
        """Return the descriptors of the manifests and indexes that a document leads to."""
        subject = document.parsed.subject if self._leads_to_subjects else None
        return [*_entries(document), *([] if subject is None else [subject])]

    async def _fetch_best(self, wanted: Platform) -> VerifiedDocument:
        """Return the manifest of the best candidate: of the best image, if any of them is one."""
        left, passed_over = self._candidates, None
        for _ in range(_MAX_LOOKED_INTO):
            at = platforms.choose(wanted, [each.platform for each in left])
            if at is None:
                break
            if left[at].platform is None:
                return await self._without_platform(left, wanted)
            found = await self._fetch(left[at].descriptor)
            if not found.parsed.is_companion:
                return found
            passed_over = passed_over or found
            left = [each for each in left if each.descriptor.digest != found.digest]
        if passed_over is None:
            raise self._missing[0] if self._missing else self._nothing_for(wanted)
        return passed_over

    async def _without_platform(
        self, candidates: list[_Candidate], wanted: Platform
    ) -> VerifiedDocument:
        """Return the only image among candidates without a platform, by what the manifests say."""
        by_digest: dict[Digest, _Candidate] = {}
        for each in candidates:
            if each.platform is None:
                by_digest.setdefault(each.descriptor.digest, each)
        if len(by_digest) > _MAX_LOOKED_INTO:
            raise self._ambiguous(by_digest.values())
        found = [await self._fetch(each.descriptor) for each in by_digest.values()]
        images = [each for each in found if not each.parsed.is_companion] or found
        if len(images) > 1:
            raise self._ambiguous(by_digest[each.digest] for each in images)
        (image,) = images
        if len(self._candidates) == 1 or len(found) > 1:
            await self._check_platform(image.parsed, by_digest[image.digest].descriptor, wanted)
        return image

    async def _fetch(self, descriptor: Descriptor) -> VerifiedDocument:
        try:
            found = await self.source.document(descriptor)
        except NotFoundError as error:
            raise await self._with_what_is_there(error, descriptor) from None
        if not isinstance(found.parsed, Manifest):
            raise InvalidError(
                f"{self.source.name}: {descriptor.digest} is an index, but the index that names"
                " it lists it as a manifest or without a type"
            )
        return found

    def _ambiguous(self, candidates: Iterable[_Candidate]) -> AmbiguousError:
        from imgproxy.specs.oci import choices

        offered = [choices.of(each.position, each.descriptor) for each in candidates]
        return AmbiguousError(
            f"{self.source.name} fits {len(offered)} manifests without a platform; choose one by"
            f" its digest: {choices.listed_by_digest(offered)}",
            choices=choices.detail(offered),
        )

    async def _check_platform(
        self, chosen: Manifest | Index, descriptor: Descriptor, wanted: Platform
    ) -> None:
        """Raise `NotFoundError` if the config of the only image is for another platform.

        An entry without a platform may be for any; what is not an image has none.
        """
        assert isinstance(chosen, Manifest)  # noqa: S101  (`_fetch` returns nothing else)
        config = chosen.config
        if config.media_type not in types.CONFIGS or config.size > MAX_DOCUMENT_SIZE:
            return
        found = manifests.parse_platform(await self.source.content(config))
        if found is not None and platforms.choose(wanted, [found]) is None:
            self._candidates = [_Candidate(0, descriptor, found)]
            raise self._nothing_for(wanted)

    async def _with_what_is_there(self, error: NotFoundError, missing: Descriptor) -> NotFoundError:
        """Return the failure with the platforms of the manifests that are not missing added."""
        there = []
        for each in self._candidates[:_MAX_LOOKED_FOR]:
            with suppress(Failure):
                if each.platform and each.descriptor.digest != missing.digest:
                    await self.source.document(each.descriptor)
                    there.append(clean(str(each.platform)))
        return NotFoundError(
            f"{error.message} (there are manifests for: {', '.join(there) or 'nothing else'})",
            code=error.code,
            **{**error.detail, "platforms": there},
        )

    def _way(self, chosen: Digest) -> list[VerifiedDocument]:
        """Return the indexes that lead to the chosen manifest."""
        leading = {chosen}
        for _ in range(MAX_DEPTH):
            leading |= {
                digest
                for digest, index in self.indexes.items()
                if any(entry.digest in leading for entry in index.manifests)
            }
        return [document for document in self._documents if document.digest in leading]

    def _nothing_for(self, wanted: Platform) -> NotFoundError:
        every = [clean(str(each.platform)) for each in self._candidates if each.platform]
        every = list(dict.fromkeys(every))
        there, more = every[:_MAX_LISTED], len(every) - _MAX_LISTED
        return NotFoundError(
            f"{self.source.name} has no manifest for {wanted} (there are: "
            f"{', '.join(there) or 'none'}{f' and {more} more' if more > 0 else ''})",
            code="MANIFEST_UNKNOWN",
            platforms=there,
        )

    async def _enter(
        self, index: VerifiedDocument, wanted: Platform, around: _Candidate | None, depth: int
    ) -> None:
        """Collect the candidates of an index; `around` is its own entry, None for the root."""
        assert isinstance(index.parsed, Index)  # noqa: S101  (`parse` refuses others of this type)
        entries = index.parsed.manifests
        self._size += len(index.raw)
        self._entries += len(entries)
        if self._entries > MAX_ENTRIES:
            raise self._too_much(f"{MAX_ENTRIES} entries in all indexes together")
        self.indexes[index.digest] = index.parsed
        self._documents.append(index)
        for named in self.named_by(index):
            self.known.setdefault(named.digest, named)
        for position, entry in enumerate(entries):
            if entry.is_attestation:
                continue
            candidate = _Candidate(position, entry, entry.platform, entry.is_companion)
            if around is not None:
                candidate = candidate._replace(
                    platform=entry.platform or around.platform,
                    is_companion=(
                        entry.is_companion or around.is_companion or index.parsed.is_companion
                    ),
                )
            if entry.media_type in types.INDEXES:
                platform = candidate.platform
                if platform is None or platforms.choose(wanted, [platform]) is not None:
                    await self._descend(candidate, wanted, depth + 1)
            elif not entry.media_type or entry.media_type in types.KNOWN_DOCUMENTS:
                self._candidates.append(candidate)

    async def _descend(self, index: _Candidate, wanted: Platform, depth: int) -> None:
        entry = index.descriptor
        if entry.digest in self._entered:
            return  # named twice; its entries are candidates already
        self._entered.add(entry.digest)
        if depth > MAX_DEPTH:
            raise self._too_much(f"{MAX_DEPTH} indexes in one another")
        if len(self._entered) > MAX_INDEXES:
            raise self._too_much(f"{MAX_INDEXES} indexes in the first one")
        if self._size + entry.size > MAX_TOTAL_SIZE:
            raise self._too_much(f"{MAX_TOTAL_SIZE} bytes of indexes")
        try:
            inner = await self.source.document(entry)
        except NotFoundError as error:
            # Stores save an index whole and only some of what it names.
            self._missing.append(error)
            return
        await self._enter(inner, wanted, index, depth)

    def _too_much(self, limit: str) -> InvalidError:
        return InvalidError(f"{self.source.name}: more than {limit}, which is the limit")


def _entries(document: VerifiedDocument) -> tuple[Descriptor, ...]:
    parsed: Manifest | Index = document.parsed
    return () if isinstance(parsed, Manifest) else parsed.manifests

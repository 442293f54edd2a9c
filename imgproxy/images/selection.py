"""The choice of a manifest from an index: OCI image specification, image-index.md.

An index may contain indexes; the walk goes through those that may fit, in document order. Among the
manifests that they name, `specs.oci.manifest_selection` has the conditions for the choice, where
there are any, and `specs.oci.platform` the order.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import AmbiguousError, Failure, InvalidError, NotFoundError, clean
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Descriptor, Index, Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.images.verified_source import VerifiedSource
    from imgproxy.specs.oci.choices import Choice
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest_selection import ManifestConditions
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


class Wanted(NamedTuple):
    """What to choose from an index: for which platform, and on which conditions, if any."""

    platform: Platform
    conditions: ManifestConditions | None = None


class _Candidate(NamedTuple):
    """An entry that could be chosen, or an index whose entries could be.

    `position` is its place in the index that names it; `around` are the descriptors of the indexes
    that lead to it, without the root. `platform` is its own, or that of the index around it;
    `is_companion` holds if either is one.
    """

    position: int
    descriptor: Descriptor
    platform: Platform | None
    is_companion: bool = False
    around: tuple[Descriptor, ...] = ()


class IndexWalk:
    """The walk through an index and the indexes in it, in document order.

    `conditions` are what a manifest must fulfil to be chosen, besides its platform: where there are
    some, what accompanies images may be chosen like anything else.

    `indexes` are those that were entered, `known` the descriptors that they contain. `way` has the
    documents of those that lead to the chosen manifest, the root first. `leads_to_subjects`: the
    subject of a document may be read as well.
    """

    def __init__(
        self,
        source: VerifiedSource,
        conditions: ManifestConditions | None = None,
        *,
        leads_to_subjects: bool = True,
    ) -> None:
        self.source = source
        self._leads_to_subjects = leads_to_subjects
        self.indexes: dict[Digest, Index] = {}
        self.way: list[VerifiedDocument] = []
        self.known: dict[Digest, Descriptor] = {}
        self._conditions = conditions
        self._candidates: list[_Candidate] = []
        self._entered: set[Digest] = set()
        self._documents: list[VerifiedDocument] = []
        self._size = self._entries = 0
        self._missing: list[NotFoundError] = []
        self._read: dict[Digest, VerifiedDocument] = {}

    async def root(self) -> VerifiedDocument:
        """Return the document that the image's name refers to, or what to search. See `Source`."""
        return await (self.source.everything() if self._conditions else self.source.root())

    async def choose(self, root: VerifiedDocument, wanted: Platform) -> VerifiedDocument:
        """Return the manifest for a platform from an index and the indexes in it.

        Without conditions, what accompanies images (`Descriptor.is_companion`) is chosen only where
        there are none. Raises `NotFoundError` with what there is, where nothing fits, and
        `AmbiguousError` where several entries without a platform are all that fits.
        """
        await self._collect(root, wanted)
        chosen = await self._fetch_best(wanted)
        self.way = self._way(chosen.digest)
        return chosen

    def named_by(self, document: VerifiedDocument) -> list[Descriptor]:
        """Return the descriptors of the manifests and indexes that a document leads to."""
        subject = document.parsed.subject if self._leads_to_subjects else None
        return [*_entries(document), *([] if subject is None else [subject])]

    def check(self, root: VerifiedDocument) -> None:
        """Raise `NotFoundError` where a manifest that nothing leads to does not fit."""
        if self._conditions is not None:
            self._keep(root)
            if not self._fits(self._candidates[0], root):
                raise self._nothing_for(None)

    async def candidates(self, root: VerifiedDocument) -> list[dict[str, Any]]:
        """Return what could be chosen for one platform or another, in the form of `choices`.

        Manifests are read where descriptors are silent, as far as a choice would do so. Raises
        `Failure`, and `AmbiguousError` where that is too far.
        """
        from imgproxy.specs.oci import choices

        if isinstance(root.parsed, Manifest):
            self._keep(root)
        else:
            await self._collect(root, None)
        if self._conditions is not None:
            return choices.detail(self._offered(await self._fitting(self._candidates)))
        for each in [each for each in self._candidates if not each.platform][:_MAX_LOOKED_INTO]:
            with suppress(NotFoundError):
                await self._manifest(each.descriptor)
        return choices.detail(self._offered(self._candidates))

    def _keep(self, root: VerifiedDocument) -> None:
        """Make a manifest that nothing leads to the only candidate."""
        entry = Descriptor(root.media_type, root.digest, len(root.raw))
        self._read[root.digest] = root
        self._candidates = [_Candidate(0, entry, None)]

    async def _collect(self, root: VerifiedDocument, wanted: Platform | None) -> None:
        """Collect the candidates, as far as descriptors tell; None is any platform."""
        await self._enter(root, wanted, None, 1)
        if self._conditions is None:
            images = [each for each in self._candidates if not each.is_companion]
            self._candidates = images or self._candidates

    def _said(self, candidate: _Candidate) -> bool | None:
        """Return whether descriptors say that a candidate fits, None where they are silent."""
        if self._conditions is None:
            return None
        if candidate.is_companion and self._conditions.is_for_images:
            return False
        return self._conditions.say(candidate.descriptor, candidate.around)

    def _fits(self, candidate: _Candidate, found: VerifiedDocument) -> bool:
        """Return whether a candidate fits, by what its manifest says."""
        assert isinstance(found.parsed, Manifest)  # noqa: S101  (`_fetch` returns nothing else)
        if self._conditions is None:
            return not found.parsed.is_companion
        return self._conditions.hold(
            candidate.descriptor, candidate.around, found.parsed, found.raw, self.source.name
        )

    async def _fetch_best(self, wanted: Platform) -> VerifiedDocument:
        """Return the manifest of the best candidate that fits.

        Without conditions, the best of all is better than nothing.
        """
        left = every = [each for each in self._candidates if self._said(each) is not False]
        best = None
        for _ in range(_MAX_LOOKED_INTO):
            at = platforms.choose(wanted, [each.platform for each in left])
            if at is None:
                break
            candidate = left[at]
            if candidate.platform is None:
                return await self._without_platform(left, wanted)
            found = await self._look_into(candidate)
            if found is not None and self._fits(candidate, found):
                return found
            best = best or found
            left = [each for each in left if each.descriptor.digest != candidate.descriptor.digest]
        else:
            if self._conditions is not None:
                raise self._ambiguous(every, are_told=False)
        if best is None or self._conditions is not None:
            raise self._nothing_for(wanted)
        return best

    async def _without_platform(
        self, candidates: list[_Candidate], wanted: Platform
    ) -> VerifiedDocument:
        """Return the only manifest that fits among candidates without a platform."""
        by_digest: dict[Digest, _Candidate] = {}
        for each in candidates:
            if each.platform is None:
                by_digest.setdefault(each.descriptor.digest, each)
        fitting = await self._fitting([*by_digest.values()])
        if len(fitting) > 1:
            raise self._ambiguous(fitting)
        found = await self._fetch(fitting[0].descriptor) if fitting else None
        if found is None or (self._conditions is not None and not self._fits(fitting[0], found)):
            raise self._nothing_for(wanted)
        if self._conditions is not None or len(self._candidates) == 1 or len(by_digest) > 1:
            await self._check_platform(found.parsed, fitting[0].descriptor, wanted)
        return found

    async def _fitting(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Return those of the candidates that fit; without conditions all, where none does."""
        if sum(self._said(each) is None for each in candidates) > _MAX_LOOKED_INTO:
            raise self._ambiguous(candidates, are_told=False)
        fitting = []
        for each in candidates:
            said = self._said(each)
            if said is None:
                found = await self._look_into(each)
                said = found is not None and self._fits(each, found)
            if said:
                fitting.append(each)
        return candidates if self._conditions is None and not fitting else fitting

    async def _look_into(self, candidate: _Candidate) -> VerifiedDocument | None:
        """Return the manifest of a candidate, None for one that is missing and need not be there.

        Stores save an index whole and only some of what it names.
        """
        if self._conditions is None or self._said(candidate):
            return await self._fetch(candidate.descriptor)
        try:
            return await self._manifest(candidate.descriptor)
        except NotFoundError as error:
            self._missing.append(error)
            return None

    async def _fetch(self, descriptor: Descriptor) -> VerifiedDocument:
        """Return a manifest. Raises `Failure`, with what is there where it is missing."""
        try:
            return await self._manifest(descriptor)
        except NotFoundError as error:
            raise await self._with_what_is_there(error, descriptor) from None

    async def _manifest(self, descriptor: Descriptor) -> VerifiedDocument:
        """Return a manifest, which is fetched once. Raises `Failure`."""
        found = self._read.get(descriptor.digest)
        if found is None:
            found = await self.source.document(descriptor)
            if not isinstance(found.parsed, Manifest):
                raise InvalidError(
                    f"{self.source.name}: {descriptor.digest} is an index, but the index that names"
                    " it lists it as a manifest or without a type"
                )
            self._read[descriptor.digest] = found
        return found

    def _ambiguous(
        self, candidates: Sequence[_Candidate], *, are_told: bool = True
    ) -> AmbiguousError:
        """Return the failure where several fit, or may fit if not all can be told."""
        from imgproxy.specs.oci import choices

        offered = self._offered(candidates)
        condition = f" with {self._conditions}" if self._conditions else ""
        found = (
            f"fits {len(offered)} manifests{condition} without a platform"
            if are_told
            else f"may fit {len(offered)} manifests{condition}, and no more than"
            f" {_MAX_LOOKED_INTO} are fetched to tell"
        )
        return AmbiguousError(
            f"{self.source.name} {found}; choose one by --artifact-type, --annotation or its"
            f" digest: {choices.listed_by_digest(offered)}",
            choices=choices.detail(offered),
        )

    def _offered(self, candidates: Sequence[_Candidate]) -> list[Choice]:
        """Return candidates as choices, with what those of their manifests say that were read."""
        from imgproxy.specs.oci import choices

        root = [each.digest for each in self._documents[:1]]
        offered = []
        for each in candidates:
            found = self._read.get(each.descriptor.digest)
            own = found.parsed.artifact_type if found and isinstance(found.parsed, Manifest) else ""
            choice = choices.of(each.position, each.descriptor)
            offered.append(
                choice._replace(
                    artifact_type=choice.artifact_type or own,
                    platform=each.platform,
                    path=[*root, *(index.digest for index in each.around)],
                )
            )
        return offered

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
            self._candidates, self._missing = [_Candidate(0, descriptor, found)], []
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

    def _nothing_for(self, wanted: Platform | None) -> NotFoundError:
        if self._missing:
            return self._missing[0]
        every = [clean(str(each.platform)) for each in self._candidates if each.platform]
        every = list(dict.fromkeys(every))
        there, more = every[:_MAX_LISTED], len(every) - _MAX_LISTED
        if self._conditions is None:
            return NotFoundError(
                f"{self.source.name} has no manifest for {wanted} (there are: "
                f"{', '.join(there) or 'none'}{f' and {more} more' if more > 0 else ''})",
                code="MANIFEST_UNKNOWN",
                platforms=there,
            )
        from imgproxy.specs.oci import choices

        offered = self._offered(self._candidates)
        return NotFoundError(
            f"{self.source.name} has no manifest with {self._conditions}"
            f"{f' for {wanted}' if wanted else ''} (there are: "
            f"{choices.listed_by_digest(offered)})",
            code="MANIFEST_UNKNOWN",
            platforms=there,
            choices=choices.detail(offered[:_MAX_LISTED]),
        )

    async def _enter(
        self,
        index: VerifiedDocument,
        wanted: Platform | None,
        around: _Candidate | None,
        depth: int,
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
            if entry.is_attestation and self._conditions is None:
                continue
            platform = entry.known_platform
            candidate = _Candidate(position, entry, platform, entry.is_companion)
            if around is not None:
                platform = platform or around.platform
                candidate = candidate._replace(
                    platform=platform,
                    is_companion=(
                        entry.is_companion or around.is_companion or index.parsed.is_companion
                    ),
                    around=(*around.around, around.descriptor),
                )
            if entry.media_type in types.INDEXES:
                if (
                    wanted is None
                    or platform is None
                    or platforms.choose(wanted, [platform]) is not None
                ):
                    await self._descend(candidate, wanted, depth + 1)
            elif not entry.media_type or entry.media_type in types.KNOWN_DOCUMENTS:
                self._candidates.append(candidate)

    async def _descend(self, index: _Candidate, wanted: Platform | None, depth: int) -> None:
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

"""The image being served: which manifest is chosen, and what may be had.

The policy's verdict is asked for here and nowhere else, before anything of the image is released.
An image is opened once, on the first request that needs it: its root document is fetched and
verified, an index is walked, the manifest for the platform chosen. From then on only what verified
documents name can be had.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config import policy as policies
from imgproxy.errors import (
    ConfigurationError,
    Failure,
    InvalidError,
    NotFoundError,
    ReplacedError,
    clean,
)
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Manifest
from imgproxy.transports.readers import Bytes
from imgproxy.transports.source import Document
from imgproxy.verification import verified_blob

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from imgproxy.config.policy import Demand, Policy
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor, Index
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.transports.source import Reader, Source
    from imgproxy.verification.verified_blob import Blob, VerifiedDocument

    OpenForeign = Callable[[Descriptor, NotFoundError], Awaitable[Reader]]
    # Returns if one of the documents is acceptable, on its own or named by one that is.
    Judging = Callable[..., Awaitable[None]]

# An index's index's index's index: nobody builds more, and a walk must end.
MAX_DEPTH = 4

# Indexes in one image; each costs a request.
MAX_INDEXES = 64

# An image that is replaced is opened anew; the one before it is kept open as well.
_MAX_GENERATIONS = 2

# Manifests that are looked for to say what is there, where the one that is wanted is missing.
_MAX_LOOKED_FOR = 16


class Image:
    """One image, opened when it is first needed and shared by all conversations.

    `open_sources` gives the places where it may be, in order; `load_policy` what may be used,
    `wanted` the platform to choose for. `open_foreign` opens a layer that its source does not have
    and that lies elsewhere, or raises what says why not.
    """

    def __init__(
        self,
        open_sources: Callable[[], Awaitable[list[Source]]],
        load_policy: Callable[[], Policy],
        wanted: Platform,
        open_foreign: OpenForeign,
    ) -> None:
        self._open_sources = open_sources
        self._load_policy = load_policy
        self._wanted = wanted
        self._open_foreign = open_foreign
        self._opened: OpenedImage | None = None
        self._sources: list[Source] = []
        self._opening = SingleFlight()

    async def open(self) -> OpenedImage:
        """Give the opened image. Raises `Failure`; the next request tries again."""
        opened = self._current()
        if opened is not None:
            return opened
        return await self._opening.get(self._current, self._open)

    def _current(self) -> OpenedImage | None:
        return None if self._opened is None or self._opened.is_replaced else self._opened

    async def _open(self) -> OpenedImage:
        """Open the first of the places that has the image; a short name may mean several."""
        policy = self._load_policy()
        failures: list[Failure] = []
        sources = await self._open_sources()
        for source in sources:
            try:
                self._opened = await self._open_at(source, policy)
            except ConfigurationError:
                source.close()
                raise  # this host's; another image is no answer to it
            except Failure as error:
                failures.append(error)
                source.close()
            except BaseException:
                source.close()
                raise
            else:
                # Of one that was replaced just now, something may still be read.
                self._sources.append(source)
                while len(self._sources) > _MAX_GENERATIONS:
                    self._sources.pop(0).close()
                return self._opened
        if len(failures) == 1:
            raise failures[0]
        last = failures[-1]
        words = "; ".join(each.message for each in failures)
        raise type(last)(words, code=last.code, **last.detail)

    async def _open_at(self, source: Source, policy: Policy) -> OpenedImage:
        transport, scopes, _ = source.identity
        demand = policies.demand(policy, transport, scopes, source.name)
        walk = _Walk(source)
        judge = _judge(demand, source, walk.documents)
        root = await verified_blob.document(source.root)
        if isinstance(root.parsed, Manifest):
            await judge(root)
            return OpenedImage(source, root, None, walk, judge, self._open_foreign)
        chosen = await walk.choose(root, self._wanted)
        await judge(root, *walk.between(root, chosen), chosen)
        return OpenedImage(source, chosen, root, walk, judge, self._open_foreign)

    def close(self) -> None:
        """Let go of the place where the image is."""
        for source in self._sources:
            source.close()


def _judge(demand: Demand, source: Source, documents: dict[Digest, VerifiedDocument]) -> Judging:
    """Give what decides about documents, once the policy has not rejected them all."""
    if demand.requirements:
        from imgproxy.verification.signatures.policy_check import Judge

        return Judge(demand, source, documents).demand
    return _accept


async def _accept(*_: VerifiedDocument) -> None:
    """Accept any document: the policy demands nothing of it."""


class _Candidate(NamedTuple):
    """An entry that could be chosen; `platform` is its own, or that of the index around it."""

    descriptor: Descriptor
    platform: Platform | None


class _Walk:
    """Through an index and the indexes in it, in document order."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.documents: dict[Digest, VerifiedDocument] = {}
        self.known: dict[Digest, Descriptor] = {}
        self._candidates: list[_Candidate] = []
        self._entered: set[Digest] = set()
        self._missing: list[NotFoundError] = []

    async def choose(self, root: VerifiedDocument, wanted: Platform) -> VerifiedDocument:
        """Give the manifest for the wanted platform.

        Raises `NotFoundError` with the platforms that there are, where none fits.
        """
        await self._enter(root, wanted, None, 1)
        at = platforms.choose(wanted, [candidate.platform for candidate in self._candidates])
        if at is None:
            raise self._missing[0] if self._missing else self._nothing_for(wanted)
        descriptor = self._candidates[at].descriptor
        try:
            chosen = await fetch_document(self._source, descriptor)
        except NotFoundError as error:
            raise await self._with_what_is_there(error, descriptor) from None
        if not isinstance(chosen.parsed, Manifest):
            raise InvalidError(
                f"{self._source.name}: {descriptor.digest} is an index, and the index that names"
                " it does not say so"
            )
        if len(self._candidates) == 1 and self._candidates[at].platform is None:
            await self._check_platform(chosen.parsed.config, descriptor, wanted)
        return chosen

    async def _check_platform(
        self, config: Descriptor, descriptor: Descriptor, wanted: Platform
    ) -> None:
        """Refuse the only entry of an index if its config says another platform than is wanted.

        An entry that nobody has told the platform of may be anything; what is no image has none.
        """
        if config.media_type not in types.CONFIGS or config.size > MAX_DOCUMENT_SIZE:
            return
        blob = await verified_blob.open_blob(config, partial(read_blob, self._source, config))
        try:
            raw = bytearray()
            while piece := await blob.read():
                raw += piece
        finally:
            blob.close()
        said = manifests.parse_platform(bytes(raw))
        if said is not None and platforms.choose(wanted, [said]) is None:
            self._candidates = [_Candidate(descriptor, said)]
            raise self._nothing_for(wanted)

    async def _with_what_is_there(self, error: NotFoundError, missing: Descriptor) -> NotFoundError:
        """Give the failure with the platforms of the manifests that are not missing as well."""
        there = []
        for each in self._candidates[:_MAX_LOOKED_FOR]:
            with suppress(Failure):
                if each.platform and each.descriptor.digest != missing.digest:
                    await fetch_document(self._source, each.descriptor)
                    there.append(clean(str(each.platform)))
        return NotFoundError(
            f"{error.message} (there are manifests for: {', '.join(there) or 'nothing else'})",
            code=error.code,
            **{**error.detail, "platforms": there},
        )

    def between(self, root: VerifiedDocument, chosen: VerifiedDocument) -> list[VerifiedDocument]:
        """Give the indexes other than the root that lead to the chosen manifest."""
        leading = {chosen.digest}
        for _ in range(MAX_DEPTH):
            leading |= {
                index.digest
                for index in self.documents.values()
                if any(entry.digest in leading for entry in _entries(index))
            }
        return [
            index
            for index in self.documents.values()
            if index.digest in leading and index is not root
        ]

    def _nothing_for(self, wanted: Platform) -> NotFoundError:
        there = [clean(str(each.platform)) for each in self._candidates if each.platform]
        there = list(dict.fromkeys(there))
        return NotFoundError(
            f"{self._source.name} has no manifest for {wanted}"
            f" (there are: {', '.join(there) or 'none'})",
            code="MANIFEST_UNKNOWN",
            platforms=there,
        )

    async def _enter(
        self, index: VerifiedDocument, wanted: Platform, around: Platform | None, depth: int
    ) -> None:
        """Collect the candidates of an index; `around` is the platform said of all of it."""
        self.documents[index.digest] = index
        for named in _named(index):
            self.known.setdefault(named.digest, named)
        for entry in _entries(index):
            platform = entry.platform or around
            if entry.is_attestation:
                continue
            if entry.media_type in types.INDEXES:
                if platform is None or platforms.choose(wanted, [platform]) is not None:
                    await self._descend(entry, wanted, platform, depth + 1)
            elif not entry.media_type or entry.media_type in types.KNOWN_DOCUMENTS:
                self._candidates.append(_Candidate(entry, platform))

    async def _descend(
        self, entry: Descriptor, wanted: Platform, platform: Platform | None, depth: int
    ) -> None:
        if entry.digest in self._entered:
            return  # named twice; its entries are candidates already
        self._entered.add(entry.digest)
        if depth > MAX_DEPTH or len(self._entered) > MAX_INDEXES:
            raise InvalidError(
                f"{self._source.name}: more than {MAX_DEPTH} indexes in one another,"
                f" or more than {MAX_INDEXES} in all"
            )
        try:
            inner = await fetch_document(self._source, entry)
        except NotFoundError as error:
            # Stores save an index whole and only some of what it names.
            self._missing.append(error)
            return
        await self._enter(inner, wanted, platform, depth)


class OpenedImage:
    """What an image turned out to be: its chosen `manifest`, and the `index` it came from.

    `is_replaced`: its source has been found to be another one now.
    """

    def __init__(
        self,
        source: Source,
        manifest: VerifiedDocument,
        index: VerifiedDocument | None,
        walk: _Walk,
        judge: Judging,
        open_foreign: OpenForeign,
    ) -> None:
        self.source = source
        self._judge = judge
        self.manifest = manifest
        self.index = index
        self.is_replaced = False
        self._open_foreign = open_foreign
        self._documents = walk.documents
        self._known = walk.known
        self._blobs: dict[Digest, Descriptor] = {}
        self._documents[manifest.digest] = manifest
        self._release(manifest)

    def find_config(self) -> Descriptor:
        """Give the descriptor of the chosen manifest's config.

        Raises `InvalidError` for one that exceeds the limit of a document.
        """
        assert isinstance(self.manifest.parsed, Manifest)  # noqa: S101  (the walk made sure)
        config = self.manifest.parsed.config
        if config.size > MAX_DOCUMENT_SIZE:
            raise InvalidError(
                f"{self.source.name}: the config has {config.size} bytes, the limit is"
                f" {MAX_DOCUMENT_SIZE}",
                code="SIZE_INVALID",
            )
        return config

    def find_blob(self, digest: Digest) -> Descriptor:
        """Give the descriptor of a blob that a released manifest names.

        Raises `NotFoundError` for any other.
        """
        descriptor = self._blobs.get(digest)
        if descriptor is None:
            raise NotFoundError(
                f"{self.source.name}: no released manifest names the blob {digest}",
                code="BLOB_UNKNOWN",
            )
        return descriptor

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob whose reply can be begun; see `verify.open_blob`. Raises `Failure`."""
        with self._noticing():
            return await verified_blob.open_blob(descriptor, partial(self._reader, descriptor))

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Take note of a source that is not what it was: the next request opens it anew."""
        try:
            yield
        except ReplacedError:
            self.is_replaced = True
            raise

    async def _reader(self, descriptor: Descriptor) -> Reader:
        try:
            return await read_blob(self.source, descriptor)
        except NotFoundError as error:
            if not descriptor.urls:
                raise
            return await self._open_foreign(descriptor, error)

    async def document(self, digest: Digest) -> VerifiedDocument:
        """Give a manifest or an index in its original bytes, and release what it names.

        Raises `NotFoundError` for one that no released document names, `DeniedError` for one that
        the policy does not accept.
        """
        document = self._documents.get(digest)
        if document is not None:
            if document is not self.manifest:
                await self._judge(document)
        else:
            descriptor = self._known.get(digest)
            if descriptor is None:
                raise NotFoundError(
                    f"{self.source.name}: no released document names the manifest {digest}",
                    code="MANIFEST_UNKNOWN",
                )
            with self._noticing():
                document = await fetch_document(self.source, descriptor)
            await self._judge(document)
            self._release(document)
        return document

    def _release(self, document: VerifiedDocument) -> None:
        """Let what a document names be had, all of it or nothing."""
        parsed, blobs = document.parsed, dict(self._blobs)
        if isinstance(parsed, Manifest):
            for descriptor in (parsed.config, *parsed.layers):
                if blobs.setdefault(descriptor.digest, descriptor).size != descriptor.size:
                    raise InvalidError(
                        f"{self.source.name}: manifest {document.digest} names the blob"
                        f" {descriptor.digest} with two sizes",
                        code="SIZE_INVALID",
                    )
        self._blobs = blobs
        for named in _named(document):
            self._known.setdefault(named.digest, named)


async def read_blob(source: Source, descriptor: Descriptor) -> Reader:
    """Open a blob that a document names, which may hold it itself. Raises `Failure`."""
    content = verified_blob.embedded(descriptor)
    if content is None:
        return await source.blob(descriptor)
    return Bytes(f"{source.name}: blob {descriptor.digest}", content)


async def fetch_document(source: Source, descriptor: Descriptor) -> VerifiedDocument:
    """Give a document that another one names, verified. Raises `Failure`."""

    async def find() -> Document:
        content = verified_blob.embedded(descriptor)
        if content is None:
            return await source.document(descriptor)
        name = f"{source.name}: manifest {descriptor.digest}"
        named = (descriptor.digest,)
        return Document(content, descriptor.media_type, named, descriptor.size, name)

    return await verified_blob.document(find)


def _named(document: VerifiedDocument) -> list[Descriptor]:
    """Give the manifests and indexes that a document names."""
    subject = document.parsed.subject
    return [*_entries(document), *([] if subject is None else [subject])]


def _entries(document: VerifiedDocument) -> tuple[Descriptor, ...]:
    parsed: Manifest | Index = document.parsed
    return () if isinstance(parsed, Manifest) else parsed.manifests

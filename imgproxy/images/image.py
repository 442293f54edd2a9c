"""One image: opened on the first request that needs it, and what may be read of it.

The policy's verdict is asked for here and nowhere else, before anything of the image is released.
An image is opened once: its root document is fetched and verified, an index is walked, the manifest
for the platform chosen. From then on only what verified documents name can be read.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from imgproxy.config import policy as policies
from imgproxy.errors import (
    HOST_FAILURES,
    AbsentError,
    AmbiguousError,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    ReplacedError,
    closing_on_error,
)
from imgproxy.host.blocking_calls import settle
from imgproxy.images.selection import IndexWalk
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Manifest
from imgproxy.transports import time_limit as time_limits
from imgproxy.transports.source import age, is_accompanied, is_at_hand, is_distant
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from imgproxy.config.policy import Conditions, Policy
    from imgproxy.images.selection import Wanted
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import Layer, LayerSpec
    from imgproxy.specs.oci.manifest import Descriptor, Index
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Reader, Source
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_blob import Blob
    from imgproxy.verification.verified_parts import SmallPart, VerifiedPart, VerifiedParts

    # Returns the reader of a layer that its source does not have and that lies at its `urls`, or
    # raises a failure that adds the reason to the one it is given.
    OpenForeign = Callable[[Descriptor, NotFoundError], Awaitable[Reader]]
    # Returns if one of the documents is acceptable, on its own or named by one that is.
    Check = Callable[..., Awaitable[None]]

T = TypeVar("T")

# Documents that one image leads to, as far as they are looked through.
MAX_EXPANDED = 1024

# What a document that is passed over fails with as a matter of course.
_EXPECTED = (NotFoundError, DeniedError)

# An image that is replaced is opened anew; the one before it is kept open as well.
_MAX_GENERATIONS = 2


class Image:
    """One image, opened when it is first needed and shared by all its users.

    `open_sources` returns the sources that may have it, in the order to try them, `load_policy` the
    policy that applies; `wanted` is what to choose, None where nothing is to be chosen from an
    index. `large_blobs` bounds the memory of its blobs; by default it has one of its own.
    `warn` takes lines about keys of the policy that are passed over. `time_limit` is in seconds:
    see `limited`.
    """

    time_limit = time_limits.TIME_LIMIT

    def __init__(
        self,
        open_sources: Callable[[], Awaitable[list[Source]]],
        load_policy: Callable[[], Policy],
        wanted: Wanted | None,
        open_foreign: OpenForeign,
        large_blobs: LargeBlobs | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._open_sources = open_sources
        self._load_policy = load_policy
        self._wanted = wanted
        self._open_foreign = open_foreign
        self._large_blobs = large_blobs or LargeBlobs()
        self._warn = warn
        self._opened: OpenedImage | None = None
        self._sources: list[Source] = []
        self._opening = SingleFlight()

    def limited(
        self, *, retries: float = math.inf, connecting: float = math.inf
    ) -> AbstractContextManager[None]:
        """Return a block with the limits of what precedes a reply: `transports.time_limit`."""
        return time_limits.limited(self.time_limit, retries=retries, connecting=connecting)

    async def open(self) -> OpenedImage:
        """Return the opened image. Raises `Failure`; the next request tries again."""
        opened = self.opened
        if opened is not None:
            return opened
        return await self._opening.get(lambda: self.opened, self._open)

    @property
    def opened(self) -> OpenedImage | None:
        """The opened image, None before that and once it is replaced."""
        return None if self._opened is None or self._opened.is_replaced else self._opened

    async def candidates(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return what could be chosen, in the form of `choices`, and `age`. Raises `Failure`."""
        policy = await settle(self._load_policy)
        source, found = await self._first(partial(self._candidates_at, policy=policy))
        source.close()
        return found, age(source)

    async def _candidates_at(self, source: Source, policy: Policy) -> list[dict[str, Any]]:
        _, walk = self._begin(source, policy)
        try:
            return await walk.candidates(await walk.root())
        except AmbiguousError as error:
            return list(error.detail["choices"])

    async def _open(self) -> OpenedImage:
        policy = await settle(self._load_policy)
        source, opened = await self._first(partial(self._open_at, policy=policy))
        self._opened = opened
        self._sources.append(source)  # the one before it stays open: its blobs may be in use
        while len(self._sources) > _MAX_GENERATIONS:
            self._sources.pop(0).close()
        return opened

    async def _first(self, attempt: Callable[[Source], Awaitable[T]]) -> tuple[Source, T]:
        """Return the first source with which an attempt does not fail, and what that returns."""
        failures: list[Failure] = []
        untried = deque(await self._open_sources())
        try:
            while untried:
                source = untried.popleft()
                try:
                    with closing_on_error(source):
                        return source, await attempt(source)
                except HOST_FAILURES:
                    raise  # an error of this host: another source cannot help
                except Failure as error:
                    failures.append(error)
            message = "; ".join(each.message for each in failures)
            raise failures[0] if len(failures) == 1 else failures[-1].merged(failures, message)
        finally:
            for source in untried:
                source.close()
            failures.clear()  # their tracebacks hold this frame, and whatever was parsed

    def _begin(self, source: Source, policy: Policy) -> tuple[Conditions, IndexWalk]:
        """Return what the policy demands, and the walk. Raises `DeniedError` if it rejects all."""
        transport, scopes, _ = source.identity
        conditions = policies.evaluate(policy, transport, scopes, source.name)
        wanted = self._wanted and self._wanted.conditions
        verified = VerifiedSource(source, self._large_blobs)
        # Where nothing is chosen, rights are given by name: to refer to an image gives none to it.
        leads_to_subjects = self._wanted is not None
        return conditions, IndexWalk(verified, wanted, leads_to_subjects=leads_to_subjects)

    async def _open_at(self, source: Source, policy: Policy) -> OpenedImage:
        conditions, walk = self._begin(source, policy)
        check = await settle(_policy_check, conditions, source, walk.indexes, self._warn)
        root = await walk.root()
        if isinstance(root.parsed, Manifest) or self._wanted is None:
            walk.check(root)
            rejection = await _rejection(check, root)
            return OpenedImage(walk, root, None, check, self._open_foreign, rejection)
        try:
            chosen = await walk.choose(root, self._wanted.platform)
        except AbsentError as error:  # the image is there, and something that it names is not
            raise NotFoundError(error.message, code=error.code, **error.detail) from None
        await check(*walk.way, chosen)
        return OpenedImage(walk, chosen, root, check, self._open_foreign)

    def close(self) -> None:
        """Close the sources. May be called again."""
        self._opened = None
        while self._sources:
            self._sources.pop(0).close()


def _policy_check(
    conditions: Conditions,
    source: Source,
    indexes: dict[Digest, Index],
    warn: Callable[[str], None],
) -> Check:
    """Return the check of documents, once the policy has not rejected the whole image."""
    if conditions.requirements:
        from imgproxy.verification.signatures.policy_check import PolicyCheck

        return PolicyCheck(conditions, source, indexes, warn).check
    return _accept


async def _rejection(check: Check, root: VerifiedDocument) -> Failure | None:
    """Return why an index is not accepted, which what it names may be all the same.

    Raises what the check raises, for a manifest its `DeniedError` as well.
    """
    try:
        await check(root)
    except DeniedError as error:
        if isinstance(root.parsed, Manifest):
            raise
        return error.copy()
    return None


async def _accept(*_: VerifiedDocument) -> None:
    """Accept any document: the policy requires no signatures."""


class OpenedImage:
    """An image that was opened: its chosen `manifest`, and the `index` that names it, if any.

    Where nothing is chosen, `manifest` is what the name refers to, be it an index; reading it
    raises `DeniedError` for one that the policy does not accept: see `root`.

    `is_replaced`: its source has been found to hold another image now.
    """

    def __init__(
        self,
        walk: IndexWalk,
        manifest: VerifiedDocument,
        index: VerifiedDocument | None,
        check: Check,
        open_foreign: OpenForeign,
        rejection: Failure | None = None,
    ) -> None:
        self._source = walk.source
        self._check = check
        self._manifest = manifest
        self._rejection = rejection
        self.index = index
        self.is_replaced = False
        self._open_foreign = open_foreign
        self._documents = {each.digest: each for each in (*walk.way, manifest)}
        self._known = walk.known
        self._named_by = walk.named_by
        self._blobs: dict[Digest, Descriptor] = {}
        self._expanded: set[Digest] = set()
        self._expanding = trio.Lock()
        self._referrers: dict[Digest, dict[Digest, None]] = {}  # by their subject
        self._release(manifest)

    @property
    def manifest(self) -> VerifiedDocument:
        """The chosen manifest, or what the name refers to."""
        if self._rejection is not None:
            raise self._rejection.copy()
        return self._manifest

    async def root(self) -> VerifiedDocument:
        """Return `manifest`; where it was rejected, the policy is asked again. Raises `Failure`."""
        if self._rejection is not None:
            await self._check(self._manifest)
            self._rejection = None
        return self._manifest

    @property
    def name(self) -> str:
        """The image in messages."""
        return self._source.name

    @property
    def reference(self) -> Reference | None:
        """The image's name in a registry, None for one that has none."""
        return self._source.source.identity.reference

    @property
    def age(self) -> int | None:
        """How many seconds ago it was asked what the image's name stands for, if it is stale."""
        return age(self._source.source)

    def find_config(self) -> Descriptor:
        """Return the descriptor of the chosen manifest's config.

        Raises `InvalidError` for one that exceeds the limit of a document.
        """
        assert isinstance(self.manifest.parsed, Manifest)  # noqa: S101  (the walk made sure)
        config = self.manifest.parsed.config
        if config.size > MAX_DOCUMENT_SIZE:
            raise InvalidError(
                f"{self.name}: the config has {config.size} bytes, more than {MAX_DOCUMENT_SIZE}",
                code="SIZE_INVALID",
            )
        return config

    def layers(self, specs: Sequence[LayerSpec] = ()) -> list[Layer]:
        """Return the layers that one of the SPECs chooses: see `layer_selection.choose`."""
        from imgproxy.specs.oci import layer_selection

        assert isinstance(self.manifest.parsed, Manifest)  # noqa: S101  (the walk made sure)
        return layer_selection.choose(specs, self.manifest.parsed.layers, self.name)

    def find_blob(self, digest: Digest) -> Descriptor:
        """Return the descriptor of a blob that a released manifest names.

        Raises `NotFoundError` for any other.
        """
        descriptor = self._blobs.get(digest)
        if descriptor is None:
            raise NotFoundError(
                f"{self._source.name}: no released manifest names the blob {digest}",
                code="BLOB_UNKNOWN",
            )
        return descriptor

    @property
    def is_distant(self) -> bool:
        """Whether blobs have to be waited for: see `source.is_distant`."""
        return is_distant(self._source.source)

    def held_ahead(self, descriptor: Descriptor) -> int | None:
        """See `VerifiedSource`."""
        return self._source.held_ahead(descriptor)

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        """Return a blob whose reply can be begun; see `VerifiedSource.blob`. Raises `Failure`."""
        with self._noting_replacement():
            return await self._source.blob(descriptor, partial(self._reader, descriptor))

    async def open_part(
        self, descriptor: Descriptor, wanted: Part, parts: VerifiedParts
    ) -> VerifiedPart | SmallPart:
        """Return a part of a blob, whose reply can be begun; see `VerifiedSource.part`."""
        with self._noting_replacement():
            return await self._source.part(descriptor, wanted, parts)

    @contextmanager
    def _noting_replacement(self) -> Iterator[None]:
        """Note when the source holds another image: the next request opens it anew."""
        try:
            yield
        except ReplacedError:
            self.is_replaced = True
            raise

    async def _reader(self, descriptor: Descriptor) -> Reader:
        try:
            return await self._source.reader(descriptor)
        except NotFoundError as error:
            if not descriptor.urls:
                raise
            return await self._open_foreign(descriptor, error)

    async def document(self, digest: Digest) -> VerifiedDocument:
        """Return a manifest or an index in its original bytes, and release what it names.

        Raises `NotFoundError` for one that no released document names, `DeniedError` for one that
        the policy does not accept.
        """
        document = self._documents.get(digest)
        if document is self._manifest:
            await self.root()
        elif document is not None:
            await self._check(document)
        else:
            descriptor = self._known.get(digest)
            if descriptor is None:
                raise NotFoundError(
                    f"{self._source.name}: no released document names the manifest {digest}",
                    code="MANIFEST_UNKNOWN",
                )
            with self._noting_replacement():
                document = await self._source.document(descriptor)
            await self._check(document)
            self._release(document)
        return document

    async def expand(self) -> Failure | None:
        """Release all documents that the image leads to, and what refers to one of them.

        Those that are not at hand are left out; those that cannot be had, or that the policy does
        not accept, are passed over, since others do not depend on them, and are looked for again
        the next time. Returns why one of those that are there could not be had. Raises what
        `HOST_FAILURES` are.
        """
        passed: dict[Digest, Failure] = {}
        async with self._expanding:
            if not self._expanded:
                self._expanded.add(self._manifest.digest)
                await self._find_referrers(passed)
            while left := [each for each in self._known.values() if self._may_expand(each)]:
                for descriptor in left:
                    self._expanded.add(descriptor.digest)
                    if not descriptor.media_type or descriptor.media_type in types.KNOWN_DOCUMENTS:
                        with _passing_over(descriptor.digest, passed):
                            await self.document(descriptor.digest)
                await self._find_referrers(passed)
            self._expanded.difference_update(passed)
        broken = (each for each in passed.values() if not isinstance(each, _EXPECTED))
        return next(broken, None)

    def _may_expand(self, descriptor: Descriptor) -> bool:
        is_left = len(self._expanded) < MAX_EXPANDED and descriptor.digest not in self._expanded
        return is_left and is_at_hand(self._source.source, descriptor)

    async def _find_referrers(self, passed: dict[Digest, Failure]) -> None:
        """Make known what lies beside the image, has no name, and refers to a known document."""
        if not is_accompanied(self._source.source):
            return
        for entry in await self._source.source.companions():
            if entry.digest not in self._known and self._may_expand(entry):
                with _passing_over(entry.digest, passed):
                    subject = (await self._source.document(entry)).parsed.subject
                    if subject is not None and self._is_known(subject.digest):
                        self._known[entry.digest] = entry

    def _is_known(self, digest: Digest) -> bool:
        return digest in self._known or digest in self._documents

    async def referrers(self, digest: Digest) -> list[VerifiedDocument]:
        """Return the documents that refer to one. Raises `Failure`."""
        await self.expand()
        return [await self.document(each) for each in self._referrers.get(digest, ())]

    def _release(self, document: VerifiedDocument) -> None:
        """Allow what a document names to be read, all of it or nothing."""
        parsed, blobs = document.parsed, dict(self._blobs)
        if isinstance(parsed, Manifest):
            for descriptor in (parsed.config, *parsed.layers):
                if blobs.setdefault(descriptor.digest, descriptor).size != descriptor.size:
                    raise InvalidError(
                        f"{self._source.name}: manifest {document.digest} names the blob"
                        f" {descriptor.digest} with two sizes",
                        code="SIZE_INVALID",
                    )
        self._blobs = blobs
        if parsed.subject is not None:
            self._referrers.setdefault(parsed.subject.digest, {})[document.digest] = None
        for named in self._named_by(document):
            self._known.setdefault(named.digest, named)


@contextmanager
def _passing_over(digest: Digest, passed: dict[Digest, Failure]) -> Iterator[None]:
    """Note the failure of a document that others do not depend on."""
    try:
        yield
    except HOST_FAILURES:
        raise
    except Failure as failure:
        passed[digest] = failure.copy()

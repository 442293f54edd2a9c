"""An image that was opened: what may be read of it.

Only what verified documents name can be read, and a document that the policy accepts releases what
it names.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import (
    HOST_FAILURES,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    ReplacedError,
)
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Manifest
from imgproxy.transports.source import age, is_accompanied, is_at_hand, is_distant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from imgproxy.images.selection import IndexWalk
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import Layer, LayerSpec
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Reader
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_blob import Blob
    from imgproxy.verification.verified_parts import SmallPart, VerifiedPart, VerifiedParts

    # Returns the reader of a layer that its source does not have and that lies at its `urls`, or
    # raises a failure that adds the reason to the one it is given.
    OpenForeign = Callable[[Descriptor, NotFoundError], Awaitable[Reader]]
    # Returns if one of the documents is acceptable, on its own or named by one that is.
    Check = Callable[..., Awaitable[None]]

# Documents that one image leads to, as far as they are looked through.
MAX_EXPANDED = 1024

# What a document that is passed over fails with as a matter of course.
_EXPECTED = (NotFoundError, DeniedError)


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

    async def config(self) -> bytes:
        """Return the chosen manifest's config. Raises `Failure`."""
        config = self.find_config()
        with self._noting_replacement():
            return await self._source.content(config, partial(self._reader, config))

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

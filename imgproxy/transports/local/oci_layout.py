"""`oci:DIR[:REF|:@N]` and `oci-archive:FILE…`: OCI image specification, image-layout.md.

The file `oci-layout` is not required, as no other reader requires it; `index.json` is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgproxy.errors import AmbiguousError, BadRequestError, NotFoundError, clean
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references
from imgproxy.transports import file_tree
from imgproxy.transports.local import listing
from imgproxy.transports.local.listing import Choice
from imgproxy.transports.source import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import LayoutName, Reference
    from imgproxy.transports.file_tree import Tree
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Identity, Reader, SignaturePlace

# Not images, but artifacts that refer to one: under the tag for registries without a referrers API
# (distribution specification, "Referrers Tag Schema"), and under the tags that cosign uses.
_FALLBACK_TAG = re.compile(r"[a-z0-9]+-[0-9a-f]{64,}(?:\.[a-z]+)?")


class OciLayout:
    """An image in a tree with `index.json` and `blobs/<algorithm>/<encoded>`.

    Fulfils `SearchableSource`. `reference` is the name of the image in a registry that this one
    stands in for: an entry with that name is preferred, but the only one need not have it.
    """

    def __init__(
        self,
        name: LayoutName,
        tree: Tree,
        identity: Identity,
        reference: Reference | None = None,
    ) -> None:
        self.name = clean(str(name))
        self.identity = identity
        self._wanted = name
        self._tree = tree
        self._reference = reference

    async def root(self) -> Document:
        """See `Source`. Raises `AmbiguousError` where the name fits several images."""
        index, entries = await self._index()
        fitting = self._matching(entries)
        images = {entry.digest for entry in fitting.values()}
        if len(images) == 1:
            return await self.document(next(iter(fitting.values())))
        if self._wanted.ref_name is None and _differ_by_platform(fitting.values()):
            return index
        offered = _choices(fitting)
        raise AmbiguousError(
            f"{self.name} fits {len(images)} images; choose one: {listing.listed(offered)}",
            choices=listing.detail(offered),
        )

    async def find(self, digest: Digest) -> Document:
        """See `SearchableSource`."""
        from imgproxy.transports.local.digest_search import find_by_digest

        index, entries = await self._index()
        if len({entry.digest for entry in entries}) == 1:
            index = await self.document(entries[0])
        return await find_by_digest(self, index, digest)

    async def _index(self) -> tuple[Document, tuple[Descriptor, ...]]:
        raw = await file_tree.read(self._tree, "index.json", manifests.MAX_DOCUMENT_SIZE)
        name = f"{clean(self._tree.path)}: index.json"
        entries = manifests.parse_index(raw, name).manifests
        return Document(raw, types.OCI_INDEX, (), None, name), entries

    def _matching(self, entries: tuple[Descriptor, ...]) -> dict[int, Descriptor]:
        """Return the entries that the name fits, by position. Raises `NotFoundError` for none."""
        everything = dict(enumerate(entries))
        for matches in self._matchers():
            fitting = {n: entry for n, entry in everything.items() if matches(n, entry)}
            if fitting:
                return fitting
        offered = _choices(everything)
        raise NotFoundError(
            f"{self.name}: no such image in the layout (there are: {listing.listed(offered)})",
            code="MANIFEST_UNKNOWN",
            choices=listing.detail(offered),
        )

    def _matchers(self) -> list[Callable[[int, Descriptor], bool]]:
        """Return predicates for position and entry; the first that any entry fulfils decides."""
        position, ref_name, reference = self._wanted.position, self._wanted.ref_name, None
        if position is not None:
            return [lambda n, _: n == position]
        if ref_name is not None:
            reference = _reference(ref_name)
            return [
                lambda _, entry: entry.ref_name == ref_name,
                lambda _, entry: None is not reference == _reference(entry.image_name),
            ]
        unnamed: list[Callable[[int, Descriptor], bool]] = [
            lambda _, entry: not _FALLBACK_TAG.fullmatch(entry.ref_name or ""),
            lambda _n, _e: True,
        ]
        if self._reference is None:
            return unnamed
        reference = self._reference._replace(digest=None)
        return [
            lambda _, entry: (
                reference in (_reference(entry.ref_name), _reference(entry.image_name))
            ),
            lambda _, entry: reference.tag is not None and entry.ref_name == reference.tag,
            *unnamed,
        ]

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        name = f"{self.name}: manifest {descriptor.digest}"
        content = await self._open(descriptor, name, "MANIFEST_UNKNOWN")
        raw = await content.read(manifests.MAX_DOCUMENT_SIZE)
        return Document(raw, descriptor.media_type, (descriptor.digest,), descriptor.size, name)

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        name = f"{self.name}: blob {descriptor.digest}"
        return await self._open(descriptor, name, "BLOB_UNKNOWN")

    async def _open(self, descriptor: Descriptor, name: str, code: str) -> Content:
        algorithm, encoded = descriptor.digest
        try:
            return await self._tree.open(f"blobs/{algorithm}/{encoded}", name)
        except NotFoundError as error:
            raise NotFoundError(f"{name} is not there: {error.message}", code=code) from None

    def signatures(self, _: Digest) -> list[SignaturePlace]:
        """See `Source`. The specification of layouts does not provide for signatures."""
        return []

    def close(self) -> None:
        """See `Source`."""
        self._tree.close()


def _reference(text: str | None) -> Reference | None:
    """Return an annotation as a reference, None where it is missing or not a reference."""
    try:
        return None if text is None else references.parse_reference(text)
    except BadRequestError:
        return None


def _differ_by_platform(entries: Collection[Descriptor]) -> bool:
    """Return whether entries are one image for several platforms, not several images."""
    platforms = {entry.platform for entry in entries}
    names = {entry.ref_name for entry in entries}
    return None not in platforms and len(platforms) == len(entries) and len(names) == 1


def _choices(entries: dict[int, Descriptor]) -> list[Choice]:
    return [
        Choice(position, [entry.ref_name] if entry.ref_name else [], entry.digest, entry.platform)
        for position, entry in entries.items()
    ]

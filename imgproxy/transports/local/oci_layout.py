"""`oci:DIR[:REF|:@N]` and `oci-archive:FILE…`: OCI image specification, image-layout.md.

The file `oci-layout` is not required, as no other reader requires it; `index.json` is read.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import (
    AbsentError,
    AmbiguousError,
    BadRequestError,
    Failure,
    NotFoundError,
    clean,
)
from imgproxy.host.blocking_calls import call
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import choices
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.manifest import Index, Manifest
from imgproxy.transports import file_tree
from imgproxy.transports.local import near_misses
from imgproxy.transports.source import Document, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from imgproxy.specs.oci.choices import Choice
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.specs.oci.reference import LayoutName, Reference
    from imgproxy.transports.file_tree import Tree
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Identity, Reader, SignaturePlace

# Not images, but artifacts that refer to one: under the tag for registries without a referrers API
# (distribution specification, "Referrers Tag Schema"), and under the tags that cosign uses.
_FALLBACK_TAG = re.compile(r"[a-z0-9]+-[0-9a-f]{64,}(?:\.[a-z]+)?")


# Documents that are read to tell images from what accompanies them.
_MAX_LOOKED_INTO = 64


class OciLayout:
    """An image in a tree with `index.json` and `blobs/<algorithm>/<encoded>`.

    Fulfils `SearchableSource` and `ListableSource`. `reference` is the name of the image in a
    registry that this one stands in for: an entry with that name is preferred, but the only one
    need not have it.
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
        fitting = await self._matching(dict(enumerate(entries)))
        if self._wanted.ref_name is None:
            fitting = await self._images(fitting)
        images = {entry.digest for entry in fitting.values()}
        names = _names(fitting.values())
        if len(images) == 1:
            document = await self.document(next(iter(fitting.values())))
            return document._replace(names=names)
        if self._wanted.ref_name is None and _differ_by_platform(fitting.values()):
            return index._replace(names=names)
        offered = await self._choices(fitting)
        raise AmbiguousError(
            f"{self.name} fits {len(images)} images; choose one: {choices.listed(offered)}",
            choices=choices.detail(offered),
        )

    async def everything(self) -> Document:
        """See `source.everything`."""
        if self._wanted.ref_name is None is self._wanted.position:
            return (await self._index())[0]
        return await self.root()

    async def find(self, digest: Digest) -> Document:
        """See `SearchableSource`."""
        from imgproxy.transports.local.digest_search import find_by_digest

        index, entries = await self._index()
        if len({entry.digest for entry in entries}) == 1:
            index = await self.document(entries[0])
        return await find_by_digest(self, index, digest)

    async def entries(self) -> list[Entry]:
        """See `ListableSource`. It is the entries of `index.json`, odd ones too."""
        from imgproxy.specs.oci import layout_index  # those who serve an image do without

        raw, name = await self._read_index()
        found = [_entry(n, each) for n, each in enumerate(layout_index.parse(raw, name).entries)]
        position = self._wanted.position
        if position is None and self._wanted.ref_name is None:
            return found
        if position is not None and position < len(found):
            return [found[position]]
        fitting = await self._matching({n: at for n, _, at, *_ in found if at is not None})
        return [each for each in found if each.position in fitting]

    async def listed(self) -> tuple[Descriptor, ...]:
        """See `AccompaniedSource`."""
        return (await self._index())[1]

    async def companions(self) -> list[Descriptor]:
        """See `AccompaniedSource`. What has the tag of a referrer counts as well."""
        return [
            each
            for each in await self.listed()
            if each.image_name is None
            and (each.ref_name is None or _FALLBACK_TAG.fullmatch(each.ref_name))
        ]

    async def _index(self) -> tuple[Document, tuple[Descriptor, ...]]:
        raw, name = await self._read_index()
        entries = manifests.parse_index(raw, name).manifests
        return Document(raw, types.OCI_INDEX, (), None, name), entries

    async def _read_index(self) -> tuple[bytes, str]:
        """Return the content of `index.json`, and its name in messages."""
        try:
            raw = await file_tree.read(self._tree, "index.json", manifests.MAX_DOCUMENT_SIZE)
        except NotFoundError as error:
            path = self._wanted.path
            raise await call(path, near_misses.absent, path, error) from None
        return raw, f"{clean(self._tree.path)}: index.json"

    async def _matching(self, entries: dict[int, Descriptor]) -> dict[int, Descriptor]:
        """Return the entries that the name fits, by position. Raises `NotFoundError` for none."""
        for matches in self._matchers():
            fitting = {n: entry for n, entry in entries.items() if matches(n, entry)}
            if fitting:
                return fitting
        offered = await self._choices(entries)
        raise AbsentError(
            f"{self.name}: no such image in the layout (there are: {choices.listed(offered)})",
            code="MANIFEST_UNKNOWN",
            choices=choices.detail(offered),
        )

    async def _images(self, entries: dict[int, Descriptor]) -> dict[int, Descriptor]:
        """Return the entries that are images of their own, or all where none is.

        oras lists the children of an index beside it, and what refers to an image; cosign, and
        some registries' tools, list signatures and SBOMs.
        """
        left = {n: entry for n, entry in entries.items() if not entry.is_companion}
        if len({entry.digest for entry in left.values()}) == 1:
            return left
        documents = await self._parsed(left)
        others = {digest for digest, each in documents.items() if each.is_companion}
        for each in documents.values():
            if isinstance(each, Index):
                others |= {child.digest for child in each.manifests}
        return {n: entry for n, entry in left.items() if entry.digest not in others} or entries

    async def _parsed(self, entries: dict[int, Descriptor]) -> dict[Digest, Manifest | Index]:
        """Return the documents of entries that are there and can be read, not verified."""
        documents = {}
        for entry in [*entries.values()][:_MAX_LOOKED_INTO]:
            with suppress(Failure):
                found = await self.document(entry)
                documents[entry.digest] = manifests.parse(found.raw, found.media_type, found.name)
        return documents

    async def _choices(self, entries: dict[int, Descriptor]) -> list[Choice]:
        """Return entries as choices, with what their documents say where the entries do not."""
        documents = await self._parsed(entries)
        offered = []
        for position, entry in entries.items():
            choice, parsed = choices.of(position, entry), documents.get(entry.digest)
            if isinstance(parsed, Manifest):
                artifact_type = choice.artifact_type or parsed.artifact_type
                platform = choice.platform or await self._platform(parsed)
                choice = choice._replace(artifact_type=artifact_type, platform=platform)
            offered.append(choice)
        return offered

    async def _platform(self, manifest: Manifest) -> Platform | None:
        """Return the platform in an image's config, None where it has none that can be read."""
        if manifest.config.media_type not in types.CONFIGS:
            return None
        try:
            content = await self._open(manifest.config, self.name, "BLOB_UNKNOWN")
            return manifests.parse_platform(await content.read(manifests.MAX_DOCUMENT_SIZE))
        except Failure:
            return None

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

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        name = f"{self.name}: blob {descriptor.digest}"
        return (await self._open(descriptor, name, "BLOB_UNKNOWN")).between(offset, stop)

    async def _open(self, descriptor: Descriptor, name: str, code: str) -> Content:
        algorithm, encoded = descriptor.digest
        try:
            return await self._tree.open(f"blobs/{algorithm}/{encoded}", name)
        except NotFoundError as error:
            raise NotFoundError(f"{name} is not there: {error.message}", code=code) from None

    def signatures(self, _: Digest) -> list[SignaturePlace]:
        """See `Source`. No other reader of layouts takes any from there; `Sideloaded` does."""
        return []

    def close(self) -> None:
        """See `Source`."""
        self._tree.close()


def _entry(position: int, value: object) -> Entry:
    """Return an entry of `index.json`, which may be anything."""
    from imgproxy.specs.oci import layout_index

    try:
        descriptor = manifests.parse_descriptor(Fields(value, f"manifests[{position}]"))
    except FieldError as error:
        name = layout_index.name_of(value)
        return Entry(position, () if name is None else (name,), None, str(error), value)
    return Entry(position, _names([descriptor]), descriptor, raw=value)


def _names(entries: Collection[Descriptor]) -> tuple[str, ...]:
    """Return what entries are called, each name once."""
    found = (name for each in entries for name in (each.ref_name, each.image_name))
    return tuple(dict.fromkeys(filter(None, found)))


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

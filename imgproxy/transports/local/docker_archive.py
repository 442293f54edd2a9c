"""`docker-archive:FILE[:NAME[:TAG]|:@N]`: what `docker save` and many others write.

`manifest.json` lists images by the names of members; `specs.oci.docker_archive` has the format. The
OCI manifest of each image is made here. The digest of a layer stored as plain tar is the diff_id in
the config, so that nothing has to be hashed for it; a layer stored compressed is served as it is,
and its digest is that of the stored bytes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from imgproxy.errors import (
    AbsentError,
    AmbiguousError,
    BadRequestError,
    Failure,
    InvalidError,
    NotFoundError,
    clean,
)
from imgproxy.specs.oci import choices
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import docker_archive as formats
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.choices import Choice
from imgproxy.specs.oci.digest import Digest
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Descriptor
from imgproxy.transports import file_tree
from imgproxy.transports.readers import Bytes
from imgproxy.transports.source import Document, Entry, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.docker_archive import Item
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.specs.oci.reference import DockerArchiveName, Reference
    from imgproxy.transports.local.tar_archive import Archive, Member
    from imgproxy.transports.source import Reader, SignaturePlace

# Since version 25, docker names members by the digest of what they hold.
_NAMED_BY_DIGEST = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")

# What is hashed in one go.
_PIECE = 1024 * 1024


class _Image(NamedTuple):
    """A manifest that was made for an image, and its blobs: in memory, or by their paths.

    `platform` is that in its config, None where there is none.
    """

    manifest: bytes
    blobs: dict[Digest, bytes | str]
    platform: Platform | None


class Made:
    """What has been found out about one archive: its images, and the digests of layers.

    `hashed` are those that are known, and `keep` is called with this when there is another one.
    """

    def __init__(
        self,
        hashed: dict[int, Digest] | None = None,
        keep: Callable[[Made], None] = lambda _: None,
    ) -> None:
        self.images: dict[int, _Image] = {}  # by position
        self.hashed = hashed or {}  # by offset, because a layer may have many names
        self.keep = keep


class DockerArchive:
    """An image in an archive with a manifest.json.

    Fulfils `SearchableSource` and `ListableSource`. `is_lenient`: the archive stands in for a
    registry, so that the only image in it need not have the requested name. `made` is shared by
    those that read the same archive.
    """

    def __init__(
        self,
        name: DockerArchiveName,
        archive: Archive,
        identity: Identity = Identity("docker-archive", []),  # noqa: B008  (a value)
        *,
        is_lenient: bool = False,
        made: Made | None = None,
    ) -> None:
        self.name = clean(str(name))
        self.identity = identity
        self._wanted = name
        self._archive = archive
        self._is_lenient = is_lenient
        self._made = made or Made()

    async def root(self) -> Document:
        """See `Source`. Raises `AmbiguousError` where the name fits several images."""
        items = await self._items()
        fitting = self._matching(items) or (items if self._is_lenient else {})
        if len({(item.config, item.layers) for item in fitting.values()}) == 1:
            position, item = next(iter(fitting.items()))
            return (await self._document(position, item))._replace(names=self._names(item))
        offered = await self._choices(fitting or items)
        if fitting and _differ_by_platform(offered):
            raw = formats.make_index(offered)
            return Document(raw, types.OCI_INDEX, (), None, f"{self.name}: its images")
        way_out = f"choose one: {choices.listed(offered)}"
        if fitting:
            raise AmbiguousError(
                f"{self.name} fits {len(fitting)} images; {way_out}",
                choices=choices.detail(offered),
            )
        raise AbsentError(
            f"{self.name}: no such image in the archive; {way_out}",
            code="MANIFEST_UNKNOWN",
            choices=choices.detail(offered),
        )

    async def entries(self) -> list[Entry]:
        """See `ListableSource`. It is the images of `manifest.json`."""
        fitting = self._matching(await self._items())
        if not fitting:
            await self.root()  # which says what there is
        found = []
        for position, item in fitting.items():
            try:
                raw, _, platform = await self._image(position, item)
            except Failure as failure:
                found.append(Entry(position, item.repo_tags, None, failure.message))
                continue
            digest = digests.compute(raw)
            made = Descriptor(types.OCI_MANIFEST, digest, len(raw), platform=platform)
            found.append(Entry(position, item.repo_tags, made))
        return found

    async def find(self, digest: Digest) -> Document:
        """See `SearchableSource`."""
        items = await self._items()
        if len(items) == 1:
            return (await self._document(0, items[0]))._replace(digests=(digest,))
        offered = await self._choices(items)
        if digests.is_available(digest):
            named = {
                digests.compute(image.manifest, digest.algorithm): position
                for position, image in self._made.images.items()
            }
            if digest in named:
                return await self._document(named[digest], items[named[digest]])
        raise InvalidError(
            f"{self.name}: none of its images has the digest {digest}: {choices.listed(offered)}",
            code="DIGEST_INVALID",
            choices=choices.detail(offered),
        )

    async def _items(self) -> dict[int, Item]:
        raw = await file_tree.read(self._archive, "manifest.json", MAX_DOCUMENT_SIZE)
        return dict(enumerate(formats.parse(raw, f"{clean(self._archive.path)}: manifest.json")))

    def _matching(self, items: dict[int, Item]) -> dict[int, Item]:
        position, reference = self._wanted.position, self._wanted.reference
        if position is not None:
            return {n: item for n, item in items.items() if n == position}
        if reference is None:
            return items
        return {
            n: item
            for n, item in items.items()
            if any(_has_name(tag, reference) for tag in item.repo_tags)
        }

    def _names(self, item: Item) -> tuple[str, ...]:
        wanted = [] if self._wanted.reference is None else [str(self._wanted.reference)]
        return tuple(dict.fromkeys([*wanted, *map(_whole, item.repo_tags)]))

    async def _choices(self, items: dict[int, Item]) -> list[Choice]:
        offered = []
        for position, item in items.items():
            choice = Choice(position, item.repo_tags, None)
            with suppress(Failure):  # this image is broken, the others need not be
                raw, _, platform = await self._image(position, item)
                digest = digests.compute(raw)
                choice = choice._replace(digest=digest, size=len(raw), platform=platform)
            offered.append(choice)
        return offered

    async def _document(self, position: int, item: Item) -> Document:
        raw = (await self._image(position, item)).manifest
        return Document(raw, types.OCI_MANIFEST, (), None, f"{self.name}: image @{position}")

    async def _image(self, position: int, item: Item) -> _Image:
        if position not in self._made.images:
            self._made.images[position] = await self._make(item)
        return self._made.images[position]

    async def _make(self, item: Item) -> _Image:
        try:
            raw = await file_tree.read(self._archive, item.config, MAX_DOCUMENT_SIZE)
        except NotFoundError as error:
            raise InvalidError(f"{error.message}, and manifest.json names it as a config") from None
        config = Descriptor(types.OCI_CONFIG, digests.compute(raw), len(raw))
        where = f"{self.name}: config {clean(item.config)}"
        diff_ids = formats.parse_diff_ids(raw, where)
        if diff_ids is not None and len(diff_ids) != len(item.layers):
            raise InvalidError(
                f"{where} names {len(diff_ids)} layers, and manifest.json {len(item.layers)}"
            )
        layers = [
            await self._layer(path, diff_id, item)
            for path, diff_id in zip(
                item.layers, diff_ids or [None] * len(item.layers), strict=True
            )
        ]
        blobs: dict[Digest, bytes | str] = {
            layer.digest: path
            for path, layer in zip(item.layers, layers, strict=True)
            if not layer.urls
        }
        manifest = formats.make_manifest(config, layers)
        return _Image(manifest, {**blobs, config.digest: raw}, manifests.parse_platform(raw))

    async def _layer(self, path: str, diff_id: Digest | None, item: Item) -> Descriptor:
        """Return the descriptor of a layer, of the bytes that are served for it."""
        try:
            member = self._archive.find(path)
        except NotFoundError as error:
            source = item.sources.get(str(diff_id))
            if source is not None and source.urls:
                return source._replace(media_type=formats.foreign_type(source.media_type))
            raise InvalidError(f"{error.message}, and manifest.json names it as a layer") from None
        media_type = formats.layer_type(member.head)
        if media_type == types.OCI_LAYER and diff_id is not None:
            return Descriptor(media_type, diff_id, member.size)
        return Descriptor(media_type, await self._digest(path, member), member.size)

    async def _digest(self, path: str, member: Member) -> Digest:
        """Return the digest of a layer that is not the diff_id in the config, hashed only once."""
        match = _NAMED_BY_DIGEST.fullmatch(path)
        if match is not None:
            try:
                return digests.parse(f"{match[1]}:{match[2]}")  # verified when the layer is read
            except ValueError:
                pass
        if member.offset not in self._made.hashed:
            hasher = digests.hasher(Digest("sha256", ""))
            content = await self._archive.open(path, f"{self.name}: layer {path}", sole=True)
            buffer = memoryview(bytearray(_PIECE))
            try:
                while count := await content.receive_into(buffer):
                    piece = buffer[:count]
                    await trio.to_thread.run_sync(hasher.update, piece, abandon_on_cancel=True)
            finally:
                content.close()
            self._made.hashed[member.offset] = Digest("sha256", hasher.hexdigest())
            await trio.to_thread.run_sync(self._made.keep, self._made)
        return self._made.hashed[member.offset]

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`. The only manifests are those that were made."""
        name = f"{self.name}: manifest {descriptor.digest}"
        for image in self._made.images.values():
            if digests.compute(image.manifest) == descriptor.digest:
                named = (descriptor.digest,)
                return Document(image.manifest, types.OCI_MANIFEST, named, descriptor.size, name)
        raise NotFoundError(f"{name} is not there", code="MANIFEST_UNKNOWN")

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        name = f"{self.name}: blob {descriptor.digest}"
        for image in self._made.images.values():
            found = image.blobs.get(descriptor.digest)
            if isinstance(found, bytes):
                return Bytes(name, found).between(offset, stop)
            if found is not None:
                return (await self._archive.open(found, name)).between(offset, stop)
        raise NotFoundError(f"{name} is not there", code="BLOB_UNKNOWN")

    def signatures(self, _: Digest) -> list[SignaturePlace]:
        """See `Source`. A manifest that was made here has no signatures."""
        return []

    def close(self) -> None:
        """See `Source`."""
        self._archive.close()


def _differ_by_platform(offered: list[Choice]) -> bool:
    """Return whether images are one for several platforms, as far as their configs tell."""
    platforms = {each.platform for each in offered}
    return None not in platforms and len(platforms) == len(offered)


def _whole(tag: str) -> str:
    """Return a tag as the name of a registry's image, with what Docker leaves out."""
    try:
        return str(references.parse_reference(tag))
    except BadRequestError:
        return tag


def _has_name(tag: str, reference: Reference) -> bool:
    try:
        return references.parse_reference(tag) == reference
    except BadRequestError:
        return False

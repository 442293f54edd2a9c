"""Images of layouts as the members of an archive, each verified while it is read.

The same images give the same members in the same order, wherever they lie and whenever they came
there: sorted by name, manifests before what they name. What is verified is known by digests, which
is why the policy is not asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import (
    AmbiguousError,
    BadRequestError,
    InvalidError,
    NotFoundError,
    UnsupportedFormatError,
    clean,
)
from imgproxy.images.selection import MAX_DEPTH, IndexWalk
from imgproxy.images.verified_source import VerifiedSource
from imgproxy.specs.oci import choices, layout_index
from imgproxy.specs.oci import docker_archive as formats
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.manifest import Descriptor, Index, Manifest
from imgproxy.transports.local.inflated import open_inflated
from imgproxy.verification.verified_blob import LargeBlobs, open_blob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.transports.source import Entry, ListableSource
    from imgproxy.verification.documents import VerifiedDocument
    from imgproxy.verification.verified_blob import Blob


class Member(NamedTuple):
    """A member of an archive: a file, or a directory (`name/`). Whoever receives it closes it.

    `content` is the whole of it, or a blob whose last piece comes only if all of it is right.
    """

    name: str
    size: int
    content: bytes | Blob


class Chosen(NamedTuple):
    """An entry of a layout that is to be in an archive; `raw` is what its index has there."""

    source: VerifiedSource
    path_of: Callable[[Digest], str]
    descriptor: Descriptor
    raw: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name in the layout, empty where it has none."""
        return self.descriptor.ref_name or ""


async def choose(source: ListableSource, path_of: Callable[[Digest], str]) -> list[Chosen]:
    """Return the entries that a source's name fits; `path_of` returns where a blob lies.

    Raises `AbsentError` for none, and `InvalidError` for one that cannot be read.
    """
    verified = VerifiedSource(source, LargeBlobs())
    return [
        Chosen(verified, path_of, _readable(source.name, each), each.raw)
        for each in await source.entries()
    ]


def _readable(name: str, entry: Entry) -> Descriptor:
    if entry.descriptor is None:
        raise InvalidError(f"{name}: index.json: {entry.problem}")
    return entry.descriptor


def in_order(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Return entries by name, each once. Raises `AmbiguousError` for two images of one name."""
    found: dict[tuple[str, Digest], Chosen] = {}
    for each in sorted(chosen, key=lambda each: (each.name, each.descriptor.digest)):
        found.setdefault((each.name, each.descriptor.digest), each)
    names = [name for name, _ in found if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AmbiguousError(
            f"two images are called {clean(twice[0])}; an archive has each name once"
        )
    return list(found.values())


class OciArchive:
    """The members of an `oci-archive:`. `missing` are entries of indexes that are not there."""

    def __init__(self, chosen: Sequence[Chosen]) -> None:
        self._chosen = chosen
        self._seen: set[Digest] = set()
        self._directories: set[str] = set()
        self.missing: list[Digest] = []

    async def members(self) -> AsyncIterator[Member]:
        """Yield the members. Raises `Failure` for content that is absent or wrong."""
        index = {
            "schemaVersion": 2,
            "mediaType": types.OCI_INDEX,
            "manifests": [each.raw for each in self._chosen],
        }
        yield _file("oci-layout", layout_index.LAYOUT)
        yield _file("index.json", layout_index.LayoutIndex(index).encode())
        for each in self._chosen:
            async for member in self._below(each.source, each.descriptor, 1):
                yield member

    async def _below(
        self, source: VerifiedSource, descriptor: Descriptor, depth: int
    ) -> AsyncIterator[Member]:
        """Yield a document or a blob, and what it names, unless that has been before."""
        digest = descriptor.digest
        if digest in self._seen:
            return
        if depth > MAX_DEPTH + 1:
            raise InvalidError(f"{source.name}: more than {MAX_DEPTH} indexes in one another")
        document = await self._document(source, descriptor, depth)
        if document is None and digest in self.missing:
            return
        self._seen.add(digest)
        for directory in ("blobs/", f"blobs/{digest.algorithm}/"):
            if directory not in self._directories:
                self._directories.add(directory)
                yield Member(directory, 0, b"")
        path = f"blobs/{digest.algorithm}/{digest.encoded}"
        if document is None:
            yield Member(path, descriptor.size, await source.blob(descriptor))
            return
        yield _file(path, document.raw)
        for named in _named(document):
            if not (named.urls and not await _is_there(source, named)):
                async for member in self._below(source, named, depth + 1):
                    yield member

    async def _document(
        self, source: VerifiedSource, descriptor: Descriptor, depth: int
    ) -> VerifiedDocument | None:
        if descriptor.media_type not in types.MANIFESTS | types.INDEXES:
            return None
        try:
            return await source.document(descriptor)
        except NotFoundError:
            if depth == 1:
                raise
            # Of an index, a layout may have some platforms only.
            self.missing.append(descriptor.digest)
            return None


def _named(document: VerifiedDocument) -> Sequence[Descriptor]:
    parsed: Manifest | Index = document.parsed
    return parsed.manifests if isinstance(parsed, Index) else (parsed.config, *parsed.layers)


async def _is_there(source: VerifiedSource, descriptor: Descriptor) -> bool:
    """Return whether a layer that may lie elsewhere is in the layout."""
    try:
        (await source.reader(descriptor)).close()
    except NotFoundError:
        return False
    return True


class DockerArchive:
    """The members of a `docker-archive:`: images for one platform each, with plain layers.

    `platform` is the one to choose from an index, None to choose from none.
    """

    def __init__(self, chosen: Sequence[Chosen], platform: Platform | None) -> None:
        self._chosen = chosen
        self._platform = platform
        self._large_blobs = LargeBlobs()
        self.missing: list[Digest] = []

    async def members(self) -> AsyncIterator[Member]:
        """Yield the members. Raises `Failure` for content that is absent or wrong."""
        images: dict[Digest, _DockerImage] = {}
        for each in self._chosen:
            manifest = await self._manifest(each)
            image = images.get(manifest.config.digest)
            if image is None:
                image = images[manifest.config.digest] = await _docker_image(each, manifest)
            image.tags.extend(_tags(each.descriptor))
        items = [image.item() for image in images.values()]
        raw = json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode()
        yield _file("manifest.json", raw)
        seen: set[str] = set()
        for image in images.values():
            if image.config_name not in seen:
                seen.add(image.config_name)
                yield _file(image.config_name, image.config)
            for layer, diff_id in zip(image.manifest.layers, image.diff_ids, strict=True):
                name = _layer_name(diff_id)
                if name not in seen:
                    seen.add(name)
                    yield await self._layer(image.chosen, layer, diff_id)

    async def _layer(self, chosen: Chosen, layer: Descriptor, diff_id: Digest) -> Member:
        """Return a layer as the diff_id names it, which is what it is verified by."""
        name = f"{chosen.source.name}: layer {layer.digest}"
        (await chosen.source.reader(layer)).close()  # which says what is missing
        reader = await open_inflated(chosen.path_of(layer.digest), name)
        plain = Descriptor(types.OCI_LAYER, diff_id, reader.size or 0)
        blob = await open_blob(plain, reader, self._large_blobs)
        return Member(_layer_name(diff_id), plain.size, blob)

    async def _manifest(self, chosen: Chosen) -> Manifest:
        """Return the manifest of an image, chosen from an index for the wanted platform."""
        document = await chosen.source.document(chosen.descriptor)
        if isinstance(document.parsed, Index):
            document = await self._from_index(chosen, document, document.parsed)
        manifest = document.parsed
        assert isinstance(manifest, Manifest)  # noqa: S101  (the walk makes sure)
        if manifest.config.media_type not in types.CONFIGS:
            raise UnsupportedFormatError(
                f"{_called(chosen)}: {document.digest} is no image but an artifact, and a Docker"
                " archive has images alone; export it to oci-archive:"
            )
        return manifest

    async def _from_index(
        self, chosen: Chosen, document: VerifiedDocument, index: Index
    ) -> VerifiedDocument:
        images = [each for each in index.manifests if not each.is_companion]
        platform = self._platform
        if platform is None and len(images) == 1:
            platform = images[0].platform
            if platform is None:
                return await chosen.source.document(images[0])
        if platform is None:
            offered = [choices.of(n, each) for n, each in enumerate(images)]
            raise AmbiguousError(
                f"{_called(chosen)} is an index, and a Docker archive has images for one platform:"
                f" choose by --platform, or export it to oci-archive: (there are:"
                f" {choices.listed_by_digest(offered)})",
                choices=choices.detail(offered),
            )
        return await IndexWalk(chosen.source).choose(document, platform)


class _DockerImage(NamedTuple):
    """An image on its way into a Docker archive."""

    chosen: Chosen
    manifest: Manifest
    config: bytes
    diff_ids: tuple[Digest, ...]
    tags: list[str]

    @property
    def config_name(self) -> str:
        return f"{self.manifest.config.digest.encoded}.json"

    def item(self) -> dict[str, Any]:
        """Return the image as manifest.json has it."""
        return {
            "Config": self.config_name,
            "RepoTags": list(dict.fromkeys(self.tags)) or None,
            "Layers": [_layer_name(each) for each in self.diff_ids],
        }


async def _docker_image(chosen: Chosen, manifest: Manifest) -> _DockerImage:
    config = manifest.config
    where = f"{chosen.source.name}: config {config.digest}"
    raw = await chosen.source.content(config)
    diff_ids = formats.parse_diff_ids(raw, where) or ()
    if len(diff_ids) != len(manifest.layers):
        raise InvalidError(
            f"{where} names {len(diff_ids)} layers, and the manifest {len(manifest.layers)}"
        )
    return _DockerImage(chosen, manifest, raw, diff_ids, [])


def _called(chosen: Chosen) -> str:
    return clean(chosen.name) or chosen.source.name


def _layer_name(diff_id: Digest) -> str:
    return f"{diff_id.encoded}.tar"


def _tags(descriptor: Descriptor) -> list[str]:
    """Return the name of an image as Docker has it, if that is a repository with a tag."""
    for name in (descriptor.ref_name, descriptor.image_name):
        try:
            reference = references.parse_named(name or "")
        except BadRequestError:
            continue
        if reference.tag is not None and reference.digest is None:
            return [str(reference)]
    return []


def _file(name: str, content: bytes) -> Member:
    return Member(name, len(content), content)

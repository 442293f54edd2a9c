"""The front-end of one image: imgproxy(1), PROTOCOL.

What may be asked for is parsed by `single_image_routes`; here it is looked up in the image, and
replies get their header fields. Docker manifests are converted to OCI.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from imgproxy.errors import Failure
from imgproxy.frontends import single_image_routes
from imgproxy.frontends.oci_manifest import oci_manifest
from imgproxy.frontends.single_image_routes import (
    GetBlob,
    GetCandidates,
    GetConfig,
    GetDocument,
    GetLayer,
    GetLayers,
    GetManifest,
    Quit,
)
from imgproxy.server.handler import Reply, Room, Weight, stale_fields
from imgproxy.specs.oci import convert
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.frontends.oci_manifest import OciManifest
    from imgproxy.images.image import Image
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.server.handler import Request
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import LayerSpec
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.verification.documents import VerifiedDocument


class SingleImage:
    """A `Handler` that serves one image, which is opened at the first request that needs it.

    `layer_specs` are those of `--layer`.
    """

    def __init__(self, image: Image, layer_specs: Sequence[LayerSpec] = ()) -> None:
        self.room = Room()
        self._image = image
        self._layer_specs = layer_specs
        self._manifest: OciManifest | None = None

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
        asked = single_image_routes.parse(request.method, request.target)
        if isinstance(asked, Quit):
            return Reply([], 0, b"", ends_service=True)
        with self._image.limited():
            if isinstance(asked, GetCandidates):
                return _described(*await self._image.candidates())
            return await self._reply(asked, await self._image.open(), head_only=request.is_head)

    async def _reply(
        self,
        asked: GetManifest | GetDocument | GetConfig | GetBlob | GetLayers | GetLayer,
        image: OpenedImage,
        *,
        head_only: bool,
    ) -> Reply:
        if isinstance(asked, GetManifest):
            manifest = self._oci_manifest(image.manifest)
            fields = [*_manifest_fields(image, manifest), *stale_fields(image.age)]
            return Reply(fields, len(manifest.raw), manifest.raw)
        if isinstance(asked, GetDocument):
            document = await image.document(asked.digest)
            fields = _content_fields(document.media_type, asked.digest)
            return Reply(fields, len(document.raw), document.raw)
        if isinstance(asked, GetLayers):
            return _described(self._layers(image, asked), image.age)
        descriptor = self._descriptor(image, asked)
        if isinstance(asked, GetConfig):
            media_type = convert.media_type(descriptor.media_type) or types.OCTET_STREAM
            fields = [*_content_fields(media_type, descriptor.digest), *stale_fields(image.age)]
        else:
            fields = _content_fields(types.OCTET_STREAM, descriptor.digest)
        # The head of a blob comes from its descriptor alone.
        body = b"" if head_only else await image.open_blob(descriptor)
        return Reply(fields, descriptor.size, body)

    def _descriptor(self, image: OpenedImage, asked: GetConfig | GetLayer | GetBlob) -> Descriptor:
        """Return the descriptor of what is read as a blob. Raises `Failure`."""
        if isinstance(asked, GetConfig):
            return image.find_config()
        if isinstance(asked, GetLayer):
            return self._layer(image, asked)
        return image.find_blob(asked.digest)

    def waits(self) -> bool:
        """See `AheadHandler`."""
        opened = self._image.opened
        return opened is not None and opened.is_distant

    def weight_ahead(self, request: Request) -> Weight | None:
        """See `AheadHandler`: of blobs that a released manifest names, and that are elsewhere."""
        opened = self._image.opened
        try:
            asked = single_image_routes.parse(request.method, request.target)
            if opened is None or not isinstance(asked, GetConfig | GetLayer | GetBlob):
                return None
            descriptor = self._descriptor(opened, asked)
            held = opened.held_ahead(descriptor)
            return None if held is None else Weight(descriptor.size, held)
        except Failure:
            return None

    def _layers(self, image: OpenedImage, asked: GetLayers) -> list[dict[str, Any]]:
        """Return what is told of layers, with the media types that `/manifest` has."""
        from imgproxy.specs.oci import layer_selection

        layers = image.layers(self._layer_specs)
        if asked.query is not None:
            layers = layer_selection.narrow([asked.query], layers, image.name)
        told = layer_selection.detail(layers)
        return [{**each, "mediaType": convert.media_type(each["mediaType"])} for each in told]

    def _layer(self, image: OpenedImage, asked: GetLayer) -> Descriptor:
        from imgproxy.specs.oci import layer_selection

        layers = image.layers(self._layer_specs)
        return layer_selection.at(asked.offset, layers, image.name).descriptor

    def _oci_manifest(self, original: VerifiedDocument) -> OciManifest:
        """Return a manifest as OCI; it is converted once for each image that is opened."""
        if self._manifest is None or self._manifest.original is not original:
            self._manifest = oci_manifest(original)
        return self._manifest


def _described(what: list[dict[str, Any]], age: int | None) -> Reply:
    """Return descriptions as JSON; `age` is that of the image's name, see `stale_fields`."""
    raw = json.dumps(what, ensure_ascii=False).encode()
    fields = [*_content_fields("application/json", digests.compute(raw)), *stale_fields(age)]
    return Reply(fields, len(raw), raw)


def _content_fields(media_type: str, digest: Digest) -> list[tuple[str, str]]:
    return [("Content-Type", media_type), ("Docker-Content-Digest", str(digest))]


def _manifest_fields(image: OpenedImage, manifest: OciManifest) -> list[tuple[str, str]]:
    fields = [
        *_content_fields(types.OCI_MANIFEST, manifest.digest),
        ("Manifest-Digest", str(image.manifest.digest)),
        ("Manifest-Media-Type", image.manifest.media_type),
    ]
    if image.index is not None:
        fields.append(("Index-Digest", str(image.index.digest)))
    parsed = image.manifest.parsed
    if isinstance(parsed, Manifest) and parsed.artifact_type:
        fields.append(("Artifact-Type", parsed.artifact_type))
    return fields

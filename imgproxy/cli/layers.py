"""What `copy`, `extract` and `unpack` have in common: the chosen layers of an image, read once."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from imgproxy.cli import runtime
from imgproxy.cli.progress import new_progress
from imgproxy.errors import UnsupportedFormatError, clean
from imgproxy.specs.oci import layer_selection
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.verification.documents import embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from imgproxy.cli.layer_options import LayerOptions
    from imgproxy.cli.progress import Progress
    from imgproxy.cli.runtime import Beginning
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.specs.oci.layer_selection import Layer
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.verification.verified_blob import Blob


@asynccontextmanager
async def chosen(
    options: LayerOptions, beginning: Beginning, diagnostics: Diagnostics
) -> AsyncIterator[ChosenLayers]:
    """Open the image that the options name, and choose its layers. Raises `Failure`."""
    configuration = beginning.configuration
    network = runtime.new_network(options, configuration, diagnostics, beginning.preconnection)
    catalog = runtime.new_catalog(options, configuration, network)
    image = catalog.image(options.image, runtime.wanted(options))
    progress = new_progress(options, diagnostics)
    try:
        with image.limited():
            opened = await image.open()
        yield ChosenLayers(options, opened, progress)
    finally:
        progress.close()
        image.close()
        catalog.close()
        network.close()


class ChosenLayers:
    """The layers of an image, which is `opened`, that were chosen, in the order of its manifest."""

    def __init__(self, options: LayerOptions, opened: OpenedImage, progress: Progress) -> None:
        manifest = opened.manifest.parsed
        if not isinstance(manifest, Manifest):
            raise UnsupportedFormatError(f"{clean(options.image)} is an index, and has no layers")
        self.opened = opened
        self.manifest = manifest
        self.progress = progress
        self.layers: Sequence[Layer] = layer_selection.choose(
            options.layer_specs, manifest.layers, clean(options.image)
        )
        progress.begin(sum(each.descriptor.size for each in self.layers))

    async def open(self, layer: Layer) -> LayerContent:
        """Open a layer; close it in any case. Raises `Failure`."""
        content = embedded(layer.descriptor)
        blob = None if content is not None else await self.opened.open_blob(layer.descriptor)
        return LayerContent(layer.descriptor, content, blob, self.progress)

    def described(self) -> dict[str, Any]:
        """Return what there is to tell of the image, as JSON has it."""
        stale = {} if self.opened.age is None else {"stale": True, "age": self.opened.age}
        return {"manifest": str(self.opened.manifest.digest), **stale}


class LayerContent:
    """The content of a layer in pieces, verified; of a large one, the last piece is."""

    def __init__(
        self, descriptor: Descriptor, content: bytes | None, blob: Blob | None, progress: Progress
    ) -> None:
        self._descriptor = descriptor
        self._content = content
        self._blob = blob
        self._progress = progress
        self._received = 0

    async def read(self) -> memoryview:
        """Return the next piece, empty at the end; it is valid until the next call.

        Raises `Failure`: `InvalidError` in place of the last piece where the content is wrong.
        """
        if self._blob is not None:
            piece = await self._blob.read()
        else:
            piece, self._content = memoryview(self._content or b""), None
        self._received += len(piece)
        self._progress.advance(self._descriptor, len(piece))
        return piece

    def may_be_right_elsewhere(self) -> bool:
        """Return whether the content was wrong, and another try may get other bytes."""
        if self._blob is None or not self._blob.has_another_try:
            return False
        self._progress.advance(self._descriptor, -self._received)
        return True

    def finish(self) -> None:
        """Tell that all of the layer has been used."""
        self._progress.finish(self._descriptor)

    def close(self) -> None:
        """Close the layer."""
        if self._blob is not None:
            self._blob.close()


def shown(layer: Layer) -> str:
    """Return what messages call a layer."""
    return f"layer {layer.index} ({layer.descriptor.digest})"


def umask() -> int:
    """Return which permissions new files and directories of this process do not have."""
    found = os.umask(0o077)
    os.umask(found)
    return found

"""What `copy`, `extract` and `unpack` have in common: the chosen layers of an image, read once."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import runtime
from imgproxy.cli.progress import new_progress
from imgproxy.errors import UnsupportedFormatError, clean
from imgproxy.images.next_layers import NextLayers
from imgproxy.specs.oci import layer_selection
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.verification.documents import embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

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
        async with _background() as nursery:
            with closing(ChosenLayers(options, opened, progress, nursery)) as layers:
                yield layers
    finally:
        progress.close()
        image.close()
        catalog.close()
        network.close()


@asynccontextmanager
async def _background() -> AsyncIterator[trio.Nursery]:
    """Return where tasks run that raise nothing, until the block ends; it raises what it raises."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001  (a nursery would put it in a group)
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class ChosenLayers:
    """The layers of an image, which is `opened`, that were chosen, in the order of its manifest.

    In `nursery`, those are opened that come next.
    """

    def __init__(
        self,
        options: LayerOptions,
        opened: OpenedImage,
        progress: Progress,
        nursery: trio.Nursery,
    ) -> None:
        manifest = opened.manifest.parsed
        if not isinstance(manifest, Manifest):
            raise UnsupportedFormatError(f"{clean(options.image)} is an index, and has no layers")
        self.opened = opened
        self.manifest = manifest
        self.progress = progress
        self.layers: Sequence[Layer] = layer_selection.choose(
            options.layer_specs, manifest.layers, clean(options.image)
        )
        descriptors = [each.descriptor for each in self.layers]
        self._next = NextLayers(descriptors, opened.open_blob, opened.held_ahead, nursery, 1)
        progress.begin(sum(each.size for each in descriptors))

    async def open(self, layer: Layer) -> LayerContent:
        """Open a layer; close it in any case. Raises `Failure`."""
        return await self._content(layer.descriptor, self.opened.open_blob)

    async def open_in_turn(self, layer: Layer) -> LayerContent:
        """Open a layer, and those that come next before they are wanted; see `open`."""
        return await self._content(layer.descriptor, self._next.blob)

    async def _content(
        self, descriptor: Descriptor, open_blob: Callable[[Descriptor], Awaitable[Blob]]
    ) -> LayerContent:
        content = embedded(descriptor)
        blob = None if content is not None else await open_blob(descriptor)
        return LayerContent(descriptor, content, blob, self.progress)

    def close(self) -> None:
        """Close what nobody has wanted."""
        self._next.close()

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

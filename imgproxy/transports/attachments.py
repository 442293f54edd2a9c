"""Signatures that are attached to images: what cosign's artifacts hold.

cosign 1 and 2 have a signature in each layer of an artifact, with its annotations; cosign 3 has a
bundle in each. `registry.attached_signatures` finds the artifacts at a registry,
`local.layout_signatures` those beside an image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.specs.signing import artifact, signature
from imgproxy.specs.signing.signature import BundleSignature, SigstoreSignature
from imgproxy.transports.signature_files import Total, in_batches, limited, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.signing.artifact import Part
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.source import Document, Source


class Attachments:
    """What a source has of them, in one place: its limits are those of all that is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._total = Total()

    async def signatures(self, document: Document, name: str) -> list[Signature]:
        """Return the signatures of cosign 1 and 2 in an artifact, which is called `name`."""
        with readable(document.name):
            parts = limited(artifact.layers(document.raw), document.name)

        async def read(n: int, part: Part) -> Signature:
            content = await self._content(part.descriptor)
            return SigstoreSignature(f"{name}, layer {n}", part.kind, content, part.annotations)

        return await in_batches([partial(read, n, part) for n, part in enumerate(parts, 1)])

    async def bundles(self, artifacts: Sequence[Descriptor], where: str) -> list[Signature]:
        """Return the bundles in artifacts of cosign 3, which lie at `where`."""
        each = limited([*artifacts], where)
        layers = await in_batches([partial(self._layers, one) for one in each])

        async def read(descriptor: Descriptor, layer: Part) -> Signature:
            content = await self._content(layer.descriptor)
            return BundleSignature(f"bundle {descriptor.digest}", content)

        pairs = [(one, layer) for one, those in zip(each, layers, strict=True) for layer in those]
        return await in_batches([partial(read, *pair) for pair in limited(pairs, where)])

    async def _layers(self, descriptor: Descriptor) -> list[Part]:
        document = await self._source.document(descriptor)
        self._total.add(len(document.raw), document.name)
        with readable(document.name):
            return of_kind(artifact.layers(document.raw))

    async def _content(self, descriptor: Descriptor) -> bytes:
        """Return a blob, not verified: a signature proves its content itself."""
        self._total.add(descriptor.size, f"blob {descriptor.digest}")
        reader = await self._source.blob(descriptor)
        content = memoryview(bytearray(descriptor.size))
        filled = 0
        try:
            while filled < len(content) and (count := await reader.receive_into(content[filled:])):
                filled += count
        finally:
            reader.close()
        return bytes(content[:filled])


def of_kind(parts: list[Part]) -> list[Part]:
    """Return those that are bundles."""
    return [part for part in parts if part.kind == signature.BUNDLE]

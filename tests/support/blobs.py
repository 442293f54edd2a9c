"""Blobs and documents in memory, as a source finds them, for what verifies them."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING
from unittest.mock import patch

import trio
from support.images import OCI_LAYER, OCI_MANIFEST, digest_of

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.transports.source import Document
from imgproxy.verification import block_hashes, verified_blob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.errors import Failure
    from imgproxy.server.handler import Body
    from imgproxy.transports.source import Origin

WRONG_DIGEST = (422, "DIGEST_INVALID", False)
WRONG_SIZE = (422, "SIZE_INVALID", False)
NO_ALGORITHM = (501, "UNSUPPORTED", False)

# In place of a mebibyte, so that every way to split a blob can be tried.
SMALL = 16

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}")}
RAW = json.dumps({"schemaVersion": 2, "config": {**CONFIG, "size": 2}, "layers": []}).encode()


@contextmanager
def small_pieces(size: int = SMALL) -> Iterator[None]:
    """Make `size` bytes the limit of a small blob, and that of each piece of a larger one.

    Parts of a larger one are compared in blocks of the same size.
    """
    with (
        patch.multiple(verified_blob, WHOLE=size, FIRST=size, CHUNK=size),
        patch.object(block_hashes, "BLOCK", size),
    ):
        yield


def noise(size: int) -> bytes:
    """Return so many bytes, always the same."""
    return hashlib.shake_128(b"noise").digest(size)


def described(content: bytes, algorithm: str = "sha256", size: int | None = None) -> Descriptor:
    """Return the descriptor of a layer with this content, or with another size."""
    digest = digests.parse(digest_of(content, algorithm))
    return Descriptor(OCI_LAYER, digest, len(content) if size is None else size)


def found(*named: str, raw: bytes = RAW, size: int | None = None) -> Document:
    """Return a document that a source has found under these digests."""
    return Document(raw, OCI_MANIFEST, tuple(map(digests.parse, named)), size, "the document")


class Chunks:
    """A reader that returns these numbers of bytes in turn; it has a size only if it is given one.

    `others`: what `reject` answers, whether the source has another place to look.
    """

    origin: Origin | None = None

    def __init__(
        self, content: bytes, sizes: list[int], size: int | None = None, *, others: bool = False
    ) -> None:
        self.size = size
        self.name = "the blob"
        self.closed = 0
        self.rejected: list[Failure] = []
        self.accepted = 0
        self._others = others
        self._rest = memoryview(content)
        self._sizes = cycle(sizes)

    @property
    def left(self) -> int:
        return len(self._rest)

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), len(self._rest), next(self._sizes))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def reject(self, failure: Failure) -> bool:
        self.rejected.append(failure)
        return self._others

    def accept(self) -> None:
        self.accepted += 1

    def close(self) -> None:
        self.closed += 1


async def pieces_of(blob: Body, pieces: list[bytes]) -> list[bytes]:
    """Return all pieces of a body, as they were when they were returned, put into `pieces`."""
    try:
        while piece := await blob.read():
            pieces.append(bytes(piece))
        assert not await blob.read()
    finally:
        blob.close()
    return pieces

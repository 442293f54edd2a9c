"""Blobs that are read and verified whole, on behalf of whoever keeps their bytes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.images.verified_source import find_valid
from imgproxy.verification import verified_blob, verified_parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader
    from imgproxy.verification.verified_blob import Blob, LargeBlobs


async def read_through(
    large_blobs: LargeBlobs, descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]]
) -> None:
    """Read and verify a blob, from other locations where it is wrong in one. Raises `Failure`."""
    verified_blob.check_algorithm(descriptor)

    async def verify(reader: Reader) -> Blob:
        return await verified_blob.open_blob(descriptor, reader, large_blobs)

    await verified_parts.read_through(partial(find_valid, open_reader, verify))

"""A blob of several locations: `failover` decides where its parts come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from imgproxy.errors import clean
from imgproxy.specs.http.content_range import Range
from imgproxy.specs.oci.distribution import BlobPath
from imgproxy.transports.registry.failover import Location
from imgproxy.transports.registry.redirects import check_encoding, encoding
from imgproxy.transports.registry.resumable_blob import ResumableBlob

if TYPE_CHECKING:
    from imgproxy.errors import Failure
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.blob_part import Part
    from imgproxy.transports.registry.failover import Failover


class BlobLocation(Location, Protocol):
    """A location that may have blobs."""

    async def blob(self, digest: Digest, wanted: Range | None = None) -> Part:
        """Return the whole of a blob, or the wanted part of it. Raises `Failure`."""


L = TypeVar("L", bound=BlobLocation)


async def open_blob(
    failover: Failover[L], descriptor: Descriptor, offset: int = 0, stop: int | None = None
) -> ResumableBlob:
    """Open a blob that one of the locations has, or a part of it: see `Source`.

    Raises `Failure`.
    """
    supply = _Supply(failover, descriptor, stop)
    part = await supply.begin(offset)
    return ResumableBlob(supply, descriptor.size, part, offset, stop)


class _Supply(Generic[L]):
    """See `resumable_blob.Supply`."""

    def __init__(self, failover: Failover[L], descriptor: Descriptor, stop: int | None) -> None:
        self._failover = failover
        self._path = BlobPath(descriptor.digest)
        self._size = descriptor.size
        self._stop = descriptor.size if stop is None else stop
        self._used: list[L] = []
        self._encoding = ""  # of the first response
        self._retries = failover.new_retries()

    @property
    def name(self) -> str:
        locations = dict.fromkeys(each.name for each in self._used)
        said = f", said to be encoded as {clean(self._encoding)}" if self._encoding else ""
        return f"{self._failover.name}: {self._path} from {' and '.join(locations)}{said}"

    async def begin(self, offset: int) -> Part:
        """Return the blob from a byte on; the retries that this takes are not those of the rest."""
        is_part = offset > 0 or self._stop < self._size
        wanted = Range(offset, self._stop, self._size) if is_part else None
        return await self._failover.ask(self._path, lambda location: self._open(location, wanted))

    async def rest(self, offset: int, failure: Failure | None) -> Part:
        if failure is not None:
            self.blame()
            if not await self._retries.pause([failure], offset):
                raise failure
        wanted = Range(offset, self._stop, self._size)
        return await self._failover.ask(
            self._path, lambda location: self._open(location, wanted), self._retries
        )

    async def _open(self, location: L, wanted: Range | None) -> Part:
        part = await location.blob(self._path.digest, wanted)
        # The digest decides whether the bytes are encoded. What is positioned in bytes of another
        # encoding is not the rest, which only the digest of the whole would tell.
        if wanted is None:
            self._encoding = encoding(part.response)
        elif encoding(part.response) != self._encoding:
            check_encoding(part.response)
        self._used.append(location)
        return part

    def blame(self) -> None:
        self._used[-1].demerits += 1

    def reject(self, failure: Failure) -> bool:
        return self._failover.reject(self._path, self._used, failure)

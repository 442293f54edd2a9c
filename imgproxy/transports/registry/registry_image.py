"""`docker://`: an image at its registry and the mirrors of it.

containers-registries.conf(5) gives the locations: mirrors in their order, then the primary one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imgproxy.specs.oci.distribution import ManifestPath
from imgproxy.transports.registry.blob_failover import open_blob
from imgproxy.transports.source import Document, docker_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.registry.failover import Failover
    from imgproxy.transports.registry.repository import FoundManifest, Repository
    from imgproxy.transports.source import Reader, SignaturePlace

# Returns where the signatures of a document may be, for an image with a single location.
FindSignatures = Callable[["RegistryImage", "Digest"], "list[SignaturePlace]"]


class RegistryImage:
    """An image by its reference, in the repositories that may have it. See `Source`.

    `signatures` has a function for each of the locations of `failover`; `close` releases what the
    image shares with others.
    """

    def __init__(
        self,
        reference: Reference,
        failover: Failover[Repository],
        signatures: Sequence[FindSignatures] = (),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = failover.name
        self.identity = docker_identity(reference)
        self.failover = failover
        self.reference = reference
        self._signatures = signatures
        self._close = close

    @property
    def accepts_insecure(self) -> bool:
        """Whether one of its locations may be asked without verified TLS."""
        return any(location.is_insecure for location in self.failover.locations)

    async def root(self) -> Document:
        """See `Source`."""
        return await self._document(self.reference.manifest, self.reference.digest)

    async def confirmed_by(self, digest: Digest) -> Repository | None:
        """Return the location that says that the image's tag stands for a digest.

        None where it says anything else, or nothing: `root` is to be asked then. Raises `Failure`.
        """

        async def ask(location: Repository) -> Repository | None:
            return location if await location.has_manifest(path.name, digest) else None

        path = ManifestPath(self.reference.manifest)
        return await self.failover.ask(path, ask)

    async def tagged(self, tag: str) -> Document:
        """Return a document by a tag of its own in the image's repository. Raises `Failure`."""
        return await self._document(tag)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        document = await self._document(str(descriptor.digest), descriptor.digest)
        return document._replace(
            # The index is trusted, the header field of the response is not.
            media_type=descriptor.media_type or document.media_type,
            size=descriptor.size,
        )

    async def _document(self, name: str, digest: Digest | None = None) -> Document:
        async def ask(location: Repository) -> tuple[Repository, FoundManifest]:
            return location, await location.manifest(name)

        path = ManifestPath(name)
        location, found = await self.failover.ask(path, ask, primary_decides=True)
        return Document(
            found.raw,
            found.media_type,
            (*([] if digest is None else [digest]), *found.digests),
            None,
            f"{self.name}: {path} from {location.name}",
            lambda failure: self.failover.reject(path, [location], failure),
            is_insecure=location.is_insecure,
            by_login=location.has_login,
        )

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        return await open_blob(self.failover, descriptor, offset, stop)

    def is_distant(self, _: Descriptor | None) -> bool:
        """See `source.is_distant`."""
        return True

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Those of each location are apart: one of them may have none."""
        return [
            place
            for location, find in zip(self.failover.locations, self._signatures, strict=False)
            for place in find(RegistryImage(self.reference, self.failover.alone(location)), digest)
        ]

    def close(self) -> None:
        """See `Source`."""
        self._close()

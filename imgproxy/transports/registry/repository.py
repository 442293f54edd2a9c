"""`docker://`: an image at a registry, or wherever the configuration says that it is.

containers-registries.conf(5) gives the endpoints: mirrors in their order, then the primary
location.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imgproxy.errors import BadUpstreamError
from imgproxy.specs.http import retry
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.registry.failover import Rounds
from imgproxy.transports.source import Document, docker_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.net.response import Response
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.registry.failover import Endpoint
    from imgproxy.transports.source import SignaturePlace

# Gives the places of the signatures for a document, at the only endpoint of a registry.
Signatures = Callable[["Registry", "Digest"], "list[SignaturePlace]"]


class Registry(Rounds):
    """An image by its logical reference, at these endpoints. See `Source` and `Rounds`.

    `signatures` say for each endpoint where those of the image at it are, where anybody knows.
    """

    def __init__(
        self,
        reference: Reference,
        endpoints: Sequence[Endpoint],
        *,
        retries: int,
        signatures: Sequence[Signatures] = (),
    ) -> None:
        super().__init__(f"docker://{reference}", endpoints, retries=retries)
        self.identity = docker_identity(reference)
        self._signatures = signatures
        self._reference = reference

    async def root(self) -> Document:
        """See `Source`."""
        return await self._document(self._reference.manifest, self._reference.digest, None)

    async def tagged(self, tag: str) -> Document:
        """Give a document by a tag of its own in the image's repository."""
        return await self._document(tag, None, None)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        document = await self._document(str(descriptor.digest), descriptor.digest, descriptor.size)
        # The index is trusted, the header of the reply is not.
        return document._replace(media_type=descriptor.media_type or document.media_type)

    async def _document(self, name: str, digest: Digest | None, size: int | None) -> Document:
        async def ask(endpoint: Endpoint) -> tuple[bytes, str, Digest | None]:
            accept = {"Accept": distribution.ACCEPT_MANIFESTS}
            response = await endpoint.get("manifest", name, accept)
            said = _content_digest(response)
            raw = await response.read(MAX_DOCUMENT_SIZE)
            return raw, response.header("content-type"), said

        budget = retry.Budget(self.retries)
        endpoint, found, _ = await self.ask(name, ask, budget, primary_decides=True)
        raw, media_type, said = found
        named = tuple(each for each in (digest, said) if each is not None)
        where = f"{self.name}: manifest {name} from {endpoint.name}"
        return Document(
            raw,
            media_type,
            named,
            size,
            where,
            lambda failure: self.reject(name, [endpoint], failure),
        )

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Those of each endpoint are apart: one of them may have none."""
        return [
            place
            for endpoint, find in zip(self._endpoints, self._signatures, strict=False)
            if not endpoint.refusal
            for place in find(Registry(self._reference, [endpoint], retries=self.retries), digest)
        ]


def _content_digest(response: Response) -> Digest | None:
    """Give the digest that the registry says the manifest has.

    One by an algorithm that is not available is merely mentioned, and no obstacle.
    """
    text = response.header("docker-content-digest")
    if not text:
        return None
    try:
        digest = digests.parse(text)
    except ValueError as error:
        response.close()
        raise BadUpstreamError(
            f"GET {response.url}: its Docker-Content-Digest is unusable: {error}"
        ) from None
    return digest if digests.is_available(digest) else None

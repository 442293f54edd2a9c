"""Where signatures of an image at a registry are: containers-registries.d(5), cosign, OpenShift.

A lookaside, or in its place the signature extension of OpenShift's registry; where
`use-sigstore-attachments` is set, what cosign attaches to images: signatures under a tag, and
bundles that refer to them. Each is a place of its own, so that one that cannot be reached hides
nothing in the others. If one signature in a place cannot be read, the whole place fails, because
that signature may be the one that matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import (
    HOST_FAILURES,
    Failure,
    NotFoundError,
)
from imgproxy.specs.signing import artifact, signature
from imgproxy.specs.signing.signature import MAX_TOTAL_SIZE
from imgproxy.transports.attachments import Attachments, of_kind
from imgproxy.transports.registry import listings
from imgproxy.transports.registry.failover import Retries
from imgproxy.transports.registry.lookaside import Lookaside
from imgproxy.transports.signature_files import limited, readable
from imgproxy.transports.source import SignaturePlace, docker_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgproxy.config.registries_d import Section
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.registry.failover import Failover
    from imgproxy.transports.registry.plain_url import PlainUrl
    from imgproxy.transports.registry.registry_image import RegistryImage


def places(
    image: RegistryImage,
    reference: Reference,
    digest: Digest,
    sections: Callable[[Iterable[str]], Section],
    connect: Callable[[Url], Failover[PlainUrl]],
) -> list[SignaturePlace]:
    """Return where the signatures of a document at a location are; see `Source.signatures`.

    `image` has this location alone, where it is called `reference`; `sections` returns what
    registries.d has for scopes, and `connect` a web server for the URL of a lookaside. Raises what
    `sections` raises.
    """
    section = sections(docker_identity(reference).scopes)
    lookaside = Lookaside(section, reference, digest)
    attached = _Attached(image, reference.name, digest)

    async def in_lookaside() -> list[Signature]:
        try:
            if await attached.has_extension(Retries(0)):
                return []
        except HOST_FAILURES:
            raise
        except Failure:
            pass  # the next place asks again, and reports it; what is here counts in any case
        return await lookaside.read(connect)

    async def in_registry() -> list[Signature]:
        found = await attached.extension()
        return found + (await attached.attachments() if section.attachments else [])

    first = SignaturePlace(lookaside.name, in_lookaside)
    if not section.attachments:
        return [first, SignaturePlace(f"the registry {reference.registry} itself", in_registry)]
    return [
        first,
        SignaturePlace(f"attached to {reference.name}", in_registry),
        SignaturePlace(f"bundles at {reference.name}", attached.bundles),
    ]


def places_offline(
    reference: Reference, digest: Digest, sections: Callable[[Iterable[str]], Section]
) -> list[SignaturePlace]:
    """Return where they are, of which a directory alone can be read without a network."""
    section = sections(docker_identity(reference).scopes)
    return [Lookaside(section, reference, digest).place_offline()]


class _Attached:
    """What a registry has of signatures for one document, at the only location of an image.

    `name` is that of the repository there.
    """

    def __init__(self, image: RegistryImage, name: str, digest: Digest) -> None:
        self._image = image
        self._name = name
        self._digest = digest
        self._has_extension: bool | None = None

    async def has_extension(self, retries: Retries | None = None) -> bool:
        """Return whether the registry announces the extension; ask it once."""
        if self._has_extension is None:
            self._has_extension = await self._image.failover.ask(
                "base", lambda location: location.has_signatures(), retries
            )
        return self._has_extension

    async def extension(self) -> list[Signature]:
        """Return what the extension has, if the registry announces it."""
        if not await self.has_extension():
            return []
        where = f"signatures of {self._digest} at {self._name}"
        try:
            raw = await self._image.failover.ask(
                where, lambda location: location.signatures(self._digest, MAX_TOTAL_SIZE)
            )
        except NotFoundError:
            return []
        with readable(where):
            return limited(signature.parse_extension_reply(raw, where), where)

    async def attachments(self) -> list[Signature]:
        """Return the signatures of cosign 1 and 2: the layers under a tag made of the digest."""
        tag = artifact.attachments_tag(self._digest)
        try:
            document = await self._image.tagged(tag)
        except NotFoundError:
            return []
        return await Attachments(self._image).signatures(document, f"{self._name}:{tag}")

    async def bundles(self) -> list[Signature]:
        """Return the signatures of cosign 3: artifacts of its type that refer to the document."""
        query = artifact.referrers_query(signature.BUNDLE)
        listed = await listings.referrers(self._image, self._name, self._digest, query)
        named = {each.descriptor.digest: each for each in listed}
        # Each costs a request, and any user who may push can add to them.
        where = f"referrers of {self._digest} at {self._name}"
        found = [each.descriptor for each in of_kind([*named.values()])]
        return await Attachments(self._image).bundles(found, where)

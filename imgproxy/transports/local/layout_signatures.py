"""Signatures that lie in the layout of an image: what cosign attaches, as tools copy it.

regctl, skopeo and `imgproxy pull` keep the tag that the signatures of cosign 1 and 2 have at a
registry, alone or with the name; `cosign save` marks them by a kind. oras copies what refers to an
image without a name, regctl with the tag of the list of referrers as well.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import HOST_FAILURES, BadRequestError, Failure
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.manifest import Index, Manifest
from imgproxy.specs.signing import artifact, signature
from imgproxy.transports.attachments import Attachments
from imgproxy.transports.source import SignaturePlace

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.source import AccompaniedSource

_COSIGN_SAVED = "dev.cosignproject.cosign/sigs"

# Documents that are read to find out which of them refer to an image.
_MAX_LOOKED_INTO = 256


def places(source: AccompaniedSource, reference: Reference, digest: Digest) -> list[SignaturePlace]:
    """Return where signatures of a document may be beside an image of that name."""

    async def attached() -> list[Signature]:
        tag = artifact.attachments_tag(digest)
        found: dict[Digest, list[Signature]] = {}
        attachments = Attachments(source)
        for each in await source.listed():
            is_one = each.annotation("kind") == _COSIGN_SAVED or _has_tag(each, tag, reference)
            if is_one and each.digest not in found:
                name = f"{source.name}: {each.ref_name or each.digest}"
                document = await source.document(each)
                found[each.digest] = await attachments.signatures(document, name)
        return [each for those in found.values() for each in those]

    async def bundles() -> list[Signature]:
        found = await _bundles(source, reference, digest)
        return await Attachments(source).bundles(found, f"referrers of {digest} in {source.name}")

    return [
        SignaturePlace(f"attached in {source.name}", attached),
        SignaturePlace(f"bundles in {source.name}", bundles),
    ]


def _has_tag(entry: Descriptor, tag: str, reference: Reference) -> bool:
    """Return whether an entry has a tag, alone or of that repository."""
    if entry.ref_name == tag:
        return True
    wanted = reference._replace(tag=tag, digest=None)
    for name in (entry.ref_name, entry.image_name):
        with suppress(BadRequestError):
            if name is not None and references.parse_reference(name) == wanted:
                return True
    return False


async def _bundles(
    source: AccompaniedSource, reference: Reference, digest: Digest
) -> list[Descriptor]:
    """Return the artifacts with bundles that refer to a document."""
    tag = artifact.referrers_tag(digest)
    left = {each.digest: each for each in await source.companions()}
    for each in await source.listed():
        if _has_tag(each, tag, reference):
            listed = await _parsed(source, each)
            if isinstance(listed, Index):
                left |= {one.digest: one for one in listed.manifests}
    found = []
    for each in [*left.values()][:_MAX_LOOKED_INTO]:
        document = await _parsed(source, each)
        if not isinstance(document, Manifest) or document.artifact_type != signature.BUNDLE:
            continue
        if document.subject is not None and document.subject.digest == digest:
            found.append(each)
    return found


async def _parsed(source: AccompaniedSource, entry: Descriptor) -> Manifest | Index | None:
    """Return a document, None for what cannot be read: it need not concern the image."""
    try:
        found = await source.document(entry)
        return manifests.parse(found.raw, found.media_type, found.name)
    except HOST_FAILURES:
        raise
    except Failure:
        return None

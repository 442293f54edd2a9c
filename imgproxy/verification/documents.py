"""Verification of documents, and the comparison of bytes with digests and sizes.

The pure part of verification: what is compared is in memory. `verified_blob` compares what is
pulled in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from imgproxy.net.streams import Buffer
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor, Index, Manifest
    from imgproxy.transports.source import Document
    from imgproxy.verification.block_hashes import BlockHashes


class VerifiedDocument(NamedTuple):
    """A manifest or an index whose bytes agree with every digest that named them.

    `digest` is the first of those, or the one computed where the document was named by none.
    `names` are those of `Document`. `age` is how many seconds ago it was asked what the name stands
    for that led to it, None where that could be asked just now.
    """

    raw: bytes
    digest: Digest
    parsed: Manifest | Index
    names: tuple[str, ...] = ()
    age: int | None = None

    @property
    def media_type(self) -> str:
        """The media type of the document."""
        return self.parsed.media_type


def verify(found: Document) -> VerifiedDocument:
    """Return a document that was found, once it agrees with every digest that named it.

    Raises `InvalidError` where digest or size disagree or the document does not parse, and
    `NotImplementedByUsError` where the algorithm of a digest is not available.
    """
    if found.size is not None and len(found.raw) != found.size:
        refuse_size(found.name, found.size, str(len(found.raw)))
    for named in found.digests:
        compare(found.name, named, found.raw)
    digest = found.digests[0] if found.digests else digests.compute(found.raw)
    parsed = manifests.parse(found.raw, found.media_type, found.name)
    return VerifiedDocument(found.raw, digest, parsed, found.names)


def has_digest(document: VerifiedDocument, digest: Digest) -> bool:
    """Return whether a document has this digest as well, which may be by another algorithm."""
    if document.digest == digest:
        return True
    if not digests.is_available(digest):
        return False
    return digests.compute(document.raw, digest.algorithm) == digest


def embedded(descriptor: Descriptor) -> bytes | None:
    """Return the content that a descriptor embeds, None if it is not what it describes."""
    content = descriptor.data
    if content is None or len(content) != descriptor.size:
        return None
    if not digests.is_available(descriptor.digest):
        return None
    same = digests.compute(content, descriptor.digest.algorithm) == descriptor.digest
    return content if same else None


def compare(name: str, digest: Digest, content: Buffer) -> None:
    """Raise `InvalidError` where content does not have a digest; `name` stands for it."""
    hasher = digests.hasher(digest)
    hasher.update(content)
    compare_hash(name, digest, hasher)


def compare_hash(name: str, digest: Digest, hasher: Hash | BlockHashes) -> None:
    """Raise `InvalidError` where what was hashed does not have a digest; `name` stands for it."""
    if hasher.hexdigest() != digest.encoded:
        raise InvalidError(
            f"{name}: its bytes do not have the digest {digest}"
            f" but {digest.algorithm}:{hasher.hexdigest()}",
            code="DIGEST_INVALID",
        )


def refuse_size(name: str, wanted: int, got: str) -> NoReturn:
    """Raise `InvalidError` for content of another size than `wanted` bytes."""
    raise InvalidError(
        f"{name}: the descriptor says {wanted} bytes, there are {got}", code="SIZE_INVALID"
    )

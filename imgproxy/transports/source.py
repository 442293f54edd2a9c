"""The contract of a place where images are: raw access, nothing verified.

Only `image` compares bytes with digests; a source says which digests it was told, and hands out
what it found.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgproxy.config.policy import scopes_of
from imgproxy.errors import NotFoundError
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.errors import Failure
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature


class Document(NamedTuple):
    """A manifest or an index as it was found.

    `media_type` is what it came under, empty where nobody said; `digests` are all that named it,
    by reference, by descriptor, by a header; `size` is in bytes where one was promised; `name`
    stands for it in messages. `reject` is told what is wrong with it: then the source does not
    look there again, and gives whether it has another place to look at.
    """

    raw: bytes
    media_type: str
    digests: tuple[Digest, ...]
    size: int | None
    name: str
    reject: Callable[[Failure], bool] = lambda _: False


class Identity(NamedTuple):
    """What policy.json calls the image: its transport, and its scopes, most specific first.

    `reference` is the name that signatures know it by, None where its transport has no such names.
    """

    transport: str
    scopes: list[str]
    reference: Reference | None = None


class SignaturePlace(NamedTuple):
    """Where signatures may be, by name, and how to read them; that raises `Failure`."""

    name: str
    read: Callable[[], Awaitable[list[Signature]]]


def docker_identity(reference: Reference) -> Identity:
    """Give the identity of an image of a registry, wherever it is found."""
    return Identity("docker", scopes_of(reference), reference)


class Reader(Protocol):
    """The content of a blob, pulled. `size` is in bytes, None where it is not known yet.

    `name` stands for it in messages.
    """

    size: int | None

    @property
    def name(self) -> str:
        """What it is, and from where."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end."""

    def reject(self, failure: Failure) -> bool:
        """Take note that it does not verify; give whether the source has another place for it."""

    def close(self) -> None:
        """Let go of what is left. May be called again."""


class Source(Protocol):
    """One place, for one image. Its methods raise `errors.Failure`."""

    name: str
    identity: Identity

    async def root(self) -> Document:
        """Give what the image's name refers to: a manifest, or an index to choose from."""

    async def document(self, descriptor: Descriptor) -> Document:
        """Give a manifest or an index that another one names."""

    async def blob(self, descriptor: Descriptor) -> Reader:
        """Open a blob that a manifest names."""

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """Give the places of signatures for a manifest or an index, in the order to look there."""

    def close(self) -> None:
        """Let go of connections and descriptors."""


class Place(Source, Protocol):
    """A place that may hold an image of a registry."""

    async def seek(self, digest: Digest) -> Document:
        """Give the document with this digest, or the one that should have it and is named so."""


# Indexes that are looked through for a digest, and how deep they are.
_MAX_SOUGHT = 64
_MAX_DEPTH = 4


async def sought(source: Source, top: Document, digest: Digest) -> Document:
    """Give the document that has a digest, `top` itself or one that it leads to.

    Where none does, `top` is given as if it had, and does not verify.
    """
    level = [top]
    for _ in range(_MAX_DEPTH):
        entries = [entry for document in level for entry in _entries(document)]
        for entry in entries:
            if entry.digest == digest:
                return await source.document(entry)
        indexes = [entry for entry in entries if entry.media_type in types.INDEXES]
        level = []
        for entry in indexes[:_MAX_SOUGHT]:
            with suppress(NotFoundError):  # stores save an index whole, and some of what it names
                level.append(await source.document(entry))
    return top._replace(digests=(*top.digests, digest))


def _entries(document: Document) -> tuple[Descriptor, ...]:
    parsed = manifests.parse(document.raw, document.media_type, document.name)
    return parsed.manifests if isinstance(parsed, manifests.Index) else ()

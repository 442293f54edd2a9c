"""The contract of a place where images are: raw access, nothing verified.

Only `image` compares bytes with digests; a source says which digests it was told, and hands out
what it found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from imgproxy.spec.digest import Digest
    from imgproxy.spec.manifest import Descriptor


class Document(NamedTuple):
    """A manifest or an index as it was found.

    `media_type` is what it came under, empty where nobody said; `digests` are all that named it,
    by reference, by descriptor, by a header; `size` is in bytes where one was promised; `name`
    stands for it in messages.
    """

    raw: bytes
    media_type: str
    digests: tuple[Digest, ...]
    size: int | None
    name: str


class Identity(NamedTuple):
    """What policy.json calls the image: its transport, and its scopes, most specific first."""

    transport: str
    scopes: list[str]


class Reader(Protocol):
    """The content of a blob, pulled. `size` is in bytes, None where it is not known yet."""

    size: int | None

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end."""

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

    def close(self) -> None:
        """Let go of connections and descriptors."""

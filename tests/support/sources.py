"""A `Source` of images in memory, which records what it is asked for and fails where it is told."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
import trio
from support.images import Json, Layout, digest_of, on
from support.streams import END, Inbox, Step

from imgproxy.config import policy
from imgproxy.errors import Failure, NotFoundError
from imgproxy.images.image import Image
from imgproxy.images.selection import Wanted
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import platform as platforms
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.oci.platform import Platform
from imgproxy.transports.source import Document, Identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.transports.source import Reader, SignaturePlace, Source

LINUX = Wanted(Platform("linux", "amd64"))


class Store(Layout):
    """An OCI image layout without a directory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def add(
        self, content: bytes, media_type: str, *, algorithm: str = "sha256", **fields: object
    ) -> Json:
        digest = digest_of(content, algorithm)
        self.contents[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **fields}

    def read(self, digest: str) -> bytes:
        return self.contents[digest]


class MemorySource:
    """The contents of a store, as a source; `root` is the descriptor of its root document.

    `asked` are the digests that were asked for, in order, `signed` the places of signatures by
    digest. `steps` replaces the content of a blob, `failures` either by a failure. `gate` makes
    all of it wait.
    """

    def __init__(self, store: Store, root: Json) -> None:
        self.name = "memory:image"
        self.identity = Identity("memory", ["image"])
        self.asked: list[str] = []
        self.readers: list[Inbox] = []
        self.closed = 0
        self.signed: dict[str, list[SignaturePlace]] = {}
        self.steps: dict[str, tuple[Step, ...]] = {}
        self.failures: dict[str, Exception] = {}
        self.gate = trio.Event()
        self.gate.set()
        self._store = store
        self._root = root

    async def root(self) -> Document:
        return await self.document(describe(self._root))

    async def document(self, descriptor: Descriptor) -> Document:
        digest = await self._ask(descriptor)
        if digest not in self._store.contents:
            raise NotFoundError(f"{digest} is not there", code="MANIFEST_UNKNOWN")
        raw, named = self._store.contents[digest], (descriptor.digest,)
        return Document(raw, descriptor.media_type, named, descriptor.size, digest)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        digest = await self._ask(descriptor)
        steps = self.steps.get(digest) or (self._store.contents[digest][offset:stop], END)
        self.readers.append(Inbox(*steps))
        return self.readers[-1]

    async def _ask(self, descriptor: Descriptor) -> str:
        digest = str(descriptor.digest)
        self.asked.append(digest)
        await self.gate.wait()
        if digest in self.failures:
            raise self.failures[digest]
        return digest

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        return self.signed.get(str(digest), [])

    def close(self) -> None:
        self.closed += 1


def describe(descriptor: Json) -> Descriptor:
    """Return the descriptor that is written so in JSON."""
    digest = digests.parse(descriptor["digest"])
    return Descriptor(descriptor["mediaType"], digest, descriptor["size"])


def accept_anything() -> policy.Policy:
    return policy.parse(policy.ACCEPT_ANYTHING, "the test's policy")


def image_of(source: MemorySource, wanted: Wanted = LINUX) -> Image:
    return Image(at(source), accept_anything, wanted, never)


def at(*sources: Source) -> Callable[[], Awaitable[list[Source]]]:
    """Return a function that opens these sources."""

    async def open_sources() -> list[Source]:
        return list(sources)

    return open_sources


async def never(_: Descriptor, error: NotFoundError) -> Reader:
    """Open no foreign layers."""
    raise error


def digest(descriptor: Json) -> Digest:
    return digests.parse(descriptor["digest"])


async def opened(source: MemorySource, wanted: str = "linux/amd64") -> OpenedImage:
    return await image_of(source, Wanted(platforms.parse(wanted))).open()


async def failure_of(source: MemorySource, wanted: str = "linux/amd64") -> Failure:
    with pytest.raises(Failure) as raised:
        await opened(source, wanted)
    assert source.closed == 1
    return raised.value


async def chosen(source: MemorySource, wanted: str = "linux/amd64") -> str:
    """Return the digest of the manifest that is chosen."""
    return str((await opened(source, wanted)).manifest.digest)


def embedding(entry: Json, content: bytes) -> Json:
    """Return a descriptor that embeds this content."""
    return {**entry, "data": base64.b64encode(content).decode()}


def several(store: Store, *names: str) -> dict[str, Json]:
    """Return an image for each platform, by its name; `-` is one without a platform."""
    images = {name: store.image(name.encode()) for name in names}
    return {name: entry if name == "-" else on(entry, name) for name, entry in images.items()}


def layer_of(store: Layout, manifest: Json) -> Digest:
    """Return the digest of the first layer of a manifest."""
    return digest(store.layers(manifest)[0])

"""Local images as the program's own modules read them, without a process around them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.sources import LINUX, accept_anything, at, never

from imgproxy.errors import Failure
from imgproxy.frontends.oci_manifest import oci_manifest
from imgproxy.host.files import OpenFile
from imgproxy.images.image import Image
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.specs.oci.reference import Reference, ShortName, parse_image
from imgproxy.transports.local.detect import open_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.images import Json

    from imgproxy.transports.local.tar_archive import Archive
    from imgproxy.transports.source import Reader, SearchableSource, Source

INVALID = (422, "MANIFEST_INVALID")
BROKEN = (422, "ARCHIVE_INVALID")
TOO_LARGE = (422, "SIZE_INVALID")
UNSUPPORTED = (415, "UNSUPPORTED")
AMBIGUOUS = (409, "AMBIGUOUS")
UNKNOWN = (404, "MANIFEST_UNKNOWN")
BLOB_UNKNOWN = (404, "BLOB_UNKNOWN")
NOT_FOUND = (404, "NOT_FOUND")
CHANGED = (503, "UNAVAILABLE")


@contextmanager
def refusing(wanted: tuple[int, str], *words: str) -> Iterator[pytest.ExceptionInfo[Failure]]:
    """See a block refused with this status and code, and these words in one printable line."""
    with pytest.raises(Failure) as raised:
        yield raised
    failure = raised.value
    assert (failure.status, failure.code) == wanted, failure.message
    assert failure.retryable == (failure.status == 503)
    assert failure.message.isprintable()
    for each in words:
        assert each in failure.message


async def drained(reader: Reader, step: int = 1 << 16) -> bytes:
    """Read to the end in pieces of at most so many bytes, and close."""
    content = bytearray()
    buffer = memoryview(bytearray(step))
    try:
        while count := await reader.receive_into(buffer):
            content += buffer[:count]
        return bytes(content)
    finally:
        reader.close()


async def content_of(archive: Archive, name: str, step: int = 1 << 16) -> bytes:
    """Return the content of a member, received in steps."""
    return await drained(await archive.open(name, f"member {name}"), step)


async def place_of(name: str) -> SearchableSource:
    """Open what an IMAGE argument with a path means."""
    parsed = parse_image(name)
    assert not isinstance(parsed, Reference | ShortName)
    return await open_named(parsed)


class Served(NamedTuple):
    """An image as it is served: its manifest, its config, its layers, all verified."""

    manifest: bytes
    config: bytes
    layers: list[bytes]

    @property
    def described(self) -> list[Json]:
        """The descriptors of the layers."""
        layers: list[Json] = json.loads(self.manifest)["layers"]
        return layers


async def served_from(source: Source) -> Served:
    """Return an image as the program serves it from its source."""
    opened = await Image(at(source), accept_anything, LINUX, never).open()
    manifest = opened.manifest.parsed
    assert isinstance(manifest, Manifest)
    blobs = []
    for descriptor in (manifest.config, *manifest.layers):
        blob = await opened.open_blob(descriptor)
        content = b""
        while piece := await blob.read():
            content += piece
        blob.close()
        blobs.append(content)
    return Served(oci_manifest(opened.manifest).raw, blobs[0], blobs[1:])


class Watched(OpenFile):
    """A file that notes what is read of it: the offsets, and how many bytes there were."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int, offset: int) -> bytes:
        content = super().read(size, offset)
        self.reads.append((offset, len(content)))
        return content


def open_descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")

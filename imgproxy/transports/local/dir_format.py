"""`dir:DIR`: the directory format of skopeo, containers-transports(5).

A directory has the manifest in `manifest.json`, those that an index names in
`<hex>.manifest.json`, blobs in files named by the hex of their digest, and signatures beside them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from imgproxy.errors import AbsentError, NotFoundError, UnsupportedFormatError, clean
from imgproxy.host.blocking_calls import call
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports import file_tree
from imgproxy.transports.source import Document

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import DirectoryName
    from imgproxy.transports.file_tree import Tree
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Identity, Reader, SignaturePlace

# Version 1.2 added digests of other algorithms than sha256.
_VERSION = re.compile(rb"Directory Transport Version: 1\.[0-2]\n?")
_MAX_VERSION = 4096


class ImageDirectory:
    """An image in the directory format. Fulfils `SearchableSource`."""

    def __init__(self, name: DirectoryName, tree: Tree, identity: Identity) -> None:
        self.name = clean(str(name))
        self.identity = identity
        self._tree = tree
        self._root: Digest | None = None

    async def root(self) -> Document:
        """See `Source`. Raises `UnsupportedFormatError` for an unknown version of the format."""
        try:
            version = await file_tree.read(self._tree, "version", _MAX_VERSION)
        except NotFoundError:
            pass
        else:
            if _VERSION.fullmatch(version) is None:
                raise UnsupportedFormatError(
                    f'{self.name}: unsupported version: "{clean(version.decode(errors="replace"))}"'
                )
        try:
            raw = await file_tree.read(self._tree, "manifest.json", MAX_DOCUMENT_SIZE)
        except NotFoundError as error:
            if await call(self._tree.path, os.path.lexists, self._tree.path):
                raise
            raise AbsentError(error.message, code=error.code) from None
        if raw.lstrip()[:1] == b"[":
            raise UnsupportedFormatError(
                f"{self.name}: its manifest.json is that of a Docker archive: docker save wrote it,"
                " and it was unpacked; pack it with tar -C DIR -cf FILE . and read it with"
                " docker-archive:FILE"
            )
        self._root = digests.compute(raw)
        return Document(raw, "", (), None, f"{self.name}: manifest.json")

    async def find(self, digest: Digest) -> Document:
        """See `SearchableSource`."""
        from imgproxy.transports.local.digest_search import find_by_digest

        return await find_by_digest(self, await self.root(), digest)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        name = f"{self.name}: manifest {descriptor.digest}"
        content = await self._open(descriptor, ".manifest.json", name, "MANIFEST_UNKNOWN")
        raw = await content.read(MAX_DOCUMENT_SIZE)
        return Document(raw, descriptor.media_type, (descriptor.digest,), descriptor.size, name)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        name = f"{self.name}: blob {descriptor.digest}"
        return (await self._open(descriptor, "", name, "BLOB_UNKNOWN")).between(offset, stop)

    async def _open(self, descriptor: Descriptor, suffix: str, name: str, code: str) -> Content:
        try:
            return await self._tree.open(_stem(descriptor.digest) + suffix, name)
        except NotFoundError as error:
            raise NotFoundError(f"{name} is not there: {error.message}", code=code) from None

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Names of files begin with the digest, but for the root's signatures."""
        from imgproxy.transports import signature_files

        prefix = "" if digest == self._root else f"{_stem(digest)}."
        return [signature_files.place(self._tree, prefix)]

    def close(self) -> None:
        """See `Source`."""
        self._tree.close()


def _stem(digest: Digest) -> str:
    """Return what the names of all files for content with this digest begin with."""
    algorithm, encoded = digest
    return encoded if algorithm == "sha256" else f"{algorithm}-{encoded}"

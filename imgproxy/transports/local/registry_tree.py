"""A registry as files: `<repository>/manifests/<ref>` beside `<repository>/blobs/`.

Tools for hosts without a network write such trees, and any web server can serve them as a registry.
Blobs are in `blobs/` by their digest, or arranged as in an OCI layout or as in the storage of the
distribution project's registry; `blobs` is often a link to a directory that repositories share.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError, clean
from imgproxy.host import blocking_calls
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.transports.readers import open_local
from imgproxy.transports.source import Document

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.readers import LocalFile
    from imgproxy.transports.source import Identity, Reader, SignaturePlace


class RegistryTree:
    """The image whose manifest is the file at `path`. Fulfils `SearchableSource`."""

    def __init__(self, path: str, identity: Identity) -> None:
        self.name = clean(path)
        self.identity = identity
        self._path = path
        self._repository = os.path.dirname(os.path.dirname(path))

    async def root(self) -> Document:
        """See `Source`. Where the tag is a link to a file named by digest, that names it too."""
        raw = await (await open_local(self._path)).read(MAX_DOCUMENT_SIZE)
        named = await blocking_calls.call(self._path, self._digests)
        return Document(raw, "", named, None, self.name)

    def _digests(self) -> tuple[Digest, ...]:
        try:
            named = digests.parse(os.path.basename(os.path.realpath(self._path)))
        except ValueError:
            return ()
        return (named,) if digests.is_available(named) else ()

    async def find(self, digest: Digest) -> Document:
        """See `SearchableSource`."""
        from imgproxy.transports.local.digest_search import find_by_digest

        return await find_by_digest(self, await self.root(), digest)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        name = f"{self.name}: manifest {descriptor.digest}"
        paths = [f"manifests/{descriptor.digest}", *_blob_paths(descriptor.digest)]
        raw = await (await self._open(paths, name, "MANIFEST_UNKNOWN")).read(MAX_DOCUMENT_SIZE)
        return Document(raw, descriptor.media_type, (descriptor.digest,), descriptor.size, name)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        name = f"{self.name}: blob {descriptor.digest}"
        content = await self._open(_blob_paths(descriptor.digest), name, "BLOB_UNKNOWN")
        return content.between(offset, stop)

    async def _open(self, paths: list[str], name: str, code: str) -> LocalFile:
        for path in paths:
            try:
                return await open_local(f"{self._repository}/{path}", name)
            except NotFoundError:
                pass
        searched = ", ".join(f"{clean(self._repository)}/{path}" for path in paths)
        raise NotFoundError(f"{name} is not there (searched: {searched})", code=code)

    def signatures(self, _: Digest) -> list[SignaturePlace]:
        """See `Source`. A tree has none; `Sideloaded` adds those of the registry's image."""
        return []

    def close(self) -> None:
        """See `Source`. Nothing is open."""


def _blob_paths(digest: Digest) -> list[str]:
    algorithm, encoded = digest
    return [
        f"blobs/{digest}",
        f"blobs/{algorithm}/{encoded}",
        f"blobs/{algorithm}/{encoded[:2]}/{encoded}/data",
    ]

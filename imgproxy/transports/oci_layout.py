"""`oci:DIR[:REF|:@N]`: OCI image specification, image-layout.md.

`oci-layout` itself is not demanded, as no other reader demands it; `index.json` is what is read.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

from imgproxy.config.policy import path_scopes
from imgproxy.errors import AmbiguousError, NotFoundError, clean
from imgproxy.files import LocalFile, read_file
from imgproxy.spec import manifest as manifests
from imgproxy.spec import media_type as types
from imgproxy.transports.source import Document, Identity

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.spec.manifest import Descriptor
    from imgproxy.spec.reference import LayoutName
    from imgproxy.transports.source import Reader

# A layout may hold thousands of images; a message that lists them all helps nobody.
_MAX_SHOWN = 20


class OciLayout:
    """A directory with `index.json` and `blobs/<algorithm>/<encoded>`. See `Source`."""

    def __init__(self, name: LayoutName) -> None:
        self.name = clean(str(name))
        self._wanted = name
        self._directory = os.path.realpath(name.path)
        self.identity = Identity("oci", path_scopes(self._directory))

    async def root(self) -> Document:
        """See `Source`. Raises `AmbiguousError` where the name fits several images."""
        path = f"{self._directory}/index.json"
        raw = await read_file(path, manifests.MAX_DOCUMENT_SIZE)
        entries = manifests.parse_index(raw, clean(path)).manifests
        fitting = self._fitting(entries)
        images = {entry.digest for entry in fitting.values()}
        if len(images) == 1:
            return await self.document(next(iter(fitting.values())))
        if self._wanted.ref_name is None and _told_apart_by_platform(fitting.values()):
            return Document(raw, types.OCI_INDEX, (), None, clean(path))
        raise AmbiguousError(
            f"{self.name} fits {len(images)} images; choose one: {_listed(fitting)}",
            choices=_choices(fitting),
        )

    def _fitting(self, entries: tuple[Descriptor, ...]) -> dict[int, Descriptor]:
        """Give the entries that the name fits, at least one, by their position."""
        position, ref_name = self._wanted.position, self._wanted.ref_name
        everything = dict(enumerate(entries))
        if position is not None:
            fitting = {n: entry for n, entry in everything.items() if n == position}
        elif ref_name is not None:
            fitting = {n: entry for n, entry in everything.items() if entry.ref_name == ref_name}
        else:
            fitting = everything
        if not fitting:
            raise NotFoundError(
                f"{self.name}: no such image in the layout (there are: {_listed(everything)})",
                code="MANIFEST_UNKNOWN",
                choices=_choices(everything),
            )
        return fitting

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        file = self._open(descriptor, "manifest", "MANIFEST_UNKNOWN")
        try:
            raw = await file.read(manifests.MAX_DOCUMENT_SIZE)
        finally:
            file.close()
        name = f"{self.name}: manifest {descriptor.digest}"
        return Document(raw, descriptor.media_type, (descriptor.digest,), descriptor.size, name)

    async def blob(self, descriptor: Descriptor) -> Reader:
        """See `Source`."""
        return self._open(descriptor, "blob", "BLOB_UNKNOWN")

    def _open(self, descriptor: Descriptor, kind: str, code: str) -> LocalFile:
        algorithm, encoded = descriptor.digest
        name = f"{self.name}: {kind} {descriptor.digest}"
        try:
            return LocalFile(f"{self._directory}/blobs/{algorithm}/{encoded}", name)
        except NotFoundError as error:
            raise NotFoundError(f"{name} is not there: {error.message}", code=code) from None

    def close(self) -> None:
        """See `Source`. Nothing is kept open."""


def _told_apart_by_platform(entries: Collection[Descriptor]) -> bool:
    """Whether these are one image for several platforms, rather than several images."""
    platforms = {entry.platform for entry in entries}
    names = {entry.ref_name for entry in entries}
    return None not in platforms and len(platforms) == len(entries) and len(names) == 1


def _choices(entries: dict[int, Descriptor]) -> list[dict[str, str | None]]:
    """Give what can be named, with the digest behind it."""
    return [
        {
            "position": f"@{position}",
            "name": entry.ref_name,
            "digest": str(entry.digest),
            "platform": str(entry.platform) if entry.platform else None,
        }
        for position, entry in entries.items()
    ]


def _listed(entries: dict[int, Descriptor]) -> str:
    words = [
        f":@{position}"
        + (f" (:{clean(entry.ref_name)})" if entry.ref_name else "")
        + f" {entry.digest}"
        for position, entry in islice(entries.items(), _MAX_SHOWN)
    ]
    more = len(entries) - len(words)
    return (", ".join(words) or "none") + (f" and {more} more" if more else "")

"""Operands that name images in stores: `oci:DIR:REF` and `oci:DIR:@DIGEST`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import AbsentError, Failure, UsageError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.reference import LayoutName

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layout_index import Entry, LayoutIndex
    from imgproxy.specs.oci.reference import ImageName

# A message with all names of a large store is too long to be read.
_MAX_LISTED = 10


class StoredName(NamedTuple):
    """An image in a store, by a name or by its digest."""

    path: str
    wanted: str | Digest

    def __str__(self) -> str:
        at = "" if isinstance(self.wanted, str) else "@"
        return f"oci:{self.path}:{at}{self.wanted}"

    def entries(self, index: LayoutIndex) -> list[Entry]:
        """Return the entries of the image. Raises `AbsentError` where there are none."""
        wanted = self.wanted
        is_name = isinstance(wanted, str)
        found = index.named(wanted) if isinstance(wanted, str) else index.with_digest(wanted)
        if not found:
            names = list(dict.fromkeys(index.names))
            more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            there = ", ".join(map(clean, names[:_MAX_LISTED])) or "none"
            raise AbsentError(
                f"{clean(str(self))}: no such {'name' if is_name else 'image'} in the index"
                f" (names that there are: {there}{more})",
                code="MANIFEST_UNKNOWN",
            )
        return found

    def removed_from(self, index: LayoutIndex) -> LayoutIndex:
        """Return the index without the name; by digest, without all names of the image."""
        wanted = self.wanted
        if isinstance(wanted, str):
            return index.without_name(wanted)
        return index.without_digest(wanted)


def image(text: str) -> ImageName:
    """Parse the name of an image. Raises `UsageError`."""
    try:
        return references.parse_image(text)
    except Failure as failure:
        raise UsageError(failure.message) from None


def images(text: str) -> LayoutName:
    """Parse `oci:DIR[:REF]`, also with a position. Raises `UsageError`."""
    name = image(text)
    if not isinstance(name, LayoutName) or name.transport != "oci":
        shown = references.shown(text)
        way_out = f"; write oci:{shown}" if text.startswith(("/", "./", "../")) else ""
        raise UsageError(f"expected oci:DIR[:REF], got {shown}{way_out}")
    return name


def layout(text: str) -> LayoutName:
    """Parse `oci:DIR[:REF]`. Raises `UsageError`."""
    name = images(text)
    if name.position is not None:
        raise UsageError(f"expected oci:DIR[:REF], got {references.shown(text)}")
    return name


def directory(text: str) -> str:
    """Parse `oci:DIR`, and return the path. Raises `UsageError`."""
    name = layout(text)
    if name.ref_name is not None:
        raise UsageError(f"expected oci:DIR, without a name, got {references.shown(text)}")
    return name.path


def stored(text: str) -> StoredName:
    """Parse `oci:DIR:REF` or `oci:DIR:@DIGEST`. Raises `UsageError`."""
    place, is_digest, digest = text.partition(":@")
    try:
        if is_digest:
            return StoredName(directory(place), digests.parse(digest))
        name = layout(text)
    except ValueError as error:
        raise UsageError(f"{references.shown(text)}: {error}") from None
    if name.ref_name is None:
        raise UsageError(f"expected oci:DIR:REF or oci:DIR:@DIGEST, got {references.shown(text)}")
    return StoredName(name.path, name.ref_name)

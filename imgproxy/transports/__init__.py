"""Where images are. One module a transport; this one finds the module for a name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imgproxy import files, system
from imgproxy.errors import NotFoundError, UnsupportedFormatError, clean
from imgproxy.spec import reference as references
from imgproxy.spec.reference import LayoutName, PathName, Reference, ShortName

if TYPE_CHECKING:
    from imgproxy.settings import Settings
    from imgproxy.system import Reporter
    from imgproxy.transports.access import Access
    from imgproxy.transports.source import Source


def open_sources(
    image: str, access: Access, settings: Settings, reporter: Reporter
) -> list[Source]:
    """Give the places that the IMAGE argument may mean, in the order in which to try them.

    They are looked at when they are first asked. Raises `BadRequestError` for a malformed name,
    `NotFoundError` or `UnsupportedFormatError` for a path with nothing usable at it, and
    `Failure` for a configuration that does not lead anywhere.
    """
    name = references.parse_image(image)
    if isinstance(name, PathName):
        name = _recognised(name)
    if isinstance(name, LayoutName):
        from imgproxy.transports.oci_layout import OciLayout

        return [OciLayout(name)]
    if access.offline:
        raise NotFoundError(
            f"{name}: the image is in a registry, and --offline forbids asking there",
            code="MANIFEST_UNKNOWN",
        )
    from imgproxy.transports.network import open_registry

    candidates = _resolved(name, settings) if isinstance(name, ShortName) else [name]
    return [open_registry(each, access, settings, reporter) for each in candidates]


def _resolved(name: ShortName, settings: Settings) -> list[Reference]:
    from imgproxy.config import short_names

    return short_names.resolve(name.text, settings.short_names)


def _recognised(name: PathName) -> LayoutName:
    """Tell by its content what lies at a path."""
    try:
        mode = os.stat(name.path).st_mode
    except OSError as error:
        raise files.failure(name.path, error) from None
    if os.path.lexists(f"{name.path}/index.json"):
        return name.as_layout()
    raise UnsupportedFormatError(
        f"{clean(name.path)} is {system.kind_of(mode)} and no OCI layout (it has no index.json)"
    )

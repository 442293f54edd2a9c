"""Where images are. One module a transport; this one finds the module for a name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from imgproxy import files, system
from imgproxy.errors import NotFoundError, UnsupportedFormatError, clean
from imgproxy.spec import reference as references
from imgproxy.spec.reference import LayoutName, PathName, Reference

if TYPE_CHECKING:
    from imgproxy.system import Reporter
    from imgproxy.transports.source import Source


class Network(NamedTuple):
    """How registries may be reached: `offline` not at all; the stall timeout is in seconds."""

    offline: bool = False
    tls_verify: bool = True
    stall_timeout: float = 60.0


def open_source(image: str, network: Network, reporter: Reporter) -> Source:
    """Give the place that the IMAGE argument names; it is looked at when it is first asked.

    Raises `BadRequestError` for a malformed name, `NotFoundError` or `UnsupportedFormatError`
    for a path with nothing usable at it.
    """
    name = references.parse_image(image)
    if isinstance(name, PathName):
        name = _recognised(name)
    if isinstance(name, Reference):
        if network.offline:
            raise NotFoundError(
                f"{name}: the image is in a registry, and --offline forbids asking there",
                code="MANIFEST_UNKNOWN",
            )
        from imgproxy.transports.registry import Registry

        return Registry.over_network(name, network, reporter)
    from imgproxy.transports.oci_layout import OciLayout

    return OciLayout(name)


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

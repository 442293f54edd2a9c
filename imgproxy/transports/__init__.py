"""Transports: raw access to images where they are.

This module chooses the transport for an IMAGE argument; `source` is the contract of each.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError, clean
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.reference import Reference, ShortName

if TYPE_CHECKING:
    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.transports.registry.options import Access
    from imgproxy.transports.source import Source


async def open_sources(
    image: str, access: Access, configuration: Configuration, diagnostics: Diagnostics
) -> list[Source]:
    """Open the sources that the IMAGE argument may refer to, in the order in which to try them.

    A registry is not contacted before the first call of a method. Raises `BadRequestError` for a
    malformed name, and `Failure` for a path without a usable image or for a configuration that is
    broken or leads nowhere.
    """
    name = references.parse_image(image)
    if not isinstance(name, Reference | ShortName):
        from imgproxy.transports.local.detect import open_named

        return [await open_named(name)]
    candidates = _resolved(name, configuration) if isinstance(name, ShortName) else [name]
    paths = [
        (each, path)
        for each in candidates
        for pattern in access.sideload
        for path in pattern.paths(each)
    ]
    for each, path in paths:
        if _exists(path):
            from imgproxy.transports.sideload import open_sideloaded

            registry = partial(_open_registry, each, access, configuration, diagnostics)
            return [await open_sideloaded(path, each, registry)]
    if access.offline:
        raise NotFoundError(_missing(name, [path for _, path in paths]), code="MANIFEST_UNKNOWN")
    return [_open_registry(each, access, configuration, diagnostics) for each in candidates]


def _open_registry(
    reference: Reference, access: Access, configuration: Configuration, diagnostics: Diagnostics
) -> Source:
    from imgproxy.transports.registry.network import open_registry

    return open_registry(reference, access, configuration, diagnostics)


def _resolved(name: ShortName, configuration: Configuration) -> list[Reference]:
    from imgproxy.config import short_names

    return short_names.resolve(name.text, configuration.short_names)


def _exists(path: str) -> bool:
    """Return whether a path exists. Raises `Failure` where the system cannot tell."""
    from imgproxy.host import files  # imports trio, which `registry.preconnect` must not wait for

    try:
        os.stat(path)
    except OSError as error:
        absent = files.failure(path, error)
        if isinstance(absent, NotFoundError) or error.errno == errno.ENAMETOOLONG:
            return False
        raise absent from None
    return True


def _missing(name: Reference | ShortName, paths: list[str]) -> str:
    if not paths:
        return f"{name}: the image is in a registry, and --offline forbids asking there"
    searched = ", ".join(map(clean, dict.fromkeys(paths)))
    return f"{name}: there is nothing at {searched}, and --offline forbids asking a registry"

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
    from collections.abc import Sequence

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.transports.cache import Cache
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.source import Source


async def open_sources(
    image: str, network: Network, sideload: Sequence[Pattern] = (), cache: Cache | None = None
) -> list[Source]:
    """Open the sources that the IMAGE argument may refer to, in the order in which to try them.

    `sideload` are the patterns of local paths that are tried before registries; `cache` is what is
    kept of those. A registry is not contacted before the first call of a method. Raises
    `BadRequestError` for a malformed name, and `Failure` for a path without a usable image or for
    a configuration that is broken or leads nowhere.
    """
    name = references.parse_image(image)
    if not isinstance(name, Reference | ShortName):
        from imgproxy.transports.local.detect import open_named

        return [await open_named(name)]
    # It imports trio, which `registry.preconnect` must not wait for.
    from imgproxy.host.blocking_calls import settle

    candidates = [name] if isinstance(name, Reference) else await settle(_resolved, name, network)
    paths = [
        (each, path) for each in candidates for pattern in sideload for path in pattern.paths(each)
    ]

    def registry(reference: Reference) -> Source:
        found = network.repository(reference)
        return found if cache is None else cache.opened(found)

    for each, path in paths:
        if await _exists(path):
            from imgproxy.transports.sideload import open_sideloaded

            return [await open_sideloaded(path, each, partial(registry, each))]
    if network.options.offline and cache is None:
        raise NotFoundError(_missing(name, [path for _, path in paths]), code="MANIFEST_UNKNOWN")
    return [await settle(registry, each) for each in candidates]


def _resolved(name: ShortName, network: Network) -> list[Reference]:
    from imgproxy.config import short_names

    return short_names.resolve(name.text, network.configuration.short_names)


async def _exists(path: str) -> bool:
    """Return whether a path exists. Raises `Failure` where the system cannot tell."""
    from imgproxy.host import blocking_calls, files

    try:
        await blocking_calls.call(path, os.stat, path)
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

"""A registry for clients that want an image, and for registries that have this one as a mirror.

The latter say so by `Via`, and get what may be had without asking in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.frontends.registry_api import RegistryApi
from imgproxy.frontends.registry_failures import as_mirror
from imgproxy.specs.http import via

if TYPE_CHECKING:
    from imgproxy.server.handler import Handler, Reply, Request


class MirrorApi(RegistryApi):
    """A `Handler` that serves repositories to other registries."""

    answered = staticmethod(as_mirror)


class WithMirror:
    """A `Handler` that leaves requests of registries to `mirror`, and all others to `registry`."""

    def __init__(self, registry: Handler, mirror: Handler) -> None:
        self._registry = registry
        self._mirror = mirror

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
        values = [value.decode("latin-1") for name, value in request.fields if name == b"via"]
        handler = self._mirror if via.names_registry(values) else self._registry
        return await handler.handle(request)

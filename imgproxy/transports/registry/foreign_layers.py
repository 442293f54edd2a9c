"""Layers outside of their registry: the `urls` of a descriptor, OCI image specification.

They lead anywhere, and whoever wrote the manifest chose where. So they are fetched only when that
is asked for, over http or https, without credentials, and not from link-local addresses, where
clouds keep the credentials of their machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError

if TYPE_CHECKING:
    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.failover import Rounds
    from imgproxy.transports.registry.options import Access
    from imgproxy.transports.source import Reader

# More places for one layer help nobody.
_MAX_URLS = 8


class ForeignLayers:
    """Layers from wherever their descriptors say, if options allow it.

    Which URL has given wrong bytes is remembered.
    """

    def __init__(
        self, access: Access, configuration: Configuration, diagnostics: Diagnostics
    ) -> None:
        self._access = access
        self._configuration = configuration
        self._diagnostics = diagnostics
        self._rounds: dict[tuple[Digest, tuple[str, ...]], Rounds] = {}

    async def open(self, descriptor: Descriptor, error: NotFoundError) -> Reader:
        """Give a layer from one of its URLs; `error` says why its source does not have it.

        Raises `NotFoundError` with the URLs where they may not be asked, and `Failure`.
        """
        places = _parsed(descriptor.urls[:_MAX_URLS])
        if self._access.offline or not self._access.foreign_layers or not places:
            raise self._refusal(error, [str(url) for url in places])
        from imgproxy.transports.registry.plain_url import open_rounds

        key = descriptor.digest, descriptor.urls
        if key not in self._rounds:
            self._rounds[key] = open_rounds(
                f"foreign layer {descriptor.digest}",
                places,
                self._access,
                self._configuration,
                self._diagnostics,
            )
        return await self._rounds[key].blob(descriptor)

    def _refusal(self, error: NotFoundError, places: list[str]) -> NotFoundError:
        """Give the failure with where the layer lies, and what would fetch it from there."""
        where = "its URLs are unusable"
        if places:
            offline = self._access.offline
            option = "--offline forbids asking there" if offline else "--foreign-layers fetches it"
            where = f"it lies at {', '.join(places)}, and {option}"
        return NotFoundError(
            f"{error.message}; {where}", code=error.code, **{**error.detail, "urls": places}
        )


def _parsed(texts: tuple[str, ...]) -> list[Url]:
    from imgproxy.specs.http import url as urls

    found = []
    for text in texts:
        try:
            found.append(urls.parse(text))
        except ValueError:
            continue  # another one may do
    return found

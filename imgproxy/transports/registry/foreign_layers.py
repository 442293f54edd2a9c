"""Layers outside of their registry: the `urls` of a descriptor, OCI image specification.

The author of a manifest chooses where they lead, which may be anywhere. So they are fetched only if
an option allows it, over http or https, without credentials, and not from the metadata services of
clouds; see `net.dialer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError

if TYPE_CHECKING:
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.registry.failover import Failover
    from imgproxy.transports.registry.network import Network
    from imgproxy.transports.registry.plain_url import PlainUrl
    from imgproxy.transports.source import Reader

# More URLs for one layer are of no use.
_MAX_URLS = 8


class ForeignLayers:
    """Layers from the URLs in their descriptors, if options allow it.

    The URLs that sent wrong bytes are remembered.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        if network.options.foreign_layers:  # before an upgrade can replace the files
            network.urls("", [])
            from imgproxy.transports.registry import blob_failover  # noqa: F401
            from imgproxy.transports.registry.network import import_for_later

            import_for_later()
        self._failovers: dict[tuple[Digest, tuple[str, ...]], Failover[PlainUrl]] = {}

    async def open(self, descriptor: Descriptor, error: NotFoundError) -> Reader:
        """Open a layer from one of its URLs; `error` is why its source does not have it.

        Raises `NotFoundError` with the URLs where they may not be asked, and `Failure`.
        """
        urls = _parsed(descriptor.urls[:_MAX_URLS])
        options = self._network.options
        if options.offline or not options.foreign_layers or not urls:
            raise self._refusal(error, [str(url) for url in urls])
        from imgproxy.transports.registry.blob_failover import open_blob

        key = descriptor.digest, descriptor.urls
        if key not in self._failovers:
            name = f"foreign layer {descriptor.digest}"
            self._failovers[key] = self._network.urls(name, urls)
        return await open_blob(self._failovers[key], descriptor)

    def _refusal(self, error: NotFoundError, urls: list[str]) -> NotFoundError:
        """Return the failure with where the layer is, and the option that would fetch it."""
        where = "its URLs are unusable"
        if urls:
            offline = self._network.options.offline
            option = "--offline forbids asking there" if offline else "--foreign-layers fetches it"
            where = f"it is at {', '.join(urls)}, and {option}"
        return NotFoundError(
            f"{error.message}; {where}", code=error.code, **{**error.detail, "urls": urls}
        )


def _parsed(texts: tuple[str, ...]) -> list[Url]:
    from imgproxy.specs.http import url as urls

    found = []
    for text in texts:
        try:
            found.append(urls.parse(text))
        except ValueError:
            continue  # another one may be usable
    return found

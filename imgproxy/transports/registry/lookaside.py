"""Lookasides: directories and web servers with signatures, containers-registries.d(5).

The signatures of a document are in a directory named after its repository and digest, in the files
`signature-1`, `signature-2` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from imgproxy.errors import ConfigurationError, DeniedError, clean
from imgproxy.specs.http import url as urls
from imgproxy.specs.signing.signature import MAX_SIGNATURE_SIZE
from imgproxy.transports import signature_files
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.signature_files import numbered
from imgproxy.transports.source import SignaturePlace

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.config.registries_d import Section
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.registry.failover import Failover
    from imgproxy.transports.registry.plain_url import PlainUrl


class Lookaside:
    """The lookaside of a section of registries.d, for one document of the image `reference`."""

    def __init__(self, section: Section, reference: Reference, digest: Digest) -> None:
        self._section = section
        self._tail = f"{reference.repository}@{digest.algorithm}={digest.encoded}"

    @property
    def name(self) -> str:
        """The URL of the lookaside in messages."""
        url = self._section.lookaside
        return clean(url) if url.startswith("file:") else urls.redacted(url)

    async def read(self, connect: Callable[[Url], Failover[PlainUrl]]) -> list[Signature]:
        """Return the signatures; `connect` returns the web server for a URL. Raises `Failure`."""
        directory = self._directory()
        if directory is not None:
            return await directory.read()
        try:
            base = urls.parse(f"{self._section.lookaside.rstrip('/')}/{self._tail}/")
        except ValueError as error:
            raise self._unusable(f"{error}, and not file:///") from None
        server = connect(base)

        async def read(name: str) -> bytes:
            return await server.ask(
                name, lambda location: location.read(name, "signature", MAX_SIGNATURE_SIZE)
            )

        return await numbered(read, str(base))

    def place_offline(self) -> SignaturePlace:
        """Return the lookaside, which fails to be read if it is not a directory.

        Raises `ConfigurationError` for one that is not a URL.
        """
        return self._directory() or SignaturePlace(self.name, _forbidden)

    def _directory(self) -> SignaturePlace | None:
        try:
            scheme, host, path, _, _ = urlsplit(self._section.lookaside)
        except ValueError as error:
            raise self._unusable(str(error)) from None
        if scheme != "file" or host:
            return None
        base = unquote(path)
        if "\0" in base:
            raise self._unusable("its path contains NUL")
        return signature_files.place(Directory(f"{base.rstrip('/')}/{self._tail}"))

    def _unusable(self, reason: str) -> ConfigurationError:
        source = self._section.source
        return ConfigurationError(
            f"{clean(source)}: the lookaside {self.name} cannot be used: {clean(reason)}",
            file=source,
        )


async def _forbidden() -> list[Signature]:
    raise DeniedError("--offline forbids asking there")

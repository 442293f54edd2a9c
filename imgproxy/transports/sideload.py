"""Images of a registry whose content is on this host: `--sideload`, imgproxy(1).

A local source of any format supplies the bytes. The reference decides what the image is called,
which digest it must have, and which requirements of the policy apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.transports.local.detect import open_path
from imgproxy.transports.source import docker_identity, is_accompanied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.local.detect import MadeOf
    from imgproxy.transports.source import (
        Document,
        Reader,
        SearchableSource,
        SignaturePlace,
        Source,
    )


class Sideloaded:
    """An image of a registry, read from a local source. See `Source`.

    Its signatures may be beside it, and where those of the registry's image are: `open_registry`
    opens that image, and is called when signatures are first needed.
    """

    def __init__(
        self,
        local: SearchableSource,
        reference: Reference,
        open_registry: Callable[[], Source] | None = None,
    ) -> None:
        self.name = f"docker://{reference} from {local.name}"
        self.identity = docker_identity(reference)
        self._local = local
        self._reference = reference
        self._digest = reference.digest
        self._open_registry = open_registry
        self._registry: Source | None = None

    async def root(self) -> Document:
        """See `Source`."""
        if self._digest is None:
            return await self._local.root()
        return await self._local.find(self._digest)

    async def document(self, descriptor: Descriptor) -> Document:
        """See `Source`."""
        return await self._local.document(descriptor)

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """See `Source`."""
        return await self._local.blob(descriptor, offset, stop)

    async def companions(self) -> list[Descriptor]:
        """See `AccompaniedSource`."""
        return await self._local.companions() if is_accompanied(self._local) else []

    async def listed(self) -> Sequence[Descriptor]:
        """See `AccompaniedSource`."""
        return await self._local.listed() if is_accompanied(self._local) else []

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """See `Source`. Those beside the image come first: what a registry has lies there too."""
        from imgproxy.transports.local import layout_signatures

        found = self._local.signatures(digest)
        if is_accompanied(self._local):
            found = found + layout_signatures.places(self._local, self._reference, digest)
        if self._registry is None and self._open_registry is not None:
            self._registry = self._open_registry()
        return found if self._registry is None else found + self._registry.signatures(digest)

    def close(self) -> None:
        """See `Source`."""
        self._local.close()
        if self._registry is not None:
            self._registry.close()


async def open_sideloaded(
    path: str,
    reference: Reference,
    open_registry: Callable[[], Source] | None = None,
    made_of: MadeOf | None = None,
) -> Sideloaded:
    """Open the image of a registry whose content is at `path`; see `Sideloaded`.

    `made_of`: see `local.detect.open_path`. Raises what that raises.
    """
    return Sideloaded(await open_path(path, reference, made_of), reference, open_registry)

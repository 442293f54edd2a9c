"""The images of registries, for other registries that have this one as a mirror.

Registries may be mirrors of one another. If each asked the others for what it does not have, they
would ask in circles, and wait for each other. So where this one has mirrors itself, others get what
is here by now; where it has none, it asks the registry for them as for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import NotFoundError
from imgproxy.host.blocking_calls import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import Candidate
    from imgproxy.transports.upstream_place import UpstreamPlace

WHY = "one that is a mirror and has mirrors asks nobody for other registries"


class MirrorPlace:
    """What `upstream` has, or of images that it `has_mirrors` for, what `kept` has. See `Place`."""

    def __init__(
        self,
        upstream: UpstreamPlace,
        kept: UpstreamPlace,
        has_mirrors: Callable[[Reference], bool],
    ) -> None:
        self._upstream = upstream
        self._kept = kept
        self._has_mirrors = has_mirrors
        self.has_registry = upstream.has_registry
        self.repositories = upstream.repositories

    async def _place(self, reference: Reference) -> UpstreamPlace:
        has_mirrors = await settle(self._has_mirrors, reference)
        return self._kept if has_mirrors else self._upstream

    async def find(self, reference: Reference) -> list[Candidate]:
        """See `Place`."""
        return await (await self._place(reference)).find(reference)

    async def everything(self, repository: Reference) -> list[Candidate]:
        """See `Place`."""
        return await (await self._place(repository)).everything(repository)

    async def tags(self, repository: Reference) -> list[str]:
        """See `AskedPlace`. Those that are here are not all."""
        return await (await self._listing(repository)).tags(repository)

    async def referrers(self, repository: Reference, digest: Digest) -> list[Candidate]:
        """See `AskedPlace`. Those that are here are not all."""
        return await (await self._listing(repository)).referrers(repository, digest)

    async def _listing(self, repository: Reference) -> UpstreamPlace:
        place = await self._place(repository)
        if place is self._kept:
            raise NotFoundError(f"{repository.name}: {WHY}", code="NAME_UNKNOWN")
        return place

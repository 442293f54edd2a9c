"""Where images of registries lie on this host, for whoever serves them to others.

A place knows names; what it finds is opened as any other local image is. It looks at its paths at
each request, so that a file that comes, changes or goes counts at the next one.
"""

from __future__ import annotations

import math
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard

from imgproxy.errors import NotFoundError, clean
from imgproxy.host import blocking_calls, files, ownership
from imgproxy.host.files import FileState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.source import Source


class Candidate:
    """An image that lies here, as it is now.

    `reference` is its name, with a tag or a digest. Two are equal if they stand for the same image
    in an unchanged file: `key`. `is_current` returns whether the file is still that one: what was
    read of it between its being found and then is the image. `is_passing`: which image it stands
    for is asked by opening it, so that it is not kept open. `idle_time` is for how many seconds it
    is kept open when nobody asks for it.
    """

    def __init__(
        self,
        reference: Reference,
        key: Hashable,
        open_source: Callable[[], Awaitable[Source]],
        is_current: Callable[[], Awaitable[bool]],
        *,
        is_passing: bool = False,
        idle_time: float = math.inf,
    ) -> None:
        self.reference = reference
        self.open_source = open_source
        self.is_current = is_current
        self.is_passing = is_passing
        self.idle_time = idle_time
        self._key = reference, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Place(Protocol):
    """A place where images of registries lie. All methods raise `Failure`."""

    async def find(self, reference: Reference) -> list[Candidate]:
        """Return the images with a tag, or those that a digest in their name is given to."""

    async def everything(self, repository: Reference) -> list[Candidate]:
        """Return all images of a repository."""

    async def repositories(self) -> Iterable[Reference]:
        """Return the repositories that have images here, as far as they can be listed."""

    async def has_registry(self, registry: str) -> bool:
        """Return whether the place answers for a registry."""


class AskedPlace(Place, Protocol):
    """A place that asks registries for lists, of which images are a part that is here."""

    async def tags(self, repository: Reference) -> list[str]:
        """Return the tags of a repository. Raises `NotFoundError` where there is no such."""

    async def referrers(self, repository: Reference, digest: Digest) -> list[Candidate]:
        """Return what refers to a document."""


def is_asked(place: Place) -> TypeGuard[AskedPlace]:
    """Return whether a place asks registries for lists."""
    return hasattr(place, "tags")


class PreparedPlace(Place, Protocol):
    """A place that has to read its files before it knows what they hold.

    `is_complete`: all was known when it was last asked for everything.
    """

    is_complete: bool

    async def wait_until_complete(self) -> None:
        """Wait until all is known. Raises `NotReadyError` where that takes too long."""


def is_prepared(place: Place) -> TypeGuard[PreparedPlace]:
    """Return whether a place has to read its files."""
    return hasattr(place, "is_complete")


class FileIdentity(NamedTuple):
    """What tells a file from another one, and from itself after a change."""

    path: str
    state: FileState


class Files:
    """The files that may be served: those that nobody else may change, unless that is accepted.

    `report` takes a line for each path that is refused, once for each reason.
    """

    def __init__(self, report: Callable[[str], None], *, trusts_writable: bool) -> None:
        self._report = report
        self._trusts_writable = trusts_writable
        self._reported: dict[str, str] = {}

    async def is_current(self, identity: FileIdentity) -> bool:
        """Return whether a path leads to the same file, unchanged. Raises `Failure`."""
        return await self.identity(identity.path) == identity

    async def identity(self, path: str) -> FileIdentity | None:
        """Do what `look` does, in a thread where the file system may hang."""
        return await blocking_calls.call(path, self.look, path)

    def look(self, path: str, known: ownership.Known | None = None) -> FileIdentity | None:
        """Return what a path leads to, None where there is nothing that may be served.

        `known` is for one look at many files: see `ownership.changeable_by_others`. Raises
        `Failure`.
        """
        reason = None
        try:
            status = os.lstat(path)
            # What is opened later may be another file, but no other user's.
            if not self._trusts_writable:
                reason = ownership.changeable_by_others(path, known, status)
            if stat.S_ISLNK(status.st_mode):
                status = os.stat(path)
        except OSError as error:
            failure = files.failure(path, error)
            if isinstance(failure, NotFoundError) or failure.code == "PATH_INVALID":
                return None
            raise failure from None
        if reason is not None:
            if self._reported.get(path) != reason:
                self._reported[path] = reason
                self._report(refusal(path, reason))
            return None
        self._reported.pop(path, None)
        return FileIdentity(path, FileState.of(status))


def refusal(path: str, reason: str) -> str:
    """Return why a path is not served."""
    return (
        f"{clean(path)} is not served: {reason}, so that its images could be anybody's;"
        " --trust-writable permits it"
    )

"""Images by the names inside of layouts and archives, and of directories of them.

What a file holds is found out in the background, and remembered until it changes. An archive is
opened once for all its images.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from imgproxy.config.policy import path_scopes
from imgproxy.errors import BadRequestError, Failure, NotFoundError, NotReadyError, clean
from imgproxy.single_flight import WAIT, BackgroundFlights, SingleFlight
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.reference import DockerArchiveName, LayoutName
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.image_paths import INDEX, Look
from imgproxy.transports.known_archives import KnownArchives
from imgproxy.transports.local import detect
from imgproxy.transports.local.docker_archive import DockerArchive
from imgproxy.transports.local.oci_layout import OciLayout
from imgproxy.transports.local.tar_archive import Archive, open_archive
from imgproxy.transports.places import Candidate
from imgproxy.transports.sideload import Sideloaded
from imgproxy.transports.source import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.local.docker_archive import Made
    from imgproxy.transports.places import FileIdentity, Files
    from imgproxy.transports.source import Source

# Archives that stay open, each with a descriptor and its index, when nobody reads them.
_MAX_OPEN = 32

# In seconds: how long requests wait for a file that has come or changed where another one has the
# name; it is prepared for longer without them.
_MOMENT = 1.0


class _Source:
    """How the images in a layout or an archive are read."""

    def __init__(self, transport: str, tree: Directory | Archive, made: Made | None) -> None:
        self._transport = transport
        self.path = tree.path
        self._tree = tree
        self._made = made  # of an archive

    @property
    def is_archive(self) -> bool:
        """Whether a tree must be opened for it."""
        return self._transport != "oci"

    @property
    def is_dockers(self) -> bool:
        """Whether it has one image for a name, which may be for several platforms.

        Docker's format has no other way to say so.
        """
        return self._transport == "docker-archive" and isinstance(self._tree, Archive)

    def all(self) -> OciLayout | DockerArchive:
        """Return the source of all images."""
        return self._open(None, None, self._tree)

    def image(
        self, name: Reference, position: int, archive: Archive | None
    ) -> OciLayout | DockerArchive:
        """Return the source of an image, which is in an archive that is open."""
        return self._open(name, position, archive or self._tree)

    def _open(
        self, reference: Reference | None, position: int | None, tree: Directory | Archive
    ) -> OciLayout | DockerArchive:
        if self._transport == "docker-archive" and isinstance(tree, Archive):
            docker = DockerArchiveName(self.path, reference, None)
            return DockerArchive(docker, tree, made=self._made)
        name = LayoutName(self._transport, self.path, None, position)
        return OciLayout(name, tree, Identity(self._transport, path_scopes(self.path)))


class _Contents(NamedTuple):
    """What a file holds: the positions of its images by their names."""

    source: _Source
    names: dict[Reference, list[int]]


class ImageFiles:
    """The images in files. See `PreparedPlace`. `run` must be running.

    `report` takes a line for each file that cannot be used, once until it changes. `known` may be
    shared. `open_registry` opens the registry's image of a name, for its signatures.
    """

    def __init__(
        self,
        paths: Iterable[str],
        allowed: Files,
        report: Callable[[str], None],
        known: KnownArchives | None = None,
        open_registry: Callable[[Reference], Source] | None = None,
    ) -> None:
        self._open_registry = open_registry
        self._paths = list(paths)
        self._known = known or KnownArchives()
        self._allowed = allowed
        self._report = report
        self._contents: dict[FileIdentity, _Contents | None] = {}
        self._flights: BackgroundFlights[_Contents | None] = BackgroundFlights()
        self._archives = _OpenArchives()
        self._reported: dict[str, str] = {}
        self._another_is_known = trio.Event()
        self._names: tuple[Look, dict[Reference, list[Candidate]]] | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Find out what the files hold, from now on."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._flights.run)
            task_status.started()
            for identity in (await self._look_at_all()).files:
                await trio.lowlevel.checkpoint()  # at the end, no attempt can be begun
                if identity not in self._contents:
                    await self._prepare(identity)
            await trio.sleep_forever()

    async def _prepare(self, identity: FileIdentity) -> None:
        with suppress(NotReadyError):  # it goes on
            await self._flights.get(identity, identity.path, partial(self._find_out, identity))

    async def has_registry(self, registry: str) -> bool:
        """See `Place`. A file that has come, or is not read yet, may have any."""
        known = filter(None, self._contents.values())
        if any(name.registry == registry for each in known for name in each.names):
            return True
        return bool(await self._matching(lambda name: name.registry == registry))

    async def find(self, reference: Reference) -> list[Candidate]:
        """See `Place`. What has been prepared is found while the rest is not."""
        if reference.digest is not None:
            return []
        found = await self._found_before(reference)
        return found or await self._matching(lambda name: name == reference)

    async def everything(self, repository: Reference) -> list[Candidate]:
        """See `Place`."""
        return await self._matching(lambda name: name.name == repository.name)

    @property
    def is_complete(self) -> bool:
        """See `PreparedPlace`."""
        return self._names is not None

    async def wait_until_complete(self) -> None:
        """See `PreparedPlace`."""
        await self._matching(lambda _: False)

    async def repositories(self) -> list[Reference]:
        """See `Place`."""
        found = await self._matching(lambda _: True)
        return [each.reference._replace(tag=None, digest=None) for each in found]

    def close(self) -> None:
        """Close the archives that were kept open."""
        self._archives.close()

    async def _matching(self, wanted: Callable[[Reference], bool]) -> list[Candidate]:
        self._names = None
        look = await self._look_at_all()
        there = look.files
        known = self._contents = {
            each: self._contents[each] for each in there if each in self._contents
        }
        # All begin at once, and most of them are done soon.
        flights = {
            each: self._flights.begin(each, partial(self._find_out, each))
            for each in there
            if each not in known
        }
        deadline = trio.current_time() + WAIT
        for flight in flights.values():
            with trio.move_on_at(flight.begun + _MOMENT):
                await flight.done.wait()
        while True:
            left = [each for each, flight in flights.items() if not flight.done.is_set()]
            known |= {each: flights[each].result() for each in flights if each not in left}
            found = self._having(wanted, there, known)
            if found or not left:
                break
            with trio.move_on_at(deadline) as waiting:
                await self._another_is_known.wait()
            if waiting.cancelled_caught:
                raise NotReadyError(
                    f"{left[0].path} is being prepared; ask again", retry_after=WAIT / 5
                )
        if not left:
            self._remember(look, known)
        return found

    def _having(
        self,
        wanted: Callable[[Reference], bool],
        there: list[FileIdentity],
        known: dict[FileIdentity, _Contents | None],
    ) -> list[Candidate]:
        return [
            self._candidate(identity, contents, name, position)
            for identity in there
            if (contents := known.get(identity)) is not None
            for name, positions in contents.names.items()
            if wanted(name)
            for position in positions
        ]

    async def _look_at_all(self) -> Look:
        look = Look(self._paths, self._allowed, self._refuse)
        return await trio.to_thread.run_sync(look.take, abandon_on_cancel=True)

    def _remember(self, look: Look, known: dict[FileIdentity, _Contents | None]) -> None:
        """Keep the names in all files for the next requests."""
        names: dict[Reference, list[Candidate]] = {}
        for each in self._having(lambda _: True, look.files, known):
            names.setdefault(each.reference, []).append(each)
        self._names = look, names

    async def _found_before(self, reference: Reference) -> list[Candidate]:
        """Return the images with a name, none unless they are sure to be those that are there."""
        if self._names is None:
            return []
        look, names = self._names
        found = names.get(reference, [])
        if found and await look.holds():
            for each in found:
                if not await each.is_current():
                    return []
            return found
        return []

    def _candidate(
        self, identity: FileIdentity, contents: _Contents, name: Reference, position: int
    ) -> Candidate:
        opening = partial(self._open, identity, contents, name, position)
        is_current = partial(self._allowed.is_current, identity)
        return Candidate(name, (identity, position), opening, is_current)

    async def _open(
        self, identity: FileIdentity, contents: _Contents, name: Reference, position: int
    ) -> Source:
        source = contents.source
        archive = await self._archives.lease(identity) if source.is_archive else None
        registry = None if self._open_registry is None else partial(self._open_registry, name)
        return Sideloaded(source.image(name, position, archive), name, registry)

    # --- files ----------------------------------------------------------------------------------

    async def _find_out(self, identity: FileIdentity) -> _Contents | None:
        """Return what a file holds, None where it cannot be used."""
        try:
            contents = self._contents[identity] = await self._read(identity)
        finally:
            self._another_is_known.set()
            self._another_is_known = trio.Event()
        return contents

    async def _read(self, identity: FileIdentity) -> _Contents | None:
        path = identity.path
        try:
            if os.path.basename(path) == INDEX:
                return await _read(_Source("oci", Directory(os.path.dirname(path)), None))
            archive = await self._archives.lease(identity)
            try:
                made = self._known.made(archive.state)
                transport = await detect.archive_transport(archive)
                return await _read(_Source(transport, archive, made))
            finally:
                archive.close()
        except Failure as failure:
            self._refuse(path, failure)
            return None

    def _refuse(self, path: str, failure: Failure) -> None:
        """Report why a path is not served, once until that changes."""
        if self._reported.get(path) != failure.message:
            self._reported[path] = failure.message
            self._report(f"{failure.message}; until that changes, it is not served")


async def _read(source: _Source) -> _Contents:
    names: dict[Reference, list[int]] = {}
    entries = await source.all().entries()
    for entry in entries:
        # Beside the whole name, a layout has the tag alone.
        for text in [each for each in entry.names if "/" in each or ":" in each] or entry.names:
            with suppress(BadRequestError):
                positions = names.setdefault(references.parse_reference(text), [])
                if not positions or not source.is_dockers:
                    positions.append(entry.position)
    if entries and not names:
        path = clean(source.path)
        raise NotFoundError(f"{path} has no name for an image, such as quay.io/acme/os:1")
    return _Contents(source, names)


class _Lease(Archive):
    """An archive that somebody uses, who gives it back by closing it."""

    def __init__(self, archive: Archive, give_back: Callable[[], None]) -> None:
        vars(self).update(vars(archive))
        self._give_back: Callable[[], None] | None = give_back

    def close(self) -> None:
        """Give it back. May be called again."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class _OpenArchive:
    """An archive with `users`, opened by the first of them."""

    def __init__(self) -> None:
        self.opening = SingleFlight()
        self.archive: Archive | None = None
        self.users = 0

    async def open(self, path: str) -> Archive:
        self.archive = await open_archive(path)
        return self.archive


class _OpenArchives:
    """Archives that are open, those that were used last longer than others."""

    def __init__(self) -> None:
        self._open: OrderedDict[FileIdentity, _OpenArchive] = OrderedDict()

    async def lease(self, identity: FileIdentity) -> _Lease:
        """Return an archive, open; close it in any case. Raises `Failure`."""
        held = self._open.setdefault(identity, _OpenArchive())
        held.users += 1
        try:
            archive = await held.opening.get(
                lambda: held.archive, partial(held.open, identity.path)
            )
        except BaseException:
            self._give_back(held)
            raise
        return _Lease(archive, partial(self._give_back, held))

    def _give_back(self, held: _OpenArchive) -> None:
        held.users -= 1
        self.close(_MAX_OPEN)

    def close(self, but: int = 0) -> None:
        """Close archives that nobody uses, but for the last so many."""
        unused = [identity for identity, each in self._open.items() if each.users == 0]
        for identity in unused[: max(0, len(unused) - but)]:
            archive = self._open.pop(identity).archive
            if archive is not None:
                archive.close()

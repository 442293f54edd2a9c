"""The images that sideload patterns lead to, by their paths: imgproxy(1), SIDELOADING.

A pattern answers for every name whose path exists. All that a repository has is found by listing
the directory in which `<ref>` stands, and all repositories by walking through those below `<name>`.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import BadRequestError
from imgproxy.host.files import FileState
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name
from imgproxy.transports.known_archives import KnownArchives
from imgproxy.transports.places import Candidate
from imgproxy.transports.sideload import open_sideloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.transports.places import Files
    from imgproxy.transports.source import Source

# Images of one repository, and repositories, that are listed at most.
_MAX_LISTED = 10_000

# Names in directories that are remembered, which take some hundred bytes each.
_MAX_NAMES = 200_000

# Components of a name, as deep as a walk goes.
_MAX_DEPTH = 8

_HUB, _LIBRARY = "docker.io", "library/"


class SideloadPlace:
    """The images that a pattern leads to. See `Place`.

    `open_registry` opens the image of a registry, for its signatures; `default_registry` is that of
    a pattern without `<registry>`, where repositories are listed. `archives` may be shared.
    """

    def __init__(
        self,
        pattern: Pattern,
        files: Files,
        open_registry: Callable[[Reference], Source],
        default_registry: str,
        archives: KnownArchives | None = None,
    ) -> None:
        self._pattern = pattern
        self._files = files
        self._open_registry = open_registry
        self._default_registry = default_registry
        self._archives = archives or KnownArchives()
        self._directories = _Directories()

    async def has_registry(self, registry: str) -> bool:  # noqa: ARG002
        """See `Place`. A pattern answers for any."""
        return True

    async def find(self, reference: Reference) -> list[Candidate]:
        """See `Place`."""
        ref = str(reference.digest or reference.tag)
        for path in self._paths(reference, ref):
            found = await self._candidate(reference, path)
            if found is not None:
                return [found]
        return []

    async def everything(self, repository: Reference) -> list[Candidate]:
        """See `Place`."""
        found: dict[str, Candidate] = {}
        name = repository.repository
        for named in _spellings(repository):
            listed = await trio.to_thread.run_sync(self._listed, named, abandon_on_cancel=True)
            for reference, path in listed:
                candidate = await self._candidate(reference._replace(repository=name), path)
                if candidate is not None:
                    found.setdefault(reference.manifest, candidate)
        return list(found.values())

    async def repositories(self) -> Iterable[Reference]:
        """See `Place`. A pattern with `<basename>` does not tell them."""
        return await trio.to_thread.run_sync(self._walk, abandon_on_cancel=True)

    def _paths(self, reference: Reference, ref: str) -> list[str]:
        return [self._pattern.path(each, ref) for each in _spellings(reference)]

    async def _candidate(self, reference: Reference, path: str) -> Candidate | None:
        identity = await self._files.identity(path)
        if identity is None:
            return None
        registry = partial(self._open_registry, reference)
        opening = partial(open_sideloaded, path, reference, registry, self._archives.made)
        is_current = partial(self._files.is_current, identity)
        return Candidate(reference, identity, opening, is_current)

    def _listed(self, repository: Reference) -> list[tuple[Reference, str]]:
        """Return the images that paths of a repository are for, with the paths."""
        refs = islice(self._refs(self._pattern.path(repository, "<")), _MAX_LISTED)
        named = filter(None, (_named(repository, ref) for ref in sorted(refs)))
        return [(each, self._pattern.path(each, each.manifest)) for each in named]

    def _refs(self, path: str) -> Iterator[str]:
        """Yield what may stand in place of the `<` in a path, by the directory that it is in."""
        before, _, after = path.partition("<")
        directory, _, prefix = before.rpartition("/")
        suffix = after.partition("/")[0]
        if "<" in suffix:
            within = f"{re.escape(prefix)}(.+){re.escape(suffix)}".replace("<", "(?:.+)")
            names = self._directories.names(directory or "/")
            matches = map(re.compile(within).fullmatch, names)
            return (match[1] for match in matches if match is not None)
        shortest, end = len(prefix) + len(suffix), -len(suffix) or None
        return (
            name[len(prefix) : end]
            for name in self._directories.names(directory or "/")
            if name.endswith(suffix) and name.startswith(prefix) and len(name) > shortest
        )

    def _walk(self) -> list[Reference]:
        """Return the repositories below `<name>`, which must be whole components of the pattern."""
        before, is_there, _ = str(self._pattern).partition("/<name>/")
        if not is_there or "<ref>" in before:
            return []
        above, has_registry, below = before.partition("/<registry>")
        registries = _directories(above) if has_registry else [self._default_registry]
        return [
            repository
            for registry in registries
            if registry_name.is_registry(registry) and below[:1] in ("", "/")
            for repository in self._below(registry, before.replace("<registry>", registry))
        ]

    def _below(self, registry: str, top: str) -> list[Reference]:
        found: list[Reference] = []
        names = deque(_directories(top))
        for _ in range(_MAX_LISTED):
            if not names:
                break
            name = names.popleft()
            with suppress(BadRequestError):
                repository = references.parse_parts(registry, name)
                # The path is that of the name as it stands there.
                if self._listed(repository._replace(repository=name)):
                    found.append(repository)
            if name.count("/") < _MAX_DEPTH:
                names += [f"{name}/{each}" for each in _directories(f"{top}/{name}")]
        return found


class _Directories:
    """The names in directories, which are listed anew when they have changed.

    Used in threads.
    """

    def __init__(self) -> None:
        self._listed: OrderedDict[str, tuple[FileState, tuple[str, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a directory, none where there is no such."""
        try:
            state = FileState.of(os.stat(path))
            known = self._listed.get(path)
            if known is not None and known[0] == state:
                return known[1]
            names = tuple(os.listdir(path))
        except OSError:
            return ()
        if state.is_settled and len(names) < _MAX_NAMES:
            with self._lock:
                self._listed[path] = state, names
                self._listed.move_to_end(path)
                while sum(len(each) + 1 for _, each in self._listed.values()) > _MAX_NAMES:
                    self._listed.popitem(last=False)
        return names


def _spellings(reference: Reference) -> Sequence[Reference]:
    """Return a name of Docker Hub without its default namespace as well.

    Clients add that namespace to names of one component, and directories do not always have it.
    """
    short = reference.repository.removeprefix(_LIBRARY)
    if reference.registry != _HUB or "/" in short or short == reference.repository:
        return [reference]
    return [reference, reference._replace(repository=short)]


def _named(repository: Reference, ref: str) -> Reference | None:
    """Return the image with a tag or a digest, None for what is neither."""
    if references.is_tag(ref):
        return repository._replace(tag=ref)
    try:
        return repository._replace(digest=digests.parse(ref))
    except ValueError:
        return None


def _directories(path: str) -> list[str]:
    """Return the names of the directories in one, without links to them."""
    try:
        with os.scandir(path) as entries:
            return sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    except OSError:  # it is none, or may not be read
        return []

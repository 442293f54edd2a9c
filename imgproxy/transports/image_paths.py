"""Which files with images lie at paths, and whether that is as it was a moment ago.

To look at each of hundreds of files costs more than a reply. What comes, goes or is replaced shows
in the directory that it is in, so a request may ask for these alone. A file that is changed in its
place shows in itself only, and is found by the next look at all.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import Failure, NotFoundError
from imgproxy.host import files
from imgproxy.host.blocking_calls import call
from imgproxy.host.files import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imgproxy.host.ownership import Known
    from imgproxy.transports.places import FileIdentity, Files

INDEX = "index.json"

# Directories in one another: what lies in those of a directory that was named is served.
_MAX_DEPTH = 2

# In seconds: for how long one look at all files may do.
FRESH = 1.0


class Look:
    """One look at all `paths`: the `files` that may be served, archives and layouts' index.json.

    It is taken in a thread. `refuse` is called with a path that cannot be looked at, and why.
    """

    def __init__(
        self, paths: Iterable[str], allowed: Files, refuse: Callable[[str, Failure], None]
    ) -> None:
        self.files: list[FileIdentity] = []
        self._allowed = allowed
        self._refuse = refuse
        self._known: Known = {}
        self._begun = trio.current_time()
        self._is_settled = True  # any change since then shows
        self._states: dict[str, FileState | None] = {}  # of the paths, and of directories there
        self._paths = list(paths)

    def take(self) -> Look:
        """Look, and return this."""
        for path in self._paths:
            self._states[path] = None
            self._look_at(path, _MAX_DEPTH)
        return self

    def _look_at(self, path: str, depth: int) -> None:
        try:
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                if depth == _MAX_DEPTH:
                    self._note(path, status)
                if stat.S_ISREG(status.st_mode):
                    self._add(path)
                return
            self._note(path, status)
            index = f"{path}/{INDEX}"
            if os.path.exists(index):
                self._add(index)
            elif depth:
                self._list(path, depth - 1)
        except OSError as error:
            self._refuse_unless_gone(path, files.failure(path, error))

    def _note(self, path: str, status: os.stat_result) -> None:
        state = self._states[path] = FileState.of(status)
        self._is_settled = self._is_settled and state.is_settled

    def _list(self, path: str, depth: int) -> None:
        with os.scandir(path) as entries:
            found = sorted((each.name, each) for each in entries if each.name[0] != ".")
        for name, entry in found:
            if entry.is_file(follow_symlinks=False):
                self._add(f"{path}/{name}")
            else:
                self._look_at(f"{path}/{name}", depth)

    def _add(self, path: str) -> None:
        try:
            identity = self._allowed.look(path, self._known)
        except Failure as failure:
            self._refuse_unless_gone(path, failure)
            return
        if identity is not None:
            self.files.append(identity)

    def _refuse_unless_gone(self, path: str, failure: Failure) -> None:
        if not isinstance(failure, NotFoundError):
            self._refuse(path, failure)

    async def holds(self) -> bool:
        """Return whether the same files lie there, as far as the directories show."""
        if not self._is_settled or trio.current_time() >= self._begun + FRESH:
            return False
        for path, state in self._states.items():
            if await call(path, _state, path) != state:
                return False
        return True


def _state(path: str) -> FileState | None:
    try:
        return FileState.of(os.stat(path))
    except OSError:
        return None

"""Files that change while the program runs: what is made of them is made anew."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from imgproxy.errors import Failure, ShortageError
from imgproxy.host import blocking_calls, mounts
from imgproxy.host.files import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

# How often files are looked at, at most, in seconds.
INTERVAL = 1.0


def state(path: str) -> FileState | None:
    """Return what changes when a file or a directory does, None for one that is not there."""
    try:
        return FileState.of(os.stat(path))
    except (OSError, ValueError):
        return None


class SeenFiles:
    """Files and directories as they were when something was made of them."""

    def __init__(self) -> None:
        self._seen: dict[str, FileState | None] = {}
        self._looked = time.monotonic()

    def note(self, path: str) -> None:
        """Note what a path is before it is read. Raises `WouldWaitError`."""
        if path not in self._seen:
            self._seen[path] = mounts.ask(state, path)

    def have_changed(self) -> bool:
        """Return whether one of them has changed, and forget all of them then.

        They are looked at once in `INTERVAL` at most. Raises `WouldWaitError`.
        """
        if time.monotonic() - self._looked < INTERVAL:
            return False
        changed = any(mounts.ask(state, path) != seen for path, seen in self._seen.items())
        self._looked = time.monotonic()
        if changed:
            self._seen.clear()
        return changed


class Reread(Generic[T]):
    """What is made of files, and made anew when one of them has changed.

    `load` returns it and raises `Failure`, now as well. `value` is the last that could be made,
    `report` takes a line where a later one cannot be.
    """

    value: T

    def __init__(
        self, load: Callable[[], T], paths: Sequence[str], report: Callable[[str], None]
    ) -> None:
        self._load = load
        self._paths = paths
        self._report = report
        self._failure: Failure | None = None
        self._seen: list[FileState | None] = []
        self._look()
        self._looked = time.monotonic()
        if self._failure is not None:
            raise self._failure

    async def look(self) -> None:
        """Look at the files, at most once in `INTERVAL`."""
        if time.monotonic() - self._looked < INTERVAL:
            return
        self._looked = math.inf  # nobody else waits for a file system that may hang
        try:
            is_new = await blocking_calls.on(mounts.may_hang(*self._paths), self._look)
        finally:
            self._looked = time.monotonic()
        if is_new and self._failure is not None:
            self._report(self._failure.message)

    async def current(self) -> T:
        """Return what the files say now. Raises `Failure` where nothing can be made of them."""
        await self.look()
        if self._failure is not None:
            raise self._failure.copy()
        return self.value

    def _look(self) -> bool:
        """Make the value anew if a file has changed, and return whether one has."""
        seen = [state(path) for path in self._paths]
        if seen == self._seen:
            return False
        self._failure = None
        try:
            self.value = self._load()
        except Failure as failure:
            self._failure = failure.copy()
            if isinstance(failure, ShortageError):
                return True  # the next look tries again
        self._seen = seen
        return True

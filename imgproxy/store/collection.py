"""`gc`: the removal of what no name in a store reaches.

Pulls go on meanwhile, however long they take: what they rely on is kept (`users`). A pull waits for
`gc` while a few files are removed, and `gc` waits for a pull while that adds a few digests.
Programs that take no lock have the grace period, by the time that their files were written.

Whatever is not understood stays: files with other names than blobs have, algorithms that are not
available here, files that are not regular. If it cannot be known what a name reaches, or if
`.imgproxy` has something that a later version may have put there, nothing is removed.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import Failure, InvalidError, UnsupportedFormatError, clean
from imgproxy.store import inventory, locks, reachability
from imgproxy.store.cache_records import CacheRecords
from imgproxy.store.files import using
from imgproxy.store.users import relied_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.store.content_store import ContentStore
    from imgproxy.store.inventory import StoredFile
    from imgproxy.store.reachability import Documents

# What `.imgproxy` may have. What keeps blobs by something else that it has there adds that here,
# and what it keeps in `Collection._kept`. An older version then removes nothing.
_KNOWN = frozenset({"lock", "index.lock", "partial", "users", "names"})

# Files that are removed before pulls get their turn.
_AT_ONCE = 256


class Collection:
    """The collection of a store. `grace` is in seconds.

    `kept` is the number of blobs that names and the cache reach, `young` that of the files that the
    grace period keeps, and `unknown` are the paths of what is not understood.
    """

    def __init__(self, store: ContentStore, documents: Documents, grace: float) -> None:
        self._store = store
        self._documents = documents
        self._grace = grace
        self._now = time.time()
        self.kept = self.young = 0
        self.unknown: list[str] = []

    def find(self) -> list[StoredFile]:
        """Return the files that nothing names. Raises `Failure` where that cannot be known."""
        with using(self._store.path):
            kept = self._kept()
            blobs = list(inventory.blobs(self._store, self.unknown))
            others = [each for each in blobs if each.digest not in kept]
            self.kept = len(blobs) - len(others)
            unnamed = [*others, *inventory.begun(self._store)]
            old = [each for each in unnamed if self._is_old(each)]
            self.young = len(unnamed) - len(old)
            return [each for each in old if not self._is_locked(each)]

    def remove(self, files: list[StoredFile]) -> Iterator[StoredFile]:
        """Remove the files that nothing names or needs by now, and yield them.

        Raises `Failure`; what was removed before has been yielded.
        """
        for start in range(0, len(files), _AT_ONCE):
            removed = []
            try:
                with (
                    using(self._store.path),
                    locks.wait_lock(self._store.lock, locks.EXCLUSIVE),
                ):
                    # A process gives its image a name before it ends: in this order, one of both
                    # is seen.
                    used = relied_on(self._store.users)
                    kept = self._kept()
                    for each in files[start : start + _AT_ONCE]:
                        if each.digest not in kept and str(each.digest) not in used:
                            removed += [each] * self._remove(each)
            finally:
                yield from removed

    def _kept(self) -> set[Digest]:
        """Return the digests that are kept. Raises `Failure` where that cannot be known."""
        kept = self.named()
        for root in CacheRecords(self._store.path).roots():
            # What a cache cannot read, it does without.
            reached = self._documents.reachable(root, failed=lambda *_: None)
            kept.update(each.digest for each in reached)
        return kept

    def named(self) -> set[Digest]:
        """Return what the names in index.json reach. Raises `Failure`, see `find`."""
        with suppress(FileNotFoundError):
            unknown = sorted(set(os.listdir(self._store.ours)) - _KNOWN)
            if unknown:
                raise UnsupportedFormatError(
                    f"{clean(self._store.ours)} has {clean(', '.join(unknown))}, which this version"
                    " of imgproxy does not know; nothing is removed, as it may keep any blob"
                )
        kept: set[Digest] = set()
        for root in reachability.roots(self._store):
            if isinstance(root, Failure):
                raise _refused(root)
            if not os.path.lexists(self._store.blob_path(root.mention.digest)):
                raise _refused(
                    InvalidError(
                        f"{clean(self._store.path)}: {clean(root.name)} stands for"
                        f" {root.mention.digest}, which is not there (pull it again, or take the"
                        " name away with imgproxy rm)"
                    )
                )
            try:
                kept.update(each.digest for each in self._documents.reachable(root.mention))
            except InvalidError as failure:
                raise _refused(failure) from None
        return kept

    def _is_old(self, file: StoredFile) -> bool:
        """Return whether the grace period of a file is over."""
        with suppress(FileNotFoundError):
            written = os.stat(file.path, follow_symlinks=False).st_mtime
            return self._grace == 0 or self._now - written >= self._grace
        return False

    def _lock_of(self, file: StoredFile) -> str | None:
        """Return what is locked by whoever writes a file; None for `.imgproxy/lock`."""
        directory = os.path.dirname(file.path)
        if directory == self._store.path:
            return self._store.index_lock
        return file.path if directory in (self._store.partials, self._store.users) else None

    def _is_locked(self, file: StoredFile) -> bool:
        lock = self._lock_of(file)
        with suppress(FileNotFoundError):
            return lock is not None and locks.is_locked(lock)
        return False

    def _remove(self, file: StoredFile) -> bool:
        """Remove a file, but for one that somebody is writing; return whether it was removed."""
        lock = self._lock_of(file)
        with suppress(FileNotFoundError):
            if lock is None:
                os.unlink(file.path)
                return True
            held = locks.try_lock(lock, locks.EXCLUSIVE, create=lock != file.path)
            if held is not None:
                with held:
                    os.unlink(file.path)
                return True
        return False


def _refused(failure: Failure) -> InvalidError:
    """Return the failure that says why nothing is removed."""
    return InvalidError(
        f"{failure.message}; nothing is removed, as it may need any blob", code=failure.code
    )

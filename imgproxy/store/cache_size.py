"""How a cache is kept within a size: the images that were used last stay.

An image is a document that the cache has recorded, with the blobs that it names. Removed are, the
one that was used least recently first, images that are not in use, and of their blobs those that
no other image and no name in index.json reaches. While somebody writes to the store, nothing is
removed: what is written may have been found there already.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import Failure, InvalidError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE, Index
from imgproxy.store import locks
from imgproxy.store.files import read, using

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.store.cache_records import CacheRecords
    from imgproxy.store.content_store import ContentStore

# In seconds: what nothing names may be another program's, which is about to name it, and who was
# receiving a blob may go on with it.
_GRACE = 3600.0


def shrink(store: ContentStore, records: CacheRecords, limit: int) -> None:
    """Remove what was used least recently until the blobs of a store have `limit` bytes.

    Those that were begun count too. That may be impossible. To be called in a thread. Raises
    `Failure`, and removes nothing then, where it cannot be told what the names in index.json reach.
    """
    with using(store.path):
        if sum(_sizes(store).values()) + _begun(store) <= limit:
            return
        lock = locks.try_lock(store.lock_path, locks.EXCLUSIVE)
    if lock is None:
        return
    try:
        with using(store.path):
            _Shrinking(store, records).run(limit)
    finally:
        lock.close()


def _sizes(store: ContentStore) -> dict[Digest, int]:
    """Return the blobs of a store, and the bytes that each has. Raises `OSError`."""
    return {digest: status.st_size for digest, status in store.blobs()}


def _begun(store: ContentStore) -> int:
    """Return how many bytes there are of blobs that are not whole. Raises `OSError`."""
    return sum(status.st_size for _, status in store.partials())


class _Shrinking:
    def __init__(self, store: ContentStore, records: CacheRecords) -> None:
        self._store = store
        self._records = records
        self._sizes = _sizes(store)
        self._kept = self._reached_by_names()
        self._documents = sorted(records.all_documents(), key=lambda each: each.used)
        self._reached = [self._reach(each.document.digest) for each in self._documents]
        self._users = Counter(digest for each in self._reached for digest in each)

    def run(self, limit: int) -> None:
        before = time.time() - _GRACE
        self._remove_begun(before)
        self._remove_orphans(before)
        limit -= _begun(self._store)
        for used, reached in zip(self._documents, self._reached, strict=True):
            if sum(self._sizes.values()) <= limit:
                return
            if not self._sizes.keys() & reached - self._kept or not self._records.forget(used):
                continue
            self._users.subtract(reached)
            for digest in reached:
                if self._users[digest] == 0:
                    self._remove(digest)

    def _remove_begun(self, before: float) -> None:
        """Remove what nobody has gone on with for a while."""
        for path, status in self._store.partials():
            lock = locks.try_lock(path, locks.EXCLUSIVE) if status.st_mtime < before else None
            if lock is not None:
                os.unlink(path)
                lock.close()

    def _remove_orphans(self, before: float) -> None:
        """Remove what no image reaches, and nobody is about to name."""
        old = {digest for digest, status in self._store.blobs() if status.st_mtime < before}
        for digest in old - self._kept - self._users.keys():
            self._remove(digest)

    def _remove(self, digest: Digest) -> None:
        if digest in self._sizes and digest not in self._kept:
            self._store.remove(digest)
            del self._sizes[digest]

    def _reach(self, digest: Digest) -> set[Digest]:
        """Return a document and the blobs that it names; those of an index are recorded as well."""
        with suppress(Failure, OSError):
            document = self._parsed(digest)
            if not isinstance(document, Index):
                return {digest, *(each.digest for each in (document.config, *document.layers))}
        return {digest}

    def _reached_by_names(self) -> set[Digest]:
        reached: set[Digest] = set()
        entries = self._store.index().entries
        untried = [each.get("digest") if isinstance(each, dict) else None for each in entries]
        for digest in map(_digest, untried):
            reached.update(self._all_of(digest))
        return reached

    def _all_of(self, digest: Digest) -> Iterator[Digest]:
        """Yield what a document reaches, however deep, as far as it is there. Raises `Failure`."""
        yield digest
        if self._sizes.get(digest, MAX_DOCUMENT_SIZE + 1) > MAX_DOCUMENT_SIZE:
            return  # it is not there, or is no document
        with using(self._store.blob_path(digest)):
            document = self._parsed(digest)
        if isinstance(document, Index):
            for each in document.manifests:
                yield from self._all_of(each.digest)
        else:
            yield from (each.digest for each in (document.config, *document.layers))

    def _parsed(self, digest: Digest) -> manifests.Manifest | Index:
        path = self._store.blob_path(digest)
        return manifests.parse(read(path, MAX_DOCUMENT_SIZE)[0], "", clean(path))


def _digest(text: object) -> Digest:
    try:
        return digests.parse(text if isinstance(text, str) else "")
    except ValueError as error:
        raise InvalidError(f"index.json: {error}") from None

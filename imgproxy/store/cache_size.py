"""How a cache is kept within a size: the images that were used last stay.

An image is a document that the cache has recorded, with the blobs that it names. Removed are, the
one that was used least recently first, images that are not in use, and of their blobs those that
no other image and no name in index.json reaches, and that no other process relies on.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import Failure
from imgproxy.store import inventory, locks
from imgproxy.store.collection import Collection
from imgproxy.store.files import using
from imgproxy.store.reachability import Documents
from imgproxy.store.users import relied_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.mentions import Mention
    from imgproxy.store.cache_records import CacheRecords
    from imgproxy.store.content_store import ContentStore

# In seconds: what nothing names may be another program's, which is about to name it, and who was
# receiving a blob may go on with it.
_GRACE = 3600.0


def shrink(
    store: ContentStore,
    records: CacheRecords,
    compare: Callable[[str, Digest, bytes], None],
    limit: int,
) -> None:
    """Remove what was used least recently until the blobs of a store have `limit` bytes.

    Those that were begun count too. That may be impossible. To be called in a thread. `compare`:
    see `Documents`. Raises `Failure`, and removes nothing then, where it cannot be told what the
    names in index.json reach.
    """
    with using(store.path):
        if _size(store) <= limit:
            return
    documents = Documents(store, compare)
    collection = Collection(store, documents, _GRACE)
    for _ in collection.remove(collection.find()):
        pass
    with using(store.path), locks.wait_lock(store.lock, locks.EXCLUSIVE):
        used = relied_on(store.users)
        kept = collection.named()
        removable = {
            each.digest: each.size
            for each in inventory.blobs(store, [])
            if each.digest and each.digest not in kept and str(each.digest) not in used
        }
        _Images(store, records, documents).remove(removable, _size(store) - limit)


def _size(store: ContentStore) -> int:
    """Return how many bytes blobs have, also those that are not whole. Raises `OSError`."""
    return sum(each.size for each in (*inventory.blobs(store, []), *inventory.begun(store)))


class _Images:
    """The images of a cache, in the order of their last use."""

    def __init__(self, store: ContentStore, records: CacheRecords, documents: Documents) -> None:
        self._store = store
        self._records = records
        self._images = sorted(records.all_documents(), key=lambda each: each.used)
        self._reached = [_reached(documents, each.document.mention) for each in self._images]
        self._users = Counter(digest for each in self._reached for digest in each)

    def remove(self, removable: dict[Digest, int], excess: int) -> None:
        """Remove images with what is removable, by its size, of their blobs."""
        for image, reached in zip(self._images, self._reached, strict=True):
            if excess <= 0:
                return
            if not removable.keys() & reached or not self._records.forget(image):
                continue
            self._users.subtract(reached)
            for digest in removable.keys() & reached:
                if self._users[digest] == 0:
                    self._store.remove(digest)
                    excess -= removable.pop(digest)


def _reached(documents: Documents, image: Mention) -> set[Digest]:
    """Return a document and the blobs that it names; the images of an index are recorded too."""
    with suppress(Failure):
        named = documents.mentioned_by(image)
        return {image.digest, *(each.digest for each in named if not each.in_list)}
    return {image.digest}

"""A cache of the images of registries, over a store: imgproxy(1), CACHE.

It never fails a request: what the store fails with is reported once, and the registry is read
without it. Blobs that have been verified are committed in threads of their own, while the reply
goes on.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import Failure, NotFoundError
from imgproxy.store.cache_records import CacheRecords
from imgproxy.store.content_store import ContentStore
from imgproxy.store.partial_blob import BusyError
from imgproxy.transports.cached_image import CachedImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.store.cache_records import CachedDocument
    from imgproxy.store.partial_blob import PartialBlob
    from imgproxy.transports.registry.registry_image import RegistryImage


class CacheOptions(NamedTuple):
    """What options say about the cache; times are in seconds.

    `size` is in bytes, None without a bound. A tag is asked anew after `tag_ttl`; what is older
    than `max_stale` is never used in place of an answer, for which a registry has `patience` where
    it could be. `offline`: no registry is asked, because of what `why_offline` says. `keeps_blobs`
    is false where somebody else keeps them in the same store. `anonymous`: what was had by a login
    serves nobody.
    """

    size: int | None = None
    tag_ttl: float = 0.0
    max_stale: float = 7 * 86400.0
    offline: bool = False
    why_offline: str = "--offline forbids asking the registry"
    keeps_blobs: bool = True
    patience: float = 30.0
    anonymous: bool = False

    def permit(self, document: CachedDocument) -> bool:
        """Return whether a document serves, as far as it was had by a login."""
        return not (self.anonymous and document.by_login)


class Cache:
    """The cache in a directory, which is made when it is first needed; close it in the end.

    `report` takes lines for standard error; `compare`: see `store.reachability.Documents`.
    """

    def __init__(
        self,
        path: str,
        options: CacheOptions,
        report: Callable[[str], None],
        compare: Callable[[str, Digest, bytes], None],
    ) -> None:
        self.options = options
        self.store = ContentStore(path)
        self.records = CacheRecords(path)
        self.report = report
        self._compare = compare
        self._is_reported = False
        self._threads: list[threading.Thread] = []
        self.is_usable = self._create()

    def without_asking(self, why: str) -> Cache:
        """Return the same cache for those for whom no registry is asked, for a reason.

        What a tag stands for is then in it only where that need not be asked.
        """
        options = self.options._replace(offline=True, why_offline=why, max_stale=0.0)
        return Cache(self.store.path, options, self.report, self._compare)

    def _create(self) -> bool:
        """Make what is missing of the store; return whether there is one."""
        try:
            self.store.create()
        except Failure as failure:
            self.failed(failure)
            return self.store.is_there
        return True

    def failed(self, failure: Failure) -> None:
        """Report, once, what the store has failed with.

        What is gone by now, or another process does not get on with, is no failure.
        """
        if not self._is_reported and not isinstance(failure, NotFoundError | BusyError):
            self._is_reported = True
            self.report(f"going on without the cache where it fails: {failure.message}")

    def opened(self, image: RegistryImage) -> CachedImage | RegistryImage:
        """Return an image of a registry, as the cache has it."""
        return CachedImage(image, self) if self.is_usable or self.options.offline else image

    def takes(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is looked for, and kept, here."""
        limit = self.options.size
        return self.options.keeps_blobs and (limit is None or descriptor.size <= limit)

    def keep(self, blob: PartialBlob) -> None:
        """Commit a blob that has been verified, in a thread."""
        thread = threading.Thread(target=self.commit, args=[blob])
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads
            self.commit(blob)
        else:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)

    def commit(self, blob: PartialBlob) -> None:
        """Give a blob that has been verified its name, which takes as long as the disk needs."""
        try:
            blob.commit()
            self._shrink()
        except Failure as failure:
            self.failed(failure)
        finally:
            blob.close()

    def _shrink(self) -> None:
        if self.options.size is not None:
            from imgproxy.store import cache_size

            cache_size.shrink(self.store, self.records, self._compare, self.options.size)

    def close(self) -> None:
        """Wait until the disk has what is to be kept. May be called again."""
        while self._threads:
            self._threads.pop().join()
        try:
            self._shrink()
        except Failure as failure:
            self.failed(failure)

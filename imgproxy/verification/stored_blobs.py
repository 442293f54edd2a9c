"""The blobs of a store, hashed again, and what its names need of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from imgproxy.errors import Failure, NotFoundError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.store import inventory, reachability
from imgproxy.store.files import using
from imgproxy.store.reachability import Documents
from imgproxy.verification.documents import compare, compare_hash, refuse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.mentions import Mention
    from imgproxy.store.content_store import ContentStore
    from imgproxy.store.inventory import StoredFile

# Blobs that are hashed at the same time, and the bytes that each reads at once.
_AT_ONCE = 4
_PIECE = 1024 * 1024


class Finding(NamedTuple):
    """What is wrong. `digest` is None for an entry of `index.json` that cannot be read.

    `names` are those that need the blob; an entry without a name is `@` and its place.
    """

    digest: Digest | None
    failure: Failure
    names: tuple[str, ...] = ()


class StoreCheck:
    """The check of a store. `blobs` and `bytes` are what was hashed.

    `unknown` are the paths of what is not understood, and was not hashed.
    """

    def __init__(self, store: ContentStore, report: Callable[[Finding], None]) -> None:
        self._store = store
        self._report = report
        self._documents = Documents(store, compare)
        self._names: dict[Digest, dict[str, None]] = {}  # in order
        self._sizes: dict[Digest, dict[int, None]] = {}
        self._needed: dict[Digest, None] = {}
        self._unparsed: dict[Digest, Failure] = {}
        self.blobs = self.bytes = 0
        self.unknown: list[str] = []

    async def run(self) -> None:
        """Hash every blob and look for those that names need. Raises `Failure`."""
        self._walk()
        with using(self._store.path):
            found = list(inventory.blobs(self._store, self.unknown))
        there = {each.digest for each in found}
        queue = iter(found)
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._hash_each, queue)
        for digest in self._needed:
            if digest not in there and digest.algorithm in digests.AVAILABLE:
                self._add(digest, self._unparsed.get(digest) or _missing(self._store, digest))

    def _walk(self) -> None:
        for root in reachability.roots(self._store):
            if isinstance(root, Failure):
                self._report(Finding(None, root))
                continue
            for each in self._documents.reachable(root.mention, self._fail):
                self._names.setdefault(each.digest, {})[root.name] = None
                if each.size is not None:
                    self._sizes.setdefault(each.digest, {})[each.size] = None
                if not each.is_elsewhere:
                    self._needed[each.digest] = None

    def _fail(self, mention: Mention, failure: Failure) -> None:
        self._unparsed[mention.digest] = failure

    async def _hash_each(self, queue: Iterator[StoredFile]) -> None:
        for file in queue:
            assert file.digest is not None  # noqa: S101  (a blob)
            try:
                await trio.to_thread.run_sync(self._hash, file, file.digest)
                if file.digest in self._unparsed:
                    raise self._unparsed[file.digest]
            except Failure as failure:
                self._add(file.digest, failure)
            self.blobs += 1
            self.bytes += file.size

    def _hash(self, file: StoredFile, digest: Digest) -> None:
        """Raise `Failure` where a file is not what its name and those who name it say."""
        name = clean(file.path)
        hasher, buffer = digests.hasher(digest), memoryview(bytearray(min(_PIECE, file.size + 1)))
        try:
            with (
                using(file.path, passing=(FileNotFoundError,)),
                open(file.path, "rb", 0) as content,
            ):
                while count := content.readinto(buffer):
                    hasher.update(buffer[:count])
        except FileNotFoundError:
            if digest in self._needed:
                raise _missing(self._store, digest) from None
            return
        compare_hash(name, digest, hasher)
        for size in self._sizes.get(digest, ()):
            if size != file.size:
                refuse_size(name, size, str(file.size))

    def _add(self, digest: Digest, failure: Failure) -> None:
        self._report(Finding(digest, failure, tuple(self._names.get(digest, ()))))


def _missing(store: ContentStore, digest: Digest) -> NotFoundError:
    return NotFoundError(f"{clean(store.blob_path(digest))} is not there", code="BLOB_UNKNOWN")

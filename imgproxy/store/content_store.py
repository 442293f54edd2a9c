"""A store: an OCI layout that every tool reads, and `.imgproxy/`, which others ignore.

    oci-layout, index.json          image-layout.md; a name in index.json is that of a whole image
    blobs/<algorithm>/<encoded>     content that was verified before it got this name
    .imgproxy/lock                  held for moments: `users`
    .imgproxy/users/<id>            what a process relies on: `users`
    .imgproxy/index.lock            exclusive while index.json is read, changed and renamed
    .imgproxy/partial/<digest>      blobs on their way: `partial_blob`
    .imgproxy/names/                what a cache knows, and the roots of what it keeps:
                                    `CacheRecords.roots`
    .imgproxy/archives/             what is known of archives elsewhere: `ArchiveRecords`

What names in index.json reach is kept for them, and what the documents in `.imgproxy/names/` reach
for the cache. Nothing else in `.imgproxy/` keeps a blob.

A process that is killed at any moment leaves nothing wrong: files get their names when they are
whole and on the disk, and locks end with their process.
"""

from __future__ import annotations

import math
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from imgproxy.errors import AbsentError, clean
from imgproxy.specs.oci import layout_index
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.store import locks
from imgproxy.store.files import DestinationError, read, sync_directory, using, write
from imgproxy.store.partial_blob import PartialBlob, open_partial
from imgproxy.store.users import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layout_index import LayoutIndex

# In bytes.
MAX_INDEX = 64 * 1024 * 1024

# How often index.json is read again because a foreign writer, which takes no lock, was faster.
_MAX_RACES = 5

_OURS = ".imgproxy"
_PRIVATE = 0o700


class ContentStore:
    """The store in a directory. All methods raise `Failure` for what the disk does not permit."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ours = f"{path}/{_OURS}"
        self.lock = f"{self.ours}/lock"
        self.index_lock = f"{self.ours}/index.lock"
        self.users = f"{self.ours}/users"
        self.partials = f"{self.ours}/partial"
        self._index = f"{path}/index.json"
        self._user: User | None = None

    def create(self) -> None:
        """Make what is missing of the store, which is not made of a directory with other files."""
        with using(self.path):
            with suppress(FileExistsError):  # what is there is looked into
                os.makedirs(self.path, _PRIVATE)
            found = set(os.listdir(self.path))
            if found and not found & {"oci-layout", "index.json", _OURS}:
                raise DestinationError(f"{clean(self.path)} is neither an OCI layout nor empty")
            # What is begun must be known again by the next one: `.imgproxy` comes first.
            for directory in (_OURS, f"{_OURS}/partial", f"{_OURS}/users", "blobs"):
                with suppress(FileExistsError):
                    os.mkdir(f"{self.path}/{directory}", _PRIVATE)
            if not {"oci-layout", "index.json"} <= found:
                with locks.wait_lock(self.index_lock, locks.EXCLUSIVE):
                    self._create_files()

    @property
    def is_there(self) -> bool:
        """Whether the directory is that of a layout."""
        return os.path.exists(f"{self.path}/oci-layout")

    @property
    def is_ours(self) -> bool:
        """Whether it is a store where this process may say what it uses, not just any layout."""
        return os.access(self.users, os.W_OK)

    def _create_files(self) -> None:
        layout = f"{self.path}/oci-layout"
        if not os.path.lexists(layout):
            write(layout, layout_index.LAYOUT, 0o644)
        with suppress(FileExistsError):  # a foreign writer takes no lock
            if not os.path.lexists(self._index):
                write(self._index, layout_index.EMPTY.encode(), 0o644, replace=False)

    def open(self) -> None:
        """Make what is missing for changes of a layout. Raises `AbsentError` where there is none.

        A foreign layout has no `.imgproxy`.
        """
        self.check()
        self.create()

    def check(self) -> None:
        """Raise `AbsentError` where there is no layout."""
        with using(self._index):
            try:
                os.stat(self._index)
            except (FileNotFoundError, NotADirectoryError):
                raise AbsentError(
                    f"{clean(self.path)} is no OCI layout: it has no index.json"
                ) from None

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep the blobs of which `use` is told from being collected during the block."""
        with using(self.users):
            user = User(self.users)
        before, self._user = self._user, user
        try:
            yield
        finally:
            self._user = before
            user.close()

    def use(self, digests: Iterable[Digest]) -> None:
        """Rely on blobs until `using` ends: whether they are there is to be asked afterwards."""
        with self._relying_on(digests):
            pass

    @contextmanager
    def _relying_on(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Rely on blobs, and let `gc` wait for the end of the block.

        Who is not in `using` never waits: a cache does without what is gone.
        """
        if self._user is None:
            yield
            return
        with using(self.users), locks.wait_lock(self.lock, locks.SHARED):
            self._user.add(digests)
            yield

    # --- blobs ----------------------------------------------------------------------------------

    def blob_path(self, digest: Digest) -> str:
        """Return where a blob is when it is whole."""
        return f"{self.path}/blobs/{digest.algorithm}/{digest.encoded}"

    def partial_path(self, digest: Digest) -> str:
        """Return where a blob is while it grows: the same file gets its name when it is whole."""
        return f"{self.partials}/{digest.algorithm}-{digest.encoded}"

    def has(self, digest: Digest, size: int) -> bool:
        """Return whether a blob is there, by its size: it was verified when it got its name."""
        try:
            found = os.stat(self.blob_path(digest))
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == size

    async def partial(
        self, digest: Digest, size: int, patience: float = math.inf
    ) -> PartialBlob | None:
        """Return what is there of a blob, locked, or None if it is whole by now.

        `patience` is in seconds: see `open_partial`, which raises `BusyError`.
        """
        partial = await open_partial(
            self.partial_path(digest),
            self.blob_path(digest),
            size,
            patience,
        )
        if not self.has(digest, size):
            return partial
        partial.truncate()
        partial.close()
        return None

    def put(self, digest: Digest, content: bytes) -> None:
        """Write a document that has been verified, also in place of one that is damaged."""
        path = self.blob_path(digest)
        # `gc` takes no file that is being written meanwhile for an abandoned one.
        with using(path), self._relying_on([digest]):
            with suppress(OSError):
                if read(path, len(content))[0] == content:
                    return
            os.makedirs(os.path.dirname(path), _PRIVATE, exist_ok=True)
            write(path, content, 0o444)

    def remove(self, digest: Digest) -> None:
        """Remove a blob that is not what its name says."""
        with using(self.blob_path(digest)), suppress(FileNotFoundError):
            os.unlink(self.blob_path(digest))

    # --- names ----------------------------------------------------------------------------------

    def index(self) -> LayoutIndex:
        """Return the names and images that there are."""
        return self._read_index()[0]

    def _read_index(self) -> tuple[LayoutIndex, os.stat_result]:
        with using(self._index):
            raw, status = read(self._index, MAX_INDEX)
        return layout_index.parse(raw, clean(self._index)), status

    async def change_index(self, change: Callable[[LayoutIndex], LayoutIndex]) -> LayoutIndex:
        """Change the index, and return what it is then.

        Blobs that were written before are on the disk with their names before the index is.
        """
        with using(self.path):
            lock = await locks.lock(self.index_lock, locks.EXCLUSIVE)
        try:
            with using(self._index):
                self._sync_blobs()
                for _ in range(_MAX_RACES):
                    before, status = self._read_index()
                    after = change(before)
                    if _is_same(status, os.stat(self._index)):
                        if after.entries != before.entries:
                            content = after.encode()
                            self._check_growth(status.st_size, len(content))
                            write(self._index, content, 0o644)
                        # Also of what another process has written, and was killed before this.
                        sync_directory(self.path)
                        return after
        finally:
            lock.close()
        raise DestinationError(f"{clean(self._index)}: another program keeps changing it")

    def _check_growth(self, before: int, size: int) -> None:
        """Raise `DestinationError` for an index that becomes too long for those who read images."""
        if size > max(before, MAX_DOCUMENT_SIZE):
            raise DestinationError(
                f"{clean(self._index)}: it would have {size} bytes, and readers take"
                f" {MAX_DOCUMENT_SIZE}; remove names with imgproxy rm, or use another directory"
            )

    def _sync_blobs(self) -> None:
        blobs = f"{self.path}/blobs"
        with os.scandir(blobs) as found:
            for algorithm in found:
                if algorithm.is_dir():  # others may put there what they want
                    sync_directory(algorithm.path)
        sync_directory(blobs)


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    keys = ("st_ino", "st_size", "st_mtime_ns")
    return all(getattr(one, key) == getattr(other, key) for key in keys)

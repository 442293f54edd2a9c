"""Blobs that are received once for all who want them at the same time.

One task receives a blob into the store and verifies it there; it goes on when those who have asked
for it leave. They all read the file as it grows, be it this process or another one that adds to it,
and each verifies what it reads. The end of the blob is given out once it has its name in the store.
Where the store fails, everyone receives the rest alone.
"""

from __future__ import annotations

import os
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import Failure, InvalidError, NotReadyError
from imgproxy.single_flight import WAIT
from imgproxy.store import locks
from imgproxy.store.files import using
from imgproxy.transports import time_limit
from imgproxy.transports.kept_blobs import KeptBlobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.store.partial_blob import PartialBlob
    from imgproxy.transports.cache import Cache
    from imgproxy.transports.source import Reader

    # Returns a reader of a blob from a byte on.
    Receive = Callable[[int], Awaitable[Reader]]
    # Receives and verifies the whole of a blob, whose readers the function opens.
    ReadThrough = Callable[[Descriptor, Callable[[], Awaitable[Reader]]], Awaitable[None]]

# Blobs that are received on when nobody waits for them any more; of more, the oldest is given up.
# What there is of it is not lost.
MAX_ABANDONED = 8

# In seconds: how long a blob that another process receives may stand still.
_PATIENCE = 60.0

# In seconds: when a part may be asked for again that has waited for its blob in vain.
RETRY_AFTER = 10.0

# In bytes: less than this is passed on only where no more comes for a moment.
_PIECE = 256 * 1024


class Fills:
    """The blobs that are being received into a cache. `run` must be running."""

    def __init__(self, cache: Cache, read_through: ReadThrough) -> None:
        self._cache = cache
        self._read_through = read_through
        self._nursery: trio.Nursery | None = None
        self._under_way: dict[Digest, _Fill] = {}
        self._abandoned: list[_Fill] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive blobs, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def follow(self, descriptor: Descriptor, receive: Receive, blobs: KeptBlobs) -> Reader:
        """Return a reader of a blob that the store lacks, and begin to receive it if nobody does.

        `blobs` are those that the reader removes it from should it be wrong there.
        """
        fill = self._under_way.get(descriptor.digest)
        if fill is None or fill.size != descriptor.size or fill.scope.cancel_called:
            assert self._nursery is not None  # noqa: S101  (see `run`)
            fill = self._under_way[descriptor.digest] = _Fill(descriptor.size)
            # In a context of its own: the time limit of the first client is not that of the rest.
            Context().run(self._nursery.start_soon, self._run, fill, descriptor, receive)
        if fill in self._abandoned:
            self._abandoned.remove(fill)
        fill.followers += 1
        return _Follower(descriptor, fill, receive, blobs, partial(self._leave, fill))

    async def wait_stored(self, descriptor: Descriptor, receive: Receive, blobs: KeptBlobs) -> None:
        """Wait until a blob has come into the store, or the store cannot take it.

        Raises why it failed, and `NotReadyError` where it takes longer than `WAIT`.
        """
        reader = self.follow(descriptor, receive, blobs)
        fill = self._under_way[descriptor.digest]
        try:
            with trio.move_on_after(WAIT):
                while not fill.is_over:
                    await fill.wait()
        finally:
            reader.close()
        fill.raise_failure()
        if not fill.is_over:
            raise NotReadyError(
                f"{reader.name}: its {descriptor.size} bytes come before any part of them; ask"
                " again later",
                retry_after=RETRY_AFTER,
            )

    def _leave(self, fill: _Fill) -> None:
        fill.followers -= 1
        if fill.followers or fill.is_over:
            return
        self._abandoned.append(fill)
        if len(self._abandoned) > MAX_ABANDONED:
            self._abandoned.pop(0).scope.cancel()

    async def _run(self, fill: _Fill, descriptor: Descriptor, receive: Receive) -> None:
        try:
            with fill.scope:
                await self._fill(fill, descriptor, receive)
        except _UnkeptError:
            pass  # its followers find that it is not there
        except Exception as error:  # noqa: BLE001  (its followers raise it)
            fill.failure = error.copy() if isinstance(error, Failure) else error
        finally:
            if self._under_way.get(descriptor.digest) is fill:
                del self._under_way[descriptor.digest]
            if fill in self._abandoned:
                self._abandoned.remove(fill)
            fill.is_over = True
            fill.tell()

    async def _fill(self, fill: _Fill, descriptor: Descriptor, receive: Receive) -> None:
        verified: list[PartialBlob] = []

        def failed(failure: Failure) -> None:
            self._cache.failed(failure)
            raise _UnkeptError

        blobs = KeptBlobs(self._cache.store, verified.append, failed, _PATIENCE)

        async def begin() -> Reader:
            begun = await blobs.begin(descriptor, receive, fill.tell)
            if begun is None:
                raise _UnkeptError
            return begun

        await self._read_through(descriptor, begin)
        for each in verified:
            await trio.to_thread.run_sync(self._cache.commit, each)


class _UnkeptError(Exception):
    """The store has the blob by now, or cannot take it."""


class _Fill:
    """A blob of `size` bytes that is being received, or was, and why that has failed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.followers = 0
        self.is_over = False
        self.failure: Exception | None = None
        self.scope = trio.CancelScope()
        self._grown = trio.Event()

    def raise_failure(self) -> None:
        """Raise why it has failed, if it has."""
        if self.failure is not None:
            raise self.failure.copy() if isinstance(self.failure, Failure) else self.failure

    def tell(self) -> None:
        """Wake those who wait."""
        self._grown.set()
        self._grown = trio.Event()

    async def wait(self) -> bool:
        """Wait until there is more; return False if nothing has come for a moment."""
        grown = self._grown
        with trio.move_on_after(locks.INTERVAL):  # another process tells nobody
            await grown.wait()
        return grown.is_set()


class _Follower:
    """A blob that is read while it is received. See `Reader`."""

    origin = None

    def __init__(
        self,
        descriptor: Descriptor,
        fill: _Fill,
        receive: Receive,
        blobs: KeptBlobs,
        leave: Callable[[], None],
    ) -> None:
        self.size: int | None = descriptor.size
        self._descriptor = descriptor
        self._fill = fill
        self._receive = receive
        self._blobs = blobs
        self._store = blobs.store
        self._leave: Callable[[], None] | None = leave
        self._fd = -1
        self._position = 0
        self._alone: Reader | None = None  # which has the rest
        self._is_begun_anew = False

    @property
    def name(self) -> str:
        """See `Reader`."""
        if self._alone is not None:
            return self._alone.name
        return f"blob {self._descriptor.digest}, on its way into the store"

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        await trio.lowlevel.checkpoint()
        comes_more = True
        while self._alone is None:
            is_over = self._fill.is_over  # before looking: its last bytes come before that
            ready = self._ready()
            wanted = min(len(buffer), self._descriptor.size - self._position)
            if ready >= min(wanted, _PIECE) or (ready and (is_over or not comes_more)):
                return self._read(buffer[: min(ready, wanted)])
            if is_over:
                await self._go_on_alone()
            else:
                with time_limit.waiting(lambda: self.name):
                    comes_more = await self._fill.wait()
        count = await self._alone.receive_into(buffer)
        self._position += count
        return count

    def _ready(self) -> int:
        """Return how many bytes can be read; the last one only of a blob that has its name."""
        digest, size = self._descriptor.digest, self._descriptor.size
        is_whole = self._store.has(digest, size)
        path = self._store.blob_path(digest) if is_whole else self._store.partial_path(digest)
        with using(path):
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:  # another file is there now
                os.close(self._fd)
                self._fd = -1
            if self._fd < 0:
                try:
                    self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return 0
            found = os.fstat(self._fd).st_size
        if found < self._position:
            self._is_begun_anew = True
            raise InvalidError(
                f"{self.name}: what had been received was wrong, and is received anew",
                code="DIGEST_INVALID",
            )
        return min(found, size if is_whole else size - 1) - self._position

    def _read(self, buffer: memoryview) -> int:
        with using(self.name):
            count = os.preadv(self._fd, [buffer], self._position) if buffer else 0
        self._position += count
        return count

    async def _go_on_alone(self) -> None:
        """Receive the rest from the source, as the store cannot take it; raise why it failed."""
        self._fill.raise_failure()
        self._alone = await self._receive(self._position)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`. Who receives it has asked all locations."""
        if self._alone is not None:
            return self._alone.reject(failure)
        if self._is_begun_anew:
            return True
        is_whole = self._store.has(self._descriptor.digest, self._descriptor.size)
        return is_whole and self._blobs.remove(self._descriptor.digest, failure)

    def accept(self) -> None:
        """See `Reader`."""

    def close(self) -> None:
        """See `Reader`."""
        if self._alone is not None:
            self._alone.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

"""Verification of parts of blobs, which are given out only of blobs that have been verified whole.

The whole is read once, in the background, and leaves hashes at its blocks (`block_hashes`). From
then on the blocks that a part touches are read, compared, and only then passed on; what is passed
on is the private memory that was compared.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import Failure, InvalidError, NotReadyError, closing_on_error
from imgproxy.host.blocking_calls import Job
from imgproxy.single_flight import WAIT
from imgproxy.verification import verified_blob
from imgproxy.verification.documents import refuse_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader
    from imgproxy.verification.block_hashes import BlockHashes
    from imgproxy.verification.known_blobs import KnownBlobs
    from imgproxy.verification.verified_blob import Blob, LargeBlobs

    OpenBlob = Callable[[], Awaitable[Blob]]
    # The name of a source, and the digest and the size of a blob that it has.
    Key = tuple[str, Digest, int]

# In seconds: when a client may ask again for a part of a blob that has not been verified in `WAIT`.
# One of some 20 GB can be in that time.
RETRY_AFTER = 10

# Blobs that are verified in the background at the same time; others wait for their turn.
MAX_PASSES = 4

# A part is received in one piece while another is checked.
BUFFERS = 2


class VerifiedParts:
    """What gives out parts of blobs, and verifies the blobs before that where it is necessary.

    Passes over whole blobs go on in `nursery` when nobody waits for them any more. `large_blobs`
    is what whole blobs are opened with, and `known` is its; `patience` is in seconds.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        large_blobs: LargeBlobs,
        known: KnownBlobs,
        patience: float = WAIT,
    ) -> None:
        self._nursery = nursery
        self._large_blobs = large_blobs
        self._known = known
        self._patience = patience
        self._turns = trio.CapacityLimiter(MAX_PASSES)
        self._passes: dict[Key, _Pass] = {}

    def is_ready(self, descriptor: Descriptor) -> bool:
        """Return whether a part of a blob can be had without a pass over the whole."""
        return descriptor.size <= verified_blob.WHOLE or self._known.hashes(descriptor) is not None

    async def hashes(self, name: str, descriptor: Descriptor, open_blob: OpenBlob) -> BlockHashes:
        """Return the hashes of a blob, after a pass over it where they are not known.

        `open_blob` opens it so that its hashes become known. All who ask for it under the same
        `name`, that of its source, wait for one pass. Raises what the pass raises, and
        `NotReadyError` where it takes longer than they wait.
        """
        found = self._known.hashes(descriptor)
        if found is not None:
            return found
        key = name, descriptor.digest, descriptor.size
        running = self._passes.get(key)
        if running is None:
            running = self._passes[key] = _Pass()
            # In a context of its own: the time limit of the first client is not that of the pass.
            Context().run(self._nursery.start_soon, self._run, key, running, open_blob)
        with trio.move_on_after(self._patience):
            await running.is_done.wait()
        found = self._known.hashes(descriptor)
        if found is not None:
            return found
        failure = running.failure
        if failure is not None:
            raise failure.copy() if isinstance(failure, Failure) else failure
        raise NotReadyError(
            f"{name}: blob {descriptor.digest}: its {descriptor.size} bytes are being verified,"
            " which comes before any part of them; ask again later",
            retry_after=RETRY_AFTER,
        )

    async def _run(self, key: Key, running: _Pass, open_blob: OpenBlob) -> None:
        try:
            async with self._turns:
                await read_through(open_blob)
        except Exception as error:  # noqa: BLE001  (those who wait raise it)
            running.failure = error.copy() if isinstance(error, Failure) else error
        finally:
            del self._passes[key]
            running.is_done.set()

    async def open(
        self, descriptor: Descriptor, hashes: BlockHashes, wanted: Part, reader: Reader
    ) -> VerifiedPart:
        """Return a part of a blob that has been verified, whose reply can be begun.

        `reader` has `hashes.blocks_of` it, and is closed on failure. Raises
        `InvalidError` for what is not what it was, after which the caller rejects the reader,
        `BadUpstreamError` where the blob has been found wrong there, and what the reader raises.
        """
        with closing_on_error(reader):
            self._known.check(descriptor, reader)
            part = VerifiedPart(hashes, wanted, reader, self._large_blobs)
            part.when_wrong = partial(self._known.condemn, descriptor, reader)
        with closing_on_error(part):
            await part.begin()
        return part

    async def of_small(self, blob: Blob, wanted: Part) -> SmallPart:
        """Return a part of a blob of up to `WHOLE` bytes, verified as it was opened; close that."""
        try:
            return SmallPart((await blob.read())[wanted.start : wanted.stop])
        finally:
            blob.close()


class _Pass:
    """One pass over a whole blob, and why it failed."""

    def __init__(self) -> None:
        self.is_done = trio.Event()
        self.failure: Exception | None = None


async def read_through(open_blob: OpenBlob) -> None:
    """Read a whole blob, which verifies it, until no other location could have the right one.

    Raises what opening and reading raise.
    """
    while await _is_to_be_repeated(open_blob):
        pass


async def _is_to_be_repeated(open_blob: OpenBlob) -> bool:
    """Read a whole blob; return whether it was wrong, and others may have the right one."""
    blob = await open_blob()
    try:
        while await blob.read():
            pass
    except InvalidError:
        if not blob.has_another_try:
            raise
        return True
    finally:
        blob.close()
    return False


class SmallPart:
    """A part that is in memory, as a body."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    async def read(self) -> memoryview:
        """Return all of it the first time, and nothing from then on."""
        content, self._content = self._content, memoryview(b"")
        return content

    def close(self) -> None:
        """Do nothing: nothing is open."""


class VerifiedPart:
    """A part of a blob, pulled in pieces that have been compared; close it in any case.

    While one piece is sent, another thread compares the next. In a crowd there is one piece only.
    Pieces become longer, since many clients read no more than the beginning of a long part.
    `when_wrong` is called with what is raised for bytes that are wrong.
    """

    def __init__(
        self, hashes: BlockHashes, wanted: Part, reader: Reader, large_blobs: LargeBlobs
    ) -> None:
        self._hashes = hashes
        self._wanted = wanted
        self._reader = reader
        self._large_blobs = large_blobs
        self.when_wrong: Callable[[InvalidError], None] = lambda _: None
        self._position, self._end = hashes.blocks_of(wanted)
        admitted = large_blobs.admit(self)
        self._length = hashes.length  # of the next piece
        self._longest = max(hashes.length, hashes.block_at(admitted))
        self._most = BUFFERS if admitted >= verified_blob.CHUNK_OF_MANY else 1
        self._buffers: deque[memoryview] = deque()
        self._begun: deque[tuple[int, memoryview, Job[None]]] = deque()

    async def begin(self) -> None:
        """Receive the first piece, and compare it. Raises as `read` does."""
        try:
            await self._receive()
            await self._begun[0][2].result()
        except InvalidError as error:
            self.when_wrong(error)
            raise

    async def read(self) -> memoryview:
        """Return the next piece, empty at the end; it is valid until the next call.

        Raises `InvalidError` in place of a piece that is not what it was, and what the reader
        raises.
        """
        try:
            while len(self._begun) < self._most and self._position < self._end:
                await self._receive()
            if not self._begun:
                return memoryview(b"")
            position, piece, job = self._begun.popleft()
            await job.result()
        except InvalidError as error:
            self.when_wrong(error)
            self._reader.reject(error)
            raise
        return piece[max(self._wanted.start - position, 0) : self._wanted.stop - position]

    async def _receive(self) -> None:
        """Receive the next piece, and begin to compare it."""
        start, count = self._position, min(self._length, self._end - self._position)
        self._length = min(2 * self._length, self._longest)
        oldest = memoryview(b"")
        if len(self._buffers) == self._most:
            oldest = self._buffers.pop()  # it has been sent
        self._buffers.appendleft(oldest if len(oldest) >= count else memoryview(bytearray(count)))
        piece = self._buffers[0][:count]
        while self._position < start + count:
            received = await self._reader.receive_into(piece[self._position - start :])
            if received == 0:
                refuse_size(self._reader.name, self._wanted.size, f"only {self._position}")
            self._position += received
        compare = partial(self._hashes.compare, self._reader.name, piece, start)
        self._begun.append((start, piece, Job(compare)))

    def close(self) -> None:
        """Close the reader. May be called again."""
        self._large_blobs.discard(self)
        self._reader.close()

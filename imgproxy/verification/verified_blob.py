"""Verification of blobs, which are pulled in pieces.

The bytes that leave are the private memory that was hashed. A blob of up to `WHOLE` bytes is
verified before any of it is passed on; of a larger one the last piece is withheld until digest and
size agree.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakSet

import trio

from imgproxy.errors import InvalidError, closing_on_error
from imgproxy.specs.oci import digest as digests
from imgproxy.verification.documents import compare, compare_hash, refuse_size
from imgproxy.verification.hashing import HashingThread

if TYPE_CHECKING:
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Reader
    from imgproxy.verification.block_hashes import BlockHashes
    from imgproxy.verification.known_blobs import KnownBlobs
    from imgproxy.verification.verified_parts import VerifiedPart

# What is verified before the head of its reply is sent: imgproxy(1), "Verification".
WHOLE = 1024 * 1024

# The piece in which larger blobs are passed on: handing less to the hashing thread costs more than
# it saves. One piece is received or sent, another hashed, and the third evens out their pace.
CHUNK = 2 * 1024 * 1024
BUFFERS = 3

# The first piece of a larger blob is smaller, so that the client need not wait for a whole `CHUNK`.
FIRST = 256 * 1024

# Two blobs keep four processors busy. More than these at once take turns, and have pieces that cost
# a little more each, so that eight take 21 MiB and not 48. Of a crowd, others are received and sent
# while one is hashed, so that each has one buffer: sixty-four take 35 MiB, and two hundred 52.
MAX_LARGE = 2
CHUNK_OF_MANY = 512 * 1024
MAX_MANY = 6
CHUNK_OF_CROWD = 256 * 1024
MAX_CROWD = 56
CHUNK_OF_HUNDREDS = 128 * 1024
_MOST = (MAX_LARGE, MAX_MANY, MAX_CROWD)


class LargeBlobs:
    """The larger blobs that are being read at the moment.

    This bounds the memory of all blobs that are opened with the same object: the more there are,
    the smaller are the pieces of another one. `known` learns what is found out about them, None
    where nobody asks for it.
    """

    def __init__(self, known: KnownBlobs | None = None) -> None:
        self.known = known
        self._by_length: dict[int, WeakSet[Blob | VerifiedPart]] = {
            CHUNK: WeakSet(),
            CHUNK_OF_MANY: WeakSet(),
            CHUNK_OF_CROWD: WeakSet(),
        }

    @property
    def length(self) -> int:
        """How long the pieces of one more blob may be."""
        for (length, blobs), most in zip(self._by_length.items(), _MOST, strict=True):
            if len(blobs) < most:
                return length
        return CHUNK_OF_HUNDREDS

    def admit(self, blob: Blob | VerifiedPart) -> int:
        """Return how long the pieces of a blob may be, from now until it is discarded."""
        length = self.length
        if length in self._by_length:
            self._by_length[length].add(blob)
        return length

    def discard(self, blob: Blob | VerifiedPart) -> None:
        """Admit another blob in place of this one, if it was admitted."""
        for blobs in self._by_length.values():
            blobs.discard(blob)


def check_algorithm(descriptor: Descriptor) -> None:
    """Raise `NotImplementedByUsError` where a blob cannot be verified, before it is fetched."""
    digests.hasher(descriptor.digest)


async def open_blob(descriptor: Descriptor, reader: Reader, large_blobs: LargeBlobs) -> Blob:
    """Return a blob whose reply can be begun. Closes the reader on failure.

    Raises what `Blob.begin` raises, `NotImplementedByUsError` where the algorithm of the digest is
    not available, and `BadUpstreamError` where the blob is known to be wrong there.
    """
    with closing_on_error(reader):
        if large_blobs.known is not None:
            large_blobs.known.check(descriptor, reader)
        blob = Blob(descriptor, reader, large_blobs)
    with closing_on_error(blob):
        await blob.begin()
    return blob


class _Ahead:
    """What is received of a blob after its first piece, before anybody reads it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.piece = memoryview(b"")
        self.error: Exception | None = None


class Blob:
    """The content of a blob, pulled in pieces; close it in any case.

    While one piece is being passed on and the next received, another thread hashes: SHA-256 takes
    as long as everything else together. `has_another_try`: it did not verify, and whoever can begin
    anew may get other bytes.
    """

    has_another_try = False

    def __init__(self, descriptor: Descriptor, reader: Reader, large_blobs: LargeBlobs) -> None:
        self._descriptor = descriptor
        self._known = large_blobs.known
        self._reader = reader
        self._large_blobs = large_blobs
        self._by_blocks: BlockHashes | None = None
        if self._known is not None and descriptor.size > WHOLE:
            self._by_blocks = self._known.new_hashes(descriptor)
        self._hashing = HashingThread(self._by_blocks or digests.hasher(descriptor.digest))
        self._buffers: deque[memoryview] = deque()  # the one that was filled last, first
        self._length = 0  # of each buffer
        self._most = BUFFERS
        self._position = 0
        self._first: memoryview | None = None
        self._ahead: _Ahead | None = None

    async def begin(self) -> None:
        """Receive what decides whether the reply can be begun.

        A blob of up to `WHOLE` bytes is received and verified; of a larger one the first piece
        must be there. Raises `InvalidError` for what does not verify, and what the reader raises.
        """
        try:
            await self._begin()
        except InvalidError as error:
            self._condemn(error)
            raise

    def _condemn(self, error: InvalidError) -> None:
        if self._known is not None:
            self._known.condemn(self._descriptor, self._reader, error)

    async def _begin(self) -> None:
        size, promised = self._descriptor.size, self._reader.size
        if promised not in (None, size):
            refuse_size(self._reader.name, size, str(promised))
        if size > WHOLE:
            self._length = self._large_blobs.admit(self)
            self._most = BUFFERS if self._length >= CHUNK_OF_MANY else 1
            self._first = await self._receive(FIRST)
            return
        content = memoryview(bytearray(size))
        while self._position < size:
            self._position += await self._receive_some(content[self._position :])
        await self._expect_end()
        compare(self._reader.name, self._descriptor.digest, content)
        self._reader.accept()
        self._first = content

    async def read(self) -> memoryview:
        """Return the next piece, empty at the end; it is valid until the next call.

        Raises `InvalidError` in place of the last piece of a blob that does not verify.
        """
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        if self._position == self._descriptor.size:
            return memoryview(b"")
        try:
            return await self._take_ahead() or await self._receive(CHUNK)
        except InvalidError as error:
            self._condemn(error)
            self.has_another_try = self._reader.reject(error)
            raise

    async def read_ahead(self) -> None:
        """Receive more of a large blob until it is read, as far as there is memory for.

        A connection gets up to its speed only while it is received from. What fails is raised by
        `read`. The last byte is left to `read`, which compares then.
        """
        if self._descriptor.size <= WHOLE:
            return
        room = self._buffers[0][self._position : min(self._length, self._descriptor.size - 1)]
        self._ahead = ahead = _Ahead()
        try:
            with ahead.scope:
                while self._first is not None and len(ahead.piece) < len(room):
                    count = await self._receive_some(room[len(ahead.piece) :])
                    ahead.piece = room[: len(ahead.piece) + count]
                    self._position += count
        except Exception as error:  # noqa: BLE001  (raised in its turn)
            ahead.error = error
        finally:
            ahead.ended.set()

    async def _take_ahead(self) -> memoryview:
        """Return what was received ahead, once. Raises what that ended with."""
        if self._ahead is None:
            return memoryview(b"")
        await self._ahead.ended.wait()
        piece, self._ahead.piece = self._ahead.piece, memoryview(b"")
        if piece:
            self._hashing.begin(piece)
        elif self._ahead.error is not None:
            raise self._ahead.error
        return piece

    async def _receive(self, limit: int) -> memoryview:
        """Return the next piece of a large blob, after its hashing has begun."""
        # They are made when they are needed: zeroing megabytes takes a while.
        if len(self._buffers) < self._most:
            self._buffers.appendleft(memoryview(bytearray(self._length)))
        else:
            await self._hashing.catch_up(self._most - 1)  # the oldest buffer is free then
            self._buffers.rotate()
        left = self._descriptor.size - self._position
        count = await self._receive_some(self._buffers[0][: min(left, limit)])
        piece = self._buffers[0][:count]
        self._position += count
        self._hashing.begin(piece)
        if count == left:
            await self._expect_end()
            await self._hashing.catch_up()
            compare_hash(self._reader.name, self._descriptor.digest, self._hashing.hasher)
            if self._known is not None and self._by_blocks is not None:
                self._known.keep(self._descriptor, self._by_blocks)
            self._reader.accept()
        return piece

    async def _receive_some(self, buffer: memoryview) -> int:
        count = await self._reader.receive_into(buffer)
        if count == 0:
            refuse_size(self._reader.name, self._descriptor.size, f"only {self._position}")
        return count

    async def _expect_end(self) -> None:
        """Raise `InvalidError` if the reader has more; where it has a size, that was compared."""
        if self._reader.size is None and await self._reader.receive_into(memoryview(bytearray(1))):
            refuse_size(self._reader.name, self._descriptor.size, "more")

    def close(self) -> None:
        """Close the reader. May be called again."""
        self._large_blobs.discard(self)
        if self._ahead is not None:
            self._ahead.scope.cancel()
        self._reader.close()

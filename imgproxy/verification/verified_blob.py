"""The one verifier: bytes are compared with digests and sizes here and nowhere else.

The bytes that leave are the private memory that was hashed. A blob of up to `WHOLE` bytes is
verified before anything of it is shown; of a larger one the last piece is withheld until digest
and size agree.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from weakref import WeakSet

import trio

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from hashlib import _Hash as Hash

    from outcome import Outcome

    from imgproxy.net.streams import Buffer
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor, Index, Manifest
    from imgproxy.transports.source import Document, Reader

# What is verified before the head of its reply is sent: imgproxy(1), "Verification".
WHOLE = 1024 * 1024

# The piece in which larger blobs are passed on: handing less to the hashing thread costs more than
# it saves. One piece is received or sent, another hashed, and the third evens out their pace.
CHUNK = 2 * 1024 * 1024
BUFFERS = 3

# The first piece of a larger blob is smaller: whoever waits for it has waited long enough.
FIRST = 256 * 1024

# Two blobs keep four processors busy. More than these at once take turns, and have pieces that cost
# a little more each, so that eight take 21 MiB and not 48.
MAX_LARGE = 2
CHUNK_OF_MANY = 512 * 1024


class VerifiedDocument(NamedTuple):
    """A manifest or an index whose bytes agree with every digest that named them.

    `digest` is the first of those, or the one computed where nobody named the document.
    """

    raw: bytes
    digest: Digest
    parsed: Manifest | Index

    @property
    def media_type(self) -> str:
        """What the document is."""
        return self.parsed.media_type


async def document(find: Callable[[], Awaitable[Document]]) -> VerifiedDocument:
    """Give what `find` finds as verified; what is not right is looked for in another place.

    Raises `InvalidError` where digest or size disagree or the document does not parse,
    `NotImplementedByUsError` where the algorithm is not available, and what `find` raises.
    """
    while True:
        found = await find()
        try:
            return _verified(found)
        except InvalidError as error:
            if not found.reject(error):
                raise


def _verified(found: Document) -> VerifiedDocument:
    for named in found.digests:
        _compare(found.name, named, found.size, found.raw)
    digest = found.digests[0] if found.digests else digests.compute(found.raw)
    return VerifiedDocument(
        found.raw, digest, manifests.parse(found.raw, found.media_type, found.name)
    )


def has_digest(document: VerifiedDocument, digest: Digest) -> bool:
    """Whether a document has this digest as well, which may be by another algorithm."""
    if document.digest == digest:
        return True
    if not digests.is_available(digest):
        return False
    return digests.compute(document.raw, digest.algorithm) == digest


def embedded(descriptor: Descriptor) -> bytes | None:
    """Give the content that a descriptor carries, if it is the content that it describes."""
    content = descriptor.data
    if content is None or len(content) != descriptor.size:
        return None
    if not digests.is_available(descriptor.digest):
        return None
    same = digests.compute(content, descriptor.digest.algorithm) == descriptor.digest
    return content if same else None


def _compare(name: str, digest: Digest, size: int | None, content: Buffer) -> None:
    if size is not None and len(content) != size:
        _refuse_size(name, size, str(len(content)))
    hasher = digests.hasher(digest)
    hasher.update(content)
    _compare_hash(name, digest, hasher)


def _compare_hash(name: str, digest: Digest, hasher: Hash) -> None:
    if hasher.hexdigest() != digest.encoded:
        raise InvalidError(
            f"{name}: its bytes do not have the digest {digest}"
            f" but {digest.algorithm}:{hasher.hexdigest()}",
            code="DIGEST_INVALID",
        )


def _refuse_size(name: str, wanted: int, got: str) -> NoReturn:
    raise InvalidError(
        f"{name}: the descriptor says {wanted} bytes, there are {got}", code="SIZE_INVALID"
    )


async def open_blob(descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]]) -> Blob:
    """Give a blob whose reply can be begun; one that is not right is looked for elsewhere.

    Raises `NotImplementedByUsError` where the algorithm of the digest is not available, before
    anything is fetched; what `Blob.begin` raises, with the source let go of.
    """
    while True:
        hasher = digests.hasher(descriptor.digest)
        reader = await open_reader()
        blob = Blob(descriptor, reader, hasher)
        try:
            await blob.begin()
        except InvalidError as error:
            blob.close()
            if not reader.reject(error):
                raise
        except BaseException:
            blob.close()
            raise
        else:
            return blob


class Blob:
    """The content of a blob, pulled in pieces; close it in any case.

    While one piece is being passed on and the next received, another thread hashes: SHA-256 takes
    as long as everything else together.
    """

    def __init__(self, descriptor: Descriptor, reader: Reader, hasher: Hash) -> None:
        self._descriptor = descriptor
        self._reader = reader
        self._hashing = _Hashing(hasher)
        self._buffers: deque[memoryview] = deque()  # the one that was filled last, first
        self._length = CHUNK_OF_MANY
        self._position = 0
        self._first: memoryview | None = None

    async def begin(self) -> None:
        """Receive what decides whether the reply can be begun.

        A blob of up to `WHOLE` bytes is received and verified; of a larger one the first piece
        must be there. Raises `InvalidError` for what does not verify, and whatever the source
        raises.
        """
        size, said = self._descriptor.size, self._reader.size
        if said not in (None, size):
            _refuse_size(self._reader.name, size, str(said))
        if size > WHOLE:
            if len(_with_large) < MAX_LARGE:
                self._length = CHUNK
                _with_large.add(self)
            self._first = await self._receive(FIRST)
            return
        content = memoryview(bytearray(size))
        while self._position < size:
            self._position += await self._some(content[self._position :])
        await self._expect_end()
        _compare(self._reader.name, self._descriptor.digest, None, content)
        self._first = content

    async def read(self) -> memoryview:
        """Give the next piece, empty at the end; it may be used until the next call.

        Raises `InvalidError` in place of the last piece of a blob that does not verify.
        """
        if self._first is not None:
            piece, self._first = self._first, None
            return piece
        if self._position == self._descriptor.size:
            return memoryview(b"")
        try:
            return await self._receive(CHUNK)
        except InvalidError as error:
            self._reader.reject(error)
            raise

    async def _receive(self, limit: int) -> memoryview:
        """Give the next piece of a large blob, after its hashing has begun."""
        if len(self._buffers) < BUFFERS:  # made when it is needed: zeroing megabytes takes a while
            self._buffers.appendleft(memoryview(bytearray(self._length)))
        else:
            await self._hashing.catch_up(BUFFERS - 1)  # the oldest buffer is free then
            self._buffers.rotate()
        left = self._descriptor.size - self._position
        count = await self._some(self._buffers[0][: min(left, limit)])
        piece = self._buffers[0][:count]
        self._position += count
        self._hashing.begin(piece)
        if count == left:
            await self._expect_end()
            await self._hashing.catch_up()
            _compare_hash(self._reader.name, self._descriptor.digest, self._hashing.hasher)
        return piece

    async def _some(self, buffer: memoryview) -> int:
        count = await self._reader.receive_into(buffer)
        if count == 0:
            _refuse_size(self._reader.name, self._descriptor.size, f"only {self._position}")
        return count

    async def _expect_end(self) -> None:
        """Make sure that the source has no more; it may have said so before."""
        if self._reader.size is None and await self._reader.receive_into(memoryview(bytearray(1))):
            _refuse_size(self._reader.name, self._descriptor.size, "more")

    def close(self) -> None:
        """Let go of the source. May be called again."""
        _with_large.discard(self)
        self._reader.close()


# The blobs whose pieces are large at the moment.
_with_large: WeakSet[Blob] = WeakSet()


class _Hashing:
    """A hash that is fed by one thread, a few pieces behind, while others do something else."""

    def __init__(self, hasher: Hash) -> None:
        self.hasher = hasher
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._pieces: deque[memoryview] = deque()  # begun, and not hashed yet
        self._awaited: tuple[int, trio.Event] | None = None
        self._failure: Exception | None = None

    def begin(self, piece: memoryview) -> None:
        """Hash `piece`, which must stay as it is until `catch_up` says so."""
        with self._lock:
            self._pieces.append(piece)
            is_first = len(self._pieces) == 1
        if is_first:  # otherwise the thread is at it
            trio.lowlevel.start_thread_soon(self._hash_all, _nothing)

    def _hash_all(self) -> None:
        try:
            while self._hash_one():
                self._wake()
        except Exception as error:  # noqa: BLE001  (raised where it is waited for)
            self._failure = error
        self._wake()

    def _hash_one(self) -> bool:
        """Hash the oldest piece; give whether there are more."""
        self.hasher.update(self._pieces[0])
        with self._lock:
            self._pieces.popleft()
            return bool(self._pieces)

    def _wake(self) -> None:
        """Tell who waits for this; waking the event loop costs a turn, and is not for nobody."""
        with self._lock:
            if self._awaited is None:
                return
            most, event = self._awaited
            if len(self._pieces) > most and self._failure is None:
                return
            self._awaited = None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(event.set)

    async def catch_up(self, most: int = 0) -> None:
        """Wait until at most so many pieces are not hashed."""
        event = trio.Event()
        with self._lock:
            is_behind = len(self._pieces) > most and self._failure is None
            self._awaited = (most, event) if is_behind else None
        if is_behind:
            await event.wait()
        if self._failure is not None:
            raise self._failure


def _nothing(_: Outcome[None]) -> None:
    """Take what a thread ends with, when everything has been told on the way."""

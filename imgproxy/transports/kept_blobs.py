"""The blobs of a store, to which those that it lacks are added while they are received.

A blob gets its name once verification has accepted it. One of which a killed process has left the
beginning goes on there; those bytes are hashed again, as all are.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import HOST_FAILURES, Failure, InvalidError, clean, closing_on_error
from imgproxy.net import body_turn
from imgproxy.transports.readers import open_local

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from imgproxy.errors import NotFoundError
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.store.content_store import ContentStore
    from imgproxy.store.partial_blob import PartialBlob
    from imgproxy.transports.readers import Content
    from imgproxy.transports.source import Reader

    # See `images.image`, which is above this floor.
    OpenForeign = Callable[[Descriptor, NotFoundError], Awaitable[Reader]]

_SKIPPED = 256 * 1024


def _raise(failure: Failure) -> None:
    raise failure


class KeptBlobs:
    """The blobs of `store`.

    `keep` commits a blob that has been verified: it may take the time that a disk needs. `failed`
    is told what the store fails with, and by default raises it; where it returns, one goes on
    without the store. `patience` is how many seconds to wait for a blob that another task or
    process has under way and does not get on with, which is a failure of the store then.
    """

    def __init__(
        self,
        store: ContentStore,
        keep: Callable[[PartialBlob], None],
        failed: Callable[[Failure], None] = _raise,
        patience: float = math.inf,
    ) -> None:
        self.store = store
        self.failed = failed
        self._keep = keep
        self._patience = patience
        # What the store has failed with: it may have something else, and cannot remove it.
        self._wrong: set[Digest] = set()

    def has(self, digest: Digest, size: int) -> bool:
        """Return whether the store has a blob, and has not failed with it."""
        return digest not in self._wrong and self.store.has(digest, size)

    def put(self, digest: Digest, content: bytes) -> None:
        """Add what has been verified."""
        try:
            self.store.put(digest, content)
        except Failure as failure:
            self.failed(failure)

    def remove(self, digest: Digest, _: Failure) -> bool:
        """Remove what did not verify; it is received anew the next time."""
        try:
            self.store.remove(digest)
        except Failure as failure:
            self._give_up(digest, failure)
        return True

    def _give_up(self, digest: Digest, failure: Failure) -> None:
        """Do without the store for something, from now on, unless its failure is to be raised."""
        self._wrong.add(digest)
        self.failed(failure)

    async def open(
        self,
        descriptor: Descriptor,
        receive: Callable[[int], Awaitable[Reader]],
        offset: int = 0,
        stop: int | None = None,
    ) -> Reader:
        """Open a blob; `receive` returns a reader of it from a byte on.

        It is opened from the byte `offset` on, and to before `stop`, if it is whole in the store;
        else there must be neither.
        """
        return (
            await self._found(descriptor, offset, stop)
            or await self.begin(descriptor, receive)
            or await self._found(descriptor)
            or await receive(offset)
        )

    async def begin(
        self,
        descriptor: Descriptor,
        receive: Callable[[int], Awaitable[Reader]],
        grown: Callable[[], None] = lambda: None,
    ) -> Reader | None:
        """Open a blob that the store lacks, so that it is added to the store.

        Returns None where the store has it by now, or is not to have it. `grown` is called when
        bytes have been added.
        """
        digest, size = descriptor.digest, descriptor.size
        if digest in self._wrong:
            return None
        try:
            begun = await self.store.partial(digest, size, self._patience)
            if begun is None:
                return None
            with closing_on_error(begun):
                begun.check_room()
        except Failure as failure:
            self.failed(failure)
            return None
        with closing_on_error(begun):
            is_whole = begun.size >= max(size, 1)
            with body_turn.limited(self._patience / 2):  # others wait for as long as that
                rest = None if is_whole else await receive(begun.size)
        give_up = partial(self._give_up, digest)
        return _Kept(descriptor, begun, rest, self._keep, give_up, grown)

    async def _found(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader | None:
        """Open a blob that the store has, None where it does not or fails."""
        try:
            if self.has(descriptor.digest, descriptor.size):
                return await self._stored(descriptor.digest, offset, stop)
        except Failure as failure:
            self._give_up(descriptor.digest, failure)
        return None

    def is_wrong(self, digest: Digest) -> bool:
        """Return whether the store has failed with a blob, so that one does without it."""
        return digest in self._wrong

    async def _stored(self, digest: Digest, offset: int = 0, stop: int | None = None) -> Reader:
        name = f"{clean(self.store.path)}: blob {digest}"
        stored = await open_local(self.store.blob_path(digest), name)
        return _Stored(stored.between(offset, stop), partial(self.remove, digest))

    def with_foreign(self, open_foreign: OpenForeign) -> OpenForeign:
        """Return the same function for layers that lie elsewhere, which keeps them as well."""

        async def opened(descriptor: Descriptor, error: NotFoundError) -> Reader:
            async def receive(offset: int) -> Reader:
                return await rest_of(await open_foreign(descriptor, error), offset)

            return await self.open(descriptor, receive)

        return opened


async def rest_of(reader: Reader, offset: int) -> Reader:
    """Return what is left of a blob after its first bytes, which are received and not looked at."""
    left = offset
    with closing_on_error(reader):
        scratch = memoryview(bytearray(min(offset, _SKIPPED)))
        while left and (received := await reader.receive_into(scratch[:left])):
            left -= received
    return _Skipped(reader) if offset else reader


@contextmanager
def _reading() -> Iterator[None]:
    """Take what the store cannot read for as wrong as what is not what its name says."""
    try:
        yield
    except HOST_FAILURES:
        raise
    except Failure as failure:
        raise InvalidError(f"reading what the store has: {failure.message}") from None


class _Skipped:
    """What is left of a blob whose beginning nobody has verified. See `Reader`."""

    origin = None

    def __init__(self, rest: Reader) -> None:
        self.size: int | None = None
        self._rest = rest

    @property
    def name(self) -> str:
        """See `Reader`."""
        return self._rest.name

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        return await self._rest.receive_into(buffer)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`."""
        return self._rest.reject(failure)

    def accept(self) -> None:
        """See `Reader`. What was verified has another beginning, which may not be this one's."""

    def close(self) -> None:
        """See `Reader`."""
        self._rest.close()


class _Stored:
    """A blob that the store has. See `Reader`."""

    origin = None

    def __init__(self, content: Content, remove: Callable[[Failure], bool]) -> None:
        self.name = content.name
        self.size = content.size
        self._content = content
        self._remove = remove

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        with _reading():
            return await self._content.receive_into(buffer)

    def reject(self, failure: Failure) -> bool:
        """See `Reader`."""
        return self._remove(failure)

    def accept(self) -> None:
        """See `Reader`."""

    def close(self) -> None:
        """See `Reader`."""
        self._content.close()


class _Kept:
    """A blob that is received, and added to the store on the way. See `Reader`.

    `begun` is what the store has of it, which comes first; `rest` has what it lacks. Once the
    store has `failed`, the blob is received without being kept.
    """

    origin = None

    def __init__(
        self,
        descriptor: Descriptor,
        begun: PartialBlob,
        rest: Reader | None,
        keep: Callable[[PartialBlob], None],
        failed: Callable[[Failure], None],
        grown: Callable[[], None],
    ) -> None:
        self.size = descriptor.size if rest is None else None if begun.size else rest.size
        self._digest = descriptor.digest
        self._begun = begun
        self._found = begun.size
        self._rest = rest
        self._keep = keep
        self._failed = failed
        self._grown = grown
        self._position = 0
        self._is_whole = True  # what the store has, as far as it was received
        self._is_kept = False

    @property
    def name(self) -> str:
        """See `Reader`."""
        stored = f"blob {self._digest}, begun in the store"
        return stored if self._rest is None else self._rest.name

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        if self._position < self._found:
            await trio.lowlevel.checkpoint()
            with _reading():
                wanted = buffer[: self._found - self._position]
                count = self._begun.read_into(wanted, self._position)
        elif self._rest is None:
            return 0
        else:
            count = await self._rest.receive_into(buffer)
            if self._is_whole:
                self._append(buffer[:count])
        self._position += count
        return count

    def _append(self, content: memoryview) -> None:
        try:
            self._begun.append(content)
        except Failure as failure:
            self._is_whole = False
            self._failed(failure)
        else:
            self._grown()

    def reject(self, failure: Failure) -> bool:
        """See `Reader`. What a process has left may be wrong: everything is asked for once more."""
        try:
            self._begun.truncate()
        except Failure as error:
            self._failed(error)
        if self._found:
            return True
        return self._rest is not None and self._rest.reject(failure)

    def accept(self) -> None:
        """See `Reader`."""
        if self._rest is not None:
            self._rest.accept()
        if self._is_whole:
            self._is_kept = True
            self._keep(self._begun)

    def close(self) -> None:
        """See `Reader`. What is kept belongs to whoever keeps it."""
        if self._rest is not None:
            self._rest.close()
        if not self._is_kept:
            self._begun.close()

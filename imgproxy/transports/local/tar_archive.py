"""A tar archive, plain or compressed: its members by name, read where they lie.

The headers are read once, when it is opened; of a plain archive nothing else, a compressed one has
to be inflated for it. Nothing is unpacked and nothing is written, but what comes through a pipe,
which is kept in a file without a name. That the file is still the one that was opened is looked at
again before each member.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import trio

from imgproxy.errors import (
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
    clean,
)
from imgproxy.host import environment
from imgproxy.host.files import OpenFile
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import tar
from imgproxy.transports.local import decompression
from imgproxy.transports.readers import Bytes, Content

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

    from imgproxy.specs.oci.tar import Stream
    from imgproxy.transports.local.decompression import Cursor, Inflated

T = TypeVar("T")

# What is kept of each member, to tell compressed layers from plain ones.
_HEAD = 16

# Small members of a compressed archive are kept whole while it is gone through: those are the ones
# that are asked for first, and lie at the end.
_SMALL = 256 * 1024
_MAX_KEPT = 8 * 1024 * 1024

# What is inflated or taken from a pipe in one go.
_AHEAD = 2 * 1024 * 1024

# Links in a row; the system gives up at 40 as well (path_resolution(7)).
_MAX_LINKS = 40

# Members that decide what is trusted: readers differ in which of two they take.
_CONTROL = ("manifest.json", "index.json", "oci-layout", "repositories")

_MAX_SHOWN = 10


class Member(NamedTuple):
    """A member, with the first bytes of it, and all of it if it is small and was at hand.

    `copies` is how many members have the name; this is the last.
    """

    kind: tar.Kind
    offset: int
    size: int
    target: str
    head: bytes
    content: bytes | None
    copies: int


class Archive:
    """An archive that has been indexed; see `open_archive`. A `tree.Tree`."""

    def __init__(
        self, file: OpenFile, inflated: Inflated | None, members: dict[str, Member]
    ) -> None:
        self.path = file.path
        self.true_path = file.true_path
        self._file = file
        self._inflated = inflated
        self._members = members

    def __contains__(self, path: str) -> bool:
        return path in self._members

    @property
    def names(self) -> str:
        """Some names of members, for a message."""
        shown = [clean(name) for name in list(self._members)[:_MAX_SHOWN]]
        more = ", …" if len(self._members) > _MAX_SHOWN else ""
        return (", ".join(shown) or "nothing") + more

    def find(self, path: str, *, sole: bool = False) -> Member:
        """Give the file that a path in the archive leads to, over whatever links.

        `sole`: the name must stand once. Raises `NotFoundError` where there is none, and
        `InvalidError` where the path leads nowhere, or to no file.
        """
        where = f"{clean(self.path)}: {clean(path)}"
        name: str | None = tar.normalise(path)
        for hops in range(_MAX_LINKS + 1):
            member = None if name is None else self._members.get(name)
            if name is None:
                raise _invalid(f"{where} leads out of the archive")
            if member is None:
                if hops:
                    raise _invalid(f"{where} is a link to {clean(name)}, which is not there")
                raise NotFoundError(f"{where} is not there")
            if sole and member.copies > 1:
                raise _invalid(f"{where} stands {member.copies} times in the archive")
            if member.kind == "symlink":
                is_inside = not member.target.startswith("/")
                beside = f"{name.rpartition('/')[0]}/{member.target}"
                name = tar.normalise(beside) if is_inside else None
            elif member.kind == "link":
                name = tar.normalise(member.target)
            elif member.kind == "file":
                return member
            else:
                raise _invalid(f"{where} is no file but of the kind: {member.kind}")
        raise _invalid(f"{where} is a link that leads to itself")

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:
        """See `tree.Tree`; raises as `find` does, and `ReplacedError` for a changed archive."""
        member = self.find(path, sole=sole)
        self._file.check()
        if member.content is not None:
            return Bytes(name, member.content)
        if self._inflated is None:
            return _Stored(name, self._file, member)
        return _Compressed(name, self._inflated, member)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def _invalid(message: str) -> InvalidError:
    return InvalidError(message, code="ARCHIVE_INVALID")


class _Stored(Content):
    """A member of a plain archive."""

    def __init__(self, name: str, file: OpenFile, member: Member) -> None:
        super().__init__(name, member.size)
        self._file = file
        self._position = member.offset
        self._end = member.offset + member.size

    async def receive_into(self, buffer: memoryview) -> int:
        wanted = buffer[: self._end - self._position]
        if not wanted:
            return 0
        count = await self._file.receive_into(wanted, self._position)
        if count == 0:
            raise UnavailableError(f"{self.name}: the archive has become shorter while it was read")
        self._position += count
        return count


class _Job(Generic[T]):
    """Something that a thread does meanwhile, and what is called after it."""

    def __init__(self, function: Callable[[], T], then: Callable[[], None]) -> None:
        self._function = function
        self._then = then
        self._failure: Exception | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        trio.lowlevel.start_thread_soon(self._do, self._tell)

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self._done.is_set()

    def _do(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:  # noqa: BLE001  (raised where it is waited for)
            self._failure = error

    def _tell(self, _: Outcome[None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finish)

    def _finish(self) -> None:
        self._done.set()
        self._then()

    async def result(self) -> T:
        """Give what came of it, or raise that, however often it is asked for."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self._value


class _Compressed(Content):
    """A member of a compressed archive. It is inflated ahead, while what is there is used."""

    def __init__(self, name: str, inflated: Inflated, member: Member) -> None:
        super().__init__(name, member.size)
        self._inflated = inflated
        self._cursor: Cursor | None = None
        self._position = member.offset
        self._end = member.offset + member.size
        self._left = member.size  # to be inflated
        # One is filled while the other is used.
        length = min(_AHEAD, member.size)
        self._buffers = deque(memoryview(bytearray(length)) for _ in range(2))
        self._ready = memoryview(b"")
        self._job: _Job[memoryview] | None = None
        self._is_closed = False

    async def receive_into(self, buffer: memoryview) -> int:
        wanted = buffer[: self._end - self._position]
        if not wanted:
            await trio.lowlevel.checkpoint()
            return 0
        if not self._ready:
            if self._job is None:
                await self._inflated.admit(self)
                self._begin()
            assert self._job is not None  # noqa: S101  (it has begun)
            self._ready = await self._job.result()
            self._job = None
            if self._left and self._inflated.holds(self):
                self._begin()
            else:
                self.park()
        count = min(len(wanted), len(self._ready))
        wanted[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._position += count
        return count

    def _inflate(self) -> memoryview:
        """Give what comes next, a buffer of it. One thread at a time does this."""
        if self._cursor is None:
            position = self._end - self._left
            self._cursor = self._inflated.cursor(position, lambda: self._is_closed)
        self._buffers.rotate()
        buffer = self._buffers[0][: self._left]
        filled = 0
        while filled < len(buffer) and not self._is_closed:
            piece = self._cursor.some(min(len(buffer) - filled, decompression.PIECE))
            if not piece:
                raise UnavailableError(
                    f"{self.name}: the archive has become shorter while it was read"
                )
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._left -= filled
        return buffer

    def _begin(self) -> None:
        self._job = _Job(self._inflate, self._rest)

    def _rest(self) -> None:
        """Give the place to somebody who waits for one; what has been inflated is kept."""
        if self._is_closed or self._inflated.is_crowded():
            self.park()

    @property
    def is_idle(self) -> bool:
        """See `inflate.Holder`."""
        return self._job is None or self._job.is_done

    def park(self) -> None:
        """See `inflate.Holder`."""
        if self._cursor is not None and not self._is_closed:
            self._inflated.keep(self._cursor)
        self._cursor = None
        self._inflated.dismiss(self)

    def close(self) -> None:
        """Let the thread that is at it end, and another reader begin."""
        self._is_closed = True
        if self.is_idle:
            self.park()


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Give what a function gives that waits for disk or processor; it is left when cancelled."""
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


async def open_archive(path: str) -> Archive:
    """Give the archive at a path, or in what a descriptor's path stands for.

    Raises `Failure`: what `OpenFile` raises, `UnsupportedFormatError` for what is no tar,
    `InvalidError` for one that is broken, and `UnavailableError` for one that is being written.
    """
    file = await _open(path)
    try:
        return await in_thread(_index, file)
    except BaseException:
        file.close()  # a thread that is still at it fails on the next read
        raise


async def _open(path: str) -> OpenFile:
    """Open a file, or keep what comes from a pipe that we inherited."""
    fd = references.inherited_descriptor(path)
    try:
        is_pipe = fd is not None and environment.is_pipe(fd)
    except OSError:
        raise NotFoundError(f"{path}: no such descriptor was inherited") from None
    if fd is None or not is_pipe:
        return OpenFile(path)
    try:
        spool = _spools.get(fd) or _spools.setdefault(fd, _Spool(fd))
        return OpenFile(await spool.filled(), path)
    except OSError as error:
        raise UnavailableError(f"keeping what comes through {path}: {error}") from None


class _Spool:
    """A file that has no name, for what can be read only once, and from wherever that was left."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = environment.temporary_file()
        self._is_whole = False
        self._piece = memoryview(b"")  # was read, which cannot be done again, and is to be written

    async def filled(self) -> str:
        """Give a path of the file when all is in it. Raises `OSError`."""
        while not self._is_whole:
            while self._piece:
                with trio.CancelScope(shield=True):
                    written = await trio.to_thread.run_sync(self._file.write, self._piece)
                self._piece = self._piece[written:]
            await trio.lowlevel.wait_readable(self._fd)
            with suppress(BlockingIOError):
                self._piece = memoryview(os.read(self._fd, _AHEAD))
                self._is_whole = not self._piece
        return f"/proc/self/fd/{self._file.fileno()}"


# An inherited descriptor is the process's, and so is what came through it.
_spools: dict[int, _Spool] = {}


def _index(file: OpenFile) -> Archive:
    codec = decompression.codec(file.path, file.read(_HEAD, 0))
    inflated = None if codec is None else decompression.Inflated(file, codec)
    try:
        begin = file.read(tar.BLOCK, 0) if inflated is None else inflated.cursor(0).read(tar.BLOCK)
        if not tar.is_header(begin):
            raise UnsupportedFormatError(
                f"{clean(file.path)} is no tar archive, plain or compressed"
            )
        if inflated is None:
            members = _members(_Plain(file), kept=0)
        else:
            cursor = inflated.first_pass()
            members = _members(cursor, kept=_MAX_KEPT)
            while cursor.some(decompression.PIECE):  # the checksum stands at the very end
                pass
    except tar.TarError as error:
        file.check()
        raise _invalid(f"{clean(file.path)}: the tar archive: {error}") from None
    file.check()
    for name in _CONTROL:
        if name in members and members[name].copies > 1:
            raise _invalid(
                f"{clean(file.path)}: {name} stands {members[name].copies} times in the archive,"
                " and readers differ in which they take"
            )
    return Archive(file, inflated, members)


def _members(stream: Stream, *, kept: int) -> dict[str, Member]:
    """Go through an archive; `kept` is how many bytes of small members may be kept."""
    members: dict[str, Member] = {}
    for name, kind, offset, size, target in tar.entries(stream):
        if name is None:
            continue  # outside of the archive, and nothing in it can lead there
        head, content = b"", None
        if kind == "file":
            is_kept = size <= min(_SMALL, kept)
            head = stream.read(size if is_kept else min(size, _HEAD))
            if is_kept:
                content, head, kept = head, head[:_HEAD], kept - size
        before = members.get(name)
        copies = 1 if before is None else before.copies + 1
        members[name] = Member(kind, offset, size, target, head, content, copies)
    return members


class _Plain:
    """The bytes of a file, in order: a `tar.Stream`."""

    def __init__(self, file: OpenFile) -> None:
        self.position = 0
        self._file = file

    def read(self, size: int) -> bytes:
        content = self._file.read(size, self.position)
        self.position += len(content)
        return content

    def skip(self, size: int) -> None:
        self.position = min(self.position + size, max(self._file.size, self.position))

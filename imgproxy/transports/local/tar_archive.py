"""A tar archive, plain or compressed: its members by name, read in place.

The headers are read once, when it is opened; of a plain archive nothing else is read, a compressed
one has to be decompressed for it. Nothing is unpacked, and nothing is written but what comes
through a pipe (`pipe_spool`). Before each member is read, the file is checked to be the one that
was opened. `specs.oci.tar` has the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import (
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
    clean,
    closing_on_error,
)
from imgproxy.host import environment
from imgproxy.host.files import open_file
from imgproxy.specs import compression
from imgproxy.specs.oci import tar
from imgproxy.transports.local import decompression, near_misses
from imgproxy.transports.readers import Bytes, Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.host.files import FileState, OpenFile
    from imgproxy.specs.oci.tar import Stream
    from imgproxy.transports.local.decompressed_blocks import DecompressedBlocks

# What is kept of each member, to tell compressed layers from plain ones.
_HEAD = 16

# Small members of a compressed archive are kept whole while it is indexed: they are asked for
# first, and are at the end.
_SMALL = 256 * 1024
_MAX_KEPT = 8 * 1024 * 1024

# Links in a row; the system has the same limit (path_resolution(7)).
_MAX_LINKS = 40

# Members that decide what is trusted: of two with one name, readers differ in which they take.
_CONTROL = ("manifest.json", "index.json", "oci-layout", "repositories")

_MAX_SHOWN = 10


class Member(NamedTuple):
    """A member: the offset of its content in the decompressed archive, and its size, in bytes.

    `target` is that of a link. `head` are the first bytes of the content; `content` is all of it
    where it was kept. `copies` is the number of members with this name, of which this is the last.
    """

    kind: tar.Kind
    offset: int
    size: int
    target: str
    head: bytes
    content: bytes | None
    copies: int


class Archive:
    """An archive that has been indexed; see `open_archive`. Fulfils `file_tree.Tree`.

    `true_path` is that of `OpenFile`.
    """

    def __init__(
        self, file: OpenFile, blocks: DecompressedBlocks | None, members: dict[str, Member]
    ) -> None:
        self.path = file.path
        self.true_path = file.true_path
        self._file = file
        self._blocks = blocks  # of a compressed one
        self._members = members

    def __contains__(self, path: object) -> bool:
        return path in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    @property
    def state(self) -> FileState:
        """See `OpenFile`."""
        return self._file.state

    @property
    def names(self) -> str:
        """Some names of members, as a message shows them."""
        shown = [clean(name) for name in list(self._members)[:_MAX_SHOWN]]
        more = ", …" if len(self._members) > _MAX_SHOWN else ""
        return (", ".join(shown) or "nothing") + more

    def find(self, path: str, *, sole: bool = False) -> Member:
        """Return the file that a path in the archive leads to, through any links.

        `sole`: there must be only one member of the name. Raises `NotFoundError` where there is
        none, and `InvalidError` where the path leads nowhere, or to no file.
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
                error = NotFoundError(f"{where} is not there")
                raise near_misses.backslashes(name, self, error)
            if sole and member.copies > 1:
                raise _invalid(f"{where} is in the archive {member.copies} times")
            if member.kind == "symlink":
                is_inside = not member.target.startswith("/")
                beside = f"{name.rpartition('/')[0]}/{member.target}"
                name = tar.normalise(beside) if is_inside else None
            elif member.kind == "link":
                name = tar.normalise(member.target)
            elif member.kind == "file":
                return member
            else:
                raise _invalid(f"{where} is not a file but of the kind: {member.kind}")
        raise _invalid(f"{where} is a link that leads to itself")

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:
        """See `Tree`. Raises what `find` raises, and `ReplacedError` for a changed archive."""
        member = self.find(path, sole=sole)
        await self._file.confirm()
        if member.content is not None:
            return Bytes(name, member.content, self._file.state, member.offset)
        if self._blocks is None:
            return _PlainMember(name, self._file, member)
        from imgproxy.transports.local.compressed_member import CompressedMember

        return CompressedMember(name, self._blocks, member.offset, member.size)

    def close(self) -> None:
        """Close the file. May be called again."""
        self._file.close()


def _invalid(message: str) -> InvalidError:
    return InvalidError(message, code="ARCHIVE_INVALID")


class _PlainMember(Content):
    """A member of a plain archive."""

    def __init__(self, name: str, file: OpenFile, member: Member) -> None:
        super().__init__(name, member.size, file.state, member.offset)
        self._file = file

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        wanted = buffer[: self._end - self._position]
        if not wanted:
            return 0
        count = await self._file.receive_into(wanted, self._start + self._position)
        if count == 0:
            raise UnavailableError(f"{self.name}: the archive has become shorter while it was read")
        self._position += count
        return count


async def open_archive(path: str) -> Archive:
    """Open and index the archive at a path, which may stand for an inherited descriptor.

    Raises `Failure`: what `OpenFile` raises, `UnsupportedFormatError` for what is not a tar,
    `InvalidError` for one that is broken, and `UnavailableError` for one that is being written.
    """
    file = await _open(path)
    # After a cancellation, the thread that is left behind fails at its next read of a closed file.
    with closing_on_error(file):
        return await file.in_thread(_index, file)


async def _open(path: str) -> OpenFile:
    """Open a file, or a copy of what comes from an inherited pipe."""
    fd = environment.inherited_descriptor(path)
    try:
        is_pipe = fd is not None and environment.is_pipe(fd)
    except OSError:
        raise NotFoundError(f"{path}: no such descriptor was inherited") from None
    if fd is None or not is_pipe:
        return await open_file(path)
    from imgproxy.transports.local.pipe_spool import open_spooled

    return await open_spooled(fd, path)


def _index(file: OpenFile) -> Archive:
    codec = compression.codec(file.path, file.read(_HEAD, 0))
    compressed = blocks = None
    if codec is not None:
        # Members need it later, when an upgrade may have replaced the files.
        from imgproxy.transports.local import compressed_member  # noqa: F401
        from imgproxy.transports.local.decompressed_blocks import DecompressedBlocks

        compressed = decompression.CompressedFile(file, codec)
        blocks = DecompressedBlocks(compressed)
    try:
        if compressed is None:
            begin = file.read(tar.BLOCK, 0)
        else:
            begin = compressed.cursor(0).read(tar.BLOCK)
        if not tar.is_header(begin):
            raise UnsupportedFormatError(
                f"{clean(file.path)} is not a tar archive, plain or compressed"
            )
        if compressed is None:
            members = _members(_PlainStream(file), kept=0)
        else:
            cursor = compressed.first_pass()
            members = _members(cursor, kept=_MAX_KEPT)
            while cursor.read_some(decompression.PIECE):  # the checksum is at the very end
                pass
    except tar.TarError as error:
        file.check()
        raise _invalid(f"{clean(file.path)}: the tar archive: {error}") from None
    file.check()
    for name in _CONTROL:
        if name in members and members[name].copies > 1:
            raise _invalid(
                f"{clean(file.path)}: {name} is in the archive {members[name].copies} times,"
                " and readers differ in which of them they use"
            )
    return Archive(file, blocks, members)


def _members(stream: Stream, *, kept: int) -> dict[str, Member]:
    """Return the members by name; `kept` is how many bytes of small members may be kept."""
    members: dict[str, Member] = {}
    for name, kind, offset, size, target in tar.entries(stream):
        if name is None:
            continue  # a path out of the archive, which no link in it can lead to either
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


class _PlainStream:
    """The bytes of a file, in order. Fulfils `tar.Stream`."""

    def __init__(self, file: OpenFile) -> None:
        self.position = 0
        self._file = file

    def read(self, size: int) -> bytes:
        content = self._file.read(size, self.position)
        self.position += len(content)
        return content

    def skip(self, size: int) -> None:
        self.position = min(self.position + size, max(self._file.size, self.position))

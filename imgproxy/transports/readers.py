"""Readers for local content: regular files, and bytes that are in memory.

They fulfil `source.Reader`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import trio

from imgproxy.errors import Failure, InvalidError, clean
from imgproxy.host.files import open_file
from imgproxy.transports.source import Origin

if TYPE_CHECKING:
    from imgproxy.host.files import FileState, OpenFile


class Content:
    """The base of local readers: content of a known size, in bytes, read from its beginning.

    `name` stands for it in messages. `file` is the one that it begins in, at byte `start`; None for
    content that is in no file.
    """

    def __init__(self, name: str, size: int, file: FileState | None = None, start: int = 0) -> None:
        self.name = name
        self.size: int | None = size
        self.origin = None if file is None else Origin(file, start)
        self._start = start
        self._position = 0  # in the content
        self._end = size

    def between(self, offset: int, stop: int | None) -> Self:
        """Return this reader for a part of its content, before anything has been read of it.

        The part begins at byte `offset`, and ends before `stop` or with the content.
        """
        if stop is not None:
            self._end = min(stop, self._end)
        self._position = min(offset, self._end)
        self.size = self._end - self._position
        return self

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        raise NotImplementedError

    async def read(self, limit: int) -> bytes:
        """Return all of it, and close. Raises `InvalidError` for more than `limit` bytes."""
        try:
            size = self.size or 0
            if size > limit:
                raise InvalidError(
                    f"{self.name}: {size} bytes are more than the limit of {limit}",
                    code="SIZE_INVALID",
                )
            content = memoryview(bytearray(size))
            filled = 0
            while filled < size:
                count = await self.receive_into(content[filled:])
                if count == 0:
                    break
                filled += count
            return bytes(content[:filled])
        finally:
            self.close()

    def reject(self, _: Failure) -> bool:
        """See `Reader`. Reading local content again would return the same bytes."""
        return False

    def accept(self) -> None:
        """See `Reader`."""

    def close(self) -> None:
        """See `Reader`."""


class LocalFile(Content):
    """A regular file; `name` is its path if not given."""

    def __init__(self, file: OpenFile, name: str = "") -> None:
        self._file = file
        super().__init__(name or clean(file.path), file.size, file.state)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        wanted = buffer[: self._end - self._position]
        count = await self._file.receive_into(wanted, self._position) if wanted else 0
        self._position += count
        return count

    def close(self) -> None:
        """See `Reader`."""
        self._file.close()


async def open_local(path: str, name: str = "") -> LocalFile:
    """Open a regular file; `name` is its path if not given. Raises what `OpenFile` raises."""
    return LocalFile(await open_file(path), name)


class Bytes(Content):
    """Bytes that are in memory; where they are from, `file` and `start` say as in `Content`."""

    def __init__(
        self, name: str, content: bytes, file: FileState | None = None, start: int = 0
    ) -> None:
        super().__init__(name, len(content), file, start)
        self._content = memoryview(content)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Reader`."""
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), self._end - self._position)
        buffer[:count] = self._content[self._position : self._position + count]
        self._position += count
        return count

"""Bytes at hand as readers: regular files, and what is in memory already."""

from __future__ import annotations

import trio

from imgproxy.errors import Failure, InvalidError, clean
from imgproxy.host.files import OpenFile


class Content:
    """Bytes of a known size that are pulled from their beginning: a `transports.source.Reader`.

    `name` stands for them in messages.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size: int | None = size

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end."""
        raise NotImplementedError

    async def read(self, limit: int) -> bytes:
        """Give the whole, and close it. Raises `InvalidError` for more than `limit` bytes."""
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
        """Whatever is wrong with local bytes, there are no others in their place."""
        return False

    def close(self) -> None:
        """Let go of what is held. May be called again."""


class LocalFile(Content):
    """A regular file being read from its beginning; `name` is its path if not given.

    Raises as `OpenFile` does.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self._file = OpenFile(path)
        self._position = 0
        super().__init__(name or clean(path), self._file.size)

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end."""
        count = await self._file.receive_into(buffer, self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Give the descriptor back. May be called again."""
        self._file.close()


class Bytes(Content):
    """Bytes that are at hand."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(name, len(content))
        self._rest = memoryview(content)

    async def receive_into(self, buffer: memoryview) -> int:
        """Put the next bytes at the start of `buffer`; give how many, 0 at the end."""
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

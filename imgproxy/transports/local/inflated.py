"""A compressed file as what it decompresses to, whose size is known before it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import closing_on_error
from imgproxy.host.files import open_file
from imgproxy.specs import compression
from imgproxy.transports.local import decompression
from imgproxy.transports.local.compressed_member import CompressedMember
from imgproxy.transports.local.decompressed_blocks import DecompressedBlocks
from imgproxy.transports.readers import LocalFile

if TYPE_CHECKING:
    from imgproxy.host.files import OpenFile
    from imgproxy.transports.local.decompression import CompressedFile
    from imgproxy.transports.readers import Content


async def open_inflated(path: str, name: str) -> Content:
    """Open a file, compressed or not, as its content; `name` stands for it in messages.

    A compressed one is decompressed twice: its size is in no header that can be relied on. Raises
    `Failure`.
    """
    file = await open_file(path)
    with closing_on_error(file):
        codec = compression.codec(path, file.read(compression.HEAD, 0))
        if codec is None:
            return LocalFile(file, name)
        compressed = decompression.CompressedFile(file, codec)
        return _Inflated(name, file, compressed, await file.in_thread(_size, compressed))


def _size(compressed: CompressedFile) -> int:
    cursor = compressed.first_pass()
    while cursor.read_some(decompression.PIECE):
        pass
    return cursor.position


class _Inflated(CompressedMember):
    """All that a file decompresses to."""

    def __init__(self, name: str, file: OpenFile, compressed: CompressedFile, size: int) -> None:
        super().__init__(name, DecompressedBlocks(compressed), 0, size)
        self._file = file

    def close(self) -> None:
        """See `Reader`."""
        super().close()
        self._file.close()

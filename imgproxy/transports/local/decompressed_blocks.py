"""Blocks of what a compressed archive decompresses to, for those who read parts of its members.

Who asks for a part often reads no more than its beginning, hangs up and asks for what follows:
containerd does, for each chunk of a layer. By then more has been decompressed than was read. So
blocks are kept for a while, and decompressors belong to no reader: each is taken for a block, by
whoever needs one that it comes to soonest, and given back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from imgproxy.transports.local import decompression
from imgproxy.transports.local.decompression import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.transports.local.decompression import CompressedFile

# Bytes of a block.
BLOCK = decompression.PIECE

# Blocks that are kept, of all archives of the process together: 16 MiB. What is decompressed ahead
# and lies in the buffers of a connection that is then reset are some 8 MiB.
MAX_KEPT = 256

# Blocks before the one that is wanted that are kept as well: others read in parallel what is near.
_NEAR = 64

# Decompressors that are kept for each archive; each has its window.
_MAX_IDLE = 4


class _Kept:
    """The blocks that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[object, int], bytes] = OrderedDict()

    def get(self, archive: object, number: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get((archive, number))
            if block is not None:
                self._blocks.move_to_end((archive, number))
            return block

    def put(self, archive: object, number: int, block: bytes) -> None:
        with self._lock:
            self._blocks[archive, number] = block
            if len(self._blocks) > MAX_KEPT:
                self._blocks.popitem(last=False)


_kept = _Kept()


class DecompressedBlocks:
    """The blocks of one archive, read in threads."""

    def __init__(self, archive: CompressedFile) -> None:
        self.archive = archive
        self._key = object()  # its blocks must not keep the archive
        self._changed = threading.Condition()
        self._idle: list[Cursor] = []
        self._busy: set[Cursor] = set()

    def read(self, position: int, is_unwanted: Callable[[], bool]) -> memoryview:
        """Return the bytes from a position to the end of its block; none at the end of all.

        There are none either once `is_unwanted` returns true. Raises what a `Cursor` raises.
        """
        number, before = divmod(position, BLOCK)
        return memoryview(self._block(number, is_unwanted))[before:]

    def _block(self, number: int, is_unwanted: Callable[[], bool]) -> bytes:
        with self._changed:
            while True:
                block = _kept.get(self._key, number)
                if block is not None:
                    return block
                cursor = self._nearest(number * BLOCK)
                if cursor not in self._busy:
                    break
                self._changed.wait()  # its reader may come to this block, and gives it back soon
            self._idle = [each for each in self._idle if each is not cursor]
            self._busy.add(cursor)
        is_usable = False
        try:
            block = self._decompress(cursor, number, is_unwanted)
            is_usable = True
            return block
        finally:
            with self._changed:
                self._busy.remove(cursor)
                if is_usable:
                    self._idle = [*self._idle, cursor][-_MAX_IDLE:]
                self._changed.notify_all()

    def _nearest(self, position: int) -> Cursor:
        """Return the cursor that comes to a position soonest, which may be in use, or a new one."""
        point = self.archive.point_before(position)
        known = (each for each in (*self._idle, *self._busy) if each.position <= position)
        cursor = max(known, key=lambda each: each.position, default=None)
        if cursor is None or cursor.position < point.position:
            return Cursor(self.archive, point)
        return cursor

    def _decompress(self, cursor: Cursor, number: int, is_unwanted: Callable[[], bool]) -> bytes:
        """Return a block, after all that comes before it; keep those that are near."""
        cursor.skip(-cursor.position % BLOCK)  # a point may be anywhere
        while not is_unwanted():
            at = cursor.position // BLOCK
            if at < number - _NEAR:
                cursor.skip(BLOCK)
                is_over = cursor.position // BLOCK == at
            else:
                block = cursor.read(BLOCK)
                _kept.put(self._key, at, block)
                is_over = len(block) < BLOCK
                if at == number:
                    return block
            if is_over:
                break
        return b""

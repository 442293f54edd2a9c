"""What one thread makes, in pieces, for another that reads it: a `layer_application.Content`."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Pieces that may lie ready: with pieces of 256 KiB, 2 MiB.
_READY = 8


class PieceQueue:
    """The pieces that `make` yields in a thread of its own. Close it in any case.

    What `make` raises is raised to the reader. `watch`, if given, is called by the reader with each
    piece, in order.
    """

    def __init__(
        self, make: Callable[[], Iterator[bytes]], watch: Callable[[bytes], object] | None = None
    ) -> None:
        self.position = 0
        self._make = make
        self._watch = watch
        self._ready: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(_READY):
            self._room.put(None)
        self._is_closed = False
        self._piece = b""
        self._at = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="inflating", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for piece in self._make():
                if self._is_closed:
                    break
                if piece:
                    self._room.get()
                    self._ready.put(piece)
            self._ready.put(b"")
        except BaseException as error:  # noqa: BLE001  (the reader raises it)
            self._ready.put(error)

    def _fill(self) -> None:
        """Take the next piece, empty at the end."""
        if self._ended:
            return
        piece = self._ready.get()
        self._room.put(None)
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._ended = not piece
        self._piece, self._at = piece, 0
        if self._watch is not None:
            self._watch(piece)

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""
        end = self._at + size
        if end <= len(self._piece):
            found = self._piece[self._at : end]
            self._at = end
            self.position += size
            return found
        pieces = []
        while size and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, limit: int) -> bytes | memoryview:
        """Return some of the next bytes, `limit` at most; none at the end alone."""
        if self._at == len(self._piece):
            self._fill()
        at, whole = self._at, self._piece
        if at == 0 and len(whole) <= limit:
            piece: bytes | memoryview = whole
        else:
            piece = memoryview(whole)[at : at + limit]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def skip(self, size: int) -> None:
        """Skip bytes, fewer than `size` only at the end."""
        while size and (piece := self.read_some(size)):
            size -= len(piece)

    def drain(self) -> None:
        """Read to the end."""
        while self.read_some(1 << 30):
            pass

    def close(self) -> None:
        """Wait for the thread to end, which makes no more than the piece it is at."""
        self._is_closed = True
        while not self._ended:  # it may wait for room
            with suppress(BaseException):
                self._fill()
        self._thread.join()

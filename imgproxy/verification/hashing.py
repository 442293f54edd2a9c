"""Hashing in a thread, beside the event loop.

SHA-256 of a blob takes as long as everything else together, so that the pieces of a blob are hashed
while others are received and sent. A thread runs only as long as there are pieces to hash.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from outcome import Outcome

    from imgproxy.verification.block_hashes import BlockHashes


class HashingThread:
    """A hash that one thread updates, a few pieces behind, while the event loop goes on."""

    def __init__(self, hasher: Hash | BlockHashes) -> None:
        self.hasher = hasher
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._pieces: deque[memoryview] = deque()  # begun, and not hashed yet
        self._awaited: tuple[int, trio.Event] | None = None
        self._failure: Exception | None = None

    def begin(self, piece: memoryview) -> None:
        """Begin to hash `piece`, which must not change until `catch_up` has waited for it."""
        with self._lock:
            self._pieces.append(piece)
            is_first = len(self._pieces) == 1
        if is_first:  # otherwise a thread is running
            trio.lowlevel.start_thread_soon(self._hash_all, _ignore)

    def _hash_all(self) -> None:
        try:
            while self._hash_one():
                self._wake()
        except Exception as error:  # noqa: BLE001  (raised by `catch_up`)
            self._failure = error
        self._wake()

    def _hash_one(self) -> bool:
        """Hash the oldest piece; return whether there are more."""
        self.hasher.update(self._pieces[0])
        with self._lock:
            self._pieces.popleft()
            return bool(self._pieces)

    def _wake(self) -> None:
        """Wake the task in `catch_up` once its condition is met.

        Waking the event loop costs it a turn, so that it is not done without a waiting task.
        """
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
        """Wait until at most `most` pieces are not hashed. Raises what the hash has raised."""
        event = trio.Event()
        with self._lock:
            is_behind = len(self._pieces) > most and self._failure is None
            self._awaited = (most, event) if is_behind else None
        if is_behind:
            await event.wait()
        if self._failure is not None:
            raise self._failure


def _ignore(_: Outcome[None]) -> None:
    """Ignore the outcome of a thread, which `_hash_all` has reported already."""

"""The commits of blobs, which wait for the disk while others are received."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from imgproxy.store.partial_blob import PartialBlob


class Keeper:
    """The blobs that have been verified and are not committed yet."""

    def __init__(self) -> None:
        self._verified: list[PartialBlob] = []

    def keep(self, blob: PartialBlob) -> None:
        """Take over a blob that has been verified."""
        self._verified.append(blob)

    async def commit(self) -> None:
        """Commit the blobs that have been taken over, in a thread. Raises `Failure`."""
        while self._verified:
            blob = self._verified.pop()
            try:
                await trio.to_thread.run_sync(blob.commit)
            finally:
                blob.close()

    def close(self) -> None:
        """Give up what is not committed; the next process goes on with it."""
        while self._verified:
            self._verified.pop().close()

"""How long a client has made its conversation wait: for a request, and for room for a reply."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from imgproxy.net.streams import ByteStream

# In seconds: for a request, for the rest of one, and for room for a reply.
IDLE_LIMIT = 60.0
REQUEST_LIMIT = 10.0
STALL_LIMIT = 30.0


class Patience:
    """How long a conversation waits for its client, which it does for one thing at a time."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.allow(IDLE_LIMIT)

    def allow(self, limit: float) -> None:
        """Begin to wait for the client, and allow it so many seconds."""
        self.limit, self._since = limit, trio.current_time()
        self._sent = self._stream.sent_bytes

    def pause(self) -> None:
        """Wait for something else than the client."""
        self.allow(math.inf)

    def awaits_request(self) -> bool:
        """Return whether a request, or the rest of one, has not been received yet."""
        return self.limit in (IDLE_LIMIT, REQUEST_LIMIT)

    def is_overdue(self) -> bool:
        """Return whether the client has made no progress for longer than it is allowed to.

        How much of a reply has been taken is looked at here, so this is to be asked repeatedly.
        """
        now, sent = trio.current_time(), self._stream.sent_bytes
        if self.limit == STALL_LIMIT and sent != self._sent:
            self._sent, self._since = sent, now
        return now - self._since >= self.limit

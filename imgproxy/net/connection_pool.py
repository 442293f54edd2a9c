"""Idle connections, kept by origin until a request takes them: RFC 9112 section 9.3.

A connection that is still being made is an entry like any other: an entry is asked for its
connection, which may take time, and stays in the pool until it has answered. A task that is
cancelled while it waits thus leaves the entry to the next one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from imgproxy.net.streams import ByteStream

    Origin = tuple[str, str, int]

# As many as are asked for at the same time, at most; more idle connections to one origin would only
# wait until the server closes them.
MAX_IDLE = 24


class Entry(Protocol):
    """A connection that is open, or that is being made."""

    async def connection(self) -> Connection | None:
        """Wait for the connection and return it, None where there is none or it was taken."""

    def close(self) -> None:
        """Close the connection, also one that is made later. May be called again."""


class Connection(NamedTuple):
    """An open connection, which is an `Entry` itself.

    `sent` is the request that has been sent on it and whose response nothing has received yet,
    empty for none. `is_kept`: it has had a response, and may have been idle since.
    """

    stream: ByteStream
    sent: bytes = b""
    is_kept: bool = False

    async def connection(self) -> Connection:
        """See `Entry`."""
        return self

    def close(self) -> None:
        """See `Entry`."""
        self.stream.close()

    @property
    def is_usable(self) -> bool:
        """Whether a request may use it: surplus bytes would be taken for the response to it."""
        return bool(self.sent) or self.stream.is_quiet()


class ConnectionPool:
    """Connections that no request uses, at most `MAX_IDLE` to an origin."""

    def __init__(self) -> None:
        self._entries: defaultdict[Origin, list[Entry]] = defaultdict(list)

    def put(self, origin: Origin, entry: Entry) -> None:
        """Keep a connection to an origin, or close it if there are enough."""
        entries = self._entries[origin]
        if len(entries) < MAX_IDLE:
            entries.append(entry)
        else:
            entry.close()

    async def take(self, origin: Origin) -> Connection | None:
        """Remove a connection to an origin and return it, None if no usable one is left.

        The last one that was put is the first one taken; those that prove unusable are closed.
        """
        entries = self._entries[origin]
        while entries:
            entry = entries[-1]
            connection = await entry.connection()
            # Other tasks may have waited for the same entry; one of them got its connection.
            if entry in entries:
                entries.remove(entry)
            if connection is not None:
                if connection.is_usable:
                    return connection
                connection.close()
        return None

    def close(self) -> None:
        """Close all connections that no request uses."""
        for entries in self._entries.values():
            while entries:
                entries.pop().close()

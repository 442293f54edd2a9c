"""The assignment of connections to requests: pure decisions; the callers wait."""

from __future__ import annotations

from typing import Generic, TypeVar

from imgproxy.parent.failures import BusyError

C = TypeVar("C")


class Pool(Generic[C]):
    """Connections that carry one exchange at a time. A holder is a thread or a task."""

    def __init__(self, connections: list[C]) -> None:
        self._idle = connections
        self._held: dict[C, object] = {}

    def __len__(self) -> int:
        return len(self._idle) + len(self._held)

    def take(self, holder: object, target: str) -> C | None:
        """Assign a connection to a holder and return it, None where the holder must wait.

        Raises `BusyError` where the holder would wait for itself.
        """
        if self._idle:
            connection = self._idle.pop()
            self._held[connection] = holder
            return connection
        if all(each == holder for each in self._held.values()):
            count = len(self._held)
            raise BusyError(
                target,
                f"all sockets ({count}) carry blobs that you have open: close one, or start with"
                " more sockets",
            )
        return None

    def release(self, connection: C) -> None:
        """Make a connection available to other exchanges."""
        if self._held.pop(connection, None) is not None:
            self._idle.append(connection)

    def discard(self, connection: C) -> None:
        """Remove a connection that cannot be used any more."""
        self._held.pop(connection, None)

    def empty(self) -> list[C]:
        """Remove and return all connections."""
        connections = [*self._idle, *self._held]
        self._idle = []
        self._held = {}
        return connections

"""Who has which connection: decided here, waited for by the flavours."""

from __future__ import annotations

from typing import Generic, TypeVar

from imgproxy.parent.failures import BusyError

C = TypeVar("C")


class Pool(Generic[C]):
    """Connections that carry one exchange at a time. A holder is whoever would wait: a thread."""

    def __init__(self, connections: list[C]) -> None:
        self._idle = connections
        self._held: dict[C, object] = {}

    def __len__(self) -> int:
        return len(self._idle) + len(self._held)

    def take(self, holder: object, target: str) -> C | None:
        """Give a connection, None where one has to wait for it.

        Raises `BusyError` where the one who waits would wait for itself.
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

    def give_back(self, connection: C) -> None:
        """Take back a connection that another exchange may use."""
        if self._held.pop(connection, None) is not None:
            self._idle.append(connection)

    def lose(self, connection: C) -> None:
        """Forget a connection that cannot be used any more."""
        self._held.pop(connection, None)

    def empty(self) -> list[C]:
        """Give all connections, and have none from now on."""
        connections = [*self._idle, *self._held]
        self._idle = []
        self._held = {}
        return connections

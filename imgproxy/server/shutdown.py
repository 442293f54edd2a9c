"""Requests to stop that cancel what waits: of the whole service, or of one connection."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class _Way(Protocol):
        """What leads to a client."""

        async def wait_hung_up(self) -> None:
            """Wait until the client cannot receive anything any more."""


class Interruption:
    """A request to stop, which is made once."""

    def __init__(self) -> None:
        self.requested = False
        self.scopes: set[trio.CancelScope] = set()

    def request(self) -> None:
        """Cancel the blocks that can be interrupted, now and from now on."""
        self.requested = True
        for scope in self.scopes:
            scope.cancel()

    @contextmanager
    def interrupts(self, *others: Interruption) -> Iterator[trio.CancelScope]:
        """Cancel the block when the request is made, or at its first wait if it was made before.

        So do the requests of others.
        """
        every = (self, *others)
        with trio.CancelScope() as scope:
            if any(each.requested for each in every):
                scope.cancel()
            for each in every:
                each.scopes.add(scope)
            try:
                yield scope
            finally:
                for each in every:
                    each.scopes.remove(scope)


class Shutdown(Interruption):
    """The end of the service, which a reply of the front-end may ask for.

    No new requests are taken; replies that have been begun are finished.
    """


class HangUp(Interruption):
    """The end of the work for a client that has hung up; it cannot receive a reply any more."""

    async def watch(self, way: _Way) -> None:
        """Wait for the client to hang up, and stop the work for it."""
        with suppress(OSError):  # out of descriptors: sending will fail in its place
            await way.wait_hung_up()
            self.requested = True
            # The tasks that were woken by the client's last request take it before they are
            # cancelled: it may ask for a shutdown.
            await trio.lowlevel.checkpoint()
            self.request()

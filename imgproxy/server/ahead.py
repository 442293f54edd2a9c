"""Replies that are begun before their turn, to requests that a client has pipelined.

A client that sends its next requests without waiting for replies says what it will want. Where the
handler has to wait for somebody else before a reply, that wait is done while the replies before it
are sent. Nothing of it can be seen but the time: replies go out in the order of the requests, and
what failed is told when its request has its turn. Requests are looked at without being taken: each
is read and checked again when it is answered.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from imgproxy.server.handler import MAX_BEGUN_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.server.handler import AheadHandler, Reply, Request, Room, Weight


class _Begun:
    """A reply that is begun: when it is `done`, it is there, or why it cannot be.

    It takes its weight of the room until it is released.
    """

    reply: Reply | None = None
    error: Exception | None = None

    def __init__(self, request: Request, weight: Weight, room: Room) -> None:
        self.request = request
        self.done = trio.Event()
        self.weight = weight
        self._room = room
        self._scope = trio.CancelScope()
        room.held += weight.held

    async def run(self, handler: AheadHandler) -> None:
        with self._scope:
            try:
                self.reply = await handler.handle(self.request)
            except Exception as error:  # noqa: BLE001  (raised when the request has its turn)
                self.error = error
            finally:
                self.done.set()
        if self._scope.cancel_called:
            self.drop()

    def release(self) -> None:
        self._room.held -= self.weight.held

    def drop(self) -> None:
        """Cancel what is under way, or close what it has led to. May be called again."""
        self._scope.cancel()
        if self.reply is not None:
            self.reply.close()


class Ahead:
    """The replies of one conversation that are begun, to its next requests in their order.

    They are begun in `nursery`; close it before that ends.
    """

    def __init__(self, handler: AheadHandler, nursery: trio.Nursery) -> None:
        self._handler = handler
        self._nursery = nursery
        self._present: _Begun | None = None
        self._next: deque[_Begun] = deque()
        handler.room.conversations += 1

    def may_begin(self) -> bool:
        """Return whether it is worthwhile to look for further requests."""
        size = sum(each.weight.size for each in self._next)
        return size < MAX_BEGUN_SIZE and len(self._next) < self._handler.room.share

    def begin(self, upcoming: Sequence[Request]) -> None:
        """Begin the replies to requests that follow the one that is being answered.

        The first that must not be begun early ends it: it may change what others lead to.
        """
        room = self._handler.room
        for request in upcoming[len(self._next) :]:
            if not self.may_begin():
                return
            weight = self._handler.weight_ahead(request)
            if weight is None or not room.has(weight):
                return
            begun = _Begun(request, weight, room)
            self._next.append(begun)
            self._nursery.start_soon(begun.run, self._handler)

    def turn_to(self, request: Request) -> None:
        """Make the next request the present one; what was begun for another is dropped."""
        if not self._next:
            return
        is_same = self._next[0].request[:2] == request[:2]
        if is_same and self._handler.weight_ahead(request) is not None:
            self._present = self._next.popleft()
            self._present.release()
        else:
            self.drop()

    async def reply(self) -> Reply | None:
        """Return the reply to the present request, None if it was not begun.

        Raises what the handler raised.
        """
        if self._present is None:
            return None
        await self._present.done.wait()
        begun, self._present = self._present, None
        if begun.error is not None:
            raise begun.error
        return begun.reply

    def drop(self) -> None:
        """Drop all that is begun."""
        for begun in self._next:
            begun.release()
            begun.drop()
        self._next.clear()
        if self._present is not None:
            self._present.drop()
            self._present = None

    def close(self) -> None:
        """Drop all that is begun, and leave the room to other conversations."""
        self.drop()
        self._handler.room.conversations -= 1

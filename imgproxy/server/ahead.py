"""Replies that are begun before their turn, to requests that a client has pipelined.

A client that sends its next requests without waiting for replies says what it will want. Where the
handler has to wait for somebody else before a reply, that wait is done while the replies before it
are sent. Nothing of it can be seen but the time: replies go out in the order of the requests, and
what failed is told when its request has its turn. Requests are looked at without being taken: each
is read and checked again when it is answered.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.server.begun import Begun
from imgproxy.server.handler import MAX_BEGUN_SIZE, Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from imgproxy.server.handler import AheadHandler, Request, Weight


class _Next(NamedTuple):
    """A request that has not had its turn, and the reply to it, which takes a part of the room."""

    request: Request
    weight: Weight
    reply: Begun[Reply]


class Ahead:
    """The replies of one conversation that are begun, to its next requests in their order.

    They are begun in `nursery`; close it before that ends.
    """

    def __init__(self, handler: AheadHandler, nursery: trio.Nursery) -> None:
        self._handler = handler
        self._room = handler.room
        self._nursery = nursery
        self._next: deque[_Next] = deque()
        self._room.conversations += 1

    def may_begin(self) -> bool:
        """Return whether it is worthwhile to look for further requests."""
        size = sum(each.weight.size for each in self._next)
        return size < MAX_BEGUN_SIZE and len(self._next) < self._room.share

    def begin(self, upcoming: Sequence[Request]) -> None:
        """Begin the replies to requests that follow the one that is being answered.

        The first that must not be begun early ends it: it may change what others lead to.
        """
        for request in upcoming[len(self._next) :]:
            if not self.may_begin():
                return
            weight = self._handler.weight_ahead(request)
            if weight is None or not self._room.has(weight):
                return
            reply = Begun(partial(self._handler.handle, request), Reply.read_ahead)
            self._room.held += weight.held
            self._next.append(_Next(request, weight, reply))
            self._nursery.start_soon(reply.run)

    def turn_to(self, request: Request) -> Begun[Reply] | None:
        """Return the reply to the next request if it was begun, and may still be given out.

        Otherwise everything that is begun is dropped.
        """
        if not self._next:
            return None
        is_same = self._next[0].request[:2] == request[:2]
        if not is_same or self._handler.weight_ahead(request) is None:
            self._drop()
            return None
        return self._take().reply

    def _take(self) -> _Next:
        taken = self._next.popleft()
        self._room.held -= taken.weight.held
        return taken

    def _drop(self) -> None:
        while self._next:
            self._take().reply.drop()

    def close(self) -> None:
        """Drop all that is begun, and leave the room to other conversations."""
        self._drop()
        self._room.conversations -= 1

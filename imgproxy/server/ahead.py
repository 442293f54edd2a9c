"""Replies that are begun before their turn, to requests that a client has pipelined.

A client that sends its next requests without waiting for replies says what it will want. Where the
handler has to wait for somebody else before a reply, that wait is done while the replies before it
are sent. Nothing of it can be seen but the time: replies go out in the order of the requests, and
what failed is told when its request has its turn. Requests are looked at without being taken: each
is read and checked again when it is answered.

Where bodies are at another place than the one that is asked for them, as many more replies are
begun, as far as it takes to know that place: see `net.body_turn`.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from imgproxy.net import body_turn
from imgproxy.server.begun import Begun
from imgproxy.server.handler import MAX_BEGUN_SIZE, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgproxy.server.handler import AheadHandler, Handler, Request, Weight

# In bytes: behind how much no reply waits for the turn of its body, since that may take too long.
MAX_BEFORE = 64 * 1024 * 1024


class _Turn:
    """The turn of a body: see `body_turn.Wait`."""

    def __init__(self) -> None:
        self.is_redirected = False
        self._has_come = trio.Event()

    @property
    def has_come(self) -> bool:
        """Whether the body may be asked for."""
        return self._has_come.is_set()

    def begin(self) -> None:
        """Let the body be asked for. May be called again."""
        self._has_come.set()

    async def wait(self, *, is_redirected: bool) -> None:
        """See `body_turn.Wait`."""
        self.is_redirected = self.is_redirected or is_redirected
        await self._has_come.wait()


class _Next(NamedTuple):
    """A request that has not had its turn, and the reply to it.

    It takes a part of the room once the turn of its body has come.
    """

    request: Request
    weight: Weight
    turn: _Turn
    reply: Begun[Reply]

    @property
    def is_asking(self) -> bool:
        """Whether it is not yet known where the body is."""
        return not (self.turn.is_redirected or self.reply.is_done)


async def _reply(handler: Handler, request: Request, turn: _Turn) -> Reply:
    with body_turn.awaited(turn.wait):
        return await handler.handle(request)


class Ahead:
    """The replies of one conversation that are begun, to its next requests in their order.

    They are begun in `nursery`; close it before that ends.
    """

    def __init__(self, handler: AheadHandler, nursery: trio.Nursery) -> None:
        self._handler = handler
        self._room = handler.room
        self._nursery = nursery
        self._next: deque[_Next] = deque()
        self._is_redirected = False
        self._room.conversations += 1

    def may_begin(self) -> bool:
        """Return whether it is worthwhile to look for further requests."""
        self._is_redirected |= any(each.turn.is_redirected for each in self._next)
        return self._may_receive() or self._may_ask()

    def _may_receive(self) -> bool:
        return self._has_place([each for each in self._next if each.turn.has_come])

    def _may_ask(self) -> bool:
        """Return whether one more may wait for its turn, once it is known where its body is."""
        if not self._is_redirected or _size(self._next) >= MAX_BEFORE:
            return False
        # There are connections for so many that ask at the same time.
        is_free = sum(each.is_asking for each in self._next) < self._room.share
        return is_free and self._has_place([each for each in self._next if not each.turn.has_come])

    def _has_place(self, others: Sequence[_Next]) -> bool:
        return len(others) < self._room.share and _size(others) < MAX_BEGUN_SIZE

    def begin(self, upcoming: Sequence[Request]) -> None:
        """Begin the replies to requests that follow the one that is being answered.

        The first that must not be begun early ends it: it may change what others lead to.
        """
        self._begin_turns()  # another conversation may have left room
        for request in upcoming[len(self._next) :]:
            weight = self._handler.weight_ahead(request)
            if weight is None:
                return
            may_receive = all(each.turn.has_come for each in self._next) and self._may_receive()
            if not (may_receive and self._room.has(weight)) and not self._may_ask():
                return
            turn = _Turn()
            reply = Begun(partial(_reply, self._handler, request, turn), Reply.read_ahead)
            self._next.append(_Next(request, weight, turn, reply))
            self._begin_turns()
            self._nursery.start_soon(reply.run)

    def _begin_turns(self) -> None:
        """Let the bodies of the next replies be asked for, as far as there is room."""
        for each in self._next:
            if not each.turn.has_come:
                if not (self._may_receive() and self._room.has(each.weight)):
                    return
                self._room.held += each.weight.held
                each.turn.begin()

    def turn_to(self, request: Request) -> Begun[Reply] | None:
        """Return the reply to the next request if it was begun, and may still be given out.

        Otherwise everything that is begun is dropped. `result` waits for it.
        """
        if not self._next:
            return None
        is_same = self._next[0].request[:2] == request[:2]
        if not is_same or self._handler.weight_ahead(request) is None:
            self._drop()
            return None
        taken = self._take()
        taken.turn.begin()
        self._begin_turns()
        return taken.reply

    async def result(self, begun: Begun[Reply]) -> Reply | None:
        """Return a reply that was begun, None where it has waited too long for its turn.

        It is to be made anew then. Raises what the handler raises.
        """
        try:
            return await begun.result()
        except body_turn.OverdueError:
            return None

    def _take(self) -> _Next:
        taken = self._next.popleft()
        if taken.turn.has_come:
            self._room.held -= taken.weight.held
        return taken

    def _drop(self) -> None:
        while self._next:
            self._take().reply.drop()

    def close(self) -> None:
        """Drop all that is begun, and leave the room to other conversations."""
        self._drop()
        self._room.conversations -= 1


def _size(of: Iterable[_Next]) -> int:
    return sum(each.weight.size for each in of)

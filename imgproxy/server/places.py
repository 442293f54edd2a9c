"""A limited number of places for conversations, of which some give theirs to others that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

# How often it is looked whether a conversation gives its place, in seconds.
INTERVAL = 1.0


class Conversation(Protocol):
    """What holds a place."""

    def end(self, reason: str) -> None:
        """End the conversation; it will leave its place soon after."""


C = TypeVar("C", bound=Conversation)


class Places(Generic[C]):
    """Places for conversations. `gives_way` is asked only while others wait, the oldest first.

    `for_bodies`: a conversation is to have one while it sends a body, and not from its first
    request on.
    """

    def __init__(
        self, count: int, gives_way: Callable[[C], bool], *, for_bodies: bool = False
    ) -> None:
        self.for_bodies = for_bodies
        self._free = trio.Semaphore(count)
        self._gives_way = gives_way
        self._holders: dict[C, None] = {}

    def __contains__(self, conversation: C) -> bool:
        """Return whether a conversation has a place."""
        return conversation in self._holders

    async def take(self, conversation: C) -> None:
        """Give a place to a conversation that has none; wait until there is one."""
        if conversation in self._holders:
            return
        async with trio.open_nursery() as nursery:
            if self._free.value == 0:  # the first that waits is the first served
                nursery.start_soon(self._make_room)
            await self._free.acquire()
            self._holders[conversation] = None
            nursery.cancel_scope.cancel()

    def leave(self, conversation: C) -> None:
        """Take back the place of a conversation, if it has one."""
        if conversation in self._holders:
            del self._holders[conversation]
            self._free.release()

    async def _make_room(self) -> None:
        while True:
            for conversation in self._holders:
                if self._gives_way(conversation):
                    conversation.end("others wait for its place")
                    break
            await trio.sleep(INTERVAL)

"""The turn of a body: where a request that is sent early waits before it asks for one.

A public registry answers a request for a blob by saying where the bytes are. That takes a round
trip, and then holds no connection and no memory: whoever will want more blobs than it receives at
once can ask for as many ahead. What a registry has itself waits unread.

What was found may be moved after a while, and others may wait for it: whoever waits in vain for so
long begins anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

# In seconds: how long a request waits for its turn, if nothing else is said.
FRESH = 60.0


class OverdueError(Exception):
    """The turn of a body did not come in time. It is no `Failure`: nobody has failed."""


class Wait(Protocol):
    """How the requests of a task wait for their turn."""

    async def __call__(self, *, is_redirected: bool) -> None:
        """Return when the body may be asked for, or if it is not redirected, may be received.

        It may be called again, after a failure too, and does not wait then.
        """


_current: ContextVar[Wait | None] = ContextVar("turn of a body", default=None)
_limit: ContextVar[float] = ContextVar("limit of the wait for it", default=FRESH)


@contextmanager
def awaited(wait: Wait) -> Iterator[None]:
    """Let the blobs that the block requests wait for their turn."""
    token = _current.set(wait)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Limit how long the block waits for a turn: somebody else may wait for it."""
    token = _limit.set(min(seconds, FRESH))
    try:
        yield
    finally:
        _limit.reset(token)


async def come(*, is_redirected: bool) -> None:
    """Wait for the turn, where the task has one: see `Wait`. Raises `OverdueError`."""
    wait = _current.get()
    if wait is None:
        return
    with trio.move_on_after(_limit.get()) as scope:
        await wait(is_redirected=is_redirected)
    if scope.cancelled_caught:
        raise OverdueError

"""The turn of a body: where a request that is sent early waits before it asks for one.

A public registry answers a request for a blob by saying where the bytes are. That takes a round
trip, and then holds neither a connection nor memory: whoever will want more blobs than it receives
at once can ask for as many ahead.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wait(Protocol):
    """How the requests of a task wait for their turn."""

    async def __call__(self, *, is_redirected: bool) -> None:
        """Return when the body may be asked for, or if it is not redirected, may be received.

        It may be called again, after a failure too, and does not wait then.
        """


_current: ContextVar[Wait | None] = ContextVar("turn of a body", default=None)


@contextmanager
def awaited(wait: Wait) -> Iterator[None]:
    """Let the blobs that the block requests wait for their turn."""
    token = _current.set(wait)
    try:
        yield
    finally:
        _current.reset(token)


async def come(*, is_redirected: bool) -> None:
    """Wait for the turn, where the task has one: see `Wait`."""
    wait = _current.get()
    if wait is not None:
        await wait(is_redirected=is_redirected)

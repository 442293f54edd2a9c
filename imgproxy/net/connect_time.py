"""How long a task puts up with connections that cannot be made.

By default each connection has its own limit. A front-end whose client waits for one answer at a
time, and tries again itself, limits all of them together.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

# In seconds: what each connection has in any case. A lost packet is sent again after one.
LEAST = 1.25


class _ConnectTime:
    """What is left of so many `seconds` for connections that cannot be made."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


_current: ContextVar[_ConnectTime | None] = ContextVar("connect time", default=None)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Limit how long the block waits in vain for connections, all of them together."""
    token = _current.set(_ConnectTime(seconds))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def connection() -> Iterator[float]:
    """Return the limit in seconds for a connection that the block makes.

    It is half of what is left, so that another try, or another location, has time as well. One
    that is made takes nothing of it.
    """
    time = _current.get() or _ConnectTime(math.inf)
    began = trio.current_time()
    try:
        yield max(time.left / 2, LEAST)
    except BaseException:
        time.left -= trio.current_time() - began
        raise

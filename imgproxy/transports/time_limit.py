"""The time limit of what precedes a reply: imgproxy(1), NETWORKS, "Time limits".

A front-end begins it with a request (`limited`). From then on it ends whatever waits for the
network on behalf of this request (`waiting`): tokens, redirects, retries, mirrors, indexes,
signatures. Files on this host are read without it, and so is a body once its reply has begun.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

from imgproxy.errors import UnreachableError
from imgproxy.net import connect_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# In seconds. Parents are told to wait for 15 minutes (imgproxy-protocol(7)): they receive the reply
# that says what took so long.
TIME_LIMIT = 840.0


class TimeLimitError(Exception):
    """The time is over, and with it every further attempt.

    It is not a `Failure`, after which the next location would be tried, and which other requests
    that wait for the same thing would receive as well, although they have time left.
    """


class _Limit:
    """A limit of so many `seconds`; `waited_for` is what was waited for when they were over.

    `retries` are the most that one thing has.
    """

    def __init__(self, seconds: float, retries: float) -> None:
        seconds = max(min(seconds, time_left()), 0.0)
        self.seconds = seconds
        self.end = trio.current_time() + seconds
        self.waited_for = ""
        self.retries = retries


_current: ContextVar[_Limit | None] = ContextVar("time limit", default=None)


@contextmanager
def limited(
    seconds: float, *, retries: float = math.inf, connecting: float = math.inf
) -> Iterator[None]:
    """Limit how long the block waits for the network in all.

    `retries` are the most that one thing has, `connecting` is in seconds, for all connections that
    cannot be made. A block in another one has no more time than that has left. Raises
    `UnreachableError`, which says what was waited for, when the time is over.
    """
    token = _current.set(_Limit(seconds, retries))
    try:
        with connect_time.limited(connecting):
            yield
    except TimeLimitError as error:
        raise UnreachableError(str(error)) from None
    finally:
        _current.reset(token)


def max_retries() -> float:
    """Return how often the block may ask for the same thing again."""
    limit = _current.get()
    return math.inf if limit is None else limit.retries


def time_left() -> float:
    """Return how many seconds the block may still wait for the network."""
    limit = _current.get()
    return math.inf if limit is None else limit.end - trio.current_time()


@contextmanager
def waiting(what: Callable[[], str]) -> Iterator[None]:
    """Raise `TimeLimitError` in the block when the time is over, if there is a limit.

    `what` returns what the block waits for. Of blocks in one another, the message names both the
    outermost and the innermost.
    """
    limit = _current.get()
    if limit is None:
        yield
        return
    with trio.CancelScope(deadline=limit.end) as scope:
        try:
            yield
        except BaseException:
            if trio.current_time() >= limit.end:
                limit.waited_for = limit.waited_for or what()
            raise
    if scope.cancelled_caught:
        outermost = what()
        innermost = f", while waiting for {limit.waited_for}"
        raise TimeLimitError(
            f"{outermost}: given up after {limit.seconds:g} s, which is the limit for everything"
            f" that precedes a reply{innermost if limit.waited_for != outermost else ''}"
        )

"""Calls of the system that may hang, in threads that nobody has to wait for.

Where a file system answers by itself, a call is made at once. Where it may hang (`mounts`), a
thread makes it: the event loop goes on, a task that waits can be cancelled, and the process ends
without the threads that are left behind.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from imgproxy.host import mounts

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Threads for the calls on one file system, those that are left behind too. One that hangs takes no
# thread from another; as many connections as a listener accepts can wait for the same one.
MOST = 64

_limiters: trio.lowlevel.RunVar[dict[int, trio.CapacityLimiter]] = trio.lowlevel.RunVar("limiters")


async def in_thread(device: int, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
    """Call a function in a thread of the file system `device`, and return what it returns.

    After a cancellation, the thread is left behind, and what the function returns is dropped.
    """
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    limiter = limiters.setdefault(device, trio.CapacityLimiter(MOST))
    return await trio.to_thread.run_sync(
        function, *arguments, abandon_on_cancel=True, limiter=limiter
    )


async def on(device: int | None, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
    """Call a function at once if `device` is None, otherwise in a thread of that file system."""
    if device is None:
        return function(*arguments)
    return await in_thread(device, function, *arguments)


async def call(path: str, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
    """Call a function that touches `path`: at once, or in a thread where that may hang."""
    return await on(mounts.may_hang(path), function, *arguments)


async def settle(function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
    """Call a function that looks at paths by `mounts.ask`, and return what it returns.

    Where it would have to wait, a thread gets the answer, and the function is begun again.
    """
    answers: mounts.Answers = {}
    while True:
        try:
            return mounts.call_with(answers, function, *arguments)
        except mounts.WouldWaitError as error:
            asked = error
        answers[asked.function, asked.path] = await in_thread(
            asked.device, _answer, asked.function, asked.path
        )


def _answer(function: Callable[[str], T], path: str) -> tuple[T | None, Exception | None]:
    try:
        return function(path), None
    except Exception as error:  # noqa: BLE001  (raised by the function that asked)
        return None, error


def close_behind(fd: int) -> None:
    """Close a file in a thread, and wait for nothing: FUSE asks its server also then."""
    with suppress(RuntimeError):  # no thread can be started; the end of the process closes it
        trio.lowlevel.start_thread_soon(partial(os.close, fd), lambda _: None)

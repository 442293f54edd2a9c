"""Calls of the system that may hang, in threads that nobody has to wait for.

Where a file system answers by itself, a call is made at once. Where it may hang (`mounts`), a
thread makes it: the event loop goes on, a task that waits can be cancelled, and the process ends
without the threads that are left behind.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from imgproxy.host import mounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

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


class Job(Generic[T]):
    """A function that runs in a thread, and another that is called here after it."""

    def __init__(self, function: Callable[[], T], then: Callable[[], None] = lambda: None) -> None:
        self._function = function
        self._then = then
        self._failure: Exception | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        trio.lowlevel.start_thread_soon(self._run, self._report)

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self._done.is_set()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:  # noqa: BLE001  (raised where it is waited for)
            self._failure = error

    def _report(self, _: Outcome[None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finish)

    def _finish(self) -> None:
        self._done.set()
        self._then()

    async def result(self) -> T:
        """Return what the function returned, or raise what it raised; may be called again."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self._value

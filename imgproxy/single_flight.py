"""A single flight: one attempt at something that several tasks need at the same time."""

from __future__ import annotations

import math
from contextvars import Context
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from imgproxy.errors import Failure, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")

# In seconds: how long a client is let wait for what is made in the background, by default.
# containerd gives a response 30.
WAIT = 25.0


class SingleFlight:
    """Something that several tasks need and one of them gets, while the others wait.

    A failure is raised in all tasks that had been waiting for the attempt, so that a dead registry
    is not waited for once for each; a task that comes later makes another attempt.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._failures = 0
        self._last: Failure | None = None

    async def get(self, have: Callable[[], T | None], make: Callable[[], Awaitable[T]]) -> T:
        """Return the value of `have`, or if that is None, the value of `make`.

        Raises what `make` raises, now or in the attempt that was waited for.
        """
        failures = self._failures
        async with self._turn:
            value = have()
            if value is not None:
                return value
            if self._last is not None and self._failures > failures:
                raise self._last.copy()
            try:
                return await make()
            except Failure as error:
                self._last = error.copy()
                self._failures += 1
                raise


class BackgroundFlights(Generic[T]):
    """Attempts that go on when those who wait for them leave, each at something with a key.

    `wait` is how many seconds a task waits for one. `run` must be running.
    """

    def __init__(self, wait: float = WAIT) -> None:
        self._wait = wait
        self._nursery: trio.Nursery | None = None
        self._under_way: dict[Hashable, _Flight[T]] = {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the attempts, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def begin(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> _Flight[T]:
        """Begin an attempt, unless one is under way."""
        flight = self._under_way.get(key)
        if flight is None:
            assert self._nursery is not None  # noqa: S101  (see `run`)
            flight = self._under_way[key] = _Flight()
            # In a context of its own: the time limit of the first who waits is not that of others.
            Context().run(self._nursery.start_soon, self._make, key, flight, make)
        return flight

    async def get(
        self, key: Hashable, name: str, make: Callable[[], Awaitable[T]], most: float = math.inf
    ) -> T:
        """Return the value of `make`, in an attempt that is under way or in a new one.

        `name` stands for it in messages; no more than `most` seconds are waited. Raises what `make`
        raises, and `NotReadyError` where it takes longer than one waits.
        """
        flight = self.begin(key, make)
        with trio.move_on_after(max(min(self._wait, most), 0.0)):
            await flight.done.wait()
            return flight.result()
        raise NotReadyError(f"{name} is being prepared; ask again", retry_after=self._wait / 5)

    async def _make(
        self, key: Hashable, flight: _Flight[T], make: Callable[[], Awaitable[T]]
    ) -> None:
        try:
            flight.value = await make()
        except Exception as error:  # noqa: BLE001  (raised by those who wait)
            flight.error = error
        finally:
            del self._under_way[key]
            flight.done.set()


class _Flight(Generic[T]):
    """An attempt that is under way, `begun` at a time of the event loop's clock."""

    value: T
    error: Exception | None = None

    def __init__(self) -> None:
        self.begun = trio.current_time()
        self.done = trio.Event()

    def result(self) -> T:
        if isinstance(self.error, Failure):
            raise self.error.copy()
        if self.error is not None:
            raise self.error
        return self.value

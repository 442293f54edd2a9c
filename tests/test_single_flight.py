"""One attempt for all tasks that need the same thing at the same time."""

from __future__ import annotations

import pytest
import trio
from support.streams import elapsing, virtual_time

from imgproxy.errors import Failure, UnavailableError
from imgproxy.single_flight import BackgroundFlights, SingleFlight


class Slow:
    """Something that takes ten seconds to get; `failures` are raised by the first attempts."""

    def __init__(self, *failures: Exception) -> None:
        self.attempts = 0
        self.value: str | None = None
        self._failures = iter(failures)
        self._flight = SingleFlight()

    async def get(self) -> str:
        return await self._flight.get(lambda: self.value, self._make)

    async def _make(self) -> str:
        self.attempts += 1
        await trio.sleep(10)
        failure = next(self._failures, None)
        if failure is not None:
            raise failure
        self.value = "got"
        return self.value


async def gather(slow: Slow, count: int) -> list[str | type[Exception]]:
    """Get it in so many tasks at the same time; return what each got."""
    results: list[str | type[Exception]] = []

    async def get() -> None:
        try:
            results.append(await slow.get())
        except Exception as error:  # noqa: BLE001  (it is what is looked at)
            results.append(type(error))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(get)
    return results


@virtual_time
async def test_one_attempt_serves_all_tasks_that_wait_and_all_that_come_later() -> None:
    slow = Slow()
    with elapsing(10):
        assert await gather(slow, 5) == ["got"] * 5
        assert await slow.get() == "got"
    assert slow.attempts == 1


@virtual_time
async def test_a_failure_is_shared_by_the_tasks_that_wait_and_by_no_other() -> None:
    slow = Slow(UnavailableError("first"), UnavailableError("second"))
    for attempts in (1, 2):
        with elapsing(10):
            assert await gather(slow, 5) == [UnavailableError] * 5
        assert slow.attempts == attempts
    assert await gather(slow, 5) == ["got"] * 5


@virtual_time
async def test_a_defect_is_not_shared() -> None:
    slow = Slow(ZeroDivisionError())
    assert sorted(map(str, await gather(slow, 3))) == [str(ZeroDivisionError), "got", "got"]


@virtual_time
async def test_a_task_that_is_cancelled_leaves_the_attempt_to_the_next() -> None:
    slow = Slow()
    with trio.move_on_after(5):
        await slow.get()
    assert await gather(slow, 2) == ["got"] * 2
    assert slow.attempts == 2


@virtual_time
async def test_the_failure_is_the_one_that_happened() -> None:
    failure = UnavailableError("first")
    with pytest.raises(Failure) as raised:
        await Slow(failure).get()
    assert raised.value is failure


@virtual_time
async def test_a_shared_failure_is_raised_anew_in_each_task() -> None:
    """One exception in many tasks would have the tracebacks of them all."""
    slow, raised = Slow(UnavailableError("first", retry_after=3.0)), list[Failure]()

    async def fail() -> None:
        try:
            await slow.get()
        except Failure as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(fail)
    assert len({id(each) for each in raised}) == 5
    assert {(type(each), each.message, each.retry_after) for each in raised} == {
        (UnavailableError, "first", 3.0)
    }


# --- attempts that go on ------------------------------------------------------------------------


@virtual_time
async def test_an_attempt_goes_on_when_those_who_wait_have_left() -> None:
    flights: BackgroundFlights[str] = BackgroundFlights(25)
    made: list[str] = []

    async def make() -> str:
        await trio.sleep(60)
        made.append("it")
        return "it"

    async with trio.open_nursery() as nursery:
        await nursery.start(flights.run)
        with trio.move_on_after(1):
            await flights.get("key", "a file", make)
        for _ in range(2):
            with elapsing(25), pytest.raises(UnavailableError) as caught:
                await flights.get("key", "a file", make)
            assert caught.value.message == "a file is being prepared; ask again"
            assert caught.value.outlook == {"retryable": True, "retry_after": 5}
        with elapsing(2), pytest.raises(UnavailableError):
            await flights.get("key", "a file", make, 2)
        with elapsing(7):
            assert await flights.get("key", "a file", make) == "it"
        assert made == ["it"]
        with elapsing(25), pytest.raises(UnavailableError):
            await flights.get("key", "a file", make)  # another one
        nursery.cancel_scope.cancel()


@virtual_time
async def test_what_fails_fails_for_those_who_wait_and_is_begun_again() -> None:
    flights: BackgroundFlights[str] = BackgroundFlights(25)
    errors: list[Exception] = [UnavailableError("no"), RuntimeError("a defect")]

    async def make() -> str:
        await trio.sleep(1)
        raise errors[0]

    async with trio.open_nursery() as nursery:
        await nursery.start(flights.run)
        while errors:
            flights.begin("key", make)
            with pytest.raises(type(errors[0])) as caught:
                await flights.get("key", "a file", make)
            assert str(caught.value) == str(errors.pop(0))
        nursery.cancel_scope.cancel()

"""One attempt for all who want the same thing at the same time."""

from __future__ import annotations

import pytest
import trio
from support.streams import elapsing, virtual_time

from imgproxy.errors import Failure, UnavailableError
from imgproxy.single_flight import SingleFlight


class Wanted:
    """Something that takes ten seconds to get; `failures` are raised by the first attempts."""

    def __init__(self, *failures: Exception) -> None:
        self.attempts = 0
        self.value: str | None = None
        self._failures = iter(failures)
        self._shared = SingleFlight()

    async def get(self) -> str:
        return await self._shared.get(lambda: self.value, self._make)

    async def _make(self) -> str:
        self.attempts += 1
        await trio.sleep(10)
        failure = next(self._failures, None)
        if failure is not None:
            raise failure
        self.value = "got"
        return self.value


async def gather(wanted: Wanted, count: int) -> list[str | type[Exception]]:
    """Let so many want it at the same time; give what each got."""
    results: list[str | type[Exception]] = []

    async def want() -> None:
        try:
            results.append(await wanted.get())
        except Exception as error:  # noqa: BLE001  (it is what is looked at)
            results.append(type(error))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(want)
    return results


@virtual_time
async def test_one_attempt_serves_all_who_wait_and_all_who_come_later() -> None:
    wanted = Wanted()
    with elapsing(10):
        assert await gather(wanted, 5) == ["got"] * 5
        assert await wanted.get() == "got"
    assert wanted.attempts == 1


@virtual_time
async def test_a_failure_is_shared_by_those_who_wait_and_by_nobody_else() -> None:
    wanted = Wanted(UnavailableError("first"), UnavailableError("second"))
    for attempts in (1, 2):
        with elapsing(10):
            assert await gather(wanted, 5) == [UnavailableError] * 5
        assert wanted.attempts == attempts
    assert await gather(wanted, 5) == ["got"] * 5


@virtual_time
async def test_a_defect_is_not_shared() -> None:
    wanted = Wanted(ZeroDivisionError())
    assert sorted(map(str, await gather(wanted, 3))) == [str(ZeroDivisionError), "got", "got"]


@virtual_time
async def test_who_gives_up_leaves_the_attempt_to_the_next() -> None:
    wanted = Wanted()
    with trio.move_on_after(5):
        await wanted.get()
    assert await gather(wanted, 2) == ["got"] * 2
    assert wanted.attempts == 2


@virtual_time
async def test_the_failure_is_the_one_that_happened() -> None:
    failure = UnavailableError("first")
    with pytest.raises(Failure) as raised:
        await Wanted(failure).get()
    assert raised.value is failure

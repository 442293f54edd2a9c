"""Places for conversations: who waits, who is served first, and who gives way."""

from __future__ import annotations

import trio
from support.streams import elapsing, virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.server.places import INTERVAL, Places


class Guest:
    """A conversation that leaves when it is told to end, if it is in one of `places`."""

    def __init__(self, *, overdue_at: float = float("inf")) -> None:
        self.overdue_at = overdue_at
        self.asked = 0
        self.reasons: list[str] = []
        self.places: Places[Guest] | None = None

    def gives_way(self) -> bool:
        self.asked += 1
        return not self.reasons and trio.current_time() >= self.overdue_at

    def end(self, reason: str) -> None:
        self.reasons.append(reason)
        if self.places is not None:
            self.places.leave(self)


def filled(count: int, *guests: Guest) -> Places[Guest]:
    places = Places(count, Guest.gives_way)
    for guest in guests:
        guest.places = places
    return places


@virtual_time
async def test_whoever_has_a_place_keeps_it_while_nobody_waits() -> None:
    guests = [Guest(overdue_at=0) for _ in range(3)]
    places = filled(3, *guests)
    with elapsing(0):
        for guest in (*guests, *guests):  # to ask again is no other place
            await places.take(guest)
    await trio.sleep(1000)
    assert all(guest in places for guest in guests)
    assert [guest.asked for guest in guests] == [0, 0, 0]


@virtual_time
async def test_one_that_is_overdue_gives_way_to_each_that_waits_the_oldest_first() -> None:
    start = trio.current_time()
    guests = [Guest(), *(Guest(overdue_at=start + 50) for _ in range(3))]
    places = filled(4, *guests)
    for guest in guests:
        await places.take(guest)
    with elapsing(50):
        await places.take(Guest())
    assert [len(guest.reasons) for guest in guests] == [0, 1, 0, 0]
    with elapsing(0):
        await places.take(Guest())
    assert [len(guest.reasons) for guest in guests] == [0, 1, 1, 0]


@virtual_time
async def test_it_is_noticed_within_an_interval() -> None:
    start = trio.current_time()
    guest = Guest(overdue_at=start + 10 + INTERVAL / 2)
    places = filled(1, guest)
    await places.take(guest)
    with elapsing(10 + INTERVAL):
        await places.take(Guest())


@virtual_time
async def test_those_that_wait_are_served_in_their_order() -> None:
    holder = Guest()
    places = filled(1, holder)
    await places.take(holder)
    served = []

    async def wait(guest: Guest) -> None:
        await places.take(guest)
        served.append(guest)

    waiting = [Guest() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for guest in waiting:
            nursery.start_soon(wait, guest)
            await wait_all_tasks_blocked()
        await trio.sleep(10)
        for guest in (holder, *waiting):
            places.leave(guest)
            await wait_all_tasks_blocked()
    assert served == waiting


@virtual_time
async def test_one_that_stops_waiting_takes_no_place() -> None:
    holder, leaving = Guest(), Guest()
    places = filled(1, holder)
    await places.take(holder)
    with trio.move_on_after(5):
        await places.take(leaving)
    places.leave(leaving)
    places.leave(holder)
    with elapsing(0):
        await places.take(Guest())

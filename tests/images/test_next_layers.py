"""Which layer is opened before it is wanted, and what is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.conversations import Pulled
from support.images import digest_of
from support.streams import virtual_time
from trio.testing import wait_all_tasks_blocked

from imgproxy.errors import UnavailableError
from imgproxy.images.next_layers import MAX_WASTE, SMALL, NextLayers
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.manifest import Descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence


def layer(name: str, size: int = SMALL + 1) -> Descriptor:
    return Descriptor("type", digests.parse(digest_of(name.encode())), size)


A, B, C, D, OTHER = (layer(each) for each in ("a", "b", "c", "d", "other"))
LAYERS = (A, B, C, D)


class Scene:
    """Layers of which each waits for the `gate`. `asked` are the blobs that were asked for."""

    def __init__(
        self,
        nursery: trio.Nursery,
        held: int | None = 1,
        layers: Sequence[Descriptor] = LAYERS,
        in_a_row: int = 2,
    ) -> None:
        self.asked: list[Descriptor] = []
        self.bodies: list[Pulled] = []
        self.failure: Exception | None = None
        self.gate = trio.Event()
        self.gate.set()
        self.layers = NextLayers(layers, self.open_blob, lambda _: held, nursery, in_a_row)

    async def open_blob(self, descriptor: Descriptor) -> Pulled:
        self.asked.append(descriptor)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.bodies.append(Pulled(str(descriptor.digest).encode()))
        return self.bodies[-1]

    async def ask(self, *descriptors: Descriptor) -> None:
        """Read blobs one after the other, until all that is begun ahead is there."""
        for each in descriptors:
            body = await self.layers.blob(each)
            assert await body.read() == str(each.digest).encode()
            body.close()
            await wait_all_tasks_blocked()

    @property
    def closed(self) -> list[int]:
        return [each.closed for each in self.bodies]


@virtual_time
async def test_the_next_is_opened_with_the_first_where_the_order_is_certain() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, in_a_row=1)
        await scene.ask(A)
        assert scene.asked == [A, B]
        await scene.ask(B, C, D)
        assert scene.asked == [A, B, C, D]
        await scene.ask(A)  # all of it anew
        assert scene.asked == [A, B, C, D, A, B]
        scene.layers.close()


@virtual_time
async def test_the_third_layer_is_opened_with_the_second_and_each_once() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(A)
        assert scene.asked == [A]
        await scene.ask(B)
        assert sorted(scene.asked, key=LAYERS.index) == [A, B, C]
        await scene.ask(C)
        assert scene.asked[3:] == [D]
        await scene.ask(D)
    assert len(scene.asked) == 4
    assert scene.closed == [1, 1, 1, 1]
    assert sum(each.ahead for each in scene.bodies) == 2


@virtual_time
async def test_two_small_layers_are_opened_ahead() -> None:
    small = [layer(str(number), SMALL) for number in range(5)]
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, layers=[*small, D])
        for position, count in enumerate((1, 4, 5, 5, 6, 6)):
            await scene.ask([*small, D][position])
            assert len(scene.asked) == count
    assert len({*scene.asked}) == 6
    assert scene.closed == [1] * 6


@virtual_time
async def test_all_that_is_opened_ahead_is_dropped_at_a_deviation() -> None:
    small = [layer(str(number), SMALL) for number in range(4)]
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, MAX_WASTE // 2, small)
        await scene.ask(small[0], small[1], OTHER)
        assert len(scene.asked) == 5
        assert scene.closed == [1] * 5
        await scene.ask(small[0], small[1])  # no more may be received in vain
        assert len(scene.asked) == 7


@virtual_time
async def test_the_next_layer_is_on_its_way_while_one_is_waited_for() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(B)
        scene.gate = trio.Event()
        nursery.start_soon(scene.ask, C)
        await wait_all_tasks_blocked()
        assert set(scene.asked[1:]) == {C, D}
        scene.gate.set()
        await scene.ask(D)
    assert len(scene.asked) == 3


@pytest.mark.parametrize("deviation", [A, B, OTHER])
@virtual_time
async def test_what_was_opened_is_dropped_when_something_else_is_asked_for(
    deviation: Descriptor,
) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(A, B, deviation)
        assert scene.closed == [1] * 4
        assert scene.asked.count(C) == 1
        await scene.ask(C)  # and nothing is opened until there are two in a row again
        assert scene.asked.count(C) == 2
        scene.layers.close()
    assert scene.asked.count(D) == (deviation is B)


@virtual_time
async def test_blobs_that_are_no_layers_lead_to_nothing() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(OTHER, OTHER, A)
        assert scene.asked == [OTHER, OTHER, A]


@virtual_time
async def test_nothing_is_opened_ahead_of_what_is_at_hand() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, held=None)
        await scene.ask(*LAYERS)
        assert scene.asked == [*LAYERS]


@virtual_time
async def test_so_much_is_received_in_vain_at_most() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, held=MAX_WASTE // 2)
        for count in (3, 6, 8, 10):
            await scene.ask(A, B)
            assert len(scene.asked) == count
        assert scene.asked.count(C) == 2
        await scene.ask(C)


@virtual_time
async def test_a_failure_is_told_to_who_asks_and_not_before() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(A)
        scene.failure = UnavailableError("it is away")
        with pytest.raises(UnavailableError, match="it is away"):
            await scene.layers.blob(B)
        await wait_all_tasks_blocked()
        scene.failure = None
        with pytest.raises(UnavailableError, match="it is away"):
            await scene.layers.blob(C)
        await scene.ask(C)


@virtual_time
async def test_what_is_under_way_is_cancelled_at_the_end() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(A)
        scene.gate = trio.Event()
        with trio.move_on_after(1):
            await scene.layers.blob(B)
        scene.layers.close()
        scene.layers.close()
    assert scene.closed == [1]


@pytest.mark.parametrize("leave", ["close", "cancel"])
@virtual_time
async def test_nobody_is_left_with_what_comes_too_late(leave: str) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.ask(A)
        inner = scene.open_blob

        async def stubborn(descriptor: Descriptor) -> Pulled:
            with trio.CancelScope(shield=True):
                return await inner(descriptor)

        scene.layers._open_blob = stubborn
        await scene.ask(B)
        scene.layers.close()
        await scene.ask(A)
        scene.gate = trio.Event()
        nursery.start_soon(scene.ask, B)
        await wait_all_tasks_blocked()
        if leave == "close":
            scene.layers.close()
        else:
            with trio.move_on_after(1):
                await scene.layers.blob(C)
        scene.gate.set()
        await wait_all_tasks_blocked()
        scene.layers.close()
    assert set(scene.closed) == {1}

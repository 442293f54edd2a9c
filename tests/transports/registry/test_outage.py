"""Servers that could not be reached: for how long they are not asked, and what ends that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.registries import (
    BLOB,
    BUSY,
    FOUND,
    LAYER,
    MANIFEST,
    WHERE,
    ScriptedNetwork,
    described,
    read_blob,
)
from support.streams import SILENCE, Exchange, Script, Step, asked, elapsing, head, virtual_time

from imgproxy.errors import Failure, UnreachableError
from imgproxy.specs.oci.reference import parse_reference
from imgproxy.transports import time_limit
from imgproxy.transports.cached_image import is_away
from imgproxy.transports.registry.outage import Outage

if TYPE_CHECKING:
    from imgproxy.transports.registry.registry_image import RegistryImage

SECONDS = 5.0
NAME = "registry.test/acme/os:1"
OTHER = "registry.test/acme/other:1"
OF_OTHER = WHERE.replace("/os/", "/other/")
MIRRORED = """
[[registry]]
location = "registry.test"
[[registry.mirror]]
location = "mirror.test"
"""
AT_MIRROR = WHERE.replace("registry.test", "mirror.test")
OTHER_AT_MIRROR = OF_OTHER.replace("registry.test", "mirror.test")
GONE = "not asked again yet, as it could not be reached"


class Scene:
    """A network whose servers play a script, some of which cannot be reached at first."""

    def __init__(self, *exchanges: Exchange, registries: str = "", **options: float) -> None:
        self.script = Script(*exchanges)
        chosen = {"retries": 0, "outage_time": SECONDS, **options}
        self._network = ScriptedNetwork(self.script, registries, **chosen)

    def image(self, name: str = NAME) -> RegistryImage:
        return self._network.repository(parse_reference(name))

    async def ask(self, name: str = NAME) -> bytes:
        image = self.image(name)
        try:
            return (await image.root()).raw
        finally:
            image.close()

    async def fail(self, name: str = NAME) -> Failure:
        with pytest.raises(Failure) as raised:
            await self.ask(name)
        return raised.value

    def forget(self) -> None:
        self._network.forget()

    def end(self) -> None:
        self._network.close()
        self.script.check()


def cut_off(scene: Scene, fault: float | Exception = SILENCE, at: str = "https://registry") -> None:
    scene.script.unreachable = {at: fault}


@virtual_time
async def test_a_failure_is_remembered_for_some_seconds_and_an_answer_ends_that() -> None:
    outage = Outage(SECONDS)
    assert outage.current() is None
    outage.note("nobody there", trio.current_time())
    await trio.sleep(SECONDS - 1)
    failure = outage.current()
    assert failure is not None
    assert failure.message == f"{GONE} 4 s ago: nobody there"
    assert (failure.retryable, failure.is_transient) == (True, False)
    assert is_away(failure)
    await trio.sleep(1)
    assert outage.current() is None
    outage.note("nobody there", trio.current_time())
    outage.answered()
    assert outage.current() is None


@virtual_time
async def test_an_answer_to_somebody_else_counts_for_more() -> None:
    outage = Outage(SECONDS)
    began = trio.current_time()
    await trio.sleep(1)
    outage.answered()
    await trio.sleep(1)
    outage.note("no answer to this one", began)
    assert outage.current() is None


@virtual_time
async def test_by_default_nothing_is_remembered() -> None:
    scene = Scene(asked(WHERE, FOUND), outage_time=0.0)
    cut_off(scene)
    await scene.fail()
    cut_off(scene, at="https://elsewhere")
    assert await scene.ask() == MANIFEST
    scene.end()


@pytest.mark.parametrize("fault", [SILENCE, ConnectionRefusedError(111, "Connection refused")])
@virtual_time
async def test_what_cannot_be_reached_is_not_asked_by_others(fault: float | Exception) -> None:
    scene = Scene(asked(OF_OTHER, FOUND), asked(WHERE, FOUND))
    cut_off(scene, fault)
    assert GONE not in (await scene.fail()).message
    dialled = len(scene.script.dialled)
    for name in (NAME, OTHER):
        with elapsing(0):
            failure = await scene.fail(name)
        assert GONE in failure.message
        assert isinstance(failure, UnreachableError)
    image = scene.image()
    with elapsing(0), pytest.raises(UnreachableError, match=GONE):
        await image.blob(described(LAYER))
    image.close()
    assert len(scene.script.dialled) == dialled
    await trio.sleep(SECONDS)
    cut_off(scene, at="https://elsewhere")
    assert await scene.ask(OTHER) == MANIFEST
    assert await scene.ask() == MANIFEST
    scene.end()


@virtual_time
async def test_a_server_that_says_nothing_within_the_time_limit() -> None:
    scene = Scene(asked(WHERE, SILENCE))
    with pytest.raises(UnreachableError), time_limit.limited(10):
        await scene.ask()
    assert f"{GONE} 0 s ago" in (await scene.fail()).message
    scene.end()


@virtual_time
async def test_one_lost_connection_is_no_outage() -> None:
    """Another try has an answer, and nobody is turned away between the two."""
    scene = Scene(asked(OF_OTHER, FOUND), asked(WHERE, FOUND), retries=1)
    cut_off(scene, ConnectionResetError(104, "Connection reset by peer"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.ask)
        await trio.testing.wait_all_tasks_blocked()
        cut_off(scene, at="https://elsewhere")
        assert await scene.ask(OTHER) == MANIFEST
    scene.end()


@pytest.mark.parametrize("reply", [BUSY, head(404, content_length="0"), head(401)])
@virtual_time
async def test_an_answer_of_any_kind_is_no_outage(reply: bytes) -> None:
    scene = Scene(asked(WHERE, reply), asked(OF_OTHER, FOUND))
    await scene.fail()
    assert await scene.ask(OTHER) == MANIFEST
    scene.end()


@virtual_time
async def test_a_store_that_a_registry_leads_to_is_not_the_registry() -> None:
    moved = head(307, location="https://store.test/x", content_length="0")
    scene = Scene(asked(BLOB, moved), asked(WHERE, FOUND))
    cut_off(scene, at="https://store")
    image = scene.image()
    with pytest.raises(UnreachableError, match="redirects there"):
        await image.blob(described(LAYER))
    image.close()
    assert await scene.ask() == MANIFEST
    scene.end()


@virtual_time
async def test_a_blob_under_way_has_its_own_tries() -> None:
    half = len(LAYER) // 2
    first: tuple[Step, ...] = (head(200, content_length=str(len(LAYER))) + LAYER[:half], 9.0, b"")
    rest = head(
        206,
        content_length=str(len(LAYER) - half),
        content_range=f"bytes {half}-{len(LAYER) - 1}/{len(LAYER)}",
    )
    scene = Scene(asked(BLOB, *first), asked(BLOB, rest + LAYER[half:]), retries=3)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            image = scene.image()
            assert await read_blob(image) == LAYER
            image.close()

        nursery.start_soon(read)
        await trio.sleep(1)
        cut_off(scene, ConnectionRefusedError(111, "Connection refused"))
        with pytest.raises(UnreachableError), time_limit.limited(60, retries=0):
            await scene.ask()
        await trio.sleep(SECONDS)
        with pytest.raises(UnreachableError), time_limit.limited(60, retries=0):
            await scene.ask()
        assert GONE in (await scene.fail()).message
        cut_off(scene, at="https://elsewhere")  # before the blob breaks off
    scene.end()


@virtual_time
async def test_a_mirror_that_cannot_be_reached_is_passed_over_and_the_registry_asked() -> None:
    exchanges = asked(WHERE, FOUND), asked(OTHER_AT_MIRROR, BUSY), asked(OF_OTHER, FOUND)
    scene = Scene(*exchanges, registries=MIRRORED)
    scene.script.unreachable = {"https:": SILENCE}
    assert "2 endpoints" in (await scene.fail()).message
    with elapsing(0):
        failure = await scene.fail(OTHER)
    assert failure.message.count(GONE) == 2
    await trio.sleep(SECONDS)
    cut_off(scene, at="https://mirror")
    assert await scene.ask() == MANIFEST
    cut_off(scene, at="https://elsewhere")
    assert await scene.ask(OTHER) == MANIFEST
    scene.end()


@virtual_time
async def test_another_configuration_begins_anew() -> None:
    scene = Scene(asked(WHERE, FOUND))
    cut_off(scene)
    await scene.fail()
    cut_off(scene, at="https://elsewhere")
    scene.forget()
    assert await scene.ask() == MANIFEST
    scene.end()

"""The end of a client of skopeo's protocol, at every stage: the program ends as well.

skopeo notices it only when it is not busy, and may never be: it then holds up whoever waits for
its own end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.effort import some
from support.filled import noise
from support.parent import ROOT, environment, eventually
from support.servers import (
    address_of,
    docker_registry,
    put_image,
    relay,
    silent_server,
)
from support.skopeo_client import PROGRAMS, Client, Program, ends_within, read_exactly, read_to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Converse
    from support.images import Layout

MIB = 1 << 20

# In seconds: on a busy machine, what takes a moment. The contract says one.
SOON = 4.0


class Stage:
    """What a client has at hand: a layout, a registry that stalls, one that stalls in mid-blob."""

    def __init__(self, client: Client, image: str, stalling: str, halfway: str) -> None:
        self.client = client
        self.image = image
        self.stalling = stalling
        self.halfway = halfway
        self.fds: list[int] = []

    def large(self, image: int) -> list[object]:
        """Return the arguments of GetBlob for a large blob."""
        layer = self.client.get("GetLayerInfo", image).value[0]
        return [image, layer["digest"], layer["size"]]

    def begin(self, image: int) -> tuple[int, int]:
        """Begin the large blob; return its pipe's id and the read end, which stays open."""
        reply = self.client.get("GetBlob", *self.large(image))
        self.fds += reply.fds
        return reply.pipe, reply.fds[0]


def idle(stage: Stage) -> None:
    stage.client.open(stage.image)


def opening(stage: Stage) -> None:
    stage.client.ask("OpenImage", stage.stalling)


def opening_optional(stage: Stage) -> None:
    stage.client.ask("OpenImageOptional", stage.stalling)


def finishing(stage: Stage) -> None:
    stage.client.ask("FinishPipe", stage.begin(stage.client.open(stage.image))[0])


def half_sent(stage: Stage) -> None:
    image = stage.client.open(stage.image)
    for _ in range(64):
        read_exactly(stage.begin(image)[1], 1000)


def half_sent_raw(stage: Stage) -> None:
    image = stage.client.open(stage.image)
    for _ in range(16):
        reply = stage.client.get("GetRawBlob", *stage.large(image)[:2])
        stage.fds += reply.fds
        read_exactly(reply.fds[0], 1000)


def awaiting_the_registry(stage: Stage) -> None:
    pipe, fd = stage.begin(stage.client.open(stage.halfway))
    stage.client.ask("FinishPipe", pipe)
    read_exactly(fd, MIB // 4)


def requests_queued(stage: Stage) -> None:
    stage.client.ask("OpenImage", stage.stalling)
    for n in range(50):
        stage.client.ask("CloseImage", n)


def replies_unread(stage: Stage) -> None:
    """Fill both queues."""
    image = stage.client.open(stage.image)
    stage.client.socket.setblocking(False)  # noqa: FBT003  (its signature)
    try:
        while True:
            stage.client.ask("GetLayerInfo", image)
    except BlockingIOError:
        pass


STAGES: dict[str, Callable[[Stage], None]] = {
    "OpenImage": opening,
    "OpenImageOptional": opening_optional,
    "idle": idle,
    "FinishPipe": finishing,
    "blobs half sent": half_sent,
    "raw blobs half sent": half_sent_raw,
    "requests queued": requests_queued,
    "replies unread": replies_unread,
    "a registry in mid-blob": awaiting_the_registry,
}


@pytest.fixture
def places(layout: Layout, tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """Return an image of a layout, at a registry that stalls, and at one that does in mid-blob."""
    descriptor = layout.save_image(noise(3 * MIB))
    with ExitStack() as stack:
        origin = stack.enter_context(docker_registry(tmp_path / "data"))
        put_image(origin, "acme/os:1", layout, descriptor)
        halfway = stack.enter_context(relay(origin, after=MIB, fate="stall"))
        silent = address_of(stack.enter_context(silent_server()))
        names = [f"docker://{address}/acme/os:1" for address in (silent, halfway)]
        yield f"oci:{layout.path}", names[0], names[1]


@pytest.mark.parametrize(
    "keeps_pipes",
    [
        pytest.param(True, id="pipes open"),
        pytest.param(False, id="pipes closed", marks=pytest.mark.slow),
    ],
)
def test_the_program_ends_with_its_client(
    places: tuple[str, str, str], converse: Converse, *, keeps_pipes: bool
) -> None:
    """With open pipes: another process may have inherited them."""
    failures = []
    stages = {}
    for name in some(list(STAGES)):
        client = converse("--tls-verify=false")
        client.initialize()
        stages[name] = Stage(client, *places)
        STAGES[name](stages[name])
    for name, stage in stages.items():
        assert stage.client.child.running, name
        if not keeps_pipes:
            while stage.fds:
                os.close(stage.fds.pop())
        stage.client.hang_up()
        if not ends_within(stage.client, SOON):
            failures.append(f"{name}: goes on")
        elif stage.client.child.wait() != 0:
            failures.append(f"{name}: status {stage.client.child.wait()}")
        for fd in stage.fds:  # nobody has the write ends any more
            read_to_end(fd)
        if stage.client.child.stderr:
            failures.append(f"{name}: {stage.client.child.stderr}")
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_a_client_that_has_stopped_sending_gets_its_replies(
    places: tuple[str, str, str], converse: Converse
) -> None:
    client = converse()
    client.initialize()
    image = client.open(places[0])
    client.ask("GetManifest", image)
    client.ask("FinishPipe", 1)
    client.socket.shutdown(1)
    reply = client.answer("GetManifest")
    assert json.loads(read_to_end(reply.fds[0]))["layers"]
    assert client.answer("FinishPipe").success
    assert client.is_over()
    assert client.child.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_shutdown_cuts_blobs_off(
    program: Program, places: tuple[str, str, str], converse: Converse
) -> None:
    client = converse(program=program)
    client.initialize()
    image = client.open(places[0])
    manifest = json.loads(client.document("GetManifest", image))
    (layer,) = manifest["layers"]
    reply = client.get("GetBlob", image, layer["digest"], layer["size"])
    read_exactly(reply.fds[0], 1000)
    assert client.shut_down() == 0
    assert len(read_to_end(reply.fds[0])) < layer["size"]


@pytest.mark.slow
def test_shutdown_says_nothing_in_the_second_pipe(
    places: tuple[str, str, str], converse: Converse
) -> None:
    client = converse()
    client.initialize()
    stage = Stage(client, *places)
    half_sent_raw(stage)
    assert client.shut_down() == 0
    for data, errors in zip(stage.fds[::2], stage.fds[1::2], strict=True):
        assert len(read_to_end(data)) < 3 * MIB
        assert not read_to_end(errors)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_without_words(
    number: signal.Signals, places: tuple[str, str, str], converse: Converse
) -> None:
    for reach in (idle, opening, finishing):
        client = converse("--tls-verify=false")
        client.initialize()
        reach(Stage(client, *places))
        client.child.process.send_signal(number)
        assert client.child.wait() == -number
        assert not client.child.stderr


# A parent of its own, that starts the program, asks for a blob, and waits to be killed.
PARENT = """
import sys
from support import skopeo_client

image, stage = sys.argv[1:]
client = skopeo_client.start("--tls-verify=false")
client.initialize()
if stage == "opening":
    client.ask("OpenImage", image)
else:
    layer = client.get("GetLayerInfo", client.open(image)).value[0]
    reply = client.get("GetBlob", 1, layer["digest"], layer["size"])
    if stage == "finishing":
        client.ask("FinishPipe", reply.pipe)
print(client.child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["opening", "half sent", "finishing"])
def test_a_parent_that_is_killed(stage: str, places: tuple[str, str, str]) -> None:
    image = places[1] if stage == "opening" else places[0]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, image, stage],
        env=environment(PYTHONPATH=path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout
        try:
            pid = int(parent.stdout.readline())
        finally:
            parent.kill()
    assert eventually(lambda: is_gone(pid), SOON)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, also if nobody has waited for it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"

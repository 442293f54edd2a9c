"""How a process lives and ends: with its parent, by a signal, by request; and what it holds."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.images import OCI_LAYER, OCI_MANIFEST, Json, Layout, digest_of, encode
from support.parent import (
    COMMAND,
    INSECURE,
    Child,
    Client,
    descriptors,
    environment,
    eventually,
    listener_at,
    peak_memory,
    start,
)
from support.servers import address_of, layout_as_registry, nginx, silent_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from conftest import Keep, Listen, Sample, Serve

MIB = 1 << 20

# The contract says within one second; a loaded machine gets four more.
SECOND = 5.0

# More than all buffers between the program and a parent that does not read.
LARGE = 32 * MIB

# A parent that starts the program as any parent does, asks, and waits for its own end.
PARENT = """
import socket, subprocess, sys
ours, theirs = socket.socketpair()
request, *command = sys.argv[1:]
child = subprocess.Popen([*command[:-1], f"--sockfd={theirs.fileno()}", command[-1]],
                         pass_fds=[theirs.fileno()])
theirs.close()
ours.sendall(f"GET {request} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode())
print(ours.recv(12), flush=True)
sys.stdin.read()
"""


def sparse(layout: Layout, size: int) -> Json:
    """Save an image with one layer of so many zeros, which take no room; give its descriptor."""
    hashing = hashlib.sha256()
    for _ in range(size // MIB):
        hashing.update(bytes(MIB))
    digest = f"sha256:{hashing.hexdigest()}"
    layer = {"mediaType": OCI_LAYER, "digest": digest, "size": size}
    config = layout.add(b"{}", "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": [layer],
    }
    with layout.file(digest).open("wb") as file:
        file.truncate(size)
    descriptor = layout.add(encode(manifest), OCI_MANIFEST)
    layout.save(descriptor)
    return descriptor


def blob_of(layout: Layout, descriptor: Json) -> str:
    """Return the path of an image's first layer."""
    return f"/blobs/{layout.layers(descriptor)[0]['digest']}"


@pytest.fixture
def large(layout: Layout) -> str:
    """Return the path of a blob that no buffer holds."""
    return blob_of(layout, sparse(layout, LARGE))


def begin(client: Client, path: str) -> None:
    """Ask for a blob and read its beginning."""
    client.ask("GET", path)
    assert client.head().status == 200
    client.read(1000)


# --- the end of the parent -------------------------------------------------------------------


def assert_ends_with_its_parent(
    request: str, *arguments: str, under_way: Callable[[IO[bytes]], object]
) -> None:
    """Start a parent that asks, wait until that is under way, kill it, wait for the program."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb", buffering=0) as held,
        subprocess.Popen(
            [sys.executable, "-c", PARENT, request, *COMMAND, INSECURE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writing,  # held by the parent and the program, and by nobody else
            env=environment(),
        ) as parent,
    ):
        try:
            os.close(writing)
            assert parent.stdout
            under_way(parent.stdout)
        finally:
            parent.kill()
        os.set_blocking(reading, False)
        # without bytes to read: None while somebody holds it, empty when nobody does
        assert eventually(lambda: held.read() == b"", SECOND)


def read_status(output: IO[bytes]) -> None:
    assert output.readline() == b"b'HTTP/1.1 200'\n"


def test_the_program_ends_with_a_parent_that_was_idle(sample: Sample) -> None:
    assert_ends_with_its_parent("/manifest", sample.name, under_way=read_status)


def test_the_program_ends_with_a_parent_that_was_reading(layout: Layout, large: str) -> None:
    assert_ends_with_its_parent(large, f"oci:{layout.path}", under_way=read_status)


def test_the_program_ends_with_a_parent_while_a_registry_is_awaited() -> None:
    with silent_server() as server, ExitStack() as stack:
        assert_ends_with_its_parent(
            "/manifest",
            "--tls-verify=false",
            f"docker://{address_of(server)}/some/image",
            under_way=lambda _: stack.enter_context(server.accept()[0]),
        )


def test_closing_in_mid_blob_ends_the_program(serve: Serve, layout: Layout, large: str) -> None:
    child = serve(f"oci:{layout.path}")
    begin(child.client, large)
    child.client.close()
    assert child.wait(SECOND) == 0
    assert child.stderr == ""


def test_closing_in_mid_blob_leaves_the_other_conversations_alone(
    serve: Serve, layout: Layout, large: str
) -> None:
    child = serve(f"oci:{layout.path}", sockets=2)
    begin(child.clients[0], large)
    begin(child.clients[1], large)
    child.clients[0].close()
    assert child.clients[1].read(LARGE - 1000) == bytes(LARGE - 1000)
    assert child.clients[1].get("/manifest").status == 200
    assert child.finish() == 0


def test_a_parent_that_shuts_down_its_sending_side_gets_every_reply(
    serve: Serve, sample: Sample
) -> None:
    child = serve(sample.name)
    layers = sample.layout.layers(sample.descriptor)
    child.client.ask("GET", "/manifest")
    for layer in layers:
        child.client.ask("GET", f"/blobs/{layer['digest']}")
    child.client.stop_sending()
    assert child.client.reply().body == sample.manifest
    assert [child.client.reply().body for _ in layers] == list(sample.layers)
    assert child.client.ending() == "end"
    assert child.wait() == 0


def test_a_parent_that_shuts_down_its_sending_side_gets_a_large_blob(
    serve: Serve, layout: Layout, large: str
) -> None:
    child = serve(f"oci:{layout.path}")
    begin(child.client, large)
    child.client.stop_sending()
    time.sleep(0.2)  # for the program to see the end of file and a buffer that is full
    assert child.client.read(LARGE - 1000) == bytes(LARGE - 1000)
    assert child.client.ending() == "end"
    assert child.wait() == 0


@pytest.fixture
def awaiting(serve: Serve) -> Iterator[Child]:
    """Return a program that awaits a registry which has accepted and never answers."""
    with silent_server() as server:
        child = serve(f"docker://{address_of(server)}/some/image", "--tls-verify=false")
        child.client.ask("GET", "/manifest")
        with server.accept()[0]:
            yield child


def test_closing_while_a_registry_is_awaited_ends_the_program(awaiting: Child) -> None:
    awaiting.client.close()
    assert awaiting.wait(SECOND) == 0
    assert awaiting.stderr == ""


def test_pipes_that_nobody_reads_any_more_end_the_program(keep: Keep) -> None:
    with silent_server() as server:
        image = f"docker://{address_of(server)}/some/image"
        arguments = [*COMMAND, INSECURE, "--tls-verify=false", image]
        child = keep(Child(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        with child.process as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"GET /manifest HTTP/1.1\r\nHost: localhost\r\n\r\n")
            process.stdin.flush()
            with server.accept()[0]:
                process.stdout.close()
                assert child.wait(SECOND) == 0


@pytest.mark.slow
def test_a_refused_request_is_followed_by_an_end_of_file_and_no_reset(
    sample: Sample, serve: Serve
) -> None:
    """What comes after it is read away, so that the refusal reaches the parent."""
    child = serve(sample.name)
    child.client.send(b"this is no request\r\n\r\n" + bytes(60_000))
    assert child.client.reply().status == 400
    assert child.client.ending() == "end"
    assert child.wait(SECOND) == 0  # though the parent has closed nothing


@pytest.mark.slow
def test_connection_close_ends_the_program_before_the_parent_does(
    sample: Sample, serve: Serve
) -> None:
    child = serve(sample.name)
    reply = child.client.request("GET", "/manifest", "Connection: close")
    assert reply.body == sample.manifest
    assert reply.get("Connection") == "close"
    assert child.client.ending() == "end"
    assert child.wait(SECOND) == 0


def test_a_registry_that_never_answers_is_a_504_in_time(serve: Serve) -> None:
    with silent_server() as server:
        image = f"docker://{address_of(server)}/some/image"
        child = serve(image, "--tls-verify=false", "--stall-timeout=1", "--retries=0")
        reply = child.client.get("/manifest")
        assert reply.status == 504
        assert reply.error["detail"]["retryable"] is True
        assert address_of(server) in reply.message
        assert child.finish() == 0


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["idle", "in mid-blob"])
def test_a_signal_ends_the_program_by_itself_and_silently(
    number: signal.Signals, what: str, serve: Serve, layout: Layout, large: str
) -> None:
    child = serve(f"oci:{layout.path}")
    assert child.client.get("/manifest").status == 200
    if what == "in mid-blob":
        begin(child.client, large)
    child.process.send_signal(number)
    assert child.wait(SECOND) == -number
    assert child.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_while_a_registry_is_awaited(
    number: signal.Signals, awaiting: Child
) -> None:
    awaiting.process.send_signal(number)
    assert awaiting.wait(SECOND) == -number
    assert awaiting.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", ["h11", "outcome"])
def test_a_signal_during_start_up_leaves_no_traceback(
    number: signal.Signals, module: str, sample: Sample
) -> None:
    """The interpreter tells what it has imported; the signal comes right behind that."""
    program = [sys.executable, "-X", "importtime", *COMMAND[1:], INSECURE, "--sockfd=0"]
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(
            [*program, sample.name],
            stdin=theirs.fileno(),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process,
    ):
        assert process.stderr
        assert any(line.endswith(f" {module}\n") for line in process.stderr)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(SECOND) == -number
    assert "Traceback" not in rest


# --- POST /quit ------------------------------------------------------------------------------


@pytest.mark.slow
def test_quit_ends_idle_conversations(serve: Serve, sample: Sample) -> None:
    child = serve(sample.name, sockets=3)
    assert child.clients[1].get("/manifest").status == 200
    reply = child.clients[0].quit()
    assert (reply.status, reply.length, reply.get("Connection")) == (200, 0, "close")
    assert [client.ending() for client in child.clients] == ["end"] * 3
    assert child.wait() == 0


def test_quit_lets_replies_under_way_finish(serve: Serve, layout: Layout, large: str) -> None:
    child = serve(f"oci:{layout.path}", sockets=2)
    under_way, other = child.clients
    begin(under_way, large)
    assert other.quit().status == 200
    under_way.ask("GET", "/manifest")  # comes too late
    assert under_way.read(LARGE - 1000) == bytes(LARGE - 1000)
    assert under_way.ending() == "end"
    assert child.wait() == 0


def test_quit_answers_what_was_asked_before_it(serve: Serve, sample: Sample) -> None:
    child = serve(sample.name)
    for method, path in (("GET", "/manifest"), ("POST", "/quit"), ("GET", "/config")):
        child.client.ask(method, path)
    assert child.client.reply().body == sample.manifest
    assert child.client.reply().length == 0
    assert child.client.ending() == "end"
    assert child.wait() == 0


def test_quit_stops_a_listener(sample: Sample, listen: Listen, tmp_path: Path) -> None:
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    idle = child.connect(str(tmp_path / "socket"))
    assert idle.get("/manifest").status == 200
    assert child.connect(str(tmp_path / "socket")).quit().status == 200
    assert idle.ending() == "end"
    assert child.wait() == 0


@pytest.mark.slow
def test_quit_does_not_wait_for_ever_for_a_reader_that_stopped(
    serve: Serve, layout: Layout, large: str
) -> None:
    """As a program in Go stops that has not closed the body of a response."""
    child = serve(f"oci:{layout.path}", sockets=2)
    stopped, other = child.clients
    begin(stopped, large)
    assert other.quit().status == 200
    assert child.wait(120) == 0
    assert f"GET {large}: broken off: the client has read nothing for 30 seconds" in child.stderr


def test_silent_connections_do_not_lock_a_listener(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    """More of them than conversations that are served and that may wait together."""
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    for _ in range(5):
        for number in range(40):
            silent = child.connect(path)
            silent.send(b"GET /manifest HTTP/1.1\r\n"[: number % 3 * 9])
        assert child.connect(path).get("/manifest").body == sample.manifest
    assert child.connect(path).quit().status == 200
    assert child.wait() == 0


@pytest.mark.slow
def test_idle_conversations_do_not_lock_a_listener(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    """They keep their places for a minute, and no `POST /quit` waits for that."""
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    idle = [child.connect(path) for _ in range(64)]
    assert {client.get("/manifest").status for client in idle} == {200}
    late = child.connect(path)
    late.socket.settimeout(120)
    assert late.get("/manifest").body == sample.manifest
    assert child.connect(path).quit().status == 200
    assert child.wait() == 0


# --- what it holds ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("source", ["oci", "docker"])
def test_memory_is_flat_when_the_parent_stops_reading(
    source: str, serve: Serve, layout: Layout, tmp_path: Path
) -> None:
    size = 256 * MIB
    descriptor = sparse(layout, size)
    with ExitStack() as stack:
        if source == "oci":
            child = serve(f"oci:{layout.path}")
        else:
            directives = layout_as_registry(layout.path, OCI_MANIFEST)
            address = stack.enter_context(nginx(tmp_path / "nginx", directives))
            image = f"docker://{address}/x@{descriptor['digest']}"
            child = serve(image, "--tls-verify=false")
        assert child.client.get("/config").status == 200
        begin(child.client, blob_of(layout, descriptor))
        time.sleep(0.5)  # time enough to read it all, were anything to do that
        assert peak_memory(child.pid) < 48 * MIB
        left = size - 1000
        while left:
            left -= len(child.client.read(min(left, MIB)))
        assert peak_memory(child.pid) < 48 * MIB
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["oci", "docker"])
def test_memory_is_bounded_with_eight_conversations_at_once(
    source: str, serve: Serve, layout: Layout, tmp_path: Path
) -> None:
    descriptor = sparse(layout, LARGE)
    with ExitStack() as stack:
        image, options = f"oci:{layout.path}", list[str]()
        if source == "docker":
            directives = layout_as_registry(layout.path, OCI_MANIFEST)
            address = stack.enter_context(nginx(tmp_path / "nginx", directives))
            image, options = f"docker://{address}/x@{descriptor['digest']}", ["--tls-verify=false"]
        child = serve(image, *options, sockets=8)
        for client in child.clients:
            begin(client, blob_of(layout, descriptor))
        time.sleep(0.3)  # time enough to fill what there is to fill
        left = LARGE - 1000
        while left:
            piece = min(left, MIB)
            assert all(len(client.read(piece)) == piece for client in child.clients)
            left -= piece
        assert peak_memory(child.pid) < 60_000_000
        assert child.finish() == 0


def test_200_requests_on_a_listener_leave_nothing_behind(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    blob = blob_of(sample.layout, sample.descriptor)
    assert child.connect(path).get(blob).status == 200
    child.hang_up()
    eventually(lambda: tasks(child.pid) == 1)  # the pool of threads comes to rest
    before = descriptors(child.pid)
    paths = (blob, "/manifest", "/config", "/nowhere", f"/blobs/{digest_of(b'no such')}")
    for number in range(200):
        client = child.connect(path)
        client.ask("GET", paths[number % len(paths)])
        if number % 3:  # the third hangs up at once
            assert client.reply().status in {200, 404}
        client.close()
    assert eventually(lambda: descriptors(child.pid) <= before, 3)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
    assert children == ""
    assert child.stop() == -signal.SIGTERM


def tasks(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_conversations_that_break_off_anywhere_leave_nothing_behind(
    layout: Layout, listen: Listen, large: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(f"oci:{layout.path}", listener=listener_at(tmp_path / "socket"))
    assert child.connect(path).get("/manifest").status == 200
    child.hang_up()
    before = descriptors(child.pid)
    chance = random.Random(1)
    for _ in range(50):
        client = child.connect(path)
        client.ask("GET", large)
        if chance.random() < 0.7:
            client.head()
            client.read(chance.randrange(LARGE // 8))
        client.close()
    assert eventually(lambda: descriptors(child.pid) <= before, 3)
    assert child.connect(path).get("/manifest").status == 200
    assert child.stop() == -signal.SIGTERM
    assert child.stderr == ""


def test_nothing_is_written_to_disk(sample: Sample, keep: Keep, tmp_path: Path) -> None:
    """A home of its own, a temporary directory of its own: both stay empty."""
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir()
    env = environment(
        PYTHONDONTWRITEBYTECODE="1", **{name: str(place) for name, place in places.items()}
    )
    child = keep(start(sample.name, env=env))
    for path in ("/manifest", "/config", "/blobs/" + digest_of(sample.layers[0])):
        assert child.client.get(path).status == 200
    assert child.finish() == 0
    assert [list(place.iterdir()) for place in places.values()] == [[], [], []]

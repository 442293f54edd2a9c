"""Sockets of every kind, as imgproxy(1) lists them under SOCKETS."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from support.parent import (
    COMMAND,
    INSECURE,
    LIMIT,
    Child,
    Client,
    command,
    environment,
    eventually,
    listener_at,
    listens,
    parse_head,
)
from support.servers import require, skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from conftest import Keep, Listen, Sample, Serve
    from support.images import Layout

MANIFEST_AND_QUIT = (
    b"GET /manifest HTTP/1.1\r\nHost: localhost\r\n\r\n"
    b"POST /quit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
)

# What a service manager does between fork and exec: the socket becomes descriptor 3, and
# LISTEN_PID the process's own number, plus what the first argument adds to it.
ACTIVATE = """
import os, sys
shift, fd, *command = sys.argv[1:]
os.dup2(int(fd), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid() + int(shift)))
os.execv(command[0], command)
"""


def tcp_listener(host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(128)
    return listener


def replies_in(output: bytes) -> list[tuple[int, bytes]]:
    """Take replies with a Content-Length apart, to the last byte."""
    replies = []
    while output:
        head, _, output = output.partition(b"\r\n\r\n")
        reply = parse_head(head)
        length = reply.length
        assert length is not None
        replies.append((reply.status, output[:length]))
        output = output[length:]
    return replies


def curl(*arguments: str) -> bytes:
    """Run curl; whatever is not a 2xx fails."""
    return subprocess.run(
        [require("curl"), "--silent", "--show-error", "--fail", "--max-time", "10", *arguments],
        capture_output=True,
        check=True,
        env=environment(),
    ).stdout


# --- connected sockets -----------------------------------------------------------------------


def test_a_socket_pair_is_one_conversation_and_its_end_the_programs(
    sample: Sample, serve: Serve
) -> None:
    child = serve(sample.name)
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0
    assert (child.stdout, child.stderr) == ("", "")


def test_no_request_at_all_is_a_clean_end(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    assert child.finish() == 0
    assert child.stderr == ""


def test_several_descriptors_are_conversations_side_by_side(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name, sockets=3)
    for client in reversed(child.clients):
        client.ask("GET", "/manifest")
    assert [client.reply().body for client in child.clients] == [sample.manifest] * 3
    child.clients[0].close()
    child.clients[2].close()
    assert child.clients[1].get("/manifest").body == sample.manifest
    assert child.running
    assert child.finish() == 0


def test_a_connected_tcp_socket_is_a_conversation(sample: Sample, keep: Keep) -> None:
    with tcp_listener() as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        fd = theirs.fileno()
        child = keep(Child(command(sample.name, INSECURE, fds=[fd]), pass_fds=[fd]))
    child.clients.append(Client(ours))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


def test_standard_input_can_be_named_by_number(sample: Sample, keep: Keep) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        child = keep(Child(command(sample.name, INSECURE, fds=[0]), stdin=theirs.fileno()))
    child.clients.append(Client(ours))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


# --- listening sockets -----------------------------------------------------------------------


def test_curl_reads_from_a_listening_unix_socket(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    child = listen(sample.name, listener=listener_at(path))
    with_socket = ("--unix-socket", str(path))
    assert curl(*with_socket, "http://localhost/manifest") == sample.manifest
    layer = f"http://localhost/blobs/{sample.layout.layers(sample.descriptor)[0]['digest']}"
    assert curl(*with_socket, layer) == sample.layers[0]
    assert curl(*with_socket, "--request", "POST", "http://localhost/quit") == b""
    assert child.wait() == 0


@pytest.mark.parametrize(
    ("bound", "family", "asked"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0", socket.AF_INET, "127.0.0.1"),  # noqa: S104  (only loopback is answered)
        ("::1", socket.AF_INET6, "[::1]"),
        ("::", socket.AF_INET6, "127.0.0.1"),  # the peer is ::ffff:127.0.0.1
    ],
)
def test_curl_reads_from_a_tcp_listener_over_loopback(
    bound: str, family: int, asked: str, sample: Sample, listen: Listen
) -> None:
    listener = tcp_listener(bound, family)
    port = listener.getsockname()[1]
    child = listen(sample.name, listener=listener)
    assert curl(f"http://{asked}:{port}/manifest") == sample.manifest
    assert child.stop() == -15


def own_address() -> str:
    """Return an address of this host that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            skip("this host has no address but loopback")
        address: str = probe.getsockname()[0]
        return address


def remote_reply(sample: Sample, listen: Listen, *options: str) -> bytes:
    """Ask for the manifest from an address that is not loopback; give all that comes back."""
    address = own_address()
    listener = tcp_listener("0.0.0.0")  # noqa: S104  (that it is refused is the test)
    port = listener.getsockname()[1]
    listen(sample.name, *options, listener=listener)
    with socket.create_connection((address, port), timeout=LIMIT) as connection:
        connection.sendall(b"GET /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    return received


def test_a_tcp_listener_does_not_serve_strangers(sample: Sample, listen: Listen) -> None:
    assert not re.match(rb"HTTP/1.1 2", remote_reply(sample, listen))


def test_a_tcp_listener_serves_strangers_when_told_to(sample: Sample, listen: Listen) -> None:
    reply = remote_reply(sample, listen, "--allow-remote", "--host=x")
    assert reply.endswith(sample.manifest)


def test_a_stranger_is_not_served_whatever_host_it_asks_for(sample: Sample, listen: Listen) -> None:
    """A page in a browser on another host can be made to resolve to this one as well."""
    reply = remote_reply(sample, listen, "--allow-remote")
    assert reply.startswith(b"HTTP/1.1 403 ")
    assert b"--host" in reply


@pytest.mark.parametrize("place", ["unix", "tcp"])
def test_a_browser_gets_403_from_a_listener(
    place: str, sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    listener = listener_at(tmp_path / "socket") if place == "unix" else tcp_listener()
    address = listener.getsockname()
    child = listen(sample.name, listener=listener)
    reply = child.connect(address).request("GET", "/manifest", "Origin: http://evil.example")
    assert (reply.status, reply.code) == (403, "DENIED")
    assert child.connect(address).get("/manifest").status == 200


def test_a_listener_has_64_conversations_at_most(
    sample: Sample, listen: Listen, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    held = [child.connect(path) for _ in range(64)]
    assert {client.get("/manifest").status for client in held} == {200}
    late = child.connect(path)
    late.ask("GET", "/manifest")
    assert late.silent_for(0.3)
    held[10].close()
    assert late.reply().body == sample.manifest
    assert child.stop() == -15


@pytest.mark.slow
def test_conversations_of_a_listener_do_not_count_for_the_exit_status(
    layout: Layout, listen: Listen, tmp_path: Path
) -> None:
    """One that fails after its head is the listener's everyday life; the process goes on."""
    digest = corrupted_large_blob(layout)
    child = listen(f"oci:{layout.path}", listener=listener_at(tmp_path / "socket"))
    reply = child.connect(str(tmp_path / "socket")).get(f"/blobs/{digest}")
    assert (reply.status, reply.complete, reply.ending) == (200, False, "end")
    assert child.connect(str(tmp_path / "socket")).quit().status == 200
    assert child.wait() == 0


def corrupted_large_blob(layout: Layout) -> str:
    """Save an image whose one layer, of 2 MiB, is not what its digest says; give the digest."""
    layer = layout.layers(layout.save_image(bytes(2 << 20)))[0]
    with layout.file(layer["digest"]).open("r+b") as file:
        file.write(b"x")
    digest: str = layer["digest"]
    return digest


# --- handed over by a service manager --------------------------------------------------------


def activated(sample: Sample, keep: Keep, sock: socket.socket, shift: int = 0) -> Child:
    fd = sock.fileno()
    wrapper = [sys.executable, "-c", ACTIVATE, str(shift), str(fd)]
    return keep(Child([*wrapper, *command(sample.name, INSECURE)], pass_fds=[fd]))


def test_listen_fds_hands_over_a_listener(sample: Sample, keep: Keep, tmp_path: Path) -> None:
    with listener_at(tmp_path / "socket") as listener:
        child = activated(sample, keep, listener)
    assert child.connect(str(tmp_path / "socket")).get("/manifest").body == sample.manifest
    assert child.stop() == -15


def test_listen_fds_hands_over_a_conversation(sample: Sample, keep: Keep) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        child = activated(sample, keep, theirs)
    child.clients.append(Client(ours))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.finish() == 0


def test_listen_fds_meant_for_another_process_are_not_taken(
    sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    with listener_at(tmp_path / "socket") as listener:
        child = activated(sample, keep, listener, shift=1)
    assert child.wait() in {0, 2}  # standard input is left, and has no request
    with pytest.raises(ConnectionRefusedError):
        child.connect(str(tmp_path / "socket"))


@pytest.mark.parametrize("options", [[], ["--accept"]], ids=["listener", "Accept=yes"])
def test_systemd_socket_activate_starts_it(
    options: list[str], sample: Sample, keep: Keep, tmp_path: Path
) -> None:
    program = require("systemd-socket-activate")
    path = tmp_path / "socket"
    child = keep(
        Child(
            [
                program,
                f"--listen={path}",
                *options,
                f"--setenv=PYTHONPATH={environment()['PYTHONPATH']}",
                *command(sample.name, INSECURE),
            ]
        )
    )
    assert eventually(lambda: listens(path))
    client = child.connect(str(path))
    assert client.get("/manifest").body == sample.manifest
    assert client.quit().status == 200
    if options:  # the activator outlives the conversations
        assert client.ending() == "end"
        assert child.connect(str(path)).get("/manifest").body == sample.manifest
        child.stop()
    else:
        assert child.wait() == 0


# --- standard input and output ---------------------------------------------------------------


def test_pipes_carry_a_conversation(sample: Sample) -> None:
    result = subprocess.run(
        command(sample.name, INSECURE),
        input=MANIFEST_AND_QUIT,
        capture_output=True,
        timeout=LIMIT,
        check=True,
        env=environment(),
    )
    assert replies_in(result.stdout) == [(200, sample.manifest), (200, b"")]
    assert result.stderr == b""


def test_pipes_answer_before_the_input_has_ended(sample: Sample, keep: Keep) -> None:
    with ExitStack() as stack:
        in_read, in_write, out_read, out_write = (
            stack.enter_context(os.fdopen(fd, mode, buffering=0))
            for fd, mode in zip((*os.pipe(), *os.pipe()), ("rb", "wb", "rb", "wb"), strict=True)
        )
        child = keep(Child(command(sample.name, INSECURE), stdin=in_read, stdout=out_write))
        in_read.close()
        out_write.close()
        in_write.write(MANIFEST_AND_QUIT[: MANIFEST_AND_QUIT.index(b"POST")])
        received = b""
        while not received.endswith(sample.manifest):
            data = out_read.read(65536)
            assert data
            received += data
        in_write.close()
        assert child.wait() == 0
        assert out_read.read() == b""


def test_regular_files_carry_a_conversation(sample: Sample, keep: Keep, tmp_path: Path) -> None:
    requests, replies = tmp_path / "requests", tmp_path / "replies"
    digest = sample.layout.layers(sample.descriptor)[1]["digest"]
    requests.write_bytes(
        b"GET /manifest HTTP/1.1\r\nHost: localhost\r\n\r\n"
        b"GET /blobs/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % digest.encode()
    )
    with requests.open("rb") as stdin, replies.open("wb") as stdout:
        child = keep(Child(command(sample.name, INSECURE), stdin=stdin, stdout=stdout))
    assert child.wait() == 0
    assert replies_in(replies.read_bytes()) == [(200, sample.manifest), (200, sample.layers[1])]
    assert child.stderr == ""


@pytest.mark.parametrize("everything", [False, True], ids=["not stderr", "stderr as well"])
def test_one_socket_may_be_standard_input_output_and_error(
    everything: bool,  # noqa: FBT001
    sample: Sample,
    keep: Keep,
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        arguments = command(sample.name, INSECURE)
        child = keep(Child(arguments, stdin=fd, stdout=fd, stderr=fd if everything else None))
    child.clients.append(Client(ours))
    assert child.client.get("/manifest").body == sample.manifest
    assert child.client.get("/nowhere").status == 404
    assert child.finish() == 0


def test_standard_error_is_silent_when_it_is_the_conversation(layout: Layout, keep: Keep) -> None:
    """Under inetd a message would stand in the middle of a body."""
    digest = corrupted_large_blob(layout)
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        arguments = command(f"oci:{layout.path}", INSECURE)
        child = keep(Child(arguments, stdin=fd, stdout=fd, stderr=fd))
    child.clients.append(Client(ours))
    reply = child.client.get(f"/blobs/{digest}")
    assert (reply.status, reply.ending) == (200, "end")
    assert not reply.body.strip(b"x\0"), "something that is no part of the blob"
    assert child.wait() == 4


def test_a_terminal_is_told_how_to_use_the_program(sample: Sample, keep: Keep) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0), os.fdopen(theirs, "rb", buffering=0) as terminal:
        child = keep(Child(command(sample.name, INSECURE), stdin=terminal))
        assert child.wait() == 2
    assert "--sockfd" in child.stderr
    assert child.stdout == ""


# --- descriptors that nothing can be served on -----------------------------------------------


def one_of_a_pair(kind: int) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.close()
    return theirs


def datagram() -> socket.socket:
    return one_of_a_pair(socket.SOCK_DGRAM)


def sequential() -> socket.socket:
    return one_of_a_pair(socket.SOCK_SEQPACKET)


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def unconnected() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def pipe() -> IO[bytes]:
    reading, writing = os.pipe()
    os.close(writing)
    return os.fdopen(reading, "rb", buffering=0)


def regular_file() -> IO[bytes]:
    return open(__file__, "rb")


def null_device() -> IO[bytes]:
    return open(os.devnull, "rb")


def terminal() -> IO[bytes]:
    ours, theirs = pty.openpty()
    os.close(theirs)
    return os.fdopen(ours, "rb", buffering=0)  # the master is a terminal as well


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (datagram, "datagram"),
        (udp, "datagram"),
        (sequential, "seq"),
        (unconnected, "connected"),
        (pipe, "FIFO"),
        (regular_file, "file"),
        (null_device, "device"),
        (terminal, "device"),
    ],
)
def test_an_unusable_descriptor_is_named_in_one_line(
    make: Callable[[], socket.socket | IO[bytes]], what: str, sample: Sample, keep: Keep
) -> None:
    with closing(make()) as thing:
        fd = thing.fileno()
        child = keep(Child(command(sample.name, INSECURE, fds=[fd]), pass_fds=[fd]))
        assert_refused(child, str(fd), what)


def assert_refused(child: Child, fd: str, what: str) -> None:
    assert child.wait() == 2
    (line,) = child.stderr.splitlines()
    assert re.search(rf"\b{fd}\b", line), line
    assert what in line, line
    assert child.stdout == ""


def test_a_closed_descriptor_is_named(sample: Sample, keep: Keep) -> None:
    assert_refused(keep(Child(command(sample.name, INSECURE, fds=[217]))), "217", "")


def test_a_descriptor_given_twice_is_named(sample: Sample, keep: Keep) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        child = keep(Child(command(sample.name, INSECURE, fds=[fd, fd]), pass_fds=[fd]))
        assert_refused(child, str(fd), "twice")


@pytest.mark.parametrize("fd", ["-1", "three", "99999999999999999999"])
def test_what_is_no_descriptor_is_a_usage_error(fd: str, sample: Sample, keep: Keep) -> None:
    child = keep(Child([*COMMAND, f"--sockfd={fd}", INSECURE, sample.name]))
    assert child.wait() == 2
    assert fd in child.stderr
    assert "Traceback" not in child.stderr

"""Many clients of one process, over sockets that it made itself; they hang up as they like."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from support import public_service
from support.effort import SLOW, rounds
from support.parent import ROOT, environment, eventually
from support.public_service import PIECE
from support.streams import replies

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 200
BLOBS = 3
MIB = 1 << 20


class Running:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str], said: list[str]) -> None:
        self.process = process
        self.said = said
        self._directory = Path(f"/proc/{process.pid}")

    def address(self, number: int = 0) -> tuple[str, int] | str:
        _, _, text = self.said[number].partition(" listening on ")
        if text.startswith("unix:"):
            return text.removeprefix("unix:")
        host, _, port = text.rpartition(":")
        return host, int(port)

    def connect(self, *requests: bytes, number: int = 0) -> socket.socket:
        address = self.address(number)
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.settimeout(20)
        sock.connect(address)
        sock.sendall(b"".join(requests))
        return sock

    def refuses(self) -> bool:
        """Return whether nobody listens there any more."""
        with socket.socket() as sock:
            return sock.connect_ex(self.address()) != 0

    def get(self, path: str) -> bytes:
        with self.connect(ask(path, "Connection: close")) as sock:
            return replies(whole(sock), "GET")[0].body

    def descriptors(self) -> list[str]:
        found = []
        for each in (self._directory / "fd").iterdir():
            try:
                found.append(os.readlink(each).partition(":")[0])
            except FileNotFoundError:
                continue
        return sorted(found)

    def memory(self) -> int:
        """Return the most that the process has had in memory, in MiB."""
        status = (self._directory / "status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@contextmanager
def serving(*addresses: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, public_service.__file__, *addresses],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=str(ROOT)),
    )
    assert process.stderr is not None
    try:
        yield Running(process, [process.stderr.readline().rstrip("\n") for _ in addresses])
    finally:
        process.kill()
        process.communicate()


def ask(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def whole(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def test_a_process_listens_where_it_is_told_and_ends_by_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with serving("127.0.0.1:0", f"unix:{path}") as running:
        assert {line.partition(":")[0] for line in running.said} == {"imgproxy"}
        for number in range(2):
            with running.connect(ask("/small", "Connection: close"), number=number) as sock:
                assert replies(whole(sock), "GET")[0].body == b"small"
        with running.connect(ask("/small")) as idle:
            assert idle.recv(MIB)
            assert running.end(signal.SIGINT) == (0, "")
            assert idle.recv(MIB) == b""
    assert not path.exists()


@pytest.mark.slow
def test_a_reply_under_way_is_finished_after_a_signal() -> None:
    size = 64 * MIB
    with serving("127.0.0.1:0") as running, running.connect(ask(f"/blob/{size}")) as sock:
        received = sock.recv(MIB)
        running.process.send_signal(signal.SIGTERM)
        assert eventually(running.refuses)
        body = (received + whole(sock)).partition(b"\r\n\r\n")[2]
        assert len(body) == size
        assert body[: len(PIECE)] == PIECE
        assert running.process.wait(timeout=20) == 0


# --- under load ---------------------------------------------------------------------------------


class Client:
    """A client with a mood of its own: it reads what it asked for, or only some of it."""

    def __init__(self, running: Running, seed: int) -> None:
        self._address = running.address()
        self._random = random.Random(seed)
        self.whole = 0

    async def run(self) -> None:
        stream: trio.SocketStream | None = None
        for _ in range(BLOBS):
            size = self._random.choice([0, 1, 1000, len(PIECE), MIB, 4 * MIB])
            if stream is None:
                stream = await trio.open_tcp_stream(*self._address)
            await stream.send_all(ask(f"/blob/{size}"))
            mood = self._random.choice(["patient", "patient", "close", "reset", "leave"])
            if mood == "patient":
                await read_body(stream, size)
                self.whole += 1
                continue
            if mood != "leave":  # at once, without a look at the reply
                await stream.receive_some(self._random.randrange(1, MIB))
            if mood == "reset":
                linger = b"\1\0\0\0\0\0\0\0"
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await trio.aclose_forcefully(stream)
            stream = None
        if stream is not None:
            await trio.aclose_forcefully(stream)


async def read_body(stream: trio.SocketStream, size: int) -> None:
    """Read a reply, which must be whole and right."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some(MIB)
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {size}".encode().lower() in head.lower()
    at = 0
    while True:
        for start in range(0, len(body), len(PIECE)):
            part = body[start : start + len(PIECE)]
            offset = (at + start) % 256
            assert part == (PIECE + PIECE[:256])[offset : offset + len(part)]
        at += len(body)
        if at >= size:
            break
        body = await stream.receive_some(MIB)
        assert body, f"{at} of {size} bytes"
    assert at == size


def test_clients_that_hang_up_at_random_leave_nothing_behind() -> None:
    seed = rounds("IMGPROXY_TEST_SEED", slow=random.randrange(10**6), quick=1)
    with serving("127.0.0.1:0") as running:
        before = running.descriptors()
        assert running.get("/small") == b"small"
        clients = [Client(running, seed * CLIENTS + each) for each in range(CLIENTS)]

        async def all_of_them() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(client.run)

        for _ in range(5 if SLOW else 1):
            trio.run(all_of_them)
            if not eventually(lambda: running.descriptors() == before):
                assert running.descriptors() == before, f"seed {seed}"
            assert running.get("/open") == b"0"
        assert sum(client.whole for client in clients) > CLIENTS, "who stays gets everything"
        assert running.end() == (0, ""), "a hang-up is nothing to speak of"


@pytest.mark.slow
def test_a_thousand_connections_are_served_and_readers_that_stop_hinder_nobody() -> None:
    """Those that wait for a place do not take anything from those that ask for little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"{hard} descriptors are the most here")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = []
    try:
        with serving("127.0.0.1:0") as running:
            socks = [running.connect(ask(f"/blob/{64 * MIB}")) for _ in range(200)]
            socks += [running.connect(ask("/small")) for _ in range(800)]
            for sock in socks[200:]:
                assert replies(sock.recv(MIB), "GET")[0].body == b"small"
            with running.connect(ask("/small", method="HEAD")) as late:
                assert replies(late.recv(MIB), "HEAD")[0].status == 200
            assert running.get(f"/blob/{MIB}") == PIECE * (MIB // len(PIECE))
            assert running.memory() < 120
            for sock in socks:
                sock.close()
            assert eventually(lambda: running.get("/open") == b"0")
            assert running.end() == (0, "")
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

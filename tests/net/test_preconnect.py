"""A connection that is made while the event loop is imported: what it serves, failures, its end.

The program must answer the same with and without it: each of the servers here is asked both ways,
and the answers are compared.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import socketserver
import ssl
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio
from support.home import Home
from support.images import OCI_MANIFEST, digest_of, encode
from support.opened import open_descriptors
from support.parent import LIMIT, descriptors, eventually, listener_at
from support.servers import RESET_ON_CLOSE, Certificates, certificates, in_thread
from support.streams import Notes, real_time

from imgproxy.config.certs import Certificates as Trusted
from imgproxy.host.mounts import WouldWaitError
from imgproxy.net import preconnect
from imgproxy.net.client import Client
from imgproxy.net.dialer import Dialer
from imgproxy.net.preconnect import Preconnection
from imgproxy.net.request import USER_AGENT
from imgproxy.net.streams import TlsStream
from imgproxy.specs.http import url as urls
from imgproxy.specs.oci import distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Listen, Serve
    from support.parent import Child

ACCEPT = {"Accept": distribution.ACCEPT_MANIFESTS}
MANIFEST = encode(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "layers": [],
    }
)

# A stall ends after two seconds, and nothing is tried again.
SHORT = ("--stall-timeout=2", "--retries=0")


# --- what it is used for --------------------------------------------------------------------------

Behaviour = Literal[
    "good",
    "closes",  # its first connection after the handshake
    "resets",  # the same, without a TLS close_notify
    "slow",  # to begin the first handshake, until `released`
    "mute",  # never answers a handshake
    "plain",  # answers without TLS
    "refuses",  # takes no connection
    "empty",  # has no image
    "moved",  # redirects to `elsewhere`
]


class Server(socketserver.ThreadingTCPServer):
    """A registry over TLS with one manifest, or one that misbehaves, with counters."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: Certificates, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.behaviour = behaviour
        self.elsewhere = ""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(files.certificate, files.key)
        self.connections = 0
        self.shaken = 0
        self.ended = 0
        self.asked: list[str] = []
        self.authorized: list[str] = []
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def count(self, name: str) -> int:
        with self.lock:
            number: int = getattr(self, name) + 1
            setattr(self, name, number)
        return number

    def handle_error(self, *_: object) -> None:
        """Report nothing about clients that disconnect."""


class _Connection(socketserver.BaseRequestHandler):
    server: Server
    request: socket.socket

    def handle(self) -> None:
        server, number = self.server, self.server.count("connections")
        self.request.settimeout(LIMIT)
        if server.behaviour == "plain":
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        if server.behaviour in ("plain", "mute"):
            self._await_end(self.request)
            return
        if server.behaviour == "slow" and number == 1:
            server.released.wait(LIMIT)
        with server.context.wrap_socket(self.request, server_side=True) as secure:
            server.count("shaken")
            if number == 1 and server.behaviour == "resets":
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            if number > 1 or server.behaviour not in ("closes", "resets"):
                self._serve(secure)

    def _await_end(self, sock: socket.socket) -> None:
        with suppress(OSError):
            while sock.recv(1 << 16):
                pass
        self.server.count("ended")

    def _serve(self, sock: ssl.SSLSocket) -> None:
        status = "404 Not Found" if self.server.behaviour == "empty" else "200 OK"
        body = b"" if self.server.behaviour == "empty" else MANIFEST
        if self.server.behaviour == "moved":
            status = f"307 Moved\r\nLocation: {self.server.elsewhere}"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {OCI_MANIFEST}\r\nContent-Length: {len(body)}"
        received = b""
        with suppress(OSError):
            while data := sock.recv(1 << 16):
                received += data
                while b"\r\n\r\n" in received:
                    asked, _, received = received.partition(b"\r\n\r\n")
                    line, *fields = asked.decode().split("\r\n")
                    self.server.asked.append(line)
                    self.server.authorized += [f for f in fields if f.startswith("Authorization")]
                    sock.sendall(f"{head}\r\n\r\n".encode() + body)
        self.server.count("ended")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(files: Certificates, behaviour: Behaviour = "good") -> Iterator[Server]:
    server = Server(files, behaviour)
    if behaviour == "refuses":
        server.server_close()
        yield server
        return
    with in_thread(server):
        try:
            yield server
        finally:
            server.released.set()


class Start:
    """Start the program on a server's image, with a home directory without configuration."""

    def __init__(self, serve: Serve, path: Path, files: Certificates) -> None:
        self._serve = serve
        self._home = Home(path)
        self.environment = self._home.environment(SSL_CERT_FILE=str(files.authority))

    def __call__(self, server: Server, *options: str, **named: Any) -> Child:  # noqa: ANN401  (see Serve)
        image = f"docker://{server.address}/acme/os:1"
        return self._serve(image, *options, **{"env": self.environment, **named})


@pytest.fixture
def start(serve: Serve, tmp_path: Path, files: Certificates) -> Start:
    return Start(serve, tmp_path / "home", files)


# With a pattern no preconnection is begun; otherwise a pattern without a file changes nothing.
WITHOUT = "--sideload=/nowhere/<name>/<ref>"


def test_the_first_request_is_sent_on_the_preconnection(start: Start, files: Certificates) -> None:
    with serving(files) as server:
        child = start(server, "--debug")
        assert eventually(lambda: server.shaken == 1), "begun before anything was asked"
        reply = child.client.get("/manifest")
        assert (reply.status, reply.body) == (200, MANIFEST)
        assert child.finish() == 0
        assert (server.connections, len(server.asked)) == (1, 1)
    lines = child.stderr.splitlines()
    assert [line.partition(": 200, ")[0] for line in lines] == [
        f"imgproxy: GET https://{server.address}/v2/acme/os/manifests/1",
        "imgproxy: GET /manifest",
    ]


def test_nothing_is_begun_with_a_pattern(start: Start, files: Certificates) -> None:
    """The comparisons below rely on that."""
    with serving(files) as server:
        child = start(server, WITHOUT)
        assert child.client.get("/config").status == 422  # the registry answers with a manifest
        assert child.finish() == 0
        assert server.connections == 1
        idle = start(server, WITHOUT)
        assert idle.client.get("/nowhere").status == 404
        assert idle.finish() == 0
        assert server.connections == 1


def test_nothing_is_sent_before_a_request(start: Start, files: Certificates) -> None:
    class Listening(_Connection):
        def _serve(self, sock: ssl.SSLSocket) -> None:
            heard.append(bool(select.select([sock], [], [], 0.3)[0]) or sock.pending() > 0)
            super()._serve(sock)

    heard: list[bool] = []
    with serving(files) as server:
        server.RequestHandlerClass = Listening
        child = start(server)
        assert eventually(lambda: bool(heard))
        assert heard == [False]
        assert server.asked == []
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0


def test_a_request_that_waits_already_is_sent_on_it_once(start: Start, files: Certificates) -> None:
    with serving(files, "slow") as server:
        child = start(server, "--debug")
        child.client.ask("GET", "/manifest")
        assert eventually(lambda: server.connections == 1)
        server.released.set()
        reply = child.client.reply()
        assert (reply.status, reply.body) == (200, MANIFEST)
        assert child.finish() == 0
        assert (server.connections, len(server.asked)) == (1, 1)
    assert len(child.stderr.splitlines()) == 2


def test_a_token_that_an_option_gives_goes_with_the_first_request(
    start: Start, files: Certificates
) -> None:
    with serving(files) as server:
        child = start(server, "--registry-token=secret")
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0
        assert (server.connections, len(server.asked)) == (1, 1)
        assert server.authorized == ["Authorization: Bearer secret"]


def test_the_authorities_are_read_once_for_all_servers(
    start: Start, files: Certificates, tmp_path: Path
) -> None:
    """They are not there any more when the second server is connected to."""
    authority = tmp_path / "authority"
    authority.write_bytes(files.authority.read_bytes())
    environment = {**start.environment, "SSL_CERT_FILE": str(authority)}
    with serving(files, "moved") as server, serving(files) as other:
        server.elsewhere = f"https://{other.address}/1"
        child = start(server, env=environment)
        assert eventually(lambda: server.shaken == 1)
        authority.unlink()
        reply = child.client.get("/manifest")
        assert (reply.status, reply.body) == (200, MANIFEST)
        assert child.finish() == 0
        assert (server.shaken, other.shaken) == (1, 1)


@pytest.mark.parametrize("behaviour", ["closes", "resets"])
def test_a_server_that_closed_it_meanwhile_is_asked_on_another(
    behaviour: Behaviour, start: Start, files: Certificates
) -> None:
    with serving(files, behaviour) as server:
        child = start(server, "--retries=0")
        assert eventually(lambda: server.shaken == 1)
        reply = child.client.get("/manifest")
        assert (reply.status, reply.body) == (200, MANIFEST)
        assert child.finish() == 0
        assert (server.connections, len(server.asked)) == (2, 1)
    assert child.stderr == ""


def observed(child: Child) -> tuple[int, bytes, int, str]:
    """Return all that a parent can observe of a child that is asked for a manifest."""
    reply = child.client.get("/manifest")
    return reply.status, reply.body, child.finish(), child.stderr


STATUS: dict[Behaviour, int] = {
    "good": 200,
    "slow": 200,
    "mute": 504,
    "plain": 502,
    "refuses": 504,
    "empty": 404,
}


@pytest.mark.parametrize(
    ("behaviour", "option"),
    [
        *(
            pytest.param(behaviour, "", marks=pytest.mark.slow if behaviour == "mute" else ())
            for behaviour in STATUS
        ),
        ("refuses", "--debug"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (("refuses", "--quiet"), ("slow", "--debug"), ("slow", "--quiet"))
        ),
    ],
)
def test_a_parent_observes_no_difference(
    behaviour: Behaviour, option: str, start: Start, files: Certificates
) -> None:
    options = [*SHORT, *filter(None, [option])]
    with serving(files, behaviour) as server:
        status, body, ending, stderr = observed(start(server, *options))
        server.released.set()
        expected = observed(start(server, *options, WITHOUT))
    assert status == STATUS[behaviour]
    assert (status, body, ending) == expected[:3]
    if option == "--debug":  # its lines contain durations
        assert len(stderr.splitlines()) == len(expected[3].splitlines())
    else:
        assert stderr == expected[3]


def test_an_untrusted_certificate_is_reported_as_without_it(start: Start, tmp_path: Path) -> None:
    stranger = certificates(tmp_path / "stranger")
    with serving(stranger) as server:
        answers = [observed(start(server, *more)) for more in ((), (WITHOUT,))]
    assert answers[0] == answers[1]
    assert answers[0][0] == 502
    assert b"certificate" in answers[0][1]
    assert server.asked == []


def test_a_broken_certificate_is_reported_as_without_it(
    start: Start, files: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/ca.crt").write_text("nothing of the kind")
    with serving(files) as server:
        option = f"--cert-dir={tmp_path}/certs"
        answers = [observed(start(server, option, *more)) for more in ((), (WITHOUT,))]
    assert answers[0] == answers[1]
    assert answers[0][0] == 500
    assert server.shaken == 0


# --- its end --------------------------------------------------------------------------------------


def test_it_is_closed_when_there_was_no_request(start: Start, files: Certificates) -> None:
    with serving(files) as server:
        child = start(server)
        assert eventually(lambda: server.shaken == 1)
        assert child.finish() == 0
        assert eventually(lambda: server.ended == 1)
    assert (child.stderr, server.asked) == ("", [])


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT])
def test_the_program_ends_while_it_is_being_made(
    number: int, start: Start, files: Certificates
) -> None:
    """With a stall timeout of a minute, and a server that never answers the handshake."""
    with serving(files, "mute") as server:
        child = start(server)
        assert eventually(lambda: server.connections == 1)
        if number:
            child.process.send_signal(number)
        assert child.finish() == -number
        assert eventually(lambda: server.ended == 1)
    assert child.stderr == ""


def test_a_parent_that_disconnects_leaves_it_to_the_next(start: Start, files: Certificates) -> None:
    """One conversation waits for it and ends; another uses it."""
    with serving(files, "slow") as server:
        child = start(server, sockets=2)
        assert eventually(lambda: server.connections == 1)
        child.clients[0].ask("GET", "/manifest")
        child.clients[0].close()
        server.released.set()
        reply = child.clients[1].get("/manifest")
        assert (reply.status, reply.body) == (200, MANIFEST)
        assert child.finish() == 0
        assert eventually(lambda: server.ended == server.connections)
    assert child.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["good", "empty", "closes", "slow"])
def test_no_descriptor_is_left_behind(
    behaviour: Behaviour, listen: Listen, files: Certificates, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/ca.crt").symlink_to(files.authority)
    with serving(files, behaviour) as server:
        image = f"docker://{server.address}/acme/os:1"
        option = f"--cert-dir={tmp_path}/certs"
        child = listen(image, option, listener=listener_at(tmp_path / "socket"))
        status = child.connect(path).get("/manifest").status
        assert status == STATUS.get(behaviour, 200)
        server.released.set()
        kept = 0 if behaviour == "empty" else 1  # of the image that is open
        assert eventually(lambda: sockets_to(child.pid, server.address) == kept)
        child.hang_up()
        before = descriptors(child.pid)
        for _ in range(20):
            client = child.connect(path)
            assert client.get("/manifest").status == status
            client.close()
        assert eventually(lambda: descriptors(child.pid) <= before)
        assert child.stop() == -signal.SIGTERM


def sockets_to(pid: int, address: str) -> int:
    """Return the number of open connections of a process to an address of this host."""
    host, port = address.split(":")
    remote = f"{socket.inet_aton(host)[::-1].hex().upper()}:{int(port):04X}"
    inodes = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == remote:
            inodes.add(f"socket:[{fields[9]}]")
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sum(link in inodes for link in links)


# --- the object itself ----------------------------------------------------------------------------


def begun(
    server: Server,
    files: Certificates,
    timeout: float = LIMIT,
    is_wanted: Callable[[], bool] = lambda: False,
    certificates: Callable[[], Trusted] | None = None,
) -> Preconnection:
    trusted = Trusted((str(files.authority),))
    url = urls.parse(f"https://{server.address}/v2/acme/os/manifests/1")
    return Preconnection(url, ACCEPT, certificates or (lambda: trusted), is_wanted, timeout)


def client_with(made: Preconnection, server: Server, files: Certificates) -> Client:
    """Return a client that uses the preconnection and dials if it has none."""
    home = urls.parse(f"https://{server.address}/")
    trusted = Trusted((str(files.authority),))
    dial = Dialer(home, server.address, lambda _: trusted, lambda _: None, verify=True)
    client = Client(dial, Notes(), stall_timeout=LIMIT, user_agent=USER_AGENT)
    client.adopt(made)
    return client


@real_time
@pytest.mark.parametrize(("name", "connections"), [("1", 1), ("2", 2)], ids=["the same", "another"])
async def test_a_request_that_was_sent_beforehand_serves_the_same_request_alone(
    name: str, connections: int, files: Certificates
) -> None:
    with serving(files) as server:
        made = begun(server, files, is_wanted=lambda: True)
        await trio.to_thread.run_sync(made._done.wait)
        assert made._sent
        client = client_with(made, server, files)
        url = urls.parse(f"https://{server.address}/v2/acme/os/manifests/{name}")
        for _ in range(2):  # the second time on a kept connection
            response = await client.get(url, ACCEPT)
            assert await response.read(1 << 20) == MANIFEST
        client.close()
    assert server.connections == connections
    paths = [line.split()[1] for line in server.asked]
    expected = ["/v2/acme/os/manifests/1", url.target, url.target]
    assert paths == expected[-2 if name == "1" else 0 :]


@real_time
async def test_it_is_dialled_while_certificates_are_looked_up(files: Certificates) -> None:
    looked_up = threading.Event()

    def certificates() -> Trusted:
        looked_up.wait(LIMIT)
        return Trusted((str(files.authority),))

    with serving(files) as server:
        made = begun(server, files, certificates=certificates)
        try:
            assert await trio.to_thread.run_sync(eventually, lambda: server.connections == 1)
            assert server.shaken == 0
        finally:
            looked_up.set()
        await trio.to_thread.run_sync(made._done.wait)
        connection = await made.connection()
        assert connection is not None
        connection.close()


@real_time
async def test_its_request_is_not_held_back_by_the_system(files: Certificates) -> None:
    """Nagle's algorithm would wait for the end of the handshake to be acknowledged."""
    with serving(files) as server:
        made = begun(server, files)
        await trio.to_thread.run_sync(made._done.wait)
        connection = await made.connection()
        assert connection is not None
        assert isinstance(connection.stream, TlsStream)
        sock = connection.stream._socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


@pytest.mark.parametrize("failure", [ValueError("broken"), WouldWaitError(1, os.stat, "/x")])
def test_there_is_none_without_certificates(failure: Exception, files: Certificates) -> None:
    def certificates() -> Trusted:
        raise failure

    with serving(files) as server:
        made = begun(server, files, certificates=certificates)
        assert made._done.wait(LIMIT)
        assert made._taken() is None
        assert eventually(lambda: server.connections == 1)
        assert server.shaken == 0


@real_time
async def test_an_answer_that_was_not_taken_in_time_is_discarded(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag may have been moved since."""
    monkeypatch.setattr(preconnect, "_FRESH", 0.1)
    with serving(files) as server:
        made = begun(server, files, is_wanted=lambda: True)
        await trio.to_thread.run_sync(made._done.wait)
        await trio.sleep(0.2)
        assert await made.connection() is None
        assert eventually(lambda: server.ended == 1)


def test_one_that_is_closed_while_it_is_made_sends_nothing(files: Certificates) -> None:
    with serving(files, "slow") as server:
        made = begun(server, files, is_wanted=lambda: True)
        assert eventually(lambda: server.connections == 1)
        made.close()
        server.released.set()
        assert eventually(lambda: server.ended == 1)
    assert server.asked == []


@real_time
async def test_there_is_none_if_is_wanted_raises(files: Certificates) -> None:
    def closed() -> bool:
        raise ValueError("a descriptor that is closed by now")

    with serving(files) as server:
        before = len(open_descriptors())
        made = begun(server, files, is_wanted=closed)
        assert await made.connection() is None
        assert eventually(lambda: server.ended == 1)
        assert eventually(lambda: len(open_descriptors()) <= before)
        assert server.asked == []


@real_time
async def test_it_is_returned_once(files: Certificates) -> None:
    with serving(files) as server:
        made = begun(server, files)
        connection = await made.connection()
        assert connection is not None
        stream = connection.stream
        assert stream.is_quiet()
        assert await made.connection() is None
        made.close()
        await stream.send(b"GET / HTTP/1.1\r\n\r\n")
        assert await stream.receive_into(memoryview(bytearray(9)))
        stream.close()


@real_time
async def test_a_task_that_is_cancelled_leaves_it(files: Certificates, monkeypatch: Any) -> None:  # noqa: ANN401
    monkeypatch.setattr(preconnect, "_PATIENCE", LIMIT)
    with serving(files, "slow") as server:
        made = begun(server, files)
        with trio.move_on_after(0.05) as scope:
            await made.connection()
        assert scope.cancelled_caught
        server.released.set()
        connection = await made.connection()
        assert connection is not None
        connection.close()


def test_one_that_is_closed_while_it_is_made_is_closed_when_made(files: Certificates) -> None:
    with serving(files, "slow") as server:
        made = begun(server, files)
        assert eventually(lambda: server.connections == 1)
        made.close()
        server.released.set()
        assert eventually(lambda: server.ended == 1)
    assert server.asked == []


@pytest.mark.parametrize("behaviour", ["mute", "plain", "refuses"])
def test_what_fails_leaves_no_descriptor(behaviour: Behaviour, files: Certificates) -> None:
    with serving(files, behaviour) as server:
        before = len(open_descriptors())
        made = begun(server, files, timeout=0.2)
        assert made._done.wait(LIMIT)
        assert made._taken() is None
        # the server's own descriptor is closed once it has noticed the end
        assert eventually(lambda: len(open_descriptors()) <= before)

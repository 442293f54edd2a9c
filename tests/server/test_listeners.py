"""The listening sockets that the program makes itself."""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.parent import listener_at

from imgproxy.errors import UsageError
from imgproxy.server import listeners
from imgproxy.server.listeners import BACKLOG, DEFAULT, Address, Listeners, described, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534

ADDRESSES = {
    "127.0.0.1:5000": Address(host="127.0.0.1", port=5000),
    "localhost:0": Address(host="localhost", port=0),
    "[::1]:5000": Address(host="::1", port=5000),
    "[fe80::1%eth0]:1": Address(host="fe80::1%eth0", port=1),
    "unix:/run/x.sock": Address(path="/run/x.sock"),
    "unix:x:1": Address(path="x:1"),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_is_a_host_with_a_port_or_a_path(text: str) -> None:
    assert parse(text) == ADDRESSES[text]
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected HOST:PORT"),
        ("5000", "expected HOST:PORT"),
        (":5000", "expected HOST:PORT"),
        ("localhost", "expected HOST:PORT"),
        ("localhost:", "expected HOST:PORT"),
        ("localhost:http", "expected HOST:PORT"),
        ("::1:5000", "expected HOST:PORT"),
        ("[::1]", "expected HOST:PORT"),
        ("[localhost]:5000", "localhost"),
        ("http://localhost:5000", "expected HOST:PORT"),
        ("localhost:65536", "a port is a number up to 65535"),
        ("unix:", "expected a path after unix:"),
    ],
)
def test_anything_else_is_no_address(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


@contextmanager
def listening(*texts: str, allow_remote: bool = False) -> Iterator[Listeners]:
    with closing(Listeners([*map(parse, texts)], allow_remote=allow_remote)) as made:
        yield made


def refusal(*texts: str, allow_remote: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        Listeners([*map(parse, texts)], allow_remote=allow_remote)
    return str(caught.value)


def speaks(family: int, address: str | int) -> bool:
    """Return whether this host has an address."""
    with socket.socket(family) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def exchange(listener: socket.socket) -> socket.socket:
    """Return the accepted side of a connection that has been tried."""
    with socket.socket(listener.family) as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
    return accepted


def waiting_room(listener: socket.socket) -> int:
    """Return how many connections may wait at a TCP listener: tcpi_sacked of tcp_info."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
    return int(struct.unpack_from("I", info, 28)[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_of_a_host_is_listened_at(host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    if not speaks(family, host.strip("[]")):
        pytest.skip(f"this host has no {host}")
    with listening(f"{host}:0") as made:
        (sock,) = made.sockets
        port = sock.getsockname()[1]
        assert described(sock) == f"{host}:{port}"
        assert waiting_room(sock) == min(
            BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text())
        )
        assert not sock.get_inheritable()
        with exchange(sock) as accepted, socket.socket(family) as fresh:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            buffers = [
                each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (sock, fresh)
            ]
            assert len(set(buffers)) == 1, "the system's own"
    with listening(f"{host}:{port}"):  # although connections to it have ended just now
        pass


def test_a_name_is_listened_at_with_all_its_addresses() -> None:
    found = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    wanted = {family for family, _, _, _, address in found if speaks(family, address[0])}
    with listening("localhost:0") as made:
        assert {sock.family for sock in made.sockets} == wanted


def test_the_same_port_of_both_versions_of_ip_is_listened_at() -> None:
    if not speaks(socket.AF_INET6, "::"):
        pytest.skip("this host has no IPv6")
    with listening("[::]:0", allow_remote=True) as made:
        port = made.sockets[0].getsockname()[1]
        with listening(f"0.0.0.0:{port}", allow_remote=True):
            pass


def test_without_an_address_and_a_descriptor_the_default_is_listened_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert str(DEFAULT) == "127.0.0.1:5000"
    monkeypatch.setattr(listeners, "DEFAULT", DEFAULT._replace(port=0))
    with listening() as made:
        (sock,) = made.sockets
        assert described(sock).startswith("127.0.0.1:")


@pytest.mark.parametrize("texts", [[], ["127.0.0.1:0"]])
def test_what_is_inherited_is_listened_at_in_place_of_the_default(texts: list[str]) -> None:
    inherited = socket.create_server(("127.0.0.1", 0))
    name = described(inherited)
    addresses = [*map(parse, texts)]
    with closing(Listeners(addresses, [inherited.detach()], allow_remote=False)) as made:
        assert described(made.sockets[0]) == name
        assert len(made.sockets) == 1 + len(texts)
    assert {sock.fileno() for sock in made.sockets} == {-1}


def test_a_connected_socket_is_not_for_many_clients() -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    with ours, pytest.raises(UsageError) as caught:
        Listeners([], [fd], allow_remote=False)
    assert str(caught.value).startswith(f"descriptor {fd} is a connected socket")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("text", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_an_address_that_others_can_reach_wants_an_option(text: str) -> None:
    said = refusal("127.0.0.1:0", text)
    assert said.startswith(f"--listen {text}: other hosts could connect")
    assert said.endswith("--allow-remote")


def test_an_address_of_another_host_cannot_be_listened_at() -> None:
    said = refusal("192.0.2.1:0", allow_remote=True)
    assert said == "--listen 192.0.2.1:0: this host has no such address"


def test_a_name_that_nobody_has_cannot_be_listened_at() -> None:
    said = refusal("[fe80::1%no-such-link]:0", allow_remote=True)
    assert said == "--listen [fe80::1%no-such-link]:0: Name or service not known"
    assert refusal(f"{'x' * 70}:0").endswith(": not a name of a host")


def test_an_address_in_use_is_an_error_and_what_was_made_before_it_is_closed(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = f"127.0.0.1:{other.getsockname()[1]}"
        said = refusal(f"unix:{tmp_path}/x", text)
    assert said == f"--listen {text}: another socket is listening there"
    assert list(tmp_path.iterdir()) == []


def as_nobody(act: Callable[[], str]) -> str:
    """Return what a function returns that has no privileges, in a process of its own."""
    if os.getuid() != 0:
        return act()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setuid(NOBODY)
            os.write(theirs, act().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_what_is_not_permitted_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    said = as_nobody(lambda: refusal(f"unix:{tmp_path}/x"))
    assert said == f"--listen unix:{tmp_path}/x: Permission denied"


def test_a_port_that_only_root_may_have_is_an_error() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("anybody may have any port here")
    said = as_nobody(lambda: refusal("127.0.0.1:81"))
    assert said.startswith("--listen 127.0.0.1:81: Permission denied; ports below 1024")


# --- Unix sockets -------------------------------------------------------------------------------


def test_a_unix_socket_is_its_owner_s_and_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.sock"
    before = os.umask(0)
    try:
        with listening("unix:x.sock") as made:
            assert os.umask(0) == 0, "the umask is as it was"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert described(made.sockets[0]) == "unix:x.sock"
            exchange(made.sockets[0]).close()
            os.chdir("/")
    finally:
        os.umask(before)
    assert not path.exists()


def test_the_socket_of_a_process_that_has_ended_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    listener_at(path).close()
    with listening(f"unix:{path}") as made:
        exchange(made.sockets[0]).close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["idle", "busy", "datagram"])
def test_the_socket_of_a_process_that_lives_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else 1) as other:
        other.bind(str(path))
        if kind != "datagram":
            other.listen(0)
        with socket.socket(socket.AF_UNIX) as client:
            if kind == "busy":
                client.connect(str(path))
            said = refusal(f"unix:{path}")
        assert said == f"--listen unix:{path}: another socket is listening there"
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    said = refusal(f"unix:{path}")
    assert said == f"--listen unix:{path}: a file is there that is not a socket"
    assert path.read_text() == "mine"


def test_a_path_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    assert refusal(f"unix:{tmp_path}/no/x").endswith(": its directory does not exist")
    assert refusal(f"unix:/{'x' * 200}").endswith("AF_UNIX path too long")


def test_the_socket_of_a_program_that_came_after_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with listening(f"unix:{path}") as made:
        made.sockets[0].close()  # as a service does that ends; its replies may take longer
        path.unlink()
        after = listener_at(path)
    with after:
        assert path.exists()


def test_a_shortage_of_descriptors_is_no_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program says so by another exit status."""

    def refused(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(listeners.socket, "socket", refused)
    with pytest.raises(OSError, match="Too many open files"):
        Listeners([DEFAULT], allow_remote=False)

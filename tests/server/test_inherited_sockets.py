"""The descriptors that a process inherits: imgproxy(1), SOCKETS."""

from __future__ import annotations

import os
import pty
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from imgproxy.errors import UsageError
from imgproxy.server import inherited_sockets
from imgproxy.server.inherited_sockets import (
    STDERR,
    InheritedSockets,
    Pipes,
    check_source,
    classify,
    classify_standard_streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# --- descriptors that were named --------------------------------------------------------------

INHERIT = "; the program that starts imgproxy must let it inherit the descriptor"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connected(stack: ExitStack, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Return one half of a pair; the other one lives as long as the test."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    stack.enter_context(ours)
    return stack.enter_context(theirs)


def connected_tcp(stack: ExitStack) -> socket.socket:
    listener = listening_tcp(stack)
    stack.enter_context(socket.create_connection(listener.getsockname()))
    accepted, _ = listener.accept()
    return stack.enter_context(accepted)


def listening(stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind("")  # the kernel finds a name
    listener.listen()
    return listener


def listening_tcp(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def taken(stack: ExitStack, *socks: socket.socket) -> InheritedSockets:
    """Hand the sockets over to what is returned."""
    for sock in socks:
        os.set_inheritable(sock.fileno(), True)  # noqa: FBT003
    inherited = classify([sock.detach() for sock in socks])
    for each in (*inherited.connected, *inherited.listening):
        assert isinstance(each, socket.socket)
        stack.enter_context(each)
    return inherited


@pytest.mark.parametrize("make", [connected, connected_tcp], ids=["unix", "tcp"])
def test_a_connected_stream_socket_is_a_conversation(
    stack: ExitStack, make: Callable[[ExitStack], socket.socket]
) -> None:
    theirs = make(stack)
    name = theirs.getsockname()
    inherited = taken(stack, theirs)
    (sock,) = inherited.connected
    assert isinstance(sock, socket.socket)
    assert (sock.getsockname(), sock.get_inheritable()) == (name, False)
    assert (inherited.listening, inherited.shares_stderr) == ([], False)


@pytest.mark.parametrize("make", [listening, listening_tcp], ids=["unix", "tcp"])
def test_a_listening_stream_socket_is_a_listener(
    stack: ExitStack, make: Callable[[ExitStack], socket.socket]
) -> None:
    listener = make(stack)
    name = listener.getsockname()
    inherited = taken(stack, listener)
    (sock,) = inherited.listening
    assert (sock.getsockname(), sock.get_inheritable()) == (name, False)
    assert (inherited.connected, inherited.shares_stderr) == ([], False)


def test_several_descriptors_keep_their_order(stack: ExitStack) -> None:
    socks = [make(stack) for make in (connected, listening, connected_tcp, listening_tcp)]
    fds = [sock.fileno() for sock in socks]
    inherited = taken(stack, *socks)
    assert [each.fileno() for each in inherited.connected if isinstance(each, socket.socket)] == [
        fds[0],
        fds[2],
    ]
    assert [each.fileno() for each in inherited.listening] == [fds[1], fds[3]]


@pytest.mark.parametrize(
    ("words", "is_asked"),
    [
        (b"", False),
        (b"GET /manifest HTTP/1.1\r\n", True),
        (b"HEAD /manifest HTTP/1.1\r\n", True),
        (b"POST /quit HTTP/1.1\r\n", False),
        (b"GET", False),
        (b"nothing of HTTP", False),
    ],
)
@pytest.mark.parametrize("half_closed", [False, True])
def test_what_is_asked_on_a_socket_is_seen_and_not_taken(
    words: bytes, stack: ExitStack, *, is_asked: bool, half_closed: bool
) -> None:
    ours, theirs = socket.socketpair()
    inherited = taken(stack, theirs)
    with ours:
        ours.send(words)
        if half_closed:
            ours.shutdown(socket.SHUT_WR)
        assert inherited.is_asked() is is_asked
        assert isinstance(inherited.connected[0], socket.socket)
        assert not words or inherited.connected[0].recv(64) == words
        assert not inherited.is_asked()


def test_a_connection_that_waits_at_a_listener_is_seen(stack: ExitStack) -> None:
    listener = listening_tcp(stack)
    address = listener.getsockname()
    inherited = taken(stack, listener)
    assert not inherited.is_asked()
    with socket.create_connection(address):
        assert inherited.is_asked()


def test_one_that_is_closed_by_now_does_not_hide_what_another_asks(stack: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    inherited = taken(stack, connected(stack), theirs, listening(stack))
    for gone in (inherited.connected[0], *inherited.listening):
        assert isinstance(gone, socket.socket)
        gone.close()
    with ours:
        assert not inherited.is_asked()
        ours.send(b"GET /manifest HTTP/1.1\r\n")
        assert inherited.is_asked()


def test_what_waits_in_a_pipe_is_seen(stack: ExitStack) -> None:
    read_fd, write_fd = os.pipe()
    stack.callback(os.close, read_fd)
    inherited = InheritedSockets([Pipes(read_fd, write_fd)], [], shares_stderr=False)
    assert not inherited.is_asked()
    os.write(write_fd, b"GET")
    assert inherited.is_asked()
    os.read(read_fd, 16)
    os.close(write_fd)
    assert not inherited.is_asked(), "an end is no request"


def test_a_peer_that_has_gone_is_still_a_conversation(stack: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    assert len(taken(stack, theirs).connected) == 1


def test_a_socket_that_is_standard_error_too_silences_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, other = connected(stack), connected(stack)
    copy = stack.enter_context(theirs.dup())
    monkeypatch.setattr(inherited_sockets, "STDERR", copy.fileno())
    assert taken(stack, other, theirs).shares_stderr


def regular_file(stack: ExitStack, directory: Path) -> int:
    file = stack.enter_context((directory / "file").open("wb"))
    return file.fileno()


def a_directory(stack: ExitStack, directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


def pipe(stack: ExitStack, _: Path) -> int:
    fds = os.pipe()
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[1]


def null_device(stack: ExitStack, _: Path) -> int:
    return stack.enter_context(open(os.devnull, "rb")).fileno()


def a_terminal(stack: ExitStack, _: Path) -> int:
    fds = pty.openpty()
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[1]


def datagrams(stack: ExitStack, _: Path) -> int:
    return connected(stack, socket.SOCK_DGRAM).fileno()


def packets(stack: ExitStack, _: Path) -> int:
    return connected(stack, socket.SOCK_SEQPACKET).fileno()


def unconnected(stack: ExitStack, _: Path) -> int:
    return stack.enter_context(socket.socket()).fileno()


def unconnected_unix(stack: ExitStack, _: Path) -> int:
    return stack.enter_context(socket.socket(socket.AF_UNIX)).fileno()


def closed(_: ExitStack, __: Path) -> int:
    with socket.socket() as sock:
        return sock.fileno()


def beyond_integers(_: ExitStack, __: Path) -> int:
    return 2**31


def an_event(stack: ExitStack, _: Path) -> int:
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    return fd


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (regular_file, "a regular file, not a stream socket"),
        (a_directory, "a directory, not a stream socket"),
        (pipe, "a FIFO, not a stream socket"),
        (null_device, "a character device, not a stream socket"),
        (a_terminal, "a character device, not a stream socket"),
        (datagrams, "a datagram socket, not a stream socket"),
        (packets, "a sequential-packet socket, not a stream socket"),
        (unconnected, "a stream socket that is neither connected nor listening"),
        (unconnected_unix, "a stream socket that is neither connected nor listening"),
        (closed, f"closed{INHERIT}"),
        (beyond_integers, f"closed{INHERIT}"),
        (an_event, "a file of unknown kind, not a stream socket"),
    ],
)
def test_anything_else_is_named_with_what_it_is(
    stack: ExitStack,
    tmp_path: Path,
    make: Callable[[ExitStack, Path], int],
    what: str,
) -> None:
    fd = make(stack, tmp_path)
    with pytest.raises(UsageError) as caught:
        classify([fd])
    assert str(caught.value) == f"descriptor {fd} is {what}"


def test_a_descriptor_that_is_refused_and_those_beside_it_are_left_alone(stack: ExitStack) -> None:
    good, bad = connected(stack), connected(stack, socket.SOCK_DGRAM)
    with pytest.raises(UsageError):
        classify([good.fileno(), bad.fileno()])
    assert [sock.getsockname() for sock in (good, bad)] == ["", ""]


def test_a_descriptor_is_given_once(stack: ExitStack) -> None:
    theirs, other = connected(stack), connected(stack)
    fds = [theirs.fileno(), other.fileno(), theirs.fileno()]
    with pytest.raises(UsageError, match=f"^descriptor {theirs.fileno()} is given twice$"):
        classify(fds)


def test_a_socket_is_given_once_whatever_its_numbers(stack: ExitStack) -> None:
    theirs = connected(stack)
    copy = stack.enter_context(theirs.dup())
    with pytest.raises(UsageError) as caught:
        classify([theirs.fileno(), copy.fileno()])
    assert str(caught.value) == (
        f"descriptor {copy.fileno()} is the same socket as descriptor {theirs.fileno()}"
    )


# --- standard input and output ----------------------------------------------------------------

# Things that can be a standard stream, by name; the same name is the same thing.
THINGS: dict[str, Callable[[ExitStack, Path], int]] = {
    "socket": lambda stack, _: connected(stack).fileno(),
    "other socket": lambda stack, _: connected(stack).fileno(),
    "listener": lambda stack, _: listening(stack).fileno(),
    "datagrams": datagrams,
    "packets": packets,
    "unconnected": unconnected,
    "pipe": pipe,
    "other pipe": pipe,
    "file": regular_file,
    "directory": a_directory,
    "null": null_device,
    "terminal": a_terminal,
}


class Streams:
    """Descriptors in the place of the three standard streams, which are the test runner's own."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, stack: ExitStack, directory: Path, names: list[str]
    ) -> None:
        things = {name: THINGS[name](stack, directory) for name in {*names} - {"closed"}}
        self._numbers = {}
        for standard, name in zip(("STDIN", "STDOUT", "STDERR"), names, strict=True):
            fd = os.dup(things.get(name, STDERR))
            stack.callback(os.close, fd)
            monkeypatch.setattr(inherited_sockets, standard, fd)
            self._numbers[fd] = standard
        for fd, name in zip(self._numbers, names, strict=True):
            if name == "closed":
                monkeypatch.setattr(
                    inherited_sockets, self._numbers[fd], beyond_integers(stack, directory)
                )

    def classify(self) -> tuple[list[Any], list[Any], bool]:
        """Return what was inherited over, by the names of the streams."""
        inherited = classify_standard_streams()
        return (
            [self._named(each) for each in inherited.connected],
            [self._named(each) for each in inherited.listening],
            inherited.shares_stderr,
        )

    def _named(self, taken: socket.socket | Pipes) -> str | list[str]:
        if isinstance(taken, socket.socket):
            return self._numbers[taken.detach()]
        return [self._numbers[fd] for fd in taken]


@pytest.fixture
def streams(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, tmp_path: Path
) -> Callable[..., Streams]:
    return lambda *names: Streams(monkeypatch, stack, tmp_path, list(names))


SOCKET, PIPES = ["STDIN"], [["STDIN", "STDOUT"]]


@pytest.mark.parametrize(
    ("stdin", "stdout", "stderr", "inherited"),
    [
        # one socket for both: what inetd and systemd's Accept=yes hand over
        ("socket", "socket", "null", (SOCKET, [], False)),
        ("socket", "socket", "socket", (SOCKET, [], True)),
        ("socket", "socket", "other socket", (SOCKET, [], False)),
        ("socket", "socket", "closed", (SOCKET, [], False)),
        # a listener, as inetd's `wait` and StandardInput=socket do
        ("listener", "listener", "null", ([], SOCKET, False)),
        ("listener", "pipe", "null", ([], SOCKET, False)),
        ("listener", "listener", "listener", ([], SOCKET, True)),
        # two directions
        ("pipe", "other pipe", "null", (PIPES, [], False)),
        ("pipe", "other pipe", "other pipe", (PIPES, [], True)),
        ("pipe", "other pipe", "pipe", (PIPES, [], True)),
        ("pipe", "pipe", "closed", (PIPES, [], False)),
        ("file", "pipe", "null", (PIPES, [], False)),
        ("file", "file", "null", (PIPES, [], False)),
        ("pipe", "file", "file", (PIPES, [], True)),
        ("socket", "other socket", "null", (PIPES, [], False)),
        ("socket", "pipe", "socket", (PIPES, [], True)),
        ("pipe", "socket", "null", (PIPES, [], False)),
    ],
)
def test_standard_streams_say_what_they_are(
    streams: Callable[..., Streams],
    stdin: str,
    stdout: str,
    stderr: str,
    inherited: tuple[list[Any], list[Any], bool],
) -> None:
    assert streams(stdin, stdout, stderr).classify() == inherited


TERMINAL = (
    " is a terminal, which cannot carry HTTP; run imgproxy from a program with --sockfd, or"
    " between two others: printf … | imgproxy … | cat"
)


@pytest.mark.parametrize(
    ("stdin", "stdout", "complaint"),
    [
        ("terminal", "pipe", f"standard input{TERMINAL}"),
        ("pipe", "terminal", f"standard output{TERMINAL}"),
        ("socket", "terminal", f"standard output{TERMINAL}"),
        ("closed", "pipe", f"descriptor {{stdin}} is closed{INHERIT}"),
        ("pipe", "closed", f"descriptor {{stdout}} is closed{INHERIT}"),
        ("null", "pipe", "standard input is a character device, not a socket, a pipe or a file"),
        ("pipe", "null", "standard output is a character device, not a socket, a pipe or a file"),
        ("directory", "pipe", "standard input is a directory, not a socket, a pipe or a file"),
        ("pipe", "directory", "standard output is a directory, not a socket, a pipe or a file"),
        ("datagrams", "datagrams", "descriptor {stdin} is a datagram socket, not a stream socket"),
        (
            "packets",
            "packets",
            "descriptor {stdin} is a sequential-packet socket, not a stream socket",
        ),
        ("pipe", "datagrams", "descriptor {stdout} is a datagram socket, not a stream socket"),
        (
            "unconnected",
            "unconnected",
            "descriptor {stdin} is a stream socket that is neither connected nor listening",
        ),
    ],
)
def test_standard_streams_that_cannot_carry_a_conversation_are_refused(
    streams: Callable[..., Streams], stdin: str, stdout: str, complaint: str
) -> None:
    made = streams(stdin, stdout, "null")
    with pytest.raises(UsageError) as caught:
        made.classify()
    assert str(caught.value) == complaint.format(
        stdin=inherited_sockets.STDIN, stdout=inherited_sockets.STDOUT
    )


# --- images that come through a descriptor ----------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "{}:tag", "{}:@1"])
@pytest.mark.parametrize("prefix", ["", "oci-archive:", "docker-archive:", "oci:", "dir:"])
@pytest.mark.parametrize(
    ("path", "fds"),
    [("/dev/stdin", [0, 1]), ("/dev/fd/0", [0, 1]), ("/dev/fd/1", [0, 1]), ("/dev/fd/7", [3, 7])],
)
def test_the_image_cannot_come_through_what_is_served(
    prefix: str, form: str, path: str, fds: list[int]
) -> None:
    with pytest.raises(UsageError) as caught:
        check_source(prefix + form.format(path), fds)
    assert str(caught.value) == f"the image cannot be read from {path}: requests are"


@pytest.mark.parametrize(
    ("image", "fds"),
    [
        ("/dev/stdin", [3]),
        ("docker-archive:/dev/stdin:tag", [3, 4]),
        ("/dev/fd/3", [0, 1]),
        ("oci-archive:/dev/fd/3:@0", [30]),
        ("docker://registry.test/dev/stdin", [0, 1]),
        ("registry.test/dev/stdin:1", [0, 1]),
        ("dev/stdin", [0, 1]),
        ("./dev/stdin", [0, 1]),
        ("/dev/fd/0/x", [0, 1]),
        ("/a:/dev/stdin", [0, 1]),
        ("oci:/a:/dev/stdin", [0, 1]),
        ("", [0, 1]),
    ],
)
def test_an_image_from_anywhere_else_is_no_matter(image: str, fds: list[int]) -> None:
    check_source(image, fds)

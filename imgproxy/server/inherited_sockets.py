"""The descriptors that the process inherits to serve on: imgproxy(1), SOCKETS.

They are classified before an event loop exists, because that makes descriptors of its own. There
is no mode switch: the type of each is detected.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import NamedTuple

from imgproxy.errors import UsageError
from imgproxy.host.environment import inherited_descriptor, kind_of, status_of

_SOCKET_TYPES = {
    socket.SOCK_DGRAM: "a datagram socket",
    socket.SOCK_SEQPACKET: "a sequential-packet socket",
    socket.SOCK_RAW: "a raw socket",
}

STDIN, STDOUT, STDERR = 0, 1, 2


class Pipes(NamedTuple):
    """Standard input and output, which carry one conversation."""

    read_fd: int
    write_fd: int


class InheritedSockets(NamedTuple):
    """The sockets to serve on.

    `shares_stderr`: standard error is the same file as one of them, and must stay silent.
    """

    connected: list[socket.socket | Pipes]
    listening: list[socket.socket]
    shares_stderr: bool

    def is_asked(self) -> bool:
        """Return whether a request has arrived that has not been read yet.

        On a connected socket it must be a GET or a HEAD. What arrives through a pipe or at a
        listener is not looked into. May be called from any thread, while the conversations go on
        and end.
        """
        return any(map(_is_asked, (*self.connected, *self.listening)))


def _is_asked(descriptor: socket.socket | Pipes) -> bool:
    try:
        if isinstance(descriptor, socket.socket) and not _accepts(descriptor):
            start = descriptor.recv(4, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return start in (b"GET ", b"HEAD")
        poll = select.poll()
        fd = descriptor.read_fd if isinstance(descriptor, Pipes) else descriptor
        poll.register(fd, select.POLLIN)
        return any(event & select.POLLIN for _, event in poll.poll(0))
    except (OSError, ValueError):  # nothing has arrived, or it has been closed meanwhile
        return False


def classify(fds: list[int]) -> InheritedSockets:
    """Return the sockets behind descriptors, those of `--sockfd` or systemd, which they own then.

    Raises `UsageError` for a descriptor that is given twice, closed, or no stream socket.
    """
    inherited = InheritedSockets([], [], shares_stderr=any(_same_file(fd, STDERR) for fd in fds))
    seen: dict[tuple[int, int], int] = {}
    for fd in fds:
        _check_stream_socket(fd)
        twin = seen.setdefault(_identity(fd), fd)
        if fds.count(fd) > 1:
            raise UsageError(f"descriptor {fd} is given twice")
        if twin != fd:
            raise UsageError(f"descriptor {fd} is the same socket as descriptor {twin}")
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003  (the name says it)
        (inherited.listening if _is_listening(fd) else inherited.connected).append(
            socket.socket(fileno=fd)
        )
    return inherited


def classify_standard_streams() -> InheritedSockets:
    """Return standard input and output: one socket, or pipes and files.

    Raises `UsageError` for a terminal and for what cannot carry a conversation.
    """
    for fd, name in ((STDIN, "standard input"), (STDOUT, "standard output")):
        mode = status_of(fd).st_mode
        if os.isatty(fd):
            raise UsageError(
                f"{name} is a terminal, which cannot carry HTTP; run imgproxy from a program"
                " with --sockfd, or between two others: printf … | imgproxy … | cat"
            )
        if not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            raise UsageError(f"{name} is {kind_of(mode)}, not a socket, a pipe or a file")
    if stat.S_ISSOCK(status_of(STDIN).st_mode):
        _check_stream_socket(STDIN)
        if _same_file(STDIN, STDOUT) or _is_listening(STDIN):
            return classify([STDIN])
    if stat.S_ISSOCK(status_of(STDOUT).st_mode):
        _check_stream_socket(STDOUT)
    silent = _same_file(STDIN, STDERR) or _same_file(STDOUT, STDERR)
    return InheritedSockets([Pipes(STDIN, STDOUT)], [], shares_stderr=silent)


def check_source(image: str, fds: list[int]) -> None:
    """Raise `UsageError` if the image would be read from one of the descriptors served."""
    path = (
        image.partition(":")[2].partition(":")[0] if image[:1] != "/" else image.partition(":")[0]
    )
    if inherited_descriptor(path) in fds:
        raise UsageError(f"the image cannot be read from {path}: requests are")


def _check_stream_socket(fd: int) -> None:
    mode = status_of(fd).st_mode
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"descriptor {fd} is {kind_of(mode)}, not a stream socket")
    sock = socket.socket(fileno=fd)
    try:
        if sock.type != socket.SOCK_STREAM:
            kind = _SOCKET_TYPES.get(sock.type, "a socket of another type")
            raise UsageError(f"descriptor {fd} is {kind}, not a stream socket")
        if not _accepts(sock):
            sock.getpeername()
    except OSError:
        raise UsageError(
            f"descriptor {fd} is a stream socket that is neither connected nor listening"
        ) from None
    finally:
        sock.detach()  # the descriptor stays open: it was only examined


def _is_listening(fd: int) -> bool:
    sock = socket.socket(fileno=fd)
    try:
        return _accepts(sock)
    finally:
        sock.detach()


def _accepts(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _identity(fd: int) -> tuple[int, int]:
    status = status_of(fd)
    return status.st_dev, status.st_ino


def _same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except (OSError, OverflowError):  # one of them is closed
        return False

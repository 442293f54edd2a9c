"""Listening sockets for many clients: at the addresses that `--listen` names, and inherited ones.

They are made before an event loop exists, so that an address that cannot be had is a usage error.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import UsageError, clean, closing_on_error, shortage
from imgproxy.server.access import is_loopback, parse_host
from imgproxy.server.inherited_sockets import classify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# How many connections may wait to be accepted, as far as the system lets them (listen(2)).
BACKLOG = 1024

# Who may connect to a Unix socket is decided by its mode: unix(7). The owner alone may.
_UMASK = 0o177

_TCP = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\[\]:/]+)):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535
_FIRST_OF_ALL = 1024  # ports below are root's: ip(7)

# What another address of the same name may do without: a host may have no IPv6, for one.
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_WORDS = {
    errno.EADDRINUSE: "another socket is listening there",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.EAFNOSUPPORT: "this host does not speak this version of IP",
    errno.ENOENT: "its directory does not exist",
}


class Address(NamedTuple):
    """Where to listen: the path of a Unix socket, or else a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """Return the address as `--listen` takes it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT = Address(host="127.0.0.1", port=5000)


def parse(text: str) -> Address:
    """Return the address that `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH` names.

    Raises `ValueError` for anything else.
    """
    scheme, _, path = text.partition(":")
    if scheme == "unix":
        if not path:
            raise ValueError("expected a path after unix:")
        return Address(path=path)
    match = _TCP.fullmatch(text)
    if match is None:
        raise ValueError("expected HOST:PORT, [ADDRESS]:PORT or unix:PATH")
    if match["v6"]:
        IPv6Address(match["v6"])  # which says what is wrong
    if int(match["port"]) > _MAX_PORT:
        raise ValueError(f"a port is a number up to {_MAX_PORT}")
    return Address(host=match["v6"] or match["host"], port=int(match["port"]))


class Listeners:
    """Listening sockets at addresses, and those behind inherited descriptors; close them.

    Where there is neither, `DEFAULT` is listened at. Raises `UsageError` for an address that cannot
    be had, for one that other hosts can reach unless `allow_remote`, and for a descriptor that is
    no listening socket.
    """

    def __init__(
        self, addresses: Sequence[Address], fds: Sequence[int] = (), *, allow_remote: bool
    ) -> None:
        self.sockets: list[socket.socket] = []
        self._files: list[tuple[str, int]] = []  # each with a descriptor, so that it stays itself
        try:
            self._adopt(list(fds))
            for address in addresses or (() if fds else (DEFAULT,)):
                if address.path:
                    self._listen_at_path(address)
                else:
                    self._listen_at_host(address, allow_remote=allow_remote)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets and remove the files of those that have one. May be called again."""
        for sock in self.sockets:
            sock.close()
        for path, fd in self._files:
            with suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.lstat(path)):  # and not a later program's
                    os.unlink(path)
            os.close(fd)
        self._files.clear()

    def _adopt(self, fds: list[int]) -> None:
        inherited = classify(fds)
        self.sockets += inherited.listening
        for each in inherited.connected:
            if isinstance(each, socket.socket):
                with each:
                    raise UsageError(
                        f"descriptor {each.fileno()} is a connected socket; what is served to many"
                        " clients needs one that listens"
                    )

    def _listen_at_host(self, address: Address, *, allow_remote: bool) -> None:
        found = _resolved(address)
        for _, sockaddr in found:
            if not allow_remote and not is_loopback(parse_host(sockaddr[0].partition("%")[0])):
                raise UsageError(
                    f"--listen {address}: other hosts could connect to {sockaddr[0]}, which is not"
                    " a loopback address; allow it with --allow-remote"
                )
        made, missing = 0, None
        for family, sockaddr in found:
            try:
                with _explained(address):
                    self._listen(family, sockaddr)
                made += 1
            except _NoSuchAddressError as error:
                missing = error
        if missing is not None and not made:
            raise missing

    def _listen_at_path(self, address: Address) -> None:
        path = address.path
        before = os.umask(_UMASK)
        try:
            with _explained(address):
                if _is_stale(address):
                    os.unlink(path)
                self._listen(socket.AF_UNIX, path)
                fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._files.append((os.path.abspath(path), fd))
        finally:
            os.umask(before)

    def _listen(self, family: int, sockaddr: tuple[str, int] | str) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        with closing_on_error(sock):
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Accepted connections have it from their listener: the end of a reply must not
                # wait for the client to confirm what came before.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(sockaddr)
            sock.listen(BACKLOG)
        self.sockets.append(sock)


def described(listener: socket.socket) -> str:
    """Return where a socket listens, as `--listen` takes it: with the port that it has got."""
    name = listener.getsockname()
    if isinstance(name, tuple):
        return str(Address(host=name[0], port=name[1]))
    return f"unix:{os.fsdecode(name)}"


class _NoSuchAddressError(UsageError):
    """The host has no such address."""


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Raise `UsageError` for what the system says to an address; a shortage stays `OSError`."""
    try:
        yield
    except OSError as error:
        if shortage("listening", error):
            raise
        words = _WORDS.get(error.errno or 0) or error.strerror or str(error)
        if error.errno == errno.EACCES and 0 < address.port < _FIRST_OF_ALL:
            words = f"{words}; ports below {_FIRST_OF_ALL} are root's on most systems"
        kind = _NoSuchAddressError if error.errno in _NO_SUCH_ADDRESS else UsageError
        raise kind(f"--listen {clean(str(address))}: {words}") from None


def _resolved(address: Address) -> list[tuple[int, tuple[str, int]]]:
    """Return the families and addresses of a host, each once. Raises `UsageError`."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "not a name of a host"
        raise UsageError(f"--listen {clean(str(address))}: {words}") from None
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))  # type: ignore[misc]  # of both families


def _is_stale(address: Address) -> bool:
    """Return whether the socket of a process that has ended is at a path.

    Raises `UsageError` for a file that is no socket, which has to be somebody's.
    """
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--listen {clean(str(address))}: a file is there that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003  (the name says it)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # busy, or of another type
                raise
    return False

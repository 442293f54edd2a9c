"""Connections over TCP to the first of several addresses that answers: RFC 8305, happy eyeballs.

The addresses are looked up and connected to in two steps, so that they can be judged in between.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.errors import closing_on_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    # What a name resolves to: the family of addresses, and an argument of `connect`.
    Target = tuple[socket.AddressFamily, tuple[Any, ...]]

# In seconds: how long an attempt is waited for before the next one begins beside it. RFC 8305
# section 8 recommends it.
DELAY = 0.25

# Attempts that run side by side; one more ends the oldest. Each has a descriptor.
MAX_ATTEMPTS = 64


class Route:
    """The addresses that a connection is tried at, or the one that it was made to.

    Those that are `avoided` are tried after all others, the one that was added first before the
    one that was added last.
    """

    def __init__(self, avoided: Sequence[str] = ()) -> None:
        self.addresses: list[str] = []
        self._ranks = {address: rank for rank, address in enumerate(avoided, 1)}

    def ordered(self, targets: Sequence[Target]) -> list[Target]:
        """Return targets in the order in which they are to be tried, as they are from now on."""
        ordered = sorted(targets, key=lambda target: self._ranks.get(target[1][0], 0))
        self.addresses = [address[0] for _, address in ordered]
        return ordered


async def look_up(host: str, port: int) -> list[Target]:
    """Return the addresses of a host, the second of another family if there is one.

    Raises `OSError`.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    targets = [(family, address) for family, _, _, _, address in found]
    first = [each for each in targets if each[0] == targets[0][0]]
    second = [each for each in targets if each[0] != targets[0][0]]
    return [*first[:1], *second[:1], *first[1:], *second[1:]]


async def connect(targets: Sequence[Target]) -> tuple[socket.socket, str]:
    """Return a non-blocking socket that is connected to one of the addresses, and that address.

    The socket would not tell it if the connection has been reset since. Raises `OSError`.

    All addresses are begun with within half of the time that the caller allows, however many they
    are.
    """
    half = (trio.current_time() + trio.current_effective_deadline()) / 2
    connected: list[tuple[socket.socket, str]] = []
    failures: list[OSError] = []
    running: list[trio.CancelScope] = []

    async def attempt(target: Target, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                connected.append((await _connect(target), target[1][0]))
                nursery.cancel_scope.cancel()
        except OSError as error:
            failures.append(error)
        if scope.cancelled_caught:
            failures.append(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        running.remove(scope)
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            for left, target in zip(range(len(targets), 0, -1), targets, strict=True):
                if len(running) >= MAX_ATTEMPTS:
                    running[0].cancel()
                running.append(trio.CancelScope())
                ended = trio.Event()
                nursery.start_soon(attempt, target, running[-1], ended)
                delay = max(half - trio.current_time(), 0.0) / left
                with trio.move_on_after(min(delay, DELAY)):
                    await ended.wait()
    except BaseException:
        _close(connected)
        raise
    if not connected:
        raise OSError("no address answered") from ExceptionGroup("", failures)
    _close(connected[1:])
    return connected[0]


async def _connect(target: Target) -> socket.socket:
    family, address = target
    sock = socket.socket(family, socket.SOCK_STREAM)
    with closing_on_error(sock):
        sock.setblocking(False)  # noqa: FBT003  (the name says it)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number)) from None
    return sock


def _close(connected: Sequence[tuple[socket.socket, str]]) -> None:
    for sock, _ in connected:
        sock.close()

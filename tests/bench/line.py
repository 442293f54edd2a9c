"""A line with a long round trip, as a TCP connection between two hosts would behave.

It delays every byte by half of a round trip, and the first one of a connection by a whole one more,
as TCP's handshake would; this needs no privilege, unlike netem. How much is on the way to the
client is bounded: it begins with what TCP's slow start begins with and grows by what arrives (RFC
5681 section 3.1, RFC 6928), up to the window of a receiver. A connection may have a rate as well.
"""

from __future__ import annotations

import queue
import socket
import socketserver
import threading
import time
from contextlib import suppress

ROUND_TRIP = 0.05  # seconds
PIECE = 1 << 18
BURST = (
    12 * 1460
)  # of a connection with a rate: as many segments as a network card hands up at once

# Bytes on the way: ten segments at first, and at most what a generous receiver offers.
INITIAL_WINDOW = 10 * 1460
MAX_WINDOW = 16 << 20


class Server(socketserver.ThreadingTCPServer):
    """A server with a thread for each connection, at a free port of an address of this host."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[socketserver.BaseRequestHandler], host: str) -> None:
        super().__init__((host, 0), handler)
        self.port: int = self.server_address[1]

    def handle_error(self, *_: object) -> None:
        """Ignore errors of clients that disconnect."""


class Line(Server):
    """A line to another address; `rate` is in bytes per second and connection, 0 for any."""

    def __init__(self, host: str, target: tuple[str, int], rate: float = 0.0) -> None:
        super().__init__(_Delayed, host)
        self.target = target
        self.rate = rate


class _Delayed(socketserver.BaseRequestHandler):
    """One connection through the line."""

    server: Line
    request: socket.socket

    def handle(self) -> None:
        connected = time.monotonic() + ROUND_TRIP
        with socket.create_connection(self.server.target) as far:
            ends = self.request, far
            for end in ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways = [_Way(*ends, connected), _Way(*ends[::-1], connected, self.server.rate)]
            for thread in [thread for way in ways for thread in way.threads]:
                thread.join()


class _Way:
    """One direction: bytes arrive half of a round trip after they were sent."""

    def __init__(
        self, source: socket.socket, target: socket.socket, begin: float, rate: float = 0.0
    ) -> None:
        self._source = source
        self._target = target
        self._free = begin  # when the next byte can be sent
        self._rate = rate
        self._piece = BURST if rate else PIECE
        self._room = INITIAL_WINDOW
        self._window = INITIAL_WINDOW
        self._on_the_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=each, daemon=True) for each in (self._take, self._give)
        ]
        for thread in self.threads:
            thread.start()

    def _take(self) -> None:
        data = b"-"
        while data:
            self._wait_for_room()
            try:
                data = self._source.recv(min(self._piece, self._room))
            except OSError:
                data = b""
            self._room -= len(data)
            self._free = max(time.monotonic(), self._free)
            if self._rate:
                self._free += len(data) / self._rate
            self._on_the_way.put((self._free + ROUND_TRIP / 2, data))

    def _wait_for_room(self) -> None:
        """Take what is said to have arrived, and wait for more of it if there is no room."""
        while self._room <= 0 or not self._arrived.empty():
            due, count = self._arrived.get()
            _sleep_until(due)
            growth = min(count, MAX_WINDOW - self._window)
            self._window += growth
            self._room += count + growth

    def _give(self) -> None:
        with suppress(OSError):
            while True:
                due, data = self._on_the_way.get()
                _sleep_until(due)
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)
                self._arrived.put((time.monotonic() + ROUND_TRIP / 2, len(data)))
        self._arrived.put((0.0, MAX_WINDOW))  # nobody receives any more; the source is read dry


def _sleep_until(due: float) -> None:
    left = due - time.monotonic()
    if left > 0:
        time.sleep(left)

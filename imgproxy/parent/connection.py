"""A socket of the blocking variant, which several threads and a signal's handler may use."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from imgproxy.parent.process import CHUNK


class Connection:
    """Our half of a socket pair, which is closed as soon as no call is using it."""

    def __init__(self, sock: socket.socket, timeout: float | None) -> None:
        sock.settimeout(timeout)
        self._socket = sock
        self._lock = threading.RLock()  # a signal's handler may close the child

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises `OSError`, like all methods but `close`."""
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> bytes:
        """Return the next bytes, none at the end."""
        with self._lock:
            return self._socket.recv(CHUNK)

    def receive_into(self, buffer: memoryview) -> int:
        """Receive into a buffer, and return how many bytes, 0 at the end."""
        with self._lock:
            return self._socket.recv_into(buffer)

    def set_timeout(self, timeout: float | None) -> None:
        """Limit each call to so many seconds, None for no limit."""
        self._socket.settimeout(timeout)

    def close(self) -> None:
        """End the calls that other threads have pending, and close the socket."""
        with suppress(OSError):  # closed already, or the child is gone
            self._socket.shutdown(socket.SHUT_RDWR)  # ends pending calls in other threads
        with self._lock:
            self._socket.close()

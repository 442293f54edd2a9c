"""Fewer turns on a slow line: a wait for a body ends when a good piece of it has arrived.

A line that is slower than this program delivers a few segments at a time, and whatever follows a
wait (a turn of the event loop, a hand-over to the hashing thread, a call to send) is paid for each.
SO_RCVLOWAT, socket(7), lets the kernel collect more before it says that there is something, which
costs no time: the line is as busy as before. The kernel makes room for as much, and says so earlier
where it has none, at the end of the connection, and at an error.

It is used only after a body has shown that its pieces are small and that the line is no trickle,
and only while more is to come than is waited for. Where a wait takes long all the same, the rest of
the body is received as it comes, so that whoever looks for a stall sees each byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from imgproxy.net.streams import SocketStream

if TYPE_CHECKING:
    from imgproxy.net.streams import ByteStream

# In bytes: what is waited for, and how much more must be to come. TLS takes a part of a record off
# the socket before it can return any of it.
LEVEL = 256 * 1024
MARGIN = 64 * 1024

# In bytes and seconds: what is looked at, how long that may take, and what its pieces may have on
# average. It is 2 MB/s.
SAMPLE = 256 * 1024
BRISK = 0.125
SMALL = 64 * 1024

# Seconds: how long a wait may take.
PATIENCE = 0.5


class LowWater:
    """What the body of a response is received through."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        # None where it is not possible, or no longer.
        self._socket = stream if isinstance(stream, SocketStream) else None
        self._is_raised = False
        self._restart()

    def _restart(self) -> None:
        self._since = trio.current_time()
        self._received = self._pieces = 0

    async def receive_into(self, buffer: memoryview, left: int) -> int:
        """Do what the stream does, with `left` bytes of the body still to come."""
        if self._is_raised and self._socket is not None:
            with trio.move_on_after(PATIENCE) as waiting:
                await self._socket.wait_arrived()
            if waiting.cancelled_caught:
                self._lower(self._socket)
        count = await self._stream.receive_into(buffer[:left])
        if self._socket is not None:
            if not self._is_raised:
                self._look_at(self._socket, count, left - count)
            elif left - count < LEVEL + MARGIN:
                self._lower(self._socket)
        return count

    def _lower(self, sock: SocketStream) -> None:
        """Let the rest be received as it comes, and what follows on the connection."""
        sock.set_low_water(1)
        self._is_raised, self._socket = False, None

    def _look_at(self, sock: SocketStream, count: int, left: int) -> None:
        self._received += count
        self._pieces += 1
        if self._received < SAMPLE or left < LEVEL + MARGIN:
            return
        is_brisk = trio.current_time() - self._since <= BRISK
        if is_brisk and self._received <= SMALL * self._pieces:
            sock.set_low_water(LEVEL)
            self._is_raised = True
        self._restart()

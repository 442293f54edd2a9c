"""Sequential packets on an inherited socket: unix(7), SOCK_SEQPACKET.

One packet is one message, and may carry descriptors. Nothing here waits in the event loop, so that
a first message can be answered before there is one.
"""

from __future__ import annotations

import select
import socket
from array import array
from typing import TYPE_CHECKING

from imgproxy.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PacketSocket:
    """A connected socket for packets of up to `max_packet` bytes.

    Its mode is left as it is: other processes may share the inherited socket, and with it the mode.
    """

    def __init__(self, sock: socket.socket, max_packet: int) -> None:
        self._socket = sock
        self._max_packet = max_packet

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def receive(self) -> bytes:
        """Return a packet, nothing at the end: an empty packet cannot be told from that.

        Descriptors in it are not received. Raises `BlockingIOError` where there is none yet,
        `BadRequestError` for one that did not fit and has lost its end, and `OSError`.
        """
        packet, _, flags, _ = self._socket.recvmsg(self._max_packet, 0, socket.MSG_DONTWAIT)
        if flags & socket.MSG_TRUNC:
            raise BadRequestError(f"invalid request: more than {self._max_packet} bytes")
        return packet

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet with descriptors, all or nothing.

        Raises `BlockingIOError` where the other side's queue is full, and `OSError`.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        self._socket.sendmsg([packet], rights if descriptors else [], _FLAGS)

    def wait(self, event: int) -> None:
        """Block until there is an event (`select.POLLIN`, `POLLOUT`), or the other side is gone."""
        poll = select.poll()
        poll.register(self._socket, event)
        poll.poll()

    async def wait_hung_up(self) -> None:
        """Wait until the other side can neither send nor receive."""
        from imgproxy.net.streams import wait_hung_up_of  # it imports the event loop

        await wait_hung_up_of(self.fileno())

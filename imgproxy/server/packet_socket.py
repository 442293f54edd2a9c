"""Sequential packets on an inherited socket: unix(7), SOCK_SEQPACKET.

One packet is one message, and may carry descriptors. Nothing here needs the event loop, so that a
first message can be answered before there is one.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys

from imgproxy.errors import BadRequestError, UsageError
from imgproxy.host.environment import kind_of, status_of

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PacketSocket:
    """The connected socket behind an inherited descriptor, for packets of up to `max_packet` bytes.

    Its mode is left as it is: other processes may share the socket, and with it the mode. Raises
    `UsageError` for any other descriptor.
    """

    def __init__(self, fd: int, max_packet: int) -> None:
        _check(fd)
        os.set_inheritable(fd, False)  # noqa: FBT003  (the name says it)
        self._socket = socket.socket(fileno=fd)
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

    def peek(self, seconds: float) -> bytes:
        """Return the next packet, which stays there, nothing if none comes in time.

        Raises `OSError`.
        """
        if not self._poll(select.POLLIN, int(seconds * 1000)):
            return b""
        return self._socket.recv(self._max_packet, socket.MSG_DONTWAIT | socket.MSG_PEEK)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet with descriptors, all or nothing.

        Raises `BlockingIOError` where the other side's queue is full, and `OSError`.
        """
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        self._socket.sendmsg([packet], ancillary, _FLAGS)

    def wait(self, event: int) -> None:
        """Block until there is an event (`select.POLLIN`, `POLLOUT`), or the other side is gone."""
        self._poll(event)

    def _poll(self, event: int, milliseconds: int | None = None) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(milliseconds))

    async def wait_hung_up(self) -> None:
        """Wait until the other side can neither send nor receive."""
        from imgproxy.net.streams import wait_hung_up_of  # it imports the event loop

        await wait_hung_up_of(self.fileno())


def _check(fd: int) -> None:
    """Raise `UsageError` for a descriptor that is no connected sequential-packet socket."""
    mode = status_of(fd).st_mode
    wanted = "a Unix socket of type SOCK_SEQPACKET"
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"descriptor {fd} is {kind_of(mode)}, not {wanted}")
    sock = socket.socket(fileno=fd)
    try:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            kind = f"{sock.family.name}, {sock.type.name}"
            raise UsageError(f"descriptor {fd} is a socket of another kind ({kind}), not {wanted}")
        sock.getpeername()
    except OSError:
        raise UsageError(f"descriptor {fd} is {wanted} that is not connected") from None
    finally:
        sock.detach()  # the descriptor stays open: it was only examined

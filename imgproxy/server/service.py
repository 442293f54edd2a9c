"""All connections of the process: connected descriptors, listeners, and the exit status.

The service ends when every connected descriptor has, or at a shutdown that a front-end asks for;
what listeners accepted finishes the reply that it has begun. The exit status is that of the most
severe event on a connected descriptor: imgproxy(1), EXIT STATUS.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.net.streams import FdStream, SocketStream, accept
from imgproxy.server.http_connection import HttpConnection, Severity
from imgproxy.server.inherited_sockets import Pipes
from imgproxy.server.shutdown import Shutdown

if TYPE_CHECKING:
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import ByteStream
    from imgproxy.server.handler import Handler
    from imgproxy.server.inherited_sockets import InheritedSockets

# Connections that listeners accept at the same time; the others wait in the kernel's queue.
MAX_ACCEPTED = 64

# As much as the system allows, up to one piece of a large body: each time the buffer is full costs
# a wait for the parent.
SEND_BUFFER = 2 * 1024 * 1024

# What accept(2) fails with while the system is short of something; trying again at once is no help.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_PAUSE = 0.2

EXIT_STATUS = {Severity.NOTHING: 0, Severity.DEFECT: 1, Severity.MISMATCH: 4, Severity.LOST: 5}


class Service:
    """A front-end, served on all sockets of the process.

    `allow_remote`: connections from other hosts than this one are accepted as well.
    """

    def __init__(
        self, handler: Handler, diagnostics: Diagnostics, *, allow_remote: bool = False
    ) -> None:
        self._handler = handler
        self._diagnostics = diagnostics
        self._allow_remote = allow_remote
        self._shutdown = Shutdown()
        self._slots = trio.Semaphore(MAX_ACCEPTED)
        self._severity = Severity.NOTHING

    async def run(self, inherited: InheritedSockets) -> int:
        """Serve until the end, and return the exit status. Closes the sockets."""
        async with trio.open_nursery() as listeners:
            for listener in inherited.listening:
                listeners.start_soon(self._listen, listener)
            if inherited.connected:
                async with trio.open_nursery() as connected:
                    for descriptor in inherited.connected:
                        connected.start_soon(self._serve_connected, descriptor)
                self._shutdown.request()
        return EXIT_STATUS[self._severity]

    async def _serve_connected(self, descriptor: socket.socket | Pipes) -> None:
        stream = _stream(descriptor)
        connection = HttpConnection(stream, self._handler, self._shutdown, self._diagnostics)
        severity = await connection.run()
        # Compared after the wait: other connections may have ended during it.
        self._severity = max(self._severity, severity)

    async def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)  # noqa: FBT003  (the name says it)
        async with trio.open_nursery() as connections:
            with listener, self._shutdown.interrupts():
                while True:
                    await self._slots.acquire()
                    with ExitStack() as slot:
                        slot.callback(self._slots.release)
                        stream, address = await self._accept(listener)
                        if self._is_allowed(listener, address):
                            connections.start_soon(self._serve_accepted, stream)
                            slot.pop_all()  # released when the connection has ended
                        else:
                            stream.close()

    async def _accept(self, listener: socket.socket) -> tuple[SocketStream, Any]:
        while True:
            try:
                return await accept(listener)
            except OSError as error:
                # Anything else happened to the connection, and another may come (accept(2)).
                if error.errno in _SHORTAGES:
                    self._diagnostics.failure(f"accepting a connection: {error.strerror}")
                await trio.sleep(_SHORTAGE_PAUSE)

    async def _serve_accepted(self, stream: ByteStream) -> None:
        try:
            await HttpConnection(
                stream, self._handler, self._shutdown, self._diagnostics, accepted=True
            ).run()
        finally:
            self._slots.release()

    def _is_allowed(self, listener: socket.socket, address: Any) -> bool:  # noqa: ANN401  (socket's)
        """Return whether a connection comes from this host, or others are allowed as well."""
        if listener.family not in (socket.AF_INET, socket.AF_INET6) or self._allow_remote:
            return True
        host = ipaddress.ip_address(address[0].partition("%")[0])
        if (getattr(host, "ipv4_mapped", None) or host).is_loopback:
            return True
        self._diagnostics.failure(
            f"refused a connection from {host}: only loopback is answered without --allow-remote"
        )
        return False


def _stream(descriptor: socket.socket | Pipes) -> ByteStream:
    if isinstance(descriptor, Pipes):
        return FdStream(*descriptor)
    descriptor.setblocking(False)  # noqa: FBT003  (the name says it)
    descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return SocketStream(descriptor)

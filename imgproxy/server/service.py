"""All conversations of the process: connected descriptors, listeners, and the end.

The process ends when every connected descriptor has, or after `POST /quit`; what listeners accepted
finishes the reply it is at. The exit status is that of the gravest thing on a connected descriptor.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.net.streams import FdStream, SocketStream, accept
from imgproxy.server.http_connection import Conversation, Severity, Shutdown
from imgproxy.server.inherited_sockets import Pipes
from imgproxy.verification.verified_blob import CHUNK

if TYPE_CHECKING:
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image
    from imgproxy.net.streams import ByteStream
    from imgproxy.server.inherited_sockets import InheritedSockets

# Conversations that listeners accept at the same time; the others wait in the kernel's queue.
MAX_ACCEPTED = 64

# What accept(2) fails with while the system is short of something; trying again at once is no help.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_PAUSE = 0.2

EXIT_STATUS = {Severity.NOTHING: 0, Severity.DEFECT: 1, Severity.MISMATCH: 4, Severity.LOST: 5}


class Service:
    """What is handed to the process, served. `allow_remote`: to others than this host as well."""

    def __init__(
        self, image: Image, diagnostics: Diagnostics, *, allow_remote: bool = False
    ) -> None:
        self._image = image
        self._diagnostics = diagnostics
        self._allow_remote = allow_remote
        self._shutdown = Shutdown()
        self._places = trio.Semaphore(MAX_ACCEPTED)
        self._severity = Severity.NOTHING

    async def run(self, handed: InheritedSockets) -> int:
        """Serve until the end; give the exit status."""
        async with trio.open_nursery() as listeners:
            for listener in handed.listening:
                listeners.start_soon(self._listen, listener)
            if handed.connected:
                async with trio.open_nursery() as connected:
                    for descriptor in handed.connected:
                        connected.start_soon(self._converse, descriptor)
                self._shutdown.request()
        self._image.close()
        return EXIT_STATUS[self._severity]

    async def _converse(self, descriptor: socket.socket | Pipes) -> None:
        wire = _wire(descriptor)
        conversation = Conversation(wire, self._image, self._shutdown, self._diagnostics)
        severity = await conversation.run()
        self._severity = max(self._severity, severity)

    async def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)  # noqa: FBT003  (the name says it)
        async with trio.open_nursery() as conversations:
            with listener, self._shutdown.interrupts():
                while True:
                    await self._places.acquire()
                    with ExitStack() as place:
                        place.callback(self._places.release)
                        wire, address = await self._accept(listener)
                        if self._may_speak(listener, address):
                            conversations.start_soon(self._converse_accepted, wire)
                            place.pop_all()  # the conversation has it now
                        else:
                            wire.close()

    async def _accept(self, listener: socket.socket) -> tuple[SocketStream, Any]:
        while True:
            try:
                return await accept(listener)
            except OSError as error:
                # Anything else happened to the connection, and another may come (accept(2)).
                if error.errno in _SHORTAGES:
                    self._diagnostics.failure(f"accepting a connection: {error.strerror}")
                await trio.sleep(_SHORTAGE_PAUSE)

    async def _converse_accepted(self, wire: ByteStream) -> None:
        try:
            await Conversation(
                wire, self._image, self._shutdown, self._diagnostics, accepted=True
            ).run()
        finally:
            self._places.release()

    def _may_speak(self, listener: socket.socket, address: Any) -> bool:  # noqa: ANN401  (socket's)
        """Whether a connection comes from this host, or others are allowed as well."""
        if listener.family not in (socket.AF_INET, socket.AF_INET6) or self._allow_remote:
            return True
        host = ipaddress.ip_address(address[0].partition("%")[0])
        if (getattr(host, "ipv4_mapped", None) or host).is_loopback:
            return True
        self._diagnostics.failure(
            f"refused a connection from {host}: only loopback is answered without --allow-remote"
        )
        return False


def _wire(descriptor: socket.socket | Pipes) -> ByteStream:
    if isinstance(descriptor, Pipes):
        return FdStream(*descriptor)
    descriptor.setblocking(False)  # noqa: FBT003  (the name says it)
    # As much as the system allows: each time the buffer is full costs a wait for the parent.
    descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    return SocketStream(descriptor)

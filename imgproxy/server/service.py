"""All connections of the process: connected descriptors, listeners, and the exit status.

The service ends when every connected descriptor has, or at a shutdown, which a front-end asks for,
or a signal where clients are many; what listeners accepted finishes its reply. The exit status is
that of the most severe event on a connected descriptor: imgproxy(1), EXIT STATUS.
"""

from __future__ import annotations

import math
import signal
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from imgproxy.errors import closing_on_error, shortage
from imgproxy.host.environment import raise_descriptor_limit
from imgproxy.net.streams import FdStream, SocketStream, accept
from imgproxy.server.access import Access, is_loopback, parse_host
from imgproxy.server.http_connection import HttpConnection, Severity
from imgproxy.server.inherited_sockets import Pipes
from imgproxy.server.patience import STALL_LIMIT
from imgproxy.server.places import INTERVAL, Places
from imgproxy.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import ByteStream
    from imgproxy.server.handler import Handler
    from imgproxy.server.inherited_sockets import InheritedSockets


class Limits(NamedTuple):
    """How many clients of listeners are served at the same time.

    `connections` are accepted; the others wait in the kernel's queue. Without `is_public`, each
    needs one of `places` to get content, and keeps it, unless it makes no progress while others
    wait.

    With `is_public`, clients are strangers that come and go. A place is needed for a body alone, so
    that what is small does not wait for what is large. A client that makes no progress is dropped,
    whether others wait or not. The process may have as many descriptors as the system lets it.
    SIGTERM and SIGINT end the service: replies under way may take `GRACE` seconds more.
    """

    connections: int
    places: int
    is_public: bool = False


# As many connections as have a place wait for theirs, and can end the service meanwhile.
MAX_ACCEPTED = 64
MAX_WAITING = 64
ONE_IMAGE = Limits(MAX_ACCEPTED + MAX_WAITING, MAX_ACCEPTED)

# A hundred nodes have four connections each. Of many bodies at once, each takes 192 KiB.
PUBLIC = Limits(1024, 256, is_public=True)

# In seconds. A client that is cut off can go on with a range, here or elsewhere.
GRACE = 20.0

# What a connection has open: the socket, what watches it for a hang-up, and a file. Some more are
# for what all share.
_DESCRIPTORS_EACH = 3
_DESCRIPTORS_SHARED = 64

# As much as the system allows, up to one piece of a large body: each time the buffer is full costs
# a wait for the parent.
SEND_BUFFER = 2 * 1024 * 1024

# Seconds. While the system is short of something, trying again at once is no help.
_SHORTAGE_PAUSE = 0.2

# Where a browser can connect.
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})

EXIT_STATUS = {Severity.NOTHING: 0, Severity.DEFECT: 1, Severity.MISMATCH: 4, Severity.LOST: 5}


class Service:
    """A front-end, served on all sockets of the process.

    `allow_remote`: connections from other hosts than this one are accepted as well. `hosts` are
    what requests on a TCP listener may be for besides loopback. `limits` are those of listeners.
    `tcp_stream` returns the stream of a connection to a TCP listener; see `AcceptedTls`.
    """

    def __init__(
        self,
        handler: Handler,
        diagnostics: Diagnostics,
        *,
        allow_remote: bool = False,
        hosts: Iterable[str] = (),
        limits: Limits = ONE_IMAGE,
        tcp_stream: Callable[[socket.socket], Awaitable[ByteStream]] | None = None,
    ) -> None:
        self._handler = handler
        self._tcp_stream = tcp_stream
        self._diagnostics = diagnostics
        self._allow_remote = allow_remote
        self._hosts = frozenset(hosts)
        self._shutdown = Shutdown()
        self._is_public = limits.is_public
        self._places = Places(limits.places, _is_overdue, for_bodies=limits.is_public)
        self._connections = Places(_affordable(limits), self._is_dispensable)
        self._conversations: set[HttpConnection] = set()
        self._severity = Severity.NOTHING
        self._is_short = False
        # The signal that has ended the service, None if none has.
        self.ended_by: int | None = None

    @property
    def open_connections(self) -> int:
        """How many clients there are."""
        return len(self._conversations)

    async def run(self, inherited: InheritedSockets) -> int:
        """Serve until the end, and return the exit status. Closes the sockets."""
        async with trio.open_nursery() as watching:
            watching.start_soon(self._end_overdue)
            if self._is_public:
                await watching.start(self._end_by_signal)
            async with trio.open_nursery() as listeners:
                for listener in inherited.listening:
                    listeners.start_soon(self._listen, listener)
                if inherited.connected:
                    async with trio.open_nursery() as connected:
                        for descriptor in inherited.connected:
                            connected.start_soon(self._serve_connected, descriptor)
                    self._shutdown.request()
            watching.cancel_scope.cancel()
        return EXIT_STATUS[self._severity]

    async def _end_overdue(self) -> None:
        """End conversations whose clients make no progress; if not public, after a shutdown."""
        reason = "that is the limit"
        if not self._is_public:
            with self._shutdown.interrupts():
                await trio.sleep(math.inf)
            await trio.sleep(STALL_LIMIT)
            reason = "the service ends"
        while True:
            for conversation in filter(_is_overdue, self._conversations):
                conversation.end(reason)
            await trio.sleep(INTERVAL)

    async def _end_by_signal(self, task_status: trio.TaskStatus[None]) -> None:
        """After SIGTERM or SIGINT, end the service, and after a while what is under way.

        Another signal ends that at once.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            self.ended_by = await anext(signals)
            self._shutdown.request()
            with trio.move_on_after(GRACE):
                await anext(signals)
            for conversation in self._conversations:
                conversation.end("the service ends")

    async def _serve_connected(self, descriptor: socket.socket | Pipes) -> None:
        severity = await self._converse(self._conversation(_stream(descriptor)))
        # Compared after the wait: other connections may have ended during it.
        self._severity = max(self._severity, severity)

    async def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)  # noqa: FBT003  (the name says it)
        is_tcp = listener.family in _INTERNET
        if self._is_public:
            from imgproxy.server.listeners import described

            self._diagnostics.progress(f"listening on {described(listener)}")
        access = Access(self._hosts if is_tcp else None)
        make_stream = self._tcp_stream if is_tcp and self._tcp_stream else _plain_stream
        async with trio.open_nursery() as connections:
            with listener, self._shutdown.interrupts():
                while True:
                    sock, address = await self._accept(listener)
                    if is_tcp and not self._is_allowed(address[0]):
                        sock.close()
                        continue
                    with closing_on_error(sock):
                        stream = await make_stream(sock)
                    conversation = self._conversation(stream, access)
                    with closing_on_error(stream):
                        await self._connections.take(conversation)
                    connections.start_soon(self._serve_accepted, conversation)

    async def _accept(self, listener: socket.socket) -> tuple[socket.socket, Any]:
        """Accept a connection. A shortage is reported once, until there is none at first."""
        was_short = False
        while True:
            try:
                accepted = await accept(listener)
            except OSError as error:
                # Anything else happened to the connection, and another may come (accept(2)).
                failure = shortage("accepting a connection", error)
                if failure is not None:
                    was_short = True
                    if not self._is_short:
                        self._diagnostics.failure(failure.message)
                    self._is_short = True
                await trio.sleep(_SHORTAGE_PAUSE)
            else:
                self._is_short = was_short
                return accepted

    async def _serve_accepted(self, conversation: HttpConnection) -> None:
        try:
            await self._converse(conversation)
        finally:
            self._places.leave(conversation)
            self._connections.leave(conversation)

    def _conversation(self, stream: ByteStream, access: Access | None = None) -> HttpConnection:
        """Return a conversation; one of a listener has its rules of `access`, and needs a place."""
        places = self._places if access else None
        return HttpConnection(
            stream, self._handler, self._shutdown, self._diagnostics, access=access, places=places
        )

    async def _converse(self, conversation: HttpConnection) -> Severity:
        self._conversations.add(conversation)
        try:
            return await conversation.run()
        finally:
            self._conversations.remove(conversation)

    def _is_dispensable(self, conversation: HttpConnection) -> bool:
        """Return whether a connection has no place, and has not asked for anything either."""
        return conversation not in self._places and (
            conversation.patience.awaits_request() or conversation.patience.is_overdue()
        )

    def _is_allowed(self, address: str) -> bool:
        """Return whether a connection comes from this host, or others are allowed as well."""
        host = parse_host(address.partition("%")[0])
        if self._allow_remote or is_loopback(host):
            return True
        self._diagnostics.failure(
            f"refused a connection from {host}: only loopback is answered without --allow-remote"
        )
        return False


def _is_overdue(conversation: HttpConnection) -> bool:
    return conversation.patience.is_overdue()


def _affordable(limits: Limits) -> int:
    """Return how many connections there can be without a shortage of descriptors."""
    if not limits.is_public:
        return limits.connections
    descriptors = raise_descriptor_limit() - _DESCRIPTORS_SHARED
    return max(1, min(limits.connections, descriptors // _DESCRIPTORS_EACH))


async def _plain_stream(sock: socket.socket) -> ByteStream:  # as one that reads certificates
    return SocketStream(sock)


def _stream(descriptor: socket.socket | Pipes) -> ByteStream:
    if isinstance(descriptor, Pipes):
        return FdStream(*descriptor)
    descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return SocketStream(descriptor)

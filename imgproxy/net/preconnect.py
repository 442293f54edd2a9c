"""A connection to a server that is made by a thread while the event loop is still being imported.

Importing it takes as long as some round trips, and a name look-up, a dial and a TLS handshake do
not need it; nor does sending the first request, once it is known that it will be needed. Another
thread reads the system's authorities meanwhile, which takes as long as a round trip. Failures are
not reported: the client then connects in the usual way, and reports what fails there.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from imgproxy.errors import closing_on_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from imgproxy.config.certs import Certificates
    from imgproxy.net.connection_pool import Connection
    from imgproxy.net.tls import Contexts
    from imgproxy.specs.http.url import Url

# How long a request waits for the connection, in seconds; it has had the time of the imports.
_PATIENCE = 1.0

# How old the request that was sent beforehand may be when its response is used, in seconds. If the
# client's first request is another one, that may be never, or after the tag has been moved.
_FRESH = 5.0


class Preconnection:
    """A TLS connection to the origin of `url`, an entry of a connection pool.

    `certificates` returns those for that host; it is called by the thread. As soon as there is a
    connection, a GET of `url` with `headers` is sent on it if `is_wanted` returns true. `timeout`
    is in seconds, for the connection and for each step of the handshake. `contexts` has the one for
    TLS that was made; other connections can use it.
    """

    def __init__(
        self,
        url: Url,
        headers: Mapping[str, str],
        certificates: Callable[[], Certificates],
        is_wanted: Callable[[], bool],
        timeout: float,
    ) -> None:
        self.url = url
        self.contexts: Contexts = {}
        self._headers = headers
        self._certificates = certificates
        self._is_wanted = is_wanted
        self._timeout = timeout
        self._peer = ""
        self._sent = b""
        self._sent_at = 0.0
        self._context: ssl.SSLContext | None = None
        self._socket: ssl.SSLSocket | None = None
        self._lock = threading.Lock()
        self._is_settled = False
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            made = self._connected()
        except Exception:  # noqa: BLE001  (see the module)
            made = None
        with self._lock:
            if not self._is_settled:
                self._socket, made = made, None
        if made is not None:
            made.close()
        self._done.set()

    def _connected(self) -> ssl.SSLSocket:
        making = threading.Thread(target=self._make_context, daemon=True)
        making.start()
        plain = socket.create_connection((self.url.host, self.url.port), self._timeout)
        with closing_on_error(plain):
            # Otherwise the request is held back until the end of the handshake is acknowledged.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peer = plain.getpeername()[0]
            making.join()
            if self._context is None:
                raise ConnectionError("there is no context for TLS")
            secure = self._context.wrap_socket(plain, server_hostname=self.url.host)
        with closing_on_error(secure):
            if not self._is_settled and self._is_wanted():
                self._send(secure)
            secure.setblocking(False)  # noqa: FBT003  (the name says it)
        return secure

    def _make_context(self) -> None:
        with suppress(Exception):  # see the module
            from imgproxy.net import tls

            self._context = tls.context(self.contexts, self._certificates(), verify=True)

    def _send(self, secure: ssl.SSLSocket) -> None:
        """Send the client's first request, equal to the byte."""
        import h11

        from imgproxy.net import request

        http = h11.Connection(h11.CLIENT)
        self._sent = request.compose(http, self.url, self._headers, request.USER_AGENT)
        self._sent_at = time.monotonic()
        secure.sendall(self._sent)

    async def connection(self) -> Connection | None:
        """Wait for the connection and return it once; None where there is none in time."""
        import trio

        from imgproxy.net.connection_pool import Connection
        from imgproxy.net.streams import TlsStream

        if not self._done.is_set():
            with trio.move_on_after(_PATIENCE):
                await trio.to_thread.run_sync(self._done.wait, abandon_on_cancel=True)
        made = self._taken()
        if made is None:
            return None
        if self._sent and time.monotonic() - self._sent_at > _FRESH:
            made.close()
            return None
        stream = TlsStream(made)
        stream.peer = self._peer
        return Connection(stream, self._sent)

    def close(self) -> None:
        """Close the connection, also one that is still being made. May be called again."""
        made = self._taken()
        if made is not None:
            made.close()

    def _taken(self) -> ssl.SSLSocket | None:
        """Return the socket if there is one; one that is made later is closed by the thread."""
        with self._lock:
            self._is_settled = True
            made, self._socket = self._socket, None
            return made

"""A connection to a registry that is made while the event loop is still being imported.

Importing it takes as long as some round trips, and a name look-up, a dial and a TLS handshake need
nothing of it; nor does asking for the manifest, once a parent has asked for anything. Whatever goes
wrong with it is kept quiet: it is made again in the usual way, and reported then.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from imgproxy.config import endpoints
from imgproxy.config import policy as policies
from imgproxy.errors import Failure
from imgproxy.host import environment
from imgproxy.specs.http import proxy
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from imgproxy.host.configuration import Configuration
    from imgproxy.net.streams import TlsStream
    from imgproxy.specs.http.url import Url

# How long it is waited for when it is wanted, in seconds; it has had the time of the imports.
_PATIENCE = 1.0

# How old a question may be when its answer is wanted. Where it was nothing of the image that was
# asked for, that may be never, or when the image is another one.
_FRESH = 5.0


def begin(
    image: str,
    configuration: Configuration,
    is_wanted: Callable[[], bool],
    *,
    mirrors: bool,
    timeout: float,
) -> Preconnection | None:
    """Begin the connection that an image will need, if it can be told which.

    That is the first place of an image that is named with its registry, over TLS and without a
    proxy, where no policy or table forbids it. `is_wanted`: whether its manifest may be asked for.
    `timeout` is in seconds.
    """
    try:
        name = references.parse_image(image)
        if not isinstance(name, references.Reference):
            return None
        policies.demand(configuration.policy(), "docker", policies.scopes_of(name), image)
        place = endpoints.find(name, configuration.registries.registries, mirrors=mirrors)[0]
        url = distribution.registry_url(
            "https",
            place.reference.registry,
            place.reference.repository,
            distribution.ManifestPath(name.manifest),
        )
        if place.refusal or place.insecure or proxy.choose(url, environment.environment()):
            return None
    except Failure:
        return None  # which is reported when the image is opened
    return Preconnection(url, place.reference.registry, configuration, is_wanted, timeout)


class Preconnection:
    """A connection to the origin of `url`, made by a thread of its own.

    `asked` is the request that has been sent on it, if one has.
    """

    def __init__(
        self,
        url: Url,
        registry: str,
        configuration: Configuration,
        is_wanted: Callable[[], bool],
        timeout: float,
    ) -> None:
        self.url = url
        self.asked = b""
        self._asked_at = 0.0
        self._may_ask = is_wanted
        self._registry = registry
        self._configuration = configuration
        self._timeout = timeout
        self._socket: ssl.SSLSocket | None = None
        self._lock = threading.Lock()
        self._is_wanted = True
        self._done = threading.Event()
        threading.Thread(target=self._dial, daemon=True).start()

    def _dial(self) -> None:
        try:
            made = self._connected()
        except Exception:  # noqa: BLE001  (see the module)
            made = None
        with self._lock:
            if self._is_wanted:
                self._socket, made = made, None
        if made is not None:
            made.close()
        self._done.set()

    def _connected(self) -> ssl.SSLSocket:
        from imgproxy.net.tls import make_context

        context = make_context(self._configuration.certificates(self._registry), verify=True)
        plain = socket.create_connection((self.url.host, self.url.port), self._timeout)
        try:
            made = context.wrap_socket(plain, server_hostname=self.url.host)
        except BaseException:
            plain.close()
            raise
        try:
            if self._is_wanted and self._may_ask():
                self._ask(made)
            made.setblocking(False)  # noqa: FBT003  (the name says it)
        except BaseException:
            made.close()
            raise
        return made

    def _ask(self, made: ssl.SSLSocket) -> None:
        """Ask what the client would ask first, to the letter."""
        import h11

        from imgproxy.net import request

        accept = {"Accept": distribution.ACCEPT_MANIFESTS}
        connection = h11.Connection(h11.CLIENT)
        self.asked = request.compose(connection, self.url, accept, request.USER_AGENT)
        self._asked_at = time.monotonic()
        made.sendall(self.asked)

    async def wire(self) -> TlsStream | None:
        """Give the connection, None where there is none in time."""
        import trio

        from imgproxy.net.streams import TlsStream

        if not self._done.is_set():
            with trio.move_on_after(_PATIENCE):
                await trio.to_thread.run_sync(self._done.wait, abandon_on_cancel=True)
        made = self._taken()
        if made is not None and self.asked and time.monotonic() - self._asked_at > _FRESH:
            made.close()
            return None
        return None if made is None else TlsStream(made)

    def close(self) -> None:
        """Do without it."""
        made = self._taken()
        if made is not None:
            made.close()

    def _taken(self) -> ssl.SSLSocket | None:
        with self._lock:
            self._is_wanted = False
            made, self._socket = self._socket, None
            return made

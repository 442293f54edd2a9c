"""A registry as a server: the connections to it, and the scheme that it is reached by.

No request to `/v2/` comes first: the response to the first request contains the same facts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.errors import HOST_FAILURES, Failure, closing_on_error
from imgproxy.net import body_turn
from imgproxy.net.request import GET
from imgproxy.single_flight import SingleFlight
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry.outage import Outage
from imgproxy.transports.registry.redirects import follow
from imgproxy.transports.time_limit import waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.net.client import Client
    from imgproxy.net.request import Method
    from imgproxy.net.response import Response
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.distribution import ApiPath


# In seconds: how long an insecure registry may be silent to TLS before plain http is tried.
HTTPS_TIMEOUT = 5.0

# The head of a blob may take so many stall timeouts: a cache may have to fetch the blob first.
BLOB_STALLS = 5


class RegistryHost:
    """A registry, with what all of its repositories share.

    `registry` is its name in references, `host[:port]`. `insecure`: its certificate is not
    verified, and plain http is used where https fails. `warn` is called with each response of the
    registry itself, for the warnings in it. `outage_time`, `via`: see `NetworkOptions`.
    """

    def __init__(
        self,
        registry: str,
        client: Client,
        *,
        insecure: bool,
        warn: Callable[[Response], None] = lambda _: None,
        outage_time: float = 0.0,
        via: str = "",
    ) -> None:
        self.registry = registry
        self.outage = Outage(outage_time)
        self._warn = warn
        self.insecure = insecure
        self.via = via
        self._client = client
        self._scheme = "" if insecure else "https"
        self._probing = SingleFlight()

    async def url(self, repository: str, path: ApiPath) -> Url:
        """Return the URL of something in a repository.

        Raises `Failure` where neither https nor http gets a connection.
        """
        scheme = self._scheme or await self._probing.get(lambda: self._scheme or None, self._probe)
        return distribution.registry_url(scheme, self.registry, repository, path)

    async def get(
        self,
        url: Url,
        fields: dict[str, str],
        authorization: str,
        *,
        method: Method = GET,
        note: str = "",
        internal: bool = True,
    ) -> Response:
        """Return the response at the end of all redirects; see `Client.get` for the options.

        Where a redirect leads receives the authorization only if `distribution.is_authorized`. A
        form holds credentials, and is not sent on. Raises `Failure`.
        """
        first = url
        authorized = {**fields, "Authorization": authorization} if authorization else fields
        is_blob = distribution.is_blob(url)
        stalls = BLOB_STALLS if is_blob and "Range" not in fields else 1
        get_once = self._client.get
        ask = partial(get_once, method=method, note=note, internal=internal, stalls=stalls)

        async def get(url: Url, fields: dict[str, str]) -> Response:
            response = await ask(url, fields)
            if url.origin == first.origin:
                self.outage.answered()
                self._warn(response)
            return response

        if method.form is not None:
            with waiting(lambda: f"{method.name} {url}"):
                return await get(url, authorized)
        is_internal = True

        async def get_next(url: Url, fields: dict[str, str]) -> Response:
            nonlocal is_internal
            if is_blob and url is not first:
                await body_turn.come(is_redirected=True)
            response = await get(url, fields)
            # What a public server leads to is asked by it, wherever it is.
            response.is_internal = is_internal = is_internal and response.is_internal
            return response

        response = await follow(
            get_next,
            url,
            lambda url: authorized if distribution.is_authorized(url, first) else fields,
            allow_http=self.insecure,
            method=method.name,
        )
        if is_blob:
            with closing_on_error(response):
                await body_turn.come(is_redirected=False)
        return response

    async def _probe(self) -> str:
        """Return the scheme that a connection can be made by, and keep the connection."""
        try:
            await self._connect("https", HTTPS_TIMEOUT)
            self._scheme = "https"
        except HOST_FAILURES:
            raise  # a mistake on this host, and no reason to do without TLS
        except Failure as error:
            try:
                await self._connect("http")
            except HOST_FAILURES:
                raise
            except Failure as second:
                message = f"{error.message}; {second.message}"
                raise second.merged([error, second], message) from None
            self._scheme = "http"
        return self._scheme

    async def _connect(self, scheme: str, limit: float = float("inf")) -> None:
        base = distribution.registry_url(scheme, self.registry, "", distribution.BasePath())
        await self._client.connect(base, limit)

    def close(self) -> None:
        """Close the connections that no request uses, and forget the scheme that was probed."""
        self._client.close()
        self._scheme = "" if self.insecure else "https"

"""URLs that are asked for one thing, as a registry's endpoints are for many."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.host import environment
from imgproxy.net.client import Client
from imgproxy.net.dialer import Dialer
from imgproxy.net.request import USER_AGENT
from imgproxy.specs.http import proxy
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry.endpoint import OK, check_encoding, discard, follow
from imgproxy.transports.registry.failover import Rounds

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from imgproxy.host.configuration import Configuration
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.response import Response
    from imgproxy.specs.http.url import Url
    from imgproxy.transports.registry.options import Access


def open_rounds(
    name: str,
    urls: Sequence[Url],
    access: Access,
    configuration: Configuration,
    diagnostics: Diagnostics,
) -> Rounds:
    """Give the rounds over URLs that should all have the same, which is called `name`."""
    proxy_for = partial(proxy.choose, environment=environment.environment())
    verify = access.tls_verify is not False
    client = Client(
        Dialer(None, "", configuration.certificates, proxy_for, verify=verify),
        diagnostics,
        stall_timeout=access.stall_timeout,
        user_agent=USER_AGENT,
        proxy_for=proxy_for,
    )
    endpoints = [_Elsewhere(url, client, allow_http=not verify) for url in urls]
    return Rounds(name, endpoints, retries=access.retries)


class _Elsewhere:
    """A URL as an `Endpoint`, which has one thing only."""

    refusal = ""

    def __init__(self, url: Url, client: Client, *, allow_http: bool) -> None:
        self.name = str(url)
        self.demerits = 0
        self._url = url
        self._client = client
        self._allow_http = allow_http

    async def get(
        self, kind: str, name: str, fields: dict[str, str], *, wanted: Collection[int] = OK
    ) -> Response:
        response = await follow(
            self._client.get, self._url, lambda _: fields, allow_http=self._allow_http
        )
        if response.status not in wanted:
            body = await discard(response)
            raise distribution.failure(response.url, response.status, body, kind, name)
        check_encoding(response)
        return response

    def close(self) -> None:
        self._client.close()

"""Layers outside of their registry: the `urls` of a descriptor, OCI image specification.

They lead anywhere, and whoever wrote the manifest chose where. So they are fetched only when that
is asked for, over http or https, without credentials, and not from link-local addresses, where
clouds keep the credentials of their machines.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy import __version__, system
from imgproxy.client import Client
from imgproxy.dialling import Dialer
from imgproxy.errors import NotFoundError
from imgproxy.spec import distribution, proxy
from imgproxy.spec import url as urls
from imgproxy.transports.endpoint import OK, check_encoding, discard, follow
from imgproxy.transports.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.response import Response
    from imgproxy.settings import Settings
    from imgproxy.spec.manifest import Descriptor
    from imgproxy.spec.url import Url
    from imgproxy.system import Reporter
    from imgproxy.transports.access import Access
    from imgproxy.transports.source import Reader

# More places for one layer help nobody.
_MAX_URLS = 8


async def open_layer(
    access: Access,
    settings: Settings,
    reporter: Reporter,
    descriptor: Descriptor,
    error: NotFoundError,
) -> Reader:
    """Give a layer from one of its URLs; `error` says why its source does not have it.

    Raises `NotFoundError` with the URLs where they may not be asked, and `Failure`.
    """
    places = [url for url in map(_parsed, descriptor.urls[:_MAX_URLS]) if url is not None]
    if access.offline or not access.foreign_layers or not places:
        shown = [str(url) for url in places]
        option = (
            "--offline forbids asking there" if access.offline else "--foreign-layers fetches it"
        )
        where = f"it lies at {', '.join(shown)}, and {option}" if shown else "its URLs are unusable"
        raise NotFoundError(
            f"{error.message}; {where}", code=error.code, **{**error.detail, "urls": shown}
        )
    proxy_for = partial(proxy.choose, environment=system.environment())
    verify = access.tls_verify is not False
    client = Client(
        Dialer(None, "", settings.certificates, proxy_for, verify=verify),
        reporter,
        stall_timeout=access.stall_timeout,
        user_agent=f"imgproxy/{__version__}",
        proxy_for=proxy_for,
    )
    name = f"foreign layer {descriptor.digest}"
    endpoints = [_Elsewhere(url, client, allow_http=not verify) for url in places]
    return await Rounds(name, endpoints, retries=access.retries).blob(descriptor)


def _parsed(text: str) -> Url | None:
    try:
        return urls.parse(text)
    except ValueError:
        return None


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

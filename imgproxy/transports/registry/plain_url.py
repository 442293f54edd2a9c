"""Plain URLs: files of web servers, fetched without a registry's API and without credentials."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.specs.oci import distribution
from imgproxy.specs.oci.distribution import BlobPath
from imgproxy.transports.registry.blob_part import open_part
from imgproxy.transports.registry.outage import Outage
from imgproxy.transports.registry.redirects import OK, check_encoding, discard, follow, retry_after

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.net.client import Client
    from imgproxy.net.response import Response
    from imgproxy.specs.http.content_range import Range
    from imgproxy.specs.http.url import Url
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.distribution import ApiPath
    from imgproxy.transports.registry.blob_part import Part


class PlainUrl:
    """A URL as a location of `failover`: that of a blob, or a directory of files.

    `allow_http` allows redirects from https to http.
    """

    def __init__(self, url: Url, client: Client, *, allow_http: bool) -> None:
        self.name = str(url)
        self.demerits = 0
        self.outage = Outage()
        self._url = url
        self._client = client
        self._allow_http = allow_http

    async def blob(self, digest: Digest, wanted: Range | None = None) -> Part:
        """See `BlobLocation`; the URL is that of the blob."""
        path = BlobPath(digest)

        async def get(fields: dict[str, str], *, wanted: Collection[int] = OK) -> Response:
            return await self._get(self._url, path, fields, wanted)

        return await open_part(get, wanted)

    async def read(self, name: str, kind: str, limit: int) -> bytes:
        """Return a file by its name, which is appended to the URL. Raises `Failure`.

        `kind` describes the file in messages; `limit` is the greatest number of bytes.
        """
        url = self._url._replace(target=self._url.target + name)
        response = await self._get(url, kind, {}, OK)
        check_encoding(response)
        return await response.read(limit)

    async def _get(
        self, url: Url, asked: ApiPath | str, fields: dict[str, str], wanted: Collection[int]
    ) -> Response:
        follow_all = partial(
            follow, self._client.get, url, lambda _: fields, allow_http=self._allow_http
        )
        response = await follow_all()
        if response.status in distribution.STORE_REFUSALS and response.url != url:
            await discard(response)
            response = await follow_all()
        if response.status not in wanted:
            body = await discard(response)
            wait = retry_after(response)
            raise distribution.failure(response.url, response.status, body, asked, retry_after=wait)
        return response

"""Responses of any server: redirects, encodings, refusals.

RFC 9110 sections 15.4 (redirects), 8.4 (`Content-Encoding`) and 10.2.3 (`Retry-After`).
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from imgproxy.errors import BadUpstreamError, Failure, InvalidError, UnreachableError, clean
from imgproxy.specs.http import retry
from imgproxy.specs.oci import distribution
from imgproxy.transports.time_limit import waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgproxy.net.response import Response
    from imgproxy.specs.http.url import Url

# In seconds: how long the body of a refusal is waited for. It may say why, and its connection can
# be used again; neither is worth the time of a stall.
DISCARD_TIMEOUT = 1.0

# The statuses of success, unless a request accepts others.
OK = frozenset({200})


async def follow(
    get: Callable[[Url, dict[str, str]], Awaitable[Response]],
    url: Url,
    headers: Callable[[Url], dict[str, str]],
    *,
    allow_http: bool,
    method: str = "GET",
) -> Response:
    """Return the response at the end of all redirects; `headers` returns the fields for a URL.

    `allow_http` allows redirects from https to http. Raises `Failure`.
    """
    by: Url | None = None
    for _ in range(distribution.MAX_REDIRECTS + 1):
        try:
            with waiting(lambda: f"{method} {url}"):  # noqa: B023  (called within the block)
                response = await get(url, headers(url))
        except UnreachableError as error:
            if by is None:
                raise
            raise error.merged([error], f"{error.message} ({by} redirects there)") from error
        if response.status not in distribution.REDIRECTS:
            return response
        await discard(response, 0)  # nobody reads it
        by = url
        url = distribution.redirect(url, response.header("location"), allow_http=allow_http)
    raise BadUpstreamError(f"GET {url}: redirected more than {distribution.MAX_REDIRECTS} times")


def check_encoding(response: Response) -> None:
    """Raise `BadUpstreamError` for an encoded response: its bytes are not the requested ones."""
    if encoding(response):
        response.close()
        raise _encoded(response)


def encoding(response: Response) -> str:
    """Return how a response says that it is encoded, empty if it does not.

    None was requested, but some servers name that of the file itself, by its name or first bytes.
    """
    found = response.header("content-encoding").lower()
    return "" if found == "identity" else found


async def read_json(response: Response, limit: int) -> bytes:
    """Return the JSON object that a response has, at most `limit` bytes, and close the response.

    One that was compressed though that was not requested is decompressed. Raises `Failure`.
    """
    raw = await response.read(limit)
    if not encoding(response) or raw.lstrip()[:1] == b"{":
        return raw
    if encoding(response) not in ("gzip", "x-gzip"):
        raise _encoded(response)
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = stream.decompress(raw, limit + 1)
    except zlib.error as error:
        raise BadUpstreamError(f"{_encoded(response).message}: {clean(str(error))}") from None
    if len(plain) > limit:
        raise InvalidError(
            f"GET {response.url}: the reply has more than the {limit} bytes it may have",
            code="SIZE_INVALID",
        )
    if not stream.eof or stream.unused_data:
        raise BadUpstreamError(f"{_encoded(response).message}: it is cut off, or more follows it")
    return plain


def _encoded(response: Response) -> Failure:
    return BadUpstreamError(
        f"GET {response.url}: the reply is encoded ({clean(encoding(response))}), which was not"
        " requested"
    )


async def discard(response: Response, seconds: float = DISCARD_TIMEOUT) -> bytes:
    """Return the body of a refusal, read so that its connection can be used again.

    One that is not there in so many seconds is given up, with its connection.
    """
    try:
        return await response.read(distribution.MAX_ERROR_SIZE, seconds)
    except Failure:
        return b""


def retry_after(response: Response) -> float | None:
    """Return the wait in seconds that a server asks for, None if it does not."""
    return retry.retry_after(response.header("retry-after"), time.time())

"""A response that is positioned at some byte of a blob: RFC 9110 section 14.

The rest of a blob is asked for by a range. A server that has no ranges sends the whole instead, of
which the beginning is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgproxy.errors import UnavailableError, closing_on_error
from imgproxy.specs.http import content_range
from imgproxy.specs.http.content_range import Rest
from imgproxy.transports.registry.redirects import OK

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgproxy.net.response import Response
    from imgproxy.specs.http.content_range import Range

_WITH_RANGE = frozenset({200, 206, 416})

_SKIPPED = 256 * 1024


class Part(NamedTuple):
    """A response whose next byte is the wanted one; close it in any case.

    A server may send less than the rest, or more; `promised` is how many bytes of it it announced,
    0 where no part was asked for.
    """

    response: Response
    promised: int = 0


class Get(Protocol):
    """How a blob is asked for at one location."""

    async def __call__(self, fields: dict[str, str], *, wanted: Collection[int] = OK) -> Response:
        """Return the response; a status that is not `wanted` raises `Failure`."""


async def open_part(get: Get, wanted: Range | None) -> Part:
    """Return the whole of a blob, or the wanted part of it. Raises `Failure`."""
    if wanted is None:
        return Part(await get({}))
    response = await get({"Range": wanted.field}, wanted=_WITH_RANGE)
    with closing_on_error(response):
        rest = content_range.read_reply(
            response.url,
            wanted,
            response.status,
            response.headers("content-range"),
            response.size,
        )
    if rest is None:  # the server has no ranges, but may have the whole
        response.close()
        response = await get({})
        rest = Rest(wanted.offset, wanted.stop - wanted.offset)
    with closing_on_error(response):
        await _skip(response, rest.skip)
    return Part(response, rest.length)


async def _skip(response: Response, count: int) -> None:
    """Receive and drop the bytes before the wanted one."""
    scratch = memoryview(bytearray(min(count, _SKIPPED)))
    while count:
        received = await response.receive_into(scratch[:count])
        if received == 0:
            raise UnavailableError(f"GET {response.url}: ended before the byte that was reached")
        count -= received

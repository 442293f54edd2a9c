"""The head of a reply, by h11: RFC 9112 section 4, RFC 9110 section 15."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from collections.abc import Sequence

_REASONS = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def reply_head(
    status: int, size: int, fields: Sequence[tuple[str, str]], persistence: str
) -> bytes:
    """Return the head of a reply whose body has `size` bytes.

    `persistence` is its `Connection` field, none if it is empty. Raises `h11.LocalProtocolError`
    for what cannot be in a head.
    """
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    common = [("Date", date), ("Content-Length", str(size))]
    if all(name.lower() != "accept-ranges" for name, _ in fields):
        common.append(("Accept-Ranges", "none"))
    ending = [("Connection", persistence)] if persistence else []
    # h11 checks the fields. It does not write them, as it would close each HTTP/1.0 connection.
    response = h11.Response(status_code=status, headers=[*common, *fields, *ending])
    lines = [b"%b: %b\r\n" % field for field in response.headers.raw_items()]
    start = f"HTTP/1.1 {status} {_REASONS[status]}\r\n".encode()
    return b"".join([start, *lines, b"\r\n"])

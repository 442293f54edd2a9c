"""The head of a reply: RFC 9112 section 4, RFC 9110 section 15."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING

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


# As h11 has them: tokens, and values that neither begin nor end with white space.
_FIELDS = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9A-Za-z]+: (?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?\r\n)*")


def reply_head(
    status: int, size: int, fields: Sequence[tuple[str, str]], persistence: str
) -> bytes:
    """Return the head of a reply whose body has `size` bytes.

    `persistence` is its `Connection` field, none if it is empty. Raises `ValueError` for what
    cannot be in a head.
    """
    common = [("Date", _date(int(time.time()))), ("Content-Length", str(size))]
    if all(name.lower() != "accept-ranges" for name, _ in fields):
        common.append(("Accept-Ranges", "none"))
    ending = [("Connection", persistence)] if persistence else []
    every = [*common, *fields, *ending]
    lines = "".join([f"{name}: {value}\r\n" for name, value in every]).encode("ascii")
    if not _FIELDS.fullmatch(lines) or lines.count(b"\n") != len(every):
        raise ValueError(f"these fields cannot be in a head: {every}")
    return f"HTTP/1.1 {status} {_REASONS[status]}\r\n".encode() + lines + b"\r\n"


@lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))

"""Range requests (RFC 9110 section 14), for a part of a blob or to resume its transfer.

The only form that is sent is one closed range: go-containerregistry's registry refuses open ones
(`bytes=N-`), zot and others refuse several at once, and every public registry supports this one.
Every reply is checked against the descriptor; the digest decides in the end, but a wrong offset is
detected here, before megabytes have been hashed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from imgproxy.errors import BadUpstreamError, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.specs.http.url import Url

# Section 14.4; units are case-insensitive. 19 digits hold every size that a file can have.
_CONTENT_RANGE = re.compile(r"(?i:bytes) ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_UNSATISFIED = re.compile(r"(?i:bytes) \*/([0-9]{1,19})")


class Range(NamedTuple):
    """The missing part of a blob of `size` bytes: from `offset` to before `stop`, at least one."""

    offset: int
    stop: int
    size: int

    @property
    def field(self) -> str:
        """The value of the `Range` field."""
        return f"bytes={self.offset}-{self.stop - 1}"

    def __str__(self) -> str:
        return f"bytes {self.offset}-{self.stop - 1} of {self.size}"


class Rest(NamedTuple):
    """The content of a reply's body: `skip` bytes received before, then `length` missing ones.

    `length` may be less than requested: a server may send a part of the range, RFC 9110 section
    15.3.7. The bytes that are missing after it need another request.
    """

    skip: int
    length: int


def read_reply(
    url: Url, wanted: Range, status: int, fields: Sequence[str], length: int | None
) -> Rest | None:
    """Return which bytes the reply to a range request holds.

    None means that this server has no ranges of this blob, though it may have the whole: repeat
    the request without a range, and skip. `fields` are the values of all `Content-Range` fields,
    `length` is that of `Content-Length`, None where there is none. Redirects, refused credentials
    and temporary failures are handled elsewhere, as for a request without a range.

    Raises `BadUpstreamError` for a reply to another request, and for one about bytes other than
    the descriptor's.
    """
    if status == 206:
        return _partial(url, wanted, fields, length)
    if status == 200:
        # The server does not support `Range`, or not for this blob: section 14.2.
        if length not in (None, wanted.size):
            _refuse(url, wanted, f"the answer is a whole of {length} bytes")
        return Rest(wanted.offset, wanted.stop - wanted.offset)
    if status == 416:
        match = _UNSATISFIED.fullmatch(fields[0]) if len(fields) == 1 else None
        if match is not None and int(match[1]) != wanted.size:
            _refuse(url, wanted, f"the answer is that there are {match[1]} bytes")
        return None
    return _refuse(url, wanted, f"the answer is {status}")


def _partial(url: Url, wanted: Range, fields: Sequence[str], length: int | None) -> Rest:
    """Return which bytes a 206 holds; it must have one part, as section 15.3.7.1 requires."""
    shown = " and ".join(f'"{clean(field)}"' for field in fields) or "none"
    match = _CONTENT_RANGE.fullmatch(fields[0]) if len(fields) == 1 else None
    if match is None:
        _refuse(url, wanted, f"the answer's Content-Range is not one range of bytes: {shown}")
    first, last = int(match[1]), int(match[2])
    total = wanted.size if match[3] == "*" else int(match[3])
    if first != wanted.offset or not first <= last < wanted.stop or total != wanted.size:
        _refuse(url, wanted, f"the answer's Content-Range is {shown}")
    count = last + 1 - first
    if length not in (None, count):
        _refuse(url, wanted, f"the answer's Content-Range is {shown}, its length {length}")
    return Rest(0, count)


def _refuse(url: Url, wanted: Range, answer: str) -> NoReturn:
    raise BadUpstreamError(f"GET {url}: asked for {wanted}, but {answer}")

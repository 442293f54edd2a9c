"""Going on with a body that broke off: RFC 9110 section 14, as a client of blobs uses it.

One closed range is asked for and no other form: go-containerregistry's registry refuses open ones
(`bytes=N-`), zot and others refuse several at once, and every public registry knows this one.
Nothing that is answered is believed until it agrees with the descriptor; the digest decides in
the end, but a wrong offset is told here, before megabytes have gone into the hash.
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
    """What is still wanted of a blob of `size` bytes: those from `offset` on, at least one."""

    offset: int
    size: int

    @property
    def field(self) -> str:
        """The value of `Range`."""
        return f"bytes={self.offset}-{self.size - 1}"

    def __str__(self) -> str:
        return f"bytes {self.offset}-{self.size - 1} of {self.size}"


class Rest(NamedTuple):
    """What a reply's body is: `skip` bytes that were had before, then `length` that are wanted.

    `length` may be less than what was asked for: a server may send a part of the range, RFC 9110
    section 15.3.7. What is missing after it is asked for like any other rest.
    """

    skip: int
    length: int


def answer(
    url: Url, wanted: Range, status: int, fields: Sequence[str], length: int | None
) -> Rest | None:
    """Give what the reply to a `Range` is good for.

    None means that this server has no ranges of this blob, though it may have the whole: ask
    again without one, and skip. `fields` are the values of all `Content-Range` fields, `length` is
    that of `Content-Length`, None where it isn't said. Redirects, refused credentials and
    temporary failures are not for here: they are what they are for a request without a range.

    Raises `BadUpstreamError` for a reply that isn't the one asked for, and for one about bytes
    other than the descriptor's.
    """
    if status == 206:
        return _partial(url, wanted, fields, length)
    if status == 200:
        # The server doesn't know `Range`, or has none of this: section 14.2.
        if length not in (None, wanted.size):
            _refuse(url, wanted, f"the answer is a whole of {length} bytes")
        return Rest(wanted.offset, wanted.size - wanted.offset)
    if status == 416:
        match = _UNSATISFIED.fullmatch(fields[0]) if len(fields) == 1 else None
        if match is not None and int(match[1]) != wanted.size:
            _refuse(url, wanted, f"the answer is that there are {match[1]} bytes")
        return None
    return _refuse(url, wanted, f"the answer is {status}")


def _partial(url: Url, wanted: Range, fields: Sequence[str], length: int | None) -> Rest:
    """Give the rest that a 206 promises; exactly one part, as section 15.3.7.1 wants it."""
    said = " and ".join(f'"{clean(field)}"' for field in fields) or "none"
    match = _CONTENT_RANGE.fullmatch(fields[0]) if len(fields) == 1 else None
    if match is None:
        _refuse(url, wanted, f"the answer's Content-Range is not one range of bytes: {said}")
    first, last = int(match[1]), int(match[2])
    total = wanted.size if match[3] == "*" else int(match[3])
    if first != wanted.offset or not first <= last < wanted.size or total != wanted.size:
        _refuse(url, wanted, f"the answer's Content-Range is {said}")
    count = last + 1 - first
    if length not in (None, count):
        _refuse(url, wanted, f"the answer's Content-Range is {said}, its length {length}")
    return Rest(0, count)


def _refuse(url: Url, wanted: Range, answer: str) -> NoReturn:
    raise BadUpstreamError(f"GET {url}: asked for {wanted}, but {answer}")

"""Secrets in text that is to be shown: found however they are spelled there, and masked.

A server may quote what it was sent as it stands or encoded, and a message may have the beginning of
that alone. So a text is read with its percent-encoding and its escapes (of JSON, and of strings as
Python and Go quote them) decoded or not, in any case with blanks and line breaks left out and in
lower case; what is sought is a secret as it is, or in base64, also as a part of more.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from itertools import product
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from imgproxy.errors import CONTROLS, OMISSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MASK = "***"

# Tokens are replaced for as long as the program runs. What is in use is added again with each
# request, so that only what was not sent for many requests is forgotten. The length is that of all
# secrets, in characters.
_MAX_SECRETS = 1024
_MAX_LENGTH = 512 * 1024

# A shorter secret is masked where it stands alone: parts of words would be equal to it by chance,
# no message could be read any more, and the masks would give it away.
_MIN_LENGTH = 4

# The beginning of a secret in front of an omission. A single character is equal to one by chance.
_MIN_BEGINNING = 2

# What is left out: controls and blanks in text, and those that an escape stands for.
_GAP = re.compile(rf"{CONTROLS.pattern}|\s+")
_GAPS = bytes([*range(0x21), 0x7F])
_PRINTABLE = bytes(range(0x21, 0x7F))
_OMISSION = OMISSION.encode()

# The ways of decoding, in lower case. An escape that an omission has cut stands for nothing.
_CUT = rb"(?=%b|\Z)" % _OMISSION
_PERCENT = rb"%(?P<hex>[0-9a-f]{2})|%[0-9a-f]?" + _CUT
_ESCAPES = (
    re.compile(_PERCENT),
    re.compile(rb"\+|" + _PERCENT),  # `+` is a blank in a form
    re.compile(
        rb"\\x(?P<hex>[0-9a-f]{2})"
        rb"|(?P<units>\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|\\u[0-9a-f]{4})"
        rb"|\\(?:ud[89ab][0-9a-f]{2}\\)?(?:u[0-9a-f]{0,3}|x[0-9a-f]?)?"
        + _CUT
        + rb"|\\[abfnrtv]|\\(?P<itself>.)"
    ),
)

# How often a secret may have been encoded: JSON in JSON, quoted once more as a string of Python.
_MAX_DEPTH = 3


class Secrets:
    """Secrets, of which the latest are kept."""

    def __init__(self) -> None:
        # By secret, the latest last; its spellings are found when they are needed first.
        self._spellings: dict[str, frozenset[bytes]] = {}

    def add(self, secrets: Iterable[str]) -> None:
        """Keep secrets, and forget the oldest of too many."""
        for secret in (each for each in secrets if _GAP.sub("", each)):
            self._spellings[secret] = self._spellings.pop(secret, frozenset())
        while len(self._spellings) > _MAX_SECRETS or (
            len(self._spellings) > 1 and sum(map(len, self._spellings)) > _MAX_LENGTH
        ):
            del self._spellings[next(iter(self._spellings))]

    def mask(self, text: str) -> str:
        """Return a text with all secrets masked, and the beginnings of those that it cuts."""
        spans: list[tuple[int, int]] = []
        readings = list(_readings(text))
        for secret in self._spellings:
            spellings = self._spellings[secret] or frozenset(_spellings(secret))
            self._spellings[secret] = spellings
            for reading, spelling in product(readings, spellings):
                if len(secret) < _MIN_LENGTH:
                    spans += (each for each in reading.find(spelling) if _is_word(text, *each))
                else:
                    spans += reading.find(spelling)
                    spans += reading.find_beginnings(spelling)
        return _masked(text, spans)


class _Reading(NamedTuple):
    """One way to read a text: bytes in UTF-8, and where in the text each begins and ends."""

    content: bytes
    begins: Sequence[int]
    ends: Sequence[int]

    def decoded(self, escapes: re.Pattern[bytes]) -> _Reading:
        """Return the reading with escapes decoded; what they stand for begins where they do."""
        content, begins, ends, at = bytearray(), list[int](), list[int](), 0
        for match in escapes.finditer(self.content):
            start, end = match.span()
            decoded = _decoded(**match.groupdict()).translate(None, _GAPS).lower()
            content += self.content[at:start] + decoded
            begins += [*self.begins[at:start], *[self.begins[start]] * len(decoded)]
            ends += [*self.ends[at:start], *[self.ends[end - 1]] * len(decoded)]
            at = end
        content += self.content[at:]
        return _Reading(bytes(content), [*begins, *self.begins[at:]], [*ends, *self.ends[at:]])

    def find(self, spelling: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places of a spelling in the text."""
        at = self.content.find(spelling)
        while at >= 0:
            yield self.begins[at], self.ends[at + len(spelling) - 1]
            at = self.content.find(spelling, at + 1)

    def find_beginnings(self, spelling: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places where a beginning of a spelling is followed by an omission."""
        first = spelling[:_MIN_BEGINNING]
        end = self.content.find(_OMISSION)
        while end >= 0:
            at = self.content.find(first, max(0, end - len(spelling) + 1), end)
            while at >= 0 and not spelling.startswith(self.content[at:end]):
                at = self.content.find(first, at + 1, end)
            if at >= 0:
                yield self.begins[at], self.begins[end]
            end = self.content.find(_OMISSION, end + 1)


def _readings(text: str) -> Iterator[_Reading]:
    """Yield the ways to read a text."""
    level = [_read(text)]
    seen: set[bytes] = set()
    for _ in range(_MAX_DEPTH + 1):
        new = {each.content: each for each in level if each.content not in seen}
        yield from new.values()
        seen |= new.keys()
        level = [
            each.decoded(escapes)
            for each in new.values()
            for escapes in _ESCAPES
            if escapes.search(each.content)
        ]


def _read(text: str) -> _Reading:
    """Return a text as it stands, without its gaps."""
    gaps = {at for match in _GAP.finditer(text) for at in range(*match.span())}
    pieces = [(n, each.encode()) for n, each in enumerate(text) if n not in gaps]
    places = [n for n, piece in pieces for _ in piece]
    content = b"".join(piece for _, piece in pieces).lower()
    return _Reading(content, places, [n + 1 for n in places])


def _decoded(
    hex: bytes | None = None,  # noqa: A002  (the group in the patterns)
    units: bytes | None = None,
    itself: bytes | None = None,
) -> bytes:
    """Return what an escape stands for: nothing for a blank, a control, or half an escape."""
    if hex is not None:
        return bytes.fromhex(hex.decode())
    if units is not None:
        utf_16 = bytes.fromhex(units.decode().replace("\\u", ""))
        return utf_16.decode("utf-16-be", "ignore").encode()
    return itself or b""


def _spellings(secret: str) -> Iterator[bytes]:
    """Yield the ways to spell a secret in a reading."""
    raw = secret.encode(errors="replace")
    yield raw.translate(None, _GAPS).lower()
    for text in (secret, raw.decode("latin-1")):  # the latter as a header field is read
        yield _GAP.sub("", text).encode(errors="replace").lower()
    # as in a Location that has blanks, of which nothing else is encoded (`specs.oci.distribution`)
    yield quote(raw, safe=_PRINTABLE).encode().lower()
    if len(secret) < _MIN_LENGTH:
        return
    yield from _in_base64(b2a_base64(raw, newline=False).rstrip(b"="))
    for before in range(3):
        # What is encoded may have more before and after it. The characters that depend on that are
        # left out; of the secret they have a few bits.
        encoded = b2a_base64(bytes(before) + raw, newline=False).rstrip(b"=")
        has_rest = (before + len(raw)) % 3 != 0
        yield from _in_base64(encoded[(0, 2, 3)[before] : len(encoded) - has_rest])


def _in_base64(encoded: bytes) -> tuple[bytes, bytes]:
    """Return base64 as it is sought, in both alphabets."""
    return encoded.lower(), encoded.translate(bytes.maketrans(b"+/", b"-_")).lower()


def _is_word(text: str, begin: int, end: int) -> bool:
    """Return whether a part of a text has no letter or digit beside it."""
    return not (text[begin - 1 : begin].isalnum() or text[end : end + 1].isalnum())


def _masked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return a text with masks in these places, one for those that touch each other."""
    pieces, at, masked_to = [], 0, -1
    for begin, end in sorted(spans):
        if begin > masked_to:
            pieces += [text[at:begin], MASK]
        at = masked_to = max(masked_to, end)
    return "".join([*pieces, text[at:]])

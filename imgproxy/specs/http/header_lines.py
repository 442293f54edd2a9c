"""Lines in the head of a response that are no header fields: RFC 9112 section 5.

Servers and what stands before them write `X-Cache : HIT`. A line that advises may be ignored; one
that says where a message ends may not, for another reader of the same bytes may have understood it.
"""

from __future__ import annotations

import re

_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0\n\v\f\r]*")
_CONTINUED = (b" ", b"\t")

# Some readers take these for the end of a line, or ignore them.
_CONTROLS = re.compile(rb"[\0\n\v\f\r]")

# What frames a message, by the letters of the name: whatever is put between them is a disguise.
_NO_LETTERS = re.compile(rb"[^a-z]+")
_FRAMING = (b"contentlength", b"transferencoding", b"connection")


def without_malformed(head: bytes) -> bytes:
    """Return a head without the malformed lines that cannot be taken for framing.

    Other malformed lines stay, for a parser that refuses them.
    """
    start, *lines = head.split(b"\n")
    fields: list[bytes] = []
    for line in lines:
        if line.startswith(_CONTINUED) and fields:
            fields[-1] += b"\n" + line
        else:
            fields.append(line)
    return b"\n".join([start, *filter(_stays, fields)])


def _stays(field: bytes) -> bool:
    """Return whether a field, with the lines that continue it, is well-formed, or may frame."""
    first, *_ = lines = [line.removesuffix(b"\r") for line in field.split(b"\n")]
    if not first or first.startswith(_CONTINUED):
        return True
    if _FIELD.fullmatch(first) and not any(map(_CONTROLS.search, lines)):
        return True
    name, _, value = field.removesuffix(b"\r").partition(b":")
    suspect = field if _CONTROLS.search(value) else name
    letters = _NO_LETTERS.sub(b"", suspect.lower())
    return any(each in letters for each in _FRAMING)

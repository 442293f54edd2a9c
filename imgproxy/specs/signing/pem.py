"""PEM, the textual encoding of keys and certificates: RFC 7468."""

from __future__ import annotations

import base64
import binascii
import re

_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,64})-----\r?\n([A-Za-z0-9+/=\r\n]+?)-----END \1-----\s*"
)


def blocks(text: bytes) -> list[tuple[str, bytes]]:
    """Return the label and the content of each block.

    Raises `ValueError` for text with anything else in it, or without a block.
    """
    text = text.strip()
    found: list[tuple[str, bytes]] = []
    position = 0
    while position < len(text) or not found:
        match = _BLOCK.match(text, position)
        if match is None:
            raise ValueError("not PEM")
        try:
            content = base64.b64decode(b"".join(match[2].split()), validate=True)
        except binascii.Error:
            raise ValueError("not PEM: its base64 is broken") from None
        found.append((match[1].decode(), content))
        position = match.end()
    return found


def single_block(text: bytes, *labels: str) -> bytes:
    """Return the content of a single block with one of these labels.

    Raises `ValueError` for several blocks and for any other label.
    """
    found = blocks(text)
    if len(found) != 1 or found[0][0] not in labels:
        got = ", ".join(label for label, _ in found)
        raise ValueError(f"expected one block of {' or '.join(labels)}, got {got}")
    return found[0][1]

"""Packets, of which messages and keys of OpenPGP consist: RFC 4880 section 4."""

from __future__ import annotations

from typing import NamedTuple

from imgproxy.specs.signing.signature import SignatureError

SIGNATURE, ONE_PASS, SECRET_KEY, PUBLIC_KEY, COMPRESSED, LITERAL, USER_ID = 2, 4, 5, 6, 8, 11, 13

# That of the packets that are written here; others may have shorter ones.
HEADER_SIZE = 6


class Packet(NamedTuple):
    """A packet without its header."""

    tag: int
    body: bytes


def framed(tag: int, body: bytes) -> bytes:
    """Return a packet with a header of `HEADER_SIZE` bytes."""
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4) + body


def _expect_data(tag: int) -> None:
    if tag not in (COMPRESSED, LITERAL):
        raise SignatureError("a packet that is not data has no definite length")


class Reader:
    """The bytes of packets, read from the front. Raises `SignatureError` at a premature end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._position = 0

    @property
    def at_end(self) -> bool:
        """Whether there is no further packet."""
        return self._position == len(self._raw)

    @property
    def next_tag(self) -> int | None:
        """The tag of the next packet, which must exist; None where no packet begins."""
        head = self._raw[self._position]
        if not head & 0x80:
            return None
        return head & 0x3F if head & 0x40 else head >> 2 & 0x0F

    def packet(self) -> Packet:
        """Return the next packet."""
        head, tag = self._raw[self._position], self.next_tag
        if tag is None:
            raise SignatureError(
                f"it is not an OpenPGP message (a packet begins with 0x{head:02x})"
            )
        self._position += 1
        return Packet(tag, self._new_body(tag) if head & 0x40 else self._old_body(tag, head & 3))

    def _old_body(self, tag: int, kind: int) -> bytes:
        """Return the body of a packet with an old header: section 4.2.1.

        The last kind of length is indeterminate: up to the end.
        """
        if kind < 3:  # noqa: PLR2004
            return self._take(self._number(1 << kind))
        _expect_data(tag)
        return self._take(len(self._raw) - self._position)

    def _new_body(self, tag: int) -> bytes:
        """Return the body of a packet with a new header: section 4.2.2.

        Only data may have partial lengths.
        """
        body = b""
        while True:
            first = self._number(1)
            if 224 <= first < 255:  # noqa: PLR2004
                _expect_data(tag)
                body += self._take(1 << (first & 0x1F))
                continue
            if first == 255:  # noqa: PLR2004
                return body + self._take(self._number(4))
            if first >= 192:  # noqa: PLR2004
                return body + self._take(((first - 192) << 8) + self._number(1) + 192)
            return body + self._take(first)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def _take(self, size: int) -> bytes:
        piece = self._raw[self._position : self._position + size]
        if len(piece) < size:
            raise SignatureError("it ends in the middle of a packet")
        self._position += size
        return piece

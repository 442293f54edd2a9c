"""OpenPGP messages with exactly one signature: RFC 4880 sections 4, 5 and 11.3.

Programs have accepted messages that were not signed at all, or had unsigned parts, because their
OpenPGP library returned whatever it found. Here a message is taken apart before verification: it
must be one signature over one literal, which may be compressed together. The result is the
literal's content and the signature's packet, so that the verifying library has no structure left
to misinterpret.
"""

from __future__ import annotations

import bz2
import zlib
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.signing.signature import MAX_SIGNATURE_SIZE, SignatureError

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNATURE, _ONE_PASS, _COMPRESSED, _LITERAL = 2, 4, 8, 11
_NAMES = {
    1: "an encrypted session key",
    3: "an encrypted session key",
    9: "encrypted data",
    18: "encrypted data",
    20: "encrypted data",
    _SIGNATURE: "a signature",
    _ONE_PASS: "a one-pass signature",
    _COMPRESSED: "compressed data",
    _LITERAL: "a literal",
}

# The type of signatures of binary documents; one of text covers normalised line ends, and so other
# bytes than the content. By the version of the signature, its position.
_BINARY = 0
_TYPE_AT = {3: 2, 4: 1, 6: 1}

# The parts of a signature of version 3, by position (section 5.2.2). Of the algorithms, those that
# its signers have used: RSA (section 9.1), with SHA-256, SHA-384 and SHA-512 (section 9.4).
_KEY_ID, _ALGORITHM, _HASH, _NUMBER = slice(7, 15), 15, 16, 19
_HASHED_SIZE = 5
_RSA = frozenset({1, 3})
_SHA_2 = frozenset({8, 9, 10})

# That of the packets that are written here; others have shorter ones, too.
_HEADER_SIZE = 6


class Packet(NamedTuple):
    """A packet without its header."""

    tag: int
    body: bytes


class Message(NamedTuple):
    """The signed content, and the packet of the signature with a header."""

    content: bytes
    signature: bytes

    @property
    def version(self) -> int:
        """The version of the signature."""
        return self.signature[_HEADER_SIZE]

    def in_one_pass(self) -> bytes:
        """Return the message with a signature of version 3 anew, of three packets: section 11.3."""
        body = self.signature[_HEADER_SIZE:]
        algorithms = bytes([body[_HASH], body[_ALGORITHM]])
        one_pass = bytes([3, _BINARY, *algorithms, *body[_KEY_ID], 1])
        literal = b"b\0" + bytes(4) + self.content
        return _framed(_ONE_PASS, one_pass) + _framed(_LITERAL, literal) + self.signature


def parse(raw: bytes) -> Message:
    """Return the parts of a signed message. Raises `SignatureError` for any other message."""
    if raw.startswith(b"-----"):
        raise SignatureError("it is clear text or armored, expected an OpenPGP message in binary")
    packets = _packets(raw)
    if [packet.tag for packet in packets] == [_COMPRESSED]:
        packets = _packets(_decompressed(packets[0].body))
    tags = [packet.tag for packet in packets]
    if tags == [_ONE_PASS, _LITERAL, _SIGNATURE]:
        _, literal, signature = packets
    elif tags == [_SIGNATURE, _LITERAL]:  # an older form
        signature, literal = packets
    else:
        parts = ", ".join(_NAMES.get(tag, f"a packet {tag}") for tag in tags)
        raise SignatureError(f"it is not a message with one signature, but consists of {parts}")
    _check_signature(signature.body)
    return Message(_literal(literal.body), _framed(_SIGNATURE, signature.body))


def _check_signature(body: bytes) -> None:
    version = body[0] if body else 0
    if version not in _TYPE_AT:
        raise SignatureError("its signature has an unsupported version (supported: 3, 4, 6)")
    if body[_TYPE_AT[version] :][:1] != bytes([_BINARY]):
        raise SignatureError("its signature is not of the type for binary documents")
    if version == 3:  # noqa: PLR2004
        _check_version_3(body)


def _check_version_3(body: bytes) -> None:
    size = (int.from_bytes(body[_NUMBER : _NUMBER + 2]) + 7) // 8
    if len(body) != _NUMBER + 2 + size or body[1] != _HASHED_SIZE:
        raise SignatureError("its signature of version 3 is malformed")
    if body[_ALGORITHM] not in _RSA or body[_HASH] not in _SHA_2:
        raise SignatureError(
            "its signature of version 3 is not by RSA with SHA-256, SHA-384 or SHA-512"
        )


def _literal(body: bytes) -> bytes:
    """Return the content of a literal, without its format, file name and date."""
    start = 2 + body[1] + 4 if len(body) > 1 else 6
    if start > len(body) or body[:1] not in (b"b", b"t", b"u"):
        raise SignatureError("its literal is malformed")
    return body[start:]


def _framed(tag: int, body: bytes) -> bytes:
    """Return a packet with a header of `_HEADER_SIZE` bytes."""
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4) + body


def _decompressed(body: bytes) -> bytes:
    try:
        return _BY_ALGORITHM[body[0]](body[1:])
    except (IndexError, KeyError):
        raise SignatureError("it is compressed by an unknown algorithm") from None
    except (zlib.error, OSError, EOFError, ValueError):
        raise SignatureError("its compressed data is broken") from None


def _inflated(content: bytes, window: int) -> bytes:
    stream = zlib.decompressobj(window)
    plain = stream.decompress(content, MAX_SIGNATURE_SIZE)
    return _checked(plain, stream.unused_data, is_complete=stream.eof)


def _unzipped(content: bytes) -> bytes:
    stream = bz2.BZ2Decompressor()
    plain = stream.decompress(content, MAX_SIGNATURE_SIZE)
    return _checked(plain, stream.unused_data, is_complete=stream.eof)


def _checked(plain: bytes, rest: bytes, *, is_complete: bool) -> bytes:
    if not is_complete or rest:
        raise ValueError
    return plain


# Section 9.3.
_BY_ALGORITHM: dict[int, Callable[[bytes], bytes]] = {
    0: lambda content: content,
    1: lambda content: _inflated(content, -zlib.MAX_WBITS),
    2: lambda content: _inflated(content, zlib.MAX_WBITS),
    3: _unzipped,
}


def _packets(raw: bytes) -> list[Packet]:
    """Return the packets of a message, at most one more than an accepted message has."""
    packets: list[Packet] = []
    reader = _Reader(raw)
    while not reader.at_end and len(packets) < 4:  # noqa: PLR2004  (see above)
        packets.append(reader.packet())
    return packets


def _expect_data(tag: int) -> None:
    if tag not in (_COMPRESSED, _LITERAL):
        raise SignatureError("a packet that is not data has no definite length")


class _Reader:
    """The bytes of packets, read from the front. Raises `SignatureError` at a premature end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._raw)

    def packet(self) -> Packet:
        head = self._number(1)
        if not head & 0x80:
            raise SignatureError(
                f"it is not an OpenPGP message (a packet begins with 0x{head:02x})"
            )
        if head & 0x40:
            return Packet(head & 0x3F, self._new_body(head & 0x3F))
        return Packet(head >> 2 & 0x0F, self._old_body(head >> 2 & 0x0F, head & 3))

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

"""OpenPGP messages with exactly one signature: RFC 4880 sections 5 and 11.3.

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

from imgproxy.specs.signing.packets import (
    COMPRESSED,
    HEADER_SIZE,
    LITERAL,
    ONE_PASS,
    SIGNATURE,
    Packet,
    Reader,
    framed,
)
from imgproxy.specs.signing.signature import MAX_SIGNATURE_SIZE, SignatureError

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = {
    1: "an encrypted session key",
    3: "an encrypted session key",
    9: "encrypted data",
    18: "encrypted data",
    20: "encrypted data",
    SIGNATURE: "a signature",
    ONE_PASS: "a one-pass signature",
    COMPRESSED: "compressed data",
    LITERAL: "a literal",
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


class Message(NamedTuple):
    """The signed content, and the packet of the signature with a header."""

    content: bytes
    signature: bytes

    @property
    def version(self) -> int:
        """The version of the signature."""
        return self.signature[HEADER_SIZE]

    def in_one_pass(self) -> bytes:
        """Return the message with a signature of version 3 anew, of three packets: section 11.3."""
        body = self.signature[HEADER_SIZE:]
        algorithms = bytes([body[_HASH], body[_ALGORITHM]])
        one_pass = bytes([3, _BINARY, *algorithms, *body[_KEY_ID], 1])
        literal = b"b\0" + bytes(4) + self.content
        return framed(ONE_PASS, one_pass) + framed(LITERAL, literal) + self.signature


def parse(raw: bytes) -> Message:
    """Return the parts of a signed message. Raises `SignatureError` for any other message."""
    if raw.startswith(b"-----"):
        raise SignatureError("it is clear text or armored, expected an OpenPGP message in binary")
    packets = _packets(raw)
    if [packet.tag for packet in packets] == [COMPRESSED]:
        packets = _packets(_decompressed(packets[0].body))
    tags = [packet.tag for packet in packets]
    if tags == [ONE_PASS, LITERAL, SIGNATURE]:
        _, literal, signature = packets
    elif tags == [SIGNATURE, LITERAL]:  # an older form
        signature, literal = packets
    else:
        parts = ", ".join(_NAMES.get(tag, f"a packet {tag}") for tag in tags)
        raise SignatureError(f"it is not a message with one signature, but consists of {parts}")
    _check_signature(signature.body)
    return Message(_literal(literal.body), framed(SIGNATURE, signature.body))


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
    found: list[Packet] = []
    reader = Reader(raw)
    while not reader.at_end and len(found) < 4:  # noqa: PLR2004  (see above)
        found.append(reader.packet())
    return found

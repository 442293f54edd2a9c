"""OpenPGP messages, packet by packet."""

from __future__ import annotations

import bz2
import zlib

import pytest

from imgproxy.specs.signing.openpgp import Message, parse
from imgproxy.specs.signing.signature import MAX_SIGNATURE_SIZE, SignatureError

CONTENT = b"{}"
ONE_PASS_BODY = b"\x03\x00\x08\x16" + b"k" * 8 + b"\x01"
LITERAL_BODY = b"b\x04name\x00\x00\x00\x00" + CONTENT
SIGNATURE_BODY = b"\x04\x00\x16\x08" + b"s" * 20


def old(tag: int, body: bytes, size: int = 0) -> bytes:
    """Return a packet with an old header; `size` is the type of its length."""
    length = b"" if size == 3 else len(body).to_bytes(1 << size)
    return bytes([0x80 | tag << 2 | size]) + length + body


def new(tag: int, body: bytes) -> bytes:
    head = bytes([0xC0 | tag])
    if len(body) < 192:
        return head + bytes([len(body)]) + body
    rest = len(body) - 192
    return head + bytes([192 + (rest >> 8), rest & 0xFF]) + body


def five(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4) + body


def partial(tag: int, body: bytes) -> bytes:
    return (
        bytes([0xC0 | tag, 0xE1])
        + body[:2]
        + bytes([0xE0])
        + body[2:3]
        + bytes([len(body) - 3])
        + body[3:]
    )


ONE_PASS, LITERAL, SIGNATURE = old(4, ONE_PASS_BODY), old(11, LITERAL_BODY), old(2, SIGNATURE_BODY)
SIGNED = ONE_PASS + LITERAL + SIGNATURE
EXPECTED = Message(CONTENT, five(2, SIGNATURE_BODY))


def deflated(content: bytes, window: int = -15) -> bytes:
    stream = zlib.compressobj(wbits=window)
    return stream.compress(content) + stream.flush()


@pytest.mark.parametrize(
    "raw",
    [
        SIGNED,
        new(4, ONE_PASS_BODY) + new(11, LITERAL_BODY) + new(2, SIGNATURE_BODY),
        five(4, ONE_PASS_BODY) + five(11, LITERAL_BODY) + five(2, SIGNATURE_BODY),
        ONE_PASS + partial(11, LITERAL_BODY) + SIGNATURE,
        old(4, ONE_PASS_BODY, 1) + old(11, LITERAL_BODY, 2) + SIGNATURE,
        SIGNATURE + LITERAL,
        SIGNATURE + old(11, LITERAL_BODY, 3),
        ONE_PASS + old(11, b"u" + LITERAL_BODY[1:]) + SIGNATURE,
        old(8, b"\x00" + SIGNED),
        old(8, b"\x01" + deflated(SIGNED), 3),
        new(8, b"\x02" + deflated(SIGNED, 15)),
        partial(8, b"\x02" + deflated(SIGNED, 15)),
        old(8, b"\x03" + bz2.compress(SIGNED), 3),
    ],
    ids=range(13),
)
def test_a_message_is_signed_once(raw: bytes) -> None:
    assert parse(raw) == EXPECTED


def test_a_longer_literal_has_its_length_in_two_bytes() -> None:
    content = bytes(range(256)) * 3
    raw = ONE_PASS + new(11, b"b\x00\x00\x00\x00\x00" + content) + SIGNATURE
    assert parse(raw) == (content, EXPECTED.signature)
    version_6 = old(2, b"\x06" + SIGNATURE_BODY[1:])
    assert parse(ONE_PASS + LITERAL + version_6).content == CONTENT


STRUCTURE = "it is not a message with one signature, but consists of "


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", STRUCTURE),
        (b"-----BEGIN PGP MESSAGE-----\n", "it is clear text or armored"),
        (b"{}", "it is not an OpenPGP message (a packet begins with 0x7b)"),
        (LITERAL, STRUCTURE + "a literal"),
        (SIGNATURE, STRUCTURE + "a signature"),
        (LITERAL + SIGNATURE, STRUCTURE),
        (ONE_PASS + LITERAL, STRUCTURE),
        (ONE_PASS + SIGNATURE + LITERAL, STRUCTURE),
        (ONE_PASS + LITERAL + SIGNATURE + SIGNATURE, STRUCTURE),
        (ONE_PASS + ONE_PASS + LITERAL + SIGNATURE + SIGNATURE, STRUCTURE),
        (ONE_PASS + LITERAL + LITERAL + SIGNATURE, STRUCTURE),
        (SIGNED + LITERAL, STRUCTURE),
        (SIGNED + SIGNED, STRUCTURE),
        (old(10, b"PGP") + SIGNED, STRUCTURE + "a packet 10, "),
        (old(1, b"x") + new(18, b"x"), STRUCTURE + "an encrypted session key, encrypted data"),
        (new(9, b"x"), STRUCTURE + "encrypted data"),
        (ONE_PASS + old(8, b"\x00" + LITERAL) + SIGNATURE, STRUCTURE),
        (old(8, b"\x00" + SIGNED) + SIGNATURE, STRUCTURE),
        (old(8, b"\x00" + old(8, b"\x00" + SIGNED)), STRUCTURE + "compressed data"),
        (SIGNED[:-1], "it ends in the middle of a packet"),
        (SIGNED + b"\xc2", "it ends in the middle of a packet"),
        (
            ONE_PASS + LITERAL + old(2, SIGNATURE_BODY, 3),
            "a packet that is not data has no def",
        ),
        (
            ONE_PASS + LITERAL + partial(2, SIGNATURE_BODY),
            "a packet that is not data has no de",
        ),
        (ONE_PASS + LITERAL + old(2, b""), "its signature has an unsupported version"),
        (ONE_PASS + LITERAL + old(2, b"\x02\x05\x00"), "its signature has an unsupported version"),
        (ONE_PASS + LITERAL + old(2, b"\x05\x00"), "its signature has an unsupported version"),
        (ONE_PASS + LITERAL + old(2, b"\x04"), "its signature is not of the type for binary"),
        (ONE_PASS + LITERAL + old(2, b"\x04\x01"), "its signature is not of the type for binary"),
        (ONE_PASS + old(11, b"") + SIGNATURE, "its literal is malformed"),
        (ONE_PASS + old(11, b"b") + SIGNATURE, "its literal is malformed"),
        (ONE_PASS + old(11, b"b\x09name\x00\x00\x00\x00") + SIGNATURE, "its literal is malformed"),
        (ONE_PASS + old(11, b"x" + LITERAL_BODY[1:]) + SIGNATURE, "its literal is malformed"),
        (old(8, b""), "it is compressed by an unknown algorithm"),
        (old(8, b"\x04" + SIGNED), "it is compressed by an unknown algorithm"),
        (old(8, b"\x01" + deflated(SIGNED)[:-1], 3), "its compressed data is broken"),
        (old(8, b"\x01" + deflated(SIGNED) + b"x", 3), "its compressed data is broken"),
        (old(8, b"\x02rubbish", 3), "its compressed data is broken"),
        (old(8, b"\x03rubbish", 3), "its compressed data is broken"),
        (old(8, b"\x03" + bz2.compress(SIGNED)[:-1], 3), "its compressed data is broken"),
    ],
    ids=range(39),
)
def test_anything_else_is_none(raw: bytes, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        parse(raw)
    assert str(raised.value).startswith(reason)


# --- version 3 ------------------------------------------------------------------------------------

TIME, KEY_ID = b"\x01\x02\x03\x04", b"12345678"


def version_3(
    *,
    hashed: int = 5,
    kind: int = 0,
    algorithm: int = 1,
    hash_algorithm: int = 8,
    bits: int = 12,
    number: bytes = b"\x0f\xff",
) -> bytes:
    parts = bytes([3, hashed, kind]) + TIME + KEY_ID + bytes([algorithm, hash_algorithm])
    return parts + b"lr" + bits.to_bytes(2) + number


@pytest.mark.parametrize("algorithm", [1, 3])
@pytest.mark.parametrize("hash_algorithm", [8, 9, 10])
def test_a_signature_of_version_3_is_by_rsa_with_sha_2(algorithm: int, hash_algorithm: int) -> None:
    body = version_3(algorithm=algorithm, hash_algorithm=hash_algorithm)
    one_pass = bytes([3, 0, hash_algorithm, algorithm]) + KEY_ID + b"\x01"
    anew = five(4, one_pass) + five(11, b"b\0\0\0\0\0" + CONTENT) + five(2, body)
    # What another one-pass packet announces has no effect.
    for raw in (ONE_PASS + LITERAL + old(2, body), new(2, body) + LITERAL):
        message = parse(raw)
        assert message == (CONTENT, five(2, body))
        assert message.version == 3
        assert message.in_one_pass() == anew


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (version_3(kind=1), "is not of the type for binary documents"),
        (version_3(kind=0x10), "is not of the type for binary documents"),
        (version_3()[:2], "is not of the type for binary documents"),
        *((version_3()[:end], "of version 3 is malformed") for end in range(3, 23)),
        (version_3(number=b"\x0f\xff\x00"), "of version 3 is malformed"),
        (version_3(bits=17), "of version 3 is malformed"),
        (version_3(bits=8), "of version 3 is malformed"),
        (version_3(hashed=4), "of version 3 is malformed"),
        (version_3(hashed=6), "of version 3 is malformed"),
        *(
            (version_3(algorithm=each), "of version 3 is not by RSA with SHA-256, SHA-384 or")
            for each in (0, 2, 16, 17, 19, 22, 27)
        ),
        *(
            (version_3(hash_algorithm=each), "of version 3 is not by RSA with SHA-256, SHA-384 or")
            for each in (0, 1, 2, 3, 11, 12)
        ),
    ],
    ids=lambda value: value[:18].hex() if isinstance(value, bytes) else "",
)
def test_any_other_signature_of_version_3_is_refused(body: bytes, reason: str) -> None:
    """With MD5 and SHA-1, others can make a document that has the same signature."""
    with pytest.raises(SignatureError, match=f"its signature {reason}"):
        parse(ONE_PASS + LITERAL + old(2, body))


@pytest.mark.parametrize("compress", [deflated, bz2.compress])
def test_what_unfolds_to_more_than_a_signature_has_is_none(compress: object) -> None:
    algorithm = b"\x01" if compress is deflated else b"\x03"
    content = bytes(MAX_SIGNATURE_SIZE + 1)
    with pytest.raises(SignatureError, match="its compressed data is broken"):
        parse(old(8, algorithm + compress(content), 3))  # type: ignore[operator]


def test_no_message_that_is_cut_is_one() -> None:
    for raw in (SIGNED, old(8, b"\x02" + deflated(SIGNED, 15))):
        for end in range(len(raw)):
            with pytest.raises(SignatureError):
                parse(raw[:end])

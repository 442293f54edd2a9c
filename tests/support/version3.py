"""Signatures of version 3: RFC 4880 section 5.2.2."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

# By the numbers of OpenPGP: section 9.4.
HASHES = {1: "MD5", 2: "SHA1", 8: "SHA256", 9: "SHA384", 10: "SHA512", 11: "SHA224"}


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4) + body


def message(content: bytes, signature: bytes, *, one_pass: bool = True) -> bytes:
    """Return a message with the body of a signature of version 3, behind the content or before."""
    literal, signed = packet(11, b"b\0" + bytes(4) + content), packet(2, signature)
    if not one_pass:
        return signed + literal
    hash_algorithm, algorithm = signature[16], signature[15]
    announced = bytes([3, signature[2], hash_algorithm, algorithm]) + signature[7:15] + b"\x01"
    return packet(4, announced) + literal + signed


def signature(  # noqa: PLR0913
    content: bytes,
    key: RSAPrivateKey,
    fingerprint: str,
    time: int,
    *,
    hash_algorithm: int = 8,
    kind: int = 0,
    algorithm: int = 1,
) -> bytes:
    """Return the body of a signature."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    hashed = bytes([kind]) + time.to_bytes(4)
    name = HASHES[hash_algorithm]
    value = key.sign(content + hashed, PKCS1v15(), getattr(hashes, name)())
    return b"".join(
        (
            bytes([3, len(hashed)]) + hashed + bytes.fromhex(fingerprint)[-8:],
            bytes([algorithm, hash_algorithm]),
            hashlib.new(name, content + hashed).digest()[:2],
            _written(int.from_bytes(value)),
        )
    )


def private_key(exported: bytes, fingerprint: str) -> RSAPrivateKey:
    """Return a key without a passphrase: sections 5.5.2 and 5.5.3."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from pysequoia.packet import PacketPile

    pile = PacketPile.from_bytes(exported)
    (body,) = (each.body for each in pile if each.fingerprint == fingerprint.lower())
    n, rest = _read(body[6:])
    e, rest = _read(rest)
    d, rest = _read(rest[1:])  # behind the octet that says that it is not encrypted
    p, rest = _read(rest)
    q, _ = _read(rest)
    remainders = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    public = rsa.RSAPublicNumbers(e, n)
    return rsa.RSAPrivateNumbers(p, q, d, *remainders, public).private_key()


def _written(value: int) -> bytes:
    """Return a number as it stands in packets: section 3.2."""
    bits = value.bit_length()
    return bits.to_bytes(2) + value.to_bytes((bits + 7) // 8)


def _read(raw: bytes) -> tuple[int, bytes]:
    """Return a number, and what follows it."""
    end = 2 + (int.from_bytes(raw[:2]) + 7) // 8
    return int.from_bytes(raw[2:end]), raw[end:]

"""Keyrings of OpenPGP, split into their keys: RFC 4880 sections 6.2, 11.1 and 11.2.

One key that a library cannot read, such as one of a version that it does not know, must not take
the others with it. What cannot even be split is part of the key before it, which is not whole then:
it may be the revocation of that key.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from imgproxy.errors import clean
from imgproxy.specs.signing.packets import PUBLIC_KEY, SECRET_KEY, USER_ID, Packet, Reader, framed
from imgproxy.specs.signing.signature import SignatureError

_BEGIN = re.compile(rb"-----BEGIN PGP [A-Z ]{1,40}-----")
_END = b"-----END PGP "

# GnuPG's own format begins with the length, type, version and flags of a block, and these bytes.
_KEYBOX, _KEYBOX_AT = b"KBXf", slice(8, 12)

_KEYS = frozenset({PUBLIC_KEY, SECRET_KEY})
_MAX_NAME = 64


class Part(NamedTuple):
    """A key with all that belongs to it, in binary packets; `name` stands for it in messages.

    `problem` says why it is not whole, if it is not; `packets` are what there is of it.
    """

    name: str
    packets: list[bytes]
    problem: str = ""


def split(raw: bytes) -> list[Part]:
    """Return the parts of a keyring, which is in binary, or in armor with text around the blocks.

    Raises `ValueError` for what is no keyring.
    """
    if raw[_KEYBOX_AT] == _KEYBOX:
        raise ValueError(
            "it is a keybox (pubring.kbx), which GnuPG alone reads; give a file with its keys,"
            " made by: gpg --export KEY > FILE"
        )
    if raw[:1] >= b"\x80":
        return _keys(raw, 1)
    parts: list[Part] = []
    for n, block in enumerate(_BEGIN.split(raw)[1:], 1):
        try:
            parts += _keys(_without_armor(block), len(parts) + 1)
        except ValueError as error:
            parts.append(Part(f"block {n}", [], str(error)))
    if not parts:
        raise ValueError("there is no key in it")
    return parts


def _without_armor(block: bytes) -> bytes:
    """Return the content of a block, which is given without its first line.

    The checksum is not compared: it is no protection, and RFC 9580 section 6.1 abandons it.
    """
    text, end, _ = block.partition(_END)
    if not end:
        raise ValueError("it has no end")
    lines = [line.strip() for line in text.splitlines()]
    # A header has a colon, which is not in the alphabet of base64.
    data = [line for line in lines if b":" not in line and not line.startswith(b"=")]
    try:
        content = base64.b64decode(b"".join(data), validate=True)
    except binascii.Error:
        raise ValueError("its base64 is broken") from None
    if not content:
        raise ValueError("it is empty")
    return content


def _keys(raw: bytes, number: int) -> list[Part]:
    """Return the keys in binary; the first one is called by this number, if no user is named."""
    groups: list[list[Packet]] = []
    problem = ""
    reader = Reader(raw)
    try:
        while not reader.at_end:
            if reader.next_tag in _KEYS or not groups:
                groups.append([])
            if reader.next_tag is None:
                raise SignatureError("what follows is no packet")  # noqa: TRY301
            groups[-1].append(reader.packet())
    except SignatureError as error:
        problem = str(error)
    parts = [
        Part(_name(n, group), [framed(*packet) for packet in group])
        for n, group in enumerate(groups, number)
    ]
    if problem:
        parts[-1] = parts[-1]._replace(problem=problem)
    return parts


def _name(number: int, packets: list[Packet]) -> str:
    """Return what a key is called in messages: by its place, version and first user."""
    if packets and packets[0].tag not in _KEYS:
        return "what is before its first key"
    name = f"key {number}"
    if packets and packets[0].body:
        name += f" of version {packets[0].body[0]}"
    users = [packet.body.decode(errors="replace") for packet in packets if packet.tag == USER_ID]
    return f"{name} ({clean(users[0], _MAX_NAME)})" if users else name

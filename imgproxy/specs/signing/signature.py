"""Signatures of images as values, and the encodings in which they are kept.

A signature is a file in a lookaside or a `dir:` image, an entry of a registry's extension API, a
layer of what cosign attaches, or a bundle that refers to the image. What each of them proves is
for `trust` to find out; nothing here is verified.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from imgproxy.errors import clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields

# skopeo's limits. Nobody signs an image that often; a place with more would keep us busy.
MAX_SIGNATURES = 128
MAX_SIGNATURE_SIZE = 4 * 1024 * 1024

# Both limits at once would be half a gigabyte. Signatures are some kilobytes.
MAX_TOTAL_SIZE = 32 * 1024 * 1024

SIGSTORE_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"

# The first bytes of OpenPGP messages, RFC 4880 section 4.2: compressed data, one-pass signatures
# and signatures, with old and new heads of packets.
_OPENPGP = frozenset({*range(0xA0, 0xA4), 0xC8, *range(0x90, 0x93), 0xC4, *range(0x88, 0x8C), 0xC2})

_FORMAT = re.compile(rb"\x00([\x21-\x7e]+)\n", re.ASCII)


class SignatureError(ValueError):
    """A signature is not accepted; the message says why, without naming it."""


class SimpleSignature(NamedTuple):
    """An OpenPGP message with a claim in it; `name` says where it was found."""

    name: str
    content: bytes


class SigstoreSignature(NamedTuple):
    """A claim, with what cosign 1 and 2 say about it in annotations."""

    name: str
    media_type: str
    payload: bytes
    annotations: dict[str, str]


class BundleSignature(NamedTuple):
    """A sigstore bundle, version 0.3, as cosign 3 makes them."""

    name: str
    content: bytes


Signature = SimpleSignature | SigstoreSignature | BundleSignature


def decode(blob: bytes, name: str) -> Signature:
    """Give the signature that a file in a lookaside or a `dir:` image holds.

    Raises `SignatureError` for what is none: there it can only be damage.
    """
    if not blob:
        raise SignatureError("it is empty")
    if blob[0] in _OPENPGP:
        return SimpleSignature(name, blob)
    match = _FORMAT.match(blob)
    if match is None:
        raise SignatureError(f"it begins with 0x{blob[:8].hex()}, as no signature does")
    content = blob[match.end() :]
    if match[1] == b"simple-signing":
        return SimpleSignature(name, content)
    if match[1] == b"sigstore-json":
        return _sigstore(content, name)
    raise SignatureError(f'the format "{clean(match[1].decode())}" is not known')


def _sigstore(content: bytes, name: str) -> SigstoreSignature:
    try:
        document = Fields(strict_json.loads(content))
        return SigstoreSignature(
            name,
            document.text("mimeType"),
            base64_field(document, "payload"),
            document.text_map("annotations"),
        )
    except (FieldError, strict_json.JsonError) as error:
        raise SignatureError(str(error)) from None


def of_extension(raw: bytes, name: str) -> list[Signature]:
    """Give the signatures in a reply of the registry's extension API; others are passed over.

    Raises `SignatureError` for what does not parse.
    """
    try:
        entries = Fields(strict_json.loads(raw)).objects("signatures")
        known = [
            entry
            for entry in entries
            if entry.optional_integer("schemaVersion") == 2  # noqa: PLR2004  (the only one)
            and entry.optional_text("type") == "atomic"
        ]
        return [
            SimpleSignature(f"{name} ({n})", base64_field(entry, "content"))
            for n, entry in enumerate(known, 1)
        ]
    except (FieldError, strict_json.JsonError) as error:
        raise SignatureError(str(error)) from None


def base64_field(fields: Fields, key: str) -> bytes:
    """Give the bytes that a member of an object spells in base64. Raises `FieldError`."""
    try:
        return base64.b64decode(fields.text(key), validate=True)
    except FieldError:
        raise
    except (binascii.Error, ValueError):
        raise FieldError(f"{fields.at(key)}: not base64") from None

"""Signatures of images as values, and the encodings in which they are stored.

A signature is a file in a lookaside or a `dir:` image, an entry of a registry's extension API, a
layer of an artifact that cosign attaches, or a bundle that refers to the image. Nothing is verified
here: `verification.signatures` does that.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imgproxy.errors import clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields

# skopeo's limits. No image has that many signatures; a source with more would waste time.
MAX_SIGNATURES = 128
MAX_SIGNATURE_SIZE = 4 * 1024 * 1024

# Both limits at once would be half a gigabyte. Signatures are some kilobytes.
MAX_TOTAL_SIZE = 32 * 1024 * 1024

SIGSTORE_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"

# The first bytes of OpenPGP messages, RFC 4880 section 4.2: compressed data, one-pass signatures
# and signatures, with old and new headers of packets.
_OPENPGP = frozenset({*range(0xA0, 0xA4), 0xC8, *range(0x90, 0x93), 0xC4, *range(0x88, 0x8C), 0xC2})

_FORMAT = re.compile(rb"\x00([\x21-\x7e]+)\n", re.ASCII)


class SignatureError(ValueError):
    """A signature is not accepted; the message states the reason, but not the signature's name."""


class SimpleSignature(NamedTuple):
    """An OpenPGP message that contains a claim; `name` is its source, for messages."""

    name: str
    content: bytes


class SigstoreSignature(NamedTuple):
    """A claim, with the annotations in which cosign 1 and 2 store its signature."""

    name: str
    media_type: str
    payload: bytes
    annotations: dict[str, str]


class BundleSignature(NamedTuple):
    """A sigstore bundle, version 0.3, the format of cosign 3."""

    name: str
    content: bytes


Signature = SimpleSignature | SigstoreSignature | BundleSignature


def decode(blob: bytes, name: str) -> Signature:
    """Parse the content of a signature file in a lookaside or a `dir:` image.

    Raises `SignatureError` for any other content, which can only be damage there.
    """
    if not blob:
        raise SignatureError("it is empty")
    if blob[0] in _OPENPGP:
        return SimpleSignature(name, blob)
    match = _FORMAT.match(blob)
    if match is None:
        raise SignatureError(f"it begins with 0x{blob[:8].hex()}, unlike any signature")
    content = blob[match.end() :]
    if match[1] == b"simple-signing":
        return SimpleSignature(name, content)
    if match[1] == b"sigstore-json":
        return _sigstore(content, name)
    raise SignatureError(f'the format "{clean(match[1].decode())}" is unknown')


def _sigstore(content: bytes, name: str) -> SigstoreSignature:
    try:
        document = Fields(strict_json.loads(content))
        return SigstoreSignature(
            name,
            document.text("mimeType"),
            document.base64("payload"),
            document.text_map("annotations"),
        )
    except (FieldError, strict_json.JsonError) as error:
        raise SignatureError(str(error)) from None


def parse_extension_reply(raw: bytes, name: str) -> list[Signature]:
    """Return the signatures in a reply of the registry's extension API; ignore unknown types.

    Raises `SignatureError` for a malformed reply.
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
            SimpleSignature(f"{name} ({n})", entry.base64("content"))
            for n, entry in enumerate(known, 1)
        ]
    except (FieldError, strict_json.JsonError) as error:
        raise SignatureError(str(error)) from None

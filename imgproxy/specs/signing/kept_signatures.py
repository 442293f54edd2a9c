"""Signatures as a cache keeps them: those of one document, by the name of where they were read.

It is this program's own format, which holds signatures of all kinds as they were parsed.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.signing.signature import (
    MAX_TOTAL_SIZE,
    BundleSignature,
    SigstoreSignature,
    SimpleSignature,
)

if TYPE_CHECKING:
    from imgproxy.specs.signing.signature import Signature

    Places = dict[str, list[Signature]]

# In bytes: base64 adds a third.
MAX_SIZE = 2 * MAX_TOTAL_SIZE


def encode(places: Places) -> bytes:
    """Return the content of a file with signatures, by place."""
    document = {place: [_members(each) for each in found] for place, found in places.items()}
    return json.dumps(document, separators=(",", ":")).encode()


def _members(signature: Signature) -> dict[str, Any]:
    if isinstance(signature, SigstoreSignature):
        more = {"mediaType": signature.media_type, "annotations": signature.annotations}
        return {"name": signature.name, "content": _text(signature.payload), **more}
    kind = "bundle" if isinstance(signature, BundleSignature) else "simple"
    return {"name": signature.name, "content": _text(signature.content), "kind": kind}


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def decode(raw: bytes) -> Places:
    """Return the signatures in a file, none where it cannot be read."""
    try:
        document = Fields(strict_json.loads(raw))
        return {place: [_signature(each) for each in document.objects(place)] for place in document}
    except (FieldError, strict_json.JsonError):
        return {}


def _signature(fields: Fields) -> Signature:
    name, content = fields.text("name"), fields.base64("content")
    kind = fields.optional_text("kind")
    if kind is None:
        annotations = fields.text_map("annotations")
        return SigstoreSignature(name, fields.text("mediaType"), content, annotations)
    return BundleSignature(name, content) if kind == "bundle" else SimpleSignature(name, content)

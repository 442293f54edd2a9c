"""Entries of Rekor, sigstore's transparency log, as they travel with a signature.

What makes an entry believable offline is the log's signature over it, the "signed entry
timestamp", which is made over canonical JSON (RFC 8785). What the entry says of a signature is its
body: of the kinds `hashedrekord` and `dsse`, version 0.0.1. Newer versions have no such timestamp.
"""

from __future__ import annotations

import base64
import json
import re
from typing import NamedTuple

from imgproxy.errors import clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields, shown
from imgproxy.specs.signing import pem
from imgproxy.specs.signing.signature import SignatureError, base64_field

HASHEDREKORD, DSSE = "hashedrekord", "dsse"

# What a key or a certificate is labelled in an entry.
_VERIFIERS = ("PUBLIC KEY", "CERTIFICATE", "RSA PUBLIC KEY")

# Beyond it, numbers of JSON are not exact everywhere: RFC 7493.
_MAX_INTEGER = 2**53 - 1

_HEX = re.compile(r"[0-9a-f]+")


class Entry(NamedTuple):
    """An entry: its body, when it was made (seconds since 1970), and the log's signature.

    `signed` is what that was made over.
    """

    body: bytes
    time: int
    signed: bytes
    timestamp: bytes


class Logged(NamedTuple):
    """What the body of an entry says: a signature, over what (its SHA-256, in hex), by whom.

    `verifier` is the DER of a key or a certificate.
    """

    kind: str
    signature: bytes
    sha256: str
    verifier: bytes


def of_annotation(text: str) -> Entry:
    """Give the entry in cosign's annotation `dev.sigstore.cosign/bundle`.

    Raises `SignatureError` for what is malformed.
    """
    try:
        document = Fields(strict_json.loads(text.encode()))
        document.refuse_others({"SignedEntryTimestamp", "Payload"})
        payload = document.object("Payload")
        payload.refuse_others({"body", "integratedTime", "logIndex", "logID"})
        return entry(
            base64_field(payload, "body"),
            payload.integer("integratedTime"),
            payload.integer("logIndex"),
            payload.text("logID"),
            base64_field(document, "SignedEntryTimestamp"),
        )
    except ValueError as error:  # of a field, of JSON, of a surrogate
        raise SignatureError(f"its entry in the log: {error}") from None


def entry(body: bytes, time: int, index: int, log_id: str, timestamp: bytes) -> Entry:
    """Give an entry by its parts. Raises `FieldError` for those that no log gives."""
    if not (0 <= time <= _MAX_INTEGER and 0 <= index <= _MAX_INTEGER):
        raise FieldError("logIndex or integratedTime: out of range")
    if _HEX.fullmatch(log_id) is None:
        raise FieldError(f"logID: expected hex digits, got {shown(log_id)}")
    # Of ASCII and small integers, this is the canonical form.
    signed = {
        "body": base64.b64encode(body).decode(),
        "integratedTime": time,
        "logID": log_id,
        "logIndex": index,
    }
    return Entry(body, time, json.dumps(signed, separators=(",", ":")).encode(), timestamp)


def logged(body: bytes) -> Logged:
    """Give what the body of an entry says. Raises `SignatureError` for other kinds of entries."""
    try:
        return _logged(Fields(strict_json.loads(body)))
    except ValueError as error:  # of a field, of JSON, of PEM
        raise SignatureError(f"its entry in the log: {error}") from None


def _logged(document: Fields) -> Logged:
    document.refuse_others({"apiVersion", "kind", "spec"})
    kind, version = document.text("kind"), document.text("apiVersion")
    if kind not in (HASHEDREKORD, DSSE) or version != "0.0.1":
        raise FieldError(
            f"kind: {clean(kind)} {clean(version)} is not read (hashedrekord and dsse 0.0.1 are)"
        )
    spec = document.object("spec")
    return _hashedrekord(spec) if kind == HASHEDREKORD else _dsse(spec)


def _hashedrekord(spec: Fields) -> Logged:
    spec.refuse_others({"signature", "data"})
    signature, data = spec.object("signature"), spec.object("data")
    signature.refuse_others({"content", "publicKey"})
    data.refuse_others({"hash"})
    public_key = signature.object("publicKey")
    public_key.refuse_others({"content"})
    return Logged(
        HASHEDREKORD,
        base64_field(signature, "content"),
        _sha256(data, "hash"),
        pem.only(base64_field(public_key, "content"), *_VERIFIERS),
    )


def _dsse(spec: Fields) -> Logged:
    spec.refuse_others({"envelopeHash", "payloadHash", "signatures"})
    signatures = spec.objects("signatures")
    if len(signatures) != 1:
        raise FieldError(f"{spec.at('signatures')}: expected one, got {len(signatures)}")
    (signature,) = signatures
    signature.refuse_others({"signature", "verifier"})
    return Logged(
        DSSE,
        base64_field(signature, "signature"),
        _sha256(spec, "payloadHash"),
        pem.only(base64_field(signature, "verifier"), *_VERIFIERS),
    )


def _sha256(fields: Fields, key: str) -> str:
    said = fields.object(key)
    said.refuse_others({"algorithm", "value"})
    if said.text("algorithm") != "sha256":
        raise FieldError(f"{said.at('algorithm')}: expected sha256")
    return said.text("value")

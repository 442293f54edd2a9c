"""Entries of Rekor, sigstore's transparency log, as they accompany a signature.

Offline, an entry is authenticated by the log's signature over it, the "signed entry timestamp",
which is made over canonical JSON (RFC 8785). The entry's body describes a signature; its supported
kinds are `hashedrekord` and `dsse`, version 0.0.1. Newer versions have no such timestamp.
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
from imgproxy.specs.signing.signature import SignatureError

HASHEDREKORD, DSSE = "hashedrekord", "dsse"

# The PEM labels of a key or a certificate in an entry.
_VERIFIERS = ("PUBLIC KEY", "CERTIFICATE", "RSA PUBLIC KEY")

# Larger numbers in JSON are not exact everywhere: RFC 7493.
_MAX_INTEGER = 2**53 - 1

_HEX = re.compile(r"[0-9a-f]+")


class Entry(NamedTuple):
    """An entry: its body, its time (seconds since the epoch) and the log's signature.

    `signed` are the bytes that the log has signed, `timestamp` is the signature.
    """

    body: bytes
    time: int
    signed: bytes
    timestamp: bytes


class LoggedSignature(NamedTuple):
    """The signature that the body of an entry describes.

    `sha256` is that of the signed bytes, in hex; `verifier` is the DER of a key or a certificate.
    """

    kind: str
    signature: bytes
    sha256: str
    verifier: bytes


def parse_annotation(text: str) -> Entry:
    """Parse the entry in cosign's annotation `dev.sigstore.cosign/bundle`.

    Raises `SignatureError`.
    """
    try:
        document = Fields(strict_json.loads(text.encode()))
        document.refuse_unknown({"SignedEntryTimestamp", "Payload"})
        payload = document.object("Payload")
        payload.refuse_unknown({"body", "integratedTime", "logIndex", "logID"})
        return make_entry(
            payload.base64("body"),
            payload.integer("integratedTime"),
            payload.integer("logIndex"),
            payload.text("logID"),
            document.base64("SignedEntryTimestamp"),
        )
    except ValueError as error:  # of a field, JSON or a surrogate
        raise SignatureError(f"its entry in the log: {error}") from None


def make_entry(body: bytes, time: int, index: int, log_id: str, timestamp: bytes) -> Entry:
    """Return the entry made of these parts. Raises `FieldError` for invalid ones."""
    if not (0 <= time <= _MAX_INTEGER and 0 <= index <= _MAX_INTEGER):
        raise FieldError("logIndex or integratedTime: out of range")
    if _HEX.fullmatch(log_id) is None:
        raise FieldError(f"logID: expected hex digits, got {shown(log_id)}")
    # For ASCII and small integers, this is the canonical form.
    signed = {
        "body": base64.b64encode(body).decode(),
        "integratedTime": time,
        "logID": log_id,
        "logIndex": index,
    }
    return Entry(body, time, json.dumps(signed, separators=(",", ":")).encode(), timestamp)


def parse_body(body: bytes) -> LoggedSignature:
    """Return the signature in the body of an entry. Raises `SignatureError` for other kinds."""
    try:
        return _logged_signature(Fields(strict_json.loads(body)))
    except ValueError as error:  # of a field, JSON or PEM
        raise SignatureError(f"its entry in the log: {error}") from None


def _logged_signature(document: Fields) -> LoggedSignature:
    document.refuse_unknown({"apiVersion", "kind", "spec"})
    kind, version = document.text("kind"), document.text("apiVersion")
    if kind not in (HASHEDREKORD, DSSE) or version != "0.0.1":
        raise FieldError(
            f"kind: {clean(kind)} {clean(version)} is not supported (hashedrekord and dsse 0.0.1"
            " are)"
        )
    spec = document.object("spec")
    return _hashedrekord(spec) if kind == HASHEDREKORD else _dsse(spec)


def _hashedrekord(spec: Fields) -> LoggedSignature:
    spec.refuse_unknown({"signature", "data"})
    signature, data = spec.object("signature"), spec.object("data")
    signature.refuse_unknown({"content", "publicKey"})
    data.refuse_unknown({"hash"})
    public_key = signature.object("publicKey")
    public_key.refuse_unknown({"content"})
    return LoggedSignature(
        HASHEDREKORD,
        signature.base64("content"),
        _sha256(data, "hash"),
        pem.single_block(public_key.base64("content"), *_VERIFIERS),
    )


def _dsse(spec: Fields) -> LoggedSignature:
    spec.refuse_unknown({"envelopeHash", "payloadHash", "signatures"})
    signatures = spec.objects("signatures")
    if len(signatures) != 1:
        raise FieldError(f"{spec.at('signatures')}: expected one, got {len(signatures)}")
    (signature,) = signatures
    signature.refuse_unknown({"signature", "verifier"})
    return LoggedSignature(
        DSSE,
        signature.base64("signature"),
        _sha256(spec, "payloadHash"),
        pem.single_block(signature.base64("verifier"), *_VERIFIERS),
    )


def _sha256(fields: Fields, key: str) -> str:
    found = fields.object(key)
    found.refuse_unknown({"algorithm", "value"})
    if found.text("algorithm") != "sha256":
        raise FieldError(f"{found.at('algorithm')}: expected sha256")
    return found.text("value")

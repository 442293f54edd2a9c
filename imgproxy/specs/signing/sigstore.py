"""Sigstore signatures, whose two forms are parsed into one kind of evidence.

cosign 1 and 2: a claim ("simple signing") with annotations. cosign 3: a bundle, sigstore's
protobuf-specs, sigstore_bundle.proto, version 0.3, with a signature of the manifest itself or of
an in-toto statement about it in a DSSE envelope. Nothing is verified here:
`verification.signatures` does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from imgproxy.errors import BadRequestError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields, shown
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing import pem, rekor, simple_signing
from imgproxy.specs.signing.signature import (
    BUNDLE,
    SIGSTORE_PAYLOAD,
    SignatureError,
    SigstoreSignature,
)
from imgproxy.specs.signing.simple_signing import Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.signing.rekor import Entry
    from imgproxy.specs.signing.signature import BundleSignature

T = TypeVar("T")

_SIGNATURE = "dev.cosignproject.cosign/signature"
_ENTRY = "dev.sigstore.cosign/bundle"
_CERTIFICATE = "dev.sigstore.cosign/certificate"
_CHAIN = "dev.sigstore.cosign/chain"

_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
# Only this predicate is a signature of the image; others, such as a scanner's report, are signed
# statements about it.
_SIGNS = "https://sigstore.dev/cosign/sign/v1"

_BUNDLE_KEYS = {"mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope"}
_MATERIAL_KEYS = {
    *("publicKey", "certificate", "x509CertificateChain"),
    *("tlogEntries", "timestampVerificationData"),
}


class Certificates(NamedTuple):
    """The signer's certificate and the intermediate ones, without the root, in DER."""

    leaf: bytes
    intermediates: tuple[bytes, ...] = ()


class Evidence(NamedTuple):
    """A signature over `signed`, the `claim` in that, and the material to verify it.

    Certificates and the log's entry may be missing or broken, which is an error only where they
    are needed. The entry must be of the kind `log_kind` and have the hash of `logged`.
    """

    claim: Claim
    signed: bytes
    signature: bytes
    certificates: Certificates | SignatureError
    entry: Entry | SignatureError
    log_kind: str
    logged: bytes


def from_annotations(found: SigstoreSignature) -> Evidence:
    """Return the evidence in a claim with annotations. Raises `SignatureError`."""
    if found.media_type != SIGSTORE_PAYLOAD:
        raise SignatureError(f"it is not a signature, but of the type {shown(found.media_type)}")
    annotations = Fields(found.annotations, "annotations")
    try:
        signature = annotations.base64(_SIGNATURE)
    except FieldError as error:
        raise SignatureError(str(error)) from None
    return Evidence(
        simple_signing.parse(found.payload, simple_signing.COSIGN),
        found.payload,
        signature,
        _tried(lambda: _annotated_certificates(annotations)),
        _tried(lambda: rekor.parse_annotation(annotations.text(_ENTRY))),
        rekor.HASHEDREKORD,
        found.payload,
    )


def _annotated_certificates(annotations: Fields) -> Certificates:
    leaf = pem.single_block(annotations.text(_CERTIFICATE).encode(), "CERTIFICATE")
    chain = annotations.optional_text(_CHAIN)
    # The last one is the root, which must come from the policy and not from the signature.
    intermediates = pem.blocks(chain.encode())[:-1] if chain else []
    return Certificates(leaf, tuple(content for _, content in intermediates))


def from_bundle(found: BundleSignature, manifest: bytes, digest: Digest) -> Evidence:
    """Return the evidence in a bundle for a manifest of this digest. Raises `SignatureError`."""
    try:
        document = Fields(strict_json.loads(found.content))
        document.refuse_unknown(_BUNDLE_KEYS)
        media_type = document.text("mediaType")
        if media_type != BUNDLE:
            raise FieldError(f"mediaType: expected {BUNDLE}, got {shown(media_type)}")
        material = document.object("verificationMaterial")
        material.refuse_unknown(_MATERIAL_KEYS)
        evidence = _signed(document, manifest, digest)
    except SignatureError:
        raise
    except (ValueError, BadRequestError) as error:  # of a field, JSON or a name
        raise SignatureError(f"the bundle: {error}") from None
    return evidence._replace(
        certificates=_tried(
            lambda: Certificates(material.object("certificate").base64("rawBytes"))
        ),
        entry=_tried(lambda: _entry(material)),
    )


_MISSING = SignatureError("it is missing")


def _signed(document: Fields, manifest: bytes, digest: Digest) -> Evidence:
    """Return the signed content of a bundle, without certificates and log entry."""
    envelope, message = (
        document.optional_object(key) for key in ("dsseEnvelope", "messageSignature")
    )
    if (envelope is None) == (message is None):
        raise FieldError("expected one of dsseEnvelope and messageSignature")
    if message is not None:
        signature = message.base64("signature")
        claim = Claim(digest, None)
        return Evidence(
            claim, manifest, signature, _MISSING, _MISSING, rekor.HASHEDREKORD, manifest
        )
    payload, signed, signature = _envelope(document.object("dsseEnvelope"))
    claim = _statement(payload)
    return Evidence(claim, signed, signature, _MISSING, _MISSING, rekor.DSSE, payload)


def _tried(make: Callable[[], T]) -> T | SignatureError:
    """Return a part of the evidence that may not be needed, or the reason for its absence."""
    try:
        return make()
    except ValueError as error:  # of a field, PEM or the log's entry
        return SignatureError(str(error))


def _entry(material: Fields) -> Entry:
    """Return the log's entry. Raises `SignatureError` where none can be verified offline."""
    entries = material.objects("tlogEntries")
    if not entries and "timestampVerificationData" in material:
        raise SignatureError("it has only timestamps of RFC 3161, which are not supported")
    if len(entries) != 1:
        raise SignatureError(f"it has {len(entries)} entries of logs, expected one")
    (entry,) = entries
    promise = entry.optional_object("inclusionPromise")
    if promise is None:
        raise SignatureError("its entry of the log has no signed timestamp (inclusionPromise)")
    return rekor.make_entry(
        entry.base64("canonicalizedBody"),
        _integer(entry, "integratedTime"),
        _integer(entry, "logIndex"),
        entry.object("logId").base64("keyId").hex(),
        promise.base64("signedEntryTimestamp"),
    )


def _integer(fields: Fields, key: str) -> int:
    """Return an integer of 64 bits, which protobuf's JSON writes as a string."""
    text = fields.text(key)
    if not (text.isascii() and text.isdecimal() and len(text) < 20):  # noqa: PLR2004  (2**63)
        raise FieldError(f"{fields.at(key)}: expected an integer, got {shown(text)}")
    return int(text)


def _envelope(envelope: Fields) -> tuple[bytes, bytes, bytes]:
    """Return payload, signed bytes (the pre-authentication encoding) and signature of DSSE."""
    envelope.refuse_unknown({"payload", "payloadType", "signatures"})
    signatures = envelope.objects("signatures")
    if len(signatures) != 1:
        raise FieldError(f"{envelope.at('signatures')}: expected one, got {len(signatures)}")
    kind = envelope.text("payloadType")
    if kind != _IN_TOTO:
        raise FieldError(f"{envelope.at('payloadType')}: expected {_IN_TOTO}, got {shown(kind)}")
    payload = envelope.base64("payload")
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    return payload, signed, signatures[0].base64("sig")


def _statement(payload: bytes) -> Claim:
    """Return the claim of an in-toto statement about a manifest, which may have a name."""
    document = Fields(strict_json.loads(payload))
    kind, predicate = document.text("_type"), document.text("predicateType")
    if kind not in _STATEMENTS:
        raise FieldError(f"_type: {shown(kind)} is not a supported in-toto statement")
    if predicate != _SIGNS:
        raise SignatureError(
            f"it is not a signature, but a statement of the type {shown(predicate)}"
        )
    subjects = document.objects("subject")
    if len(subjects) != 1:
        raise FieldError(f"subject: expected one, got {len(subjects)}")
    hashes, name = subjects[0].text_map("digest"), subjects[0].optional_text("name")
    if len(hashes) != 1:
        raise FieldError(f"subject[0].digest: expected one, got {len(hashes)}")
    ((algorithm, encoded),) = hashes.items()
    return Claim(
        digests.parse(f"{algorithm}:{encoded}"), references.parse_named(name) if name else None
    )

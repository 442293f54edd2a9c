"""What sigstore signatures bring along, in either of their forms, as one kind of evidence.

cosign 1 and 2: a claim ("simple signing") with annotations. cosign 3: a bundle, sigstore's
protobuf-specs, sigstore_bundle.proto, version 0.3, with a signature of the manifest itself or of
an in-toto statement about it in a DSSE envelope. Whether any of it is true is for `trust` to say.
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
    base64_field,
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
# Only this says "I sign the image"; a scanner's report about its faults is signed as well.
_SIGNS = "https://sigstore.dev/cosign/sign/v1"

_BUNDLE_KEYS = {"mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope"}
_MATERIAL_KEYS = {
    *("publicKey", "certificate", "x509CertificateChain"),
    *("tlogEntries", "timestampVerificationData"),
}


class Certificates(NamedTuple):
    """The signer's certificate and those above it, without the root; DER."""

    leaf: bytes
    above: tuple[bytes, ...] = ()


class Evidence(NamedTuple):
    """A signature over `signed`, and what there is to believe it; `claim` is what it is about.

    Certificates and the log's entry may be missing or broken, which is an error only where they
    are needed. The entry is to be of the kind `log_kind`, and to have the hash of `logged`.
    """

    claim: Claim
    signed: bytes
    signature: bytes
    certificates: Certificates | SignatureError
    entry: Entry | SignatureError
    log_kind: str
    logged: bytes


def of_annotations(found: SigstoreSignature) -> Evidence:
    """Give the evidence in a claim with annotations. Raises `SignatureError`."""
    if found.media_type != SIGSTORE_PAYLOAD:
        raise SignatureError(f"it is no signature, but of the type {shown(found.media_type)}")
    annotations = Fields(found.annotations, "annotations")
    try:
        signature = base64_field(annotations, _SIGNATURE)
    except FieldError as error:
        raise SignatureError(str(error)) from None
    return Evidence(
        simple_signing.parse(found.payload, simple_signing.COSIGN),
        found.payload,
        signature,
        _tried(lambda: _annotated_certificates(annotations)),
        _tried(lambda: rekor.of_annotation(annotations.text(_ENTRY))),
        rekor.HASHEDREKORD,
        found.payload,
    )


def _annotated_certificates(annotations: Fields) -> Certificates:
    leaf = pem.only(annotations.text(_CERTIFICATE).encode(), "CERTIFICATE")
    chain = annotations.optional_text(_CHAIN)
    # The last one is the root, which is not to be believed because it came along.
    above = pem.blocks(chain.encode())[:-1] if chain else []
    return Certificates(leaf, tuple(content for _, content in above))


def of_bundle(found: BundleSignature, manifest: bytes, digest: Digest) -> Evidence:
    """Give the evidence in a bundle for a manifest of this digest. Raises `SignatureError`."""
    try:
        document = Fields(strict_json.loads(found.content))
        document.refuse_others(_BUNDLE_KEYS)
        said = document.text("mediaType")
        if said != BUNDLE:
            raise FieldError(f"mediaType: expected {BUNDLE}, got {shown(said)}")
        material = document.object("verificationMaterial")
        material.refuse_others(_MATERIAL_KEYS)
        evidence = _signed(document, manifest, digest)
    except SignatureError:
        raise
    except (ValueError, BadRequestError) as error:  # of a field, of JSON, of a name
        raise SignatureError(f"the bundle: {error}") from None
    return evidence._replace(
        certificates=_tried(
            lambda: Certificates(base64_field(material.object("certificate"), "rawBytes"))
        ),
        entry=_tried(lambda: _entry(material)),
    )


_NOTHING = SignatureError("there is nothing of this")


def _signed(document: Fields, manifest: bytes, digest: Digest) -> Evidence:
    """Give what a bundle signs, in one of two ways, without what there is to believe it."""
    envelope, message = (
        document.optional_object(key) for key in ("dsseEnvelope", "messageSignature")
    )
    if (envelope is None) == (message is None):
        raise FieldError("expected one of dsseEnvelope and messageSignature")
    if message is not None:
        signature = base64_field(message, "signature")
        claim = Claim(digest, None)
        return Evidence(
            claim, manifest, signature, _NOTHING, _NOTHING, rekor.HASHEDREKORD, manifest
        )
    payload, signed, signature = _envelope(document.object("dsseEnvelope"))
    claim = _statement(payload)
    return Evidence(claim, signed, signature, _NOTHING, _NOTHING, rekor.DSSE, payload)


def _tried(make: Callable[[], T]) -> T | SignatureError:
    """Give what may not be needed, or why there is none."""
    try:
        return make()
    except ValueError as error:  # of a field, of PEM, of the log
        return SignatureError(str(error))


def _entry(material: Fields) -> Entry:
    """Give the entry of the log, if there is one that says something offline."""
    entries = material.objects("tlogEntries")
    if not entries and "timestampVerificationData" in material:
        raise SignatureError("it has only timestamps of RFC 3161, which are not read")
    if len(entries) != 1:
        raise SignatureError(f"it has {len(entries)} entries of logs, expected one")
    (entry,) = entries
    promise = entry.optional_object("inclusionPromise")
    if promise is None:
        raise SignatureError("its entry of the log has no signed timestamp (inclusionPromise)")
    return rekor.entry(
        base64_field(entry, "canonicalizedBody"),
        _integer(entry, "integratedTime"),
        _integer(entry, "logIndex"),
        base64_field(entry.object("logId"), "keyId").hex(),
        base64_field(promise, "signedEntryTimestamp"),
    )


def _integer(fields: Fields, key: str) -> int:
    """Give an integer of 64 bits, which protobuf's JSON writes as a string."""
    text = fields.text(key)
    if not (text.isascii() and text.isdecimal() and len(text) < 20):  # noqa: PLR2004  (2**63)
        raise FieldError(f"{fields.at(key)}: expected an integer, got {shown(text)}")
    return int(text)


def _envelope(envelope: Fields) -> tuple[bytes, bytes, bytes]:
    """Give the payload, what of it is signed (the pre-authentication encoding), the signature."""
    envelope.refuse_others({"payload", "payloadType", "signatures"})
    signatures = envelope.objects("signatures")
    if len(signatures) != 1:
        raise FieldError(f"{envelope.at('signatures')}: expected one, got {len(signatures)}")
    kind = envelope.text("payloadType")
    if kind != _IN_TOTO:
        raise FieldError(f"{envelope.at('payloadType')}: expected {_IN_TOTO}, got {shown(kind)}")
    payload = base64_field(envelope, "payload")
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    return payload, signed, base64_field(signatures[0], "sig")


def _statement(payload: bytes) -> Claim:
    """Give what an in-toto statement claims; its subject is the manifest, perhaps with a name."""
    document = Fields(strict_json.loads(payload))
    kind, predicate = document.text("_type"), document.text("predicateType")
    if kind not in _STATEMENTS:
        raise FieldError(f"_type: {shown(kind)} is no in-toto statement that is read")
    if predicate != _SIGNS:
        raise SignatureError(f"it is no signature, but a statement of the type {shown(predicate)}")
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

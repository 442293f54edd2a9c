"""What cosign, Fulcio and Rekor make, built with `cryptography`: signatures, certificates, logs.

Nothing here is shared with the program. Every part can be set, so that each can be wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.images import Json, digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "dev.cosignproject.cosign/signature"
ENTRY = "dev.sigstore.cosign/bundle"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"

EMAIL = "signer@example.com"
ISSUER = "https://issuer.example.com"
ISSUER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_2_OID = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
CODE = (ExtendedKeyUsageOID.CODE_SIGNING,)

# When the log has seen a signature, and certificates were valid: long ago, for some minutes.
SEEN = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def payload(digest: str, reference: str, **changes: object) -> bytes:
    """Return what cosign signs."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return compact({"critical": critical, "optional": None, **changes})


@dataclass
class Signer:
    """A signer with a key."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @cached_property
    def pem(self) -> bytes:
        public: bytes = self.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return public

    def sign(self, content: bytes) -> bytes:
        signature: bytes
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            signature = self.key.sign(content)
        elif isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(content, padding.PKCS1v15(), hashes.SHA256())
        else:
            signature = self.key.sign(content, ec.ECDSA(hashes.SHA256()))
        return signature


def rsa_signer(bits: int = 2048) -> Signer:
    return Signer(rsa.generate_private_key(65537, bits))


def ed25519_signer() -> Signer:
    return Signer(ed25519.Ed25519PrivateKey.generate())


def hashedrekord(signature: bytes, verifier: bytes, content: bytes, **changes: object) -> Json:
    """Return the body of an entry for a signature by a key or certificate, in PEM."""
    spec = {
        "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}},
        "signature": {"content": b64(signature), "publicKey": {"content": b64(verifier)}},
    }
    return {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec, **changes}


def dsse(signature: bytes, verifier: bytes, content: bytes, **changes: object) -> Json:
    spec = {
        "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
        "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()},
        "signatures": [{"signature": b64(signature), "verifier": b64(verifier)}],
    }
    return {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec, **changes}


class Log(Signer):
    """Rekor."""

    def entry(self, body: Json, /, at: datetime = SEEN, **changes: object) -> Json:
        """Return an entry, signed by the log as it is."""
        entry = {
            "body": b64(compact(body)),
            "integratedTime": int(at.timestamp()),
            "logID": hashlib.sha256(self.pem).hexdigest(),
            "logIndex": 7,
            **changes,
        }
        signed = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        return {"SignedEntryTimestamp": b64(self.sign(signed)), "Payload": entry}


def for_bundle(entry: Json, kind: str = "hashedrekord") -> Json:
    """Return an entry in the form of bundles."""
    logged = entry["Payload"]
    return {
        "logIndex": str(logged["logIndex"]),
        "logId": {"keyId": b64(bytes.fromhex(logged["logID"]))},
        "kindVersion": {"kind": kind, "version": "0.0.1"},
        "integratedTime": str(logged["integratedTime"]),
        "inclusionPromise": {"signedEntryTimestamp": entry["SignedEntryTimestamp"]},
        "canonicalizedBody": logged["body"],
    }


@dataclass
class Issued(Signer):
    """A signer with a key and a certificate for it."""

    certificate: Any = None

    @property
    def der(self) -> bytes:
        der: bytes = self.certificate.public_bytes(Encoding.DER)
        return der

    @property
    def certificate_pem(self) -> bytes:
        pem: bytes = self.certificate.public_bytes(Encoding.PEM)
        return pem

    def issue(  # noqa: PLR0913  (all that can be wrong)
        self,
        name: str = "",
        *,
        start: datetime = SEEN - timedelta(minutes=5),
        lasting: timedelta = timedelta(minutes=10),
        usages: Sequence[x509.ObjectIdentifier] | None = CODE,
        issuers: Sequence[tuple[x509.ObjectIdentifier, bytes]] = ((ISSUER_OID, ISSUER.encode()),),
        names: Sequence[x509.GeneralName] = (x509.RFC822Name(EMAIL),),
        authority: bool = False,
        extensions: Sequence[tuple[Any, bool]] = (),
        signer: Signer | None = None,
    ) -> Issued:
        """Return another signer with a certificate; authorities have no `names` and `issuers`."""
        if authority:
            extra: list[tuple[Any, bool]] = [
                (x509.BasicConstraints(ca=True, path_length=None), True)
            ]
        else:
            extra = [(x509.UnrecognizedExtension(oid, text), False) for oid, text in issuers]
            if names:
                extra.append((x509.SubjectAlternativeName(names), True))
            if usages is not None:
                extra.append((x509.ExtendedKeyUsage(usages), False))
        return _issued(self, name, signer or Signer(), start, lasting, [*extra, *extensions])


def authority(name: str = "root", signer: Signer | None = None) -> Issued:
    """Return an authority of its own."""
    constraints = [(x509.BasicConstraints(ca=True, path_length=None), True)]
    return _issued(None, name, signer or Signer(), SEEN - timedelta(days=900), LONG, constraints)


LONG = timedelta(days=9000)


def between(root: Issued, name: str = "intermediate") -> Issued:
    """Return an authority below another one."""
    return root.issue(name, authority=True, start=SEEN - timedelta(days=900), lasting=LONG)


def _issued(
    by: Issued | None,
    name: str,
    signer: Signer,
    start: datetime,
    lasting: timedelta,
    extensions: Sequence[tuple[Any, bool]],
) -> Issued:
    subject = _name(name)
    issuer = subject if by is None else by.certificate.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(signer.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lasting)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer.key if by is None else by.key, hashes.SHA256())
    return Issued(signer.key, certificate)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def annotated(content: bytes, signer: Signer, log: Log | None = None, **changes: str) -> Json:
    """Return the annotations of a signature over a payload; those of `changes` replace others."""
    signature = signer.sign(content)
    annotations = {SIGNATURE: b64(signature)}
    verifier = signer.pem
    if isinstance(signer, Issued):
        verifier = signer.certificate_pem
        annotations[CERTIFICATE] = verifier.decode()
    if log is not None:
        entry = log.entry(hashedrekord(signature, verifier, content))
        annotations[ENTRY] = compact(entry).decode()
    return {**annotations, **changes}


def statement(digest: str, name: str | None = None, **changes: object) -> bytes:
    """Return cosign 3's in-toto statement that an image is signed."""
    algorithm, encoded = digest.split(":")
    subject: Json = {"digest": {algorithm: encoded}, **({"name": name} if name else {})}
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [subject],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
        **changes,
    }
    return compact(document)


def envelope(content: bytes, signer: Signer) -> tuple[Json, bytes]:
    """Return a DSSE envelope, and the signature in it."""
    kind = "application/vnd.in-toto+json"
    signed = f"DSSEv1 {len(kind)} {kind} {len(content)} ".encode() + content
    signature = signer.sign(signed)
    return {
        "payload": b64(content),
        "payloadType": kind,
        "signatures": [{"sig": b64(signature)}],
    }, signature


def bundle(content: Json, signer: Signer, *entries: Json, **changes: object) -> Json:
    """Return a bundle with `dsseEnvelope` or `messageSignature`, by a signer, and its entries."""
    material: Json = {"tlogEntries": list(entries)}
    if isinstance(signer, Issued):
        material["certificate"] = {"rawBytes": b64(signer.der)}
    else:
        material["publicKey"] = {"hint": "not used"}
    return {"mediaType": BUNDLE, "verificationMaterial": material, **content, **changes}


def enveloped(content: bytes, signer: Signer, log: Log | None = None) -> Json:
    """Return a bundle with a statement."""
    inner, signature = envelope(content, signer)
    entries = []
    if log is not None:
        entries = [for_bundle(log.entry(dsse(signature, _verifier(signer), content)), "dsse")]
    return bundle({"dsseEnvelope": inner}, signer, *entries)


def messaged(manifest: bytes, signer: Signer, log: Log | None = None) -> Json:
    """Return a bundle with a signature of the manifest itself."""
    signature = signer.sign(manifest)
    entries = []
    if log is not None:
        entries = [for_bundle(log.entry(hashedrekord(signature, _verifier(signer), manifest)))]
    content = {
        "messageDigest": {
            "algorithm": "SHA2_256",
            "digest": b64(bytes.fromhex(digest_of(manifest).partition(":")[2])),
        },
        "signature": b64(signature),
    }
    return bundle({"messageSignature": content}, signer, *entries)


def _verifier(signer: Signer) -> bytes:
    return signer.certificate_pem if isinstance(signer, Issued) else signer.pem

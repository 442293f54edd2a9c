"""The parsing of sigstore's signatures; tests/verification/signatures tests their verification."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.sigstores import (
    BUNDLE,
    CERTIFICATE,
    CHAIN,
    ENTRY,
    PAYLOAD,
    Log,
    Signer,
    annotated,
    authority,
    b64,
    compact,
    enveloped,
    messaged,
    payload,
    statement,
)

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing import rekor
from imgproxy.specs.signing.signature import BundleSignature, SignatureError, SigstoreSignature
from imgproxy.specs.signing.sigstore import Certificates, Evidence, from_annotations, from_bundle
from imgproxy.specs.signing.simple_signing import Claim

if TYPE_CHECKING:
    from support.images import Json

DIGEST = "sha256:" + "a" * 64
MANIFEST = b"the manifest"
NAME = "quay.io/acme/os:1"
SIGNED = payload(DIGEST, NAME)
CLAIM = Claim(digests.parse(DIGEST), references.parse_named(NAME))
ROOT, LOG = authority(), Log()
SIGNER = ROOT.issue()


def of(annotations: Json) -> Evidence:
    return from_annotations(SigstoreSignature("it", PAYLOAD, SIGNED, annotations))


def bundled(document: Json) -> Evidence:
    return from_bundle(BundleSignature("it", compact(document)), MANIFEST, digests.parse(DIGEST))


def test_annotations_hold_the_evidence_for_a_claim() -> None:
    pems = (SIGNER.certificate_pem + ROOT.certificate_pem).decode()
    evidence = of(annotated(SIGNED, SIGNER, LOG, **{CHAIN: pems}))
    assert (evidence.claim, evidence.signed, evidence.logged) == (CLAIM, SIGNED, SIGNED)
    assert evidence.certificates == Certificates(SIGNER.der, (SIGNER.der,))
    assert isinstance(evidence.entry, rekor.Entry)
    assert evidence.log_kind == rekor.HASHEDREKORD


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({CERTIFICATE: "x"}, "certificates", "not PEM"),
        ({CHAIN: "x"}, "certificates", "not PEM"),
        ({ENTRY: "{"}, "entry", "its entry in the log: not JSON"),
    ],
)
def test_what_is_broken_is_so_when_it_is_needed(
    changes: dict[str, str], field: str, reason: str
) -> None:
    found = getattr(of(annotated(SIGNED, SIGNER, LOG, **changes)), field)
    assert isinstance(found, SignatureError)
    assert str(found).startswith(reason)


def test_annotations_of_a_key_have_neither() -> None:
    evidence = of(annotated(SIGNED, Signer()))
    assert isinstance(evidence.certificates, SignatureError)
    assert isinstance(evidence.entry, SignatureError)


def test_a_signature_may_have_line_breaks() -> None:
    """The reference implementation has a fixture with one, and Go skips them."""
    annotations = annotated(SIGNED, SIGNER, LOG)
    key = "dev.cosignproject.cosign/signature"
    broken = {**annotations, key: annotations[key][:4] + "\r\n" + annotations[key][4:] + "\n"}
    assert of(broken).signature == of(annotations).signature


def test_without_a_signature_it_is_none() -> None:
    with pytest.raises(SignatureError, match="missing"):
        of({})
    with pytest.raises(SignatureError, match='it is not a signature, but of the type "a/b"'):
        from_annotations(SigstoreSignature("it", "a/b", SIGNED, {}))


def test_a_bundle_holds_the_evidence_for_a_manifest_or_a_statement() -> None:
    evidence = bundled(messaged(MANIFEST, SIGNER, LOG))
    assert evidence.claim == Claim(digests.parse(DIGEST), None)
    assert (evidence.signed, evidence.logged) == (MANIFEST, MANIFEST)
    assert evidence.certificates == Certificates(SIGNER.der)
    assert evidence.log_kind == rekor.HASHEDREKORD
    content = statement(DIGEST, NAME)
    evidence = bundled(enveloped(content, SIGNER, LOG))
    assert (evidence.claim, evidence.logged, evidence.log_kind) == (CLAIM, content, rekor.DSSE)
    kind = b"application/vnd.in-toto+json"
    assert evidence.signed == b"DSSEv1 28 %b %d %b" % (kind, len(content), content)
    assert isinstance(evidence.entry, rekor.Entry)


def test_a_bundle_of_a_key_has_no_certificate() -> None:
    evidence = bundled(messaged(MANIFEST, Signer()))
    assert isinstance(evidence.certificates, SignatureError)
    assert isinstance(evidence.entry, SignatureError)


def changed(document: Json, *path: Any, to: object = None) -> Json:  # noqa: ANN401  (JSON is any)
    copy: Json = json.loads(json.dumps(document))
    inner: Any = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return copy


STATED, MESSAGED = enveloped(statement(DIGEST), SIGNER, LOG), messaged(MANIFEST, SIGNER, LOG)
MATERIAL, ENTRIES = "verificationMaterial", ("verificationMaterial", "tlogEntries")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (changed(STATED, "mediaType", to="x"), f"mediaType: expected {BUNDLE}"),
        (changed(STATED, "mediaType"), "mediaType: expected a value, got null"),
        (changed(STATED, "more", to=1), "more: unknown key"),
        (changed(STATED, MATERIAL, "more", to=1), "verificationMaterial.more: unknown key"),
        ({**STATED, **MESSAGED}, "expected one of dsseEnvelope and messageSignature"),
        (
            {key: value for key, value in STATED.items() if key != "dsseEnvelope"},
            "expected one of dsseEnvelope and messageSignature",
        ),
        (changed(MESSAGED, "messageSignature", "signature", to="*"), "messageSignature.signature"),
        (changed(STATED, "dsseEnvelope", "more", to=1), "dsseEnvelope.more: unknown key"),
        (changed(STATED, "dsseEnvelope", "payload", to="*"), "dsseEnvelope.payload: not base64"),
        (changed(STATED, "dsseEnvelope", "payload", to=b64(b"x")), "not JSON"),
        (changed(STATED, "dsseEnvelope", "payloadType", to="x"), "dsseEnvelope.payloadType: exp"),
        (changed(STATED, "dsseEnvelope", "signatures", to=[{}, {}]), "dsseEnvelope.signatures: e"),
        (
            enveloped(statement(DIGEST, _type="x"), SIGNER),
            '_type: "x" is not a supported in-toto statement',
        ),
        (enveloped(statement(DIGEST, subject=[{}, {}]), SIGNER), "subject: expected one, got 2"),
        (enveloped(statement(DIGEST, subject=[{}]), SIGNER), "subject[0].digest: expected one"),
        (enveloped(statement(DIGEST, "A"), SIGNER), "the image name"),
    ],
)
def test_a_bundle_is_exactly_that(document: Json, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        bundled(document)
    assert str(raised.value).startswith(f"the bundle: {reason}")


def test_other_statements_are_no_signatures() -> None:
    kind = "https://slsa.dev/provenance/v1"
    with pytest.raises(SignatureError) as raised:
        bundled(enveloped(statement(DIGEST, predicateType=kind), SIGNER))
    assert str(raised.value) == f'it is not a signature, but a statement of the type "{kind}"'


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (changed(STATED, *ENTRIES, to=[]), "it has 0 entries of logs, expected one"),
        (changed(STATED, *ENTRIES, to=[{}, {}]), "it has 2 entries of logs, expected one"),
        (
            changed(changed(STATED, *ENTRIES, to=[]), MATERIAL, "timestampVerificationData", to={}),
            "it has only timestamps of RFC 3161, which are not supported",
        ),
        (changed(STATED, *ENTRIES, 0, "inclusionPromise"), "its entry of the log has no signed"),
        (changed(STATED, *ENTRIES, 0, "logIndex", to="x"), "verificationMaterial.tlogEntries[0]"),
        (changed(STATED, *ENTRIES, 0, "logIndex", to="9" * 20), "verificationMaterial.tlogEntries"),
        (changed(STATED, *ENTRIES, 0, "logId", to={}), "verificationMaterial.tlogEntries[0].logId"),
        (changed(STATED, *ENTRIES, 0, "canonicalizedBody", to="*"), "verificationMaterial.tlog"),
    ],
)
def test_an_entry_that_says_nothing_offline_is_none(document: Json, reason: str) -> None:
    found = bundled(document).entry
    assert isinstance(found, SignatureError)
    assert str(found).startswith(reason)


def test_certificates_are_in_base64() -> None:
    found = bundled(changed(STATED, MATERIAL, "certificate", to={"rawBytes": "*"})).certificates
    assert str(found) == "verificationMaterial.certificate.rawBytes: not base64"
    assert base64.b64decode(STATED[MATERIAL]["certificate"]["rawBytes"]) == SIGNER.der

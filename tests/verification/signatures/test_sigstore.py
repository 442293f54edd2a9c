"""Sigstore signatures in both forms, made with keys and authorities of our own."""

from __future__ import annotations

import base64
import json
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.images import OCI_MANIFEST, Json, digest_of
from support.sigstores import (
    CERTIFICATE,
    CHAIN,
    EMAIL,
    ENTRY,
    ISSUER,
    ISSUER_2_OID,
    ISSUER_OID,
    PAYLOAD,
    SEEN,
    SIGNATURE,
    Issued,
    Log,
    Signer,
    annotated,
    authority,
    b64,
    between,
    compact,
    dsse,
    ed25519_signer,
    enveloped,
    for_bundle,
    hashedrekord,
    messaged,
    payload,
    rsa_signer,
    statement,
)

from imgproxy.config.signature_requirements import Fulcio, Material, Pki, SigstoreSigned
from imgproxy.config.signed_identity import DEFAULT
from imgproxy.errors import ConfigurationError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing.signature import (
    BundleSignature,
    SignatureError,
    SigstoreSignature,
    SimpleSignature,
)
from imgproxy.specs.signing.simple_signing import Claim
from imgproxy.verification.documents import VerifiedDocument
from imgproxy.verification.signatures.sigstore import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST = compact(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/x", "digest": "sha256:" + "a" * 64, "size": 1},
        "layers": [],
    }
)
DIGEST = digest_of(MANIFEST)
DOCUMENT = VerifiedDocument(
    MANIFEST, digests.parse(DIGEST), manifests.parse(MANIFEST, OCI_MANIFEST, "m")
)
NAME = "quay.io/acme/os:1"
SIGNED = payload(DIGEST, NAME)
CLAIM = Claim(digests.parse(DIGEST), references.parse_named(NAME))
UNNAMED = Claim(digests.parse(DIGEST), None)

# Making keys takes a while, and they do not change.
SIGNER, OTHER, LOG, OTHER_LOG = Signer(), Signer(), Log(), Log()
ROOT = authority()
MIDDLE = between(ROOT)
FRIEND = MIDDLE.issue()  # whose certificate was valid when the log saw the signature
OTHER_ROOT = authority()
NOW = {"start": datetime.now(UTC) - timedelta(days=1), "lasting": timedelta(days=2)}


def material(*contents: bytes) -> Material:
    return Material("place", contents=contents)


def by_keys(*signers: Signer, log: Log | None = None) -> SigstoreSigned:
    rekor = None if log is None else material(log.pem)
    return SigstoreSigned(
        "sigstoreSigned", material(*(each.pem for each in signers)), rekor, DEFAULT
    )


def by_fulcio(
    *roots: Issued, issuer: str = ISSUER, email: str = EMAIL, log: Log = LOG
) -> SigstoreSigned:
    pems = b"".join(each.certificate_pem for each in roots or (ROOT, MIDDLE))
    signers = Fulcio(material(pems), issuer, email)
    return SigstoreSigned("sigstoreSigned", signers, material(log.pem), DEFAULT)


def by_pki(
    *between: Issued, root: Issued = ROOT, email: str = "", hostname: str = ""
) -> SigstoreSigned:
    pems = material(*(each.certificate_pem for each in between)) if between else None
    signers = Pki(material(root.certificate_pem), pems, email, hostname)
    return SigstoreSigned("sigstoreSigned", signers, None, DEFAULT)


def claim_of(requirement: SigstoreSigned, signature: object) -> Claim:
    return Verifier(requirement).verify(signature, DOCUMENT)  # type: ignore[arg-type]


def found(annotations: Json, content: bytes = SIGNED, kind: str = PAYLOAD) -> SigstoreSignature:
    return SigstoreSignature("it", kind, content, annotations)


def bundled(document: Json) -> BundleSignature:
    return BundleSignature("it", compact(document))


def refusal(requirement: SigstoreSigned, signature: object) -> str:
    with pytest.raises(SignatureError) as raised:
        claim_of(requirement, signature)
    return str(raised.value)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda curve=curve: Signer(ec.generate_private_key(curve))
            for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
        ),
        rsa_signer,
        ed25519_signer,
    ],
    ids=["P-256", "P-384", "P-521", "RSA", "Ed25519"],
)
def test_keys_of_every_kind_sign_claims_and_bundles(make: Callable[[], Signer]) -> None:
    signer = make()
    requirement = by_keys(OTHER, signer)
    logged = by_keys(signer, OTHER, log=LOG)
    assert claim_of(requirement, found(annotated(SIGNED, signer))) == CLAIM
    assert claim_of(logged, found(annotated(SIGNED, signer, LOG))) == CLAIM
    for log in (None, LOG):
        wanted = requirement if log is None else logged
        named = enveloped(statement(DIGEST, NAME), signer, log)
        assert claim_of(wanted, bundled(named)) == CLAIM
        assert claim_of(wanted, bundled(enveloped(statement(DIGEST), signer, log))) == UNNAMED
        assert claim_of(wanted, bundled(messaged(MANIFEST, signer, log))) == UNNAMED


def test_what_is_not_needed_may_be_broken() -> None:
    broken = annotated(SIGNED, SIGNER, None, **{ENTRY: "{", CERTIFICATE: "x", CHAIN: "y"})
    assert claim_of(by_keys(SIGNER), found(broken)) == CLAIM
    document = messaged(MANIFEST, SIGNER)
    document["verificationMaterial"] |= {"tlogEntries": [{}], "certificate": {}}
    assert claim_of(by_keys(SIGNER), bundled(document)) == UNNAMED


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (SimpleSignature("it", b""), "it is not a sigstore signature"),
        (found(annotated(SIGNED, OTHER)), "it is by none of the keys"),
        (found(annotated(SIGNED + b" ", SIGNER)), "it is by none of the keys"),
        (found({SIGNATURE: b64(b"")}), "it is by none of the keys"),
        (found({}), "annotations.dev.cosignproject.cosign/signature: missing"),
        (found({SIGNATURE: "*"}), "annotations.dev.cosignproject.cosign/signature: not base64"),
        (
            found(annotated(SIGNED, SIGNER), kind="text/spdx"),
            "it is not a signature, but of the type",
        ),
        (found(annotated(b"{}", SIGNER), b"{}"), "its payload: critical: missing"),
        (bundled(messaged(MANIFEST + b" ", SIGNER)), "it is by none of the keys"),
        (bundled(enveloped(statement(DIGEST), OTHER)), "it is by none of the keys"),
    ],
    ids=range(10),
)
def test_what_keys_have_not_signed_is_refused(signature: object, reason: str) -> None:
    assert refusal(by_keys(SIGNER), signature).startswith(reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not unusable"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", ""),
        (SIGNER.pem + OTHER.pem, "expected one block"),
        (ROOT.certificate_pem, "expected one block of PUBLIC KEY or RSA PUBLIC KEY"),
        (SIGNER.pem + b"and more", "not PEM"),
        (rsa_signer(1024).pem, "an RSA key of 1024 bits, expected 2048 at least"),
        (
            b"-----BEGIN PUBLIC KEY-----\n"
            b"MCowBQYDK2VuAyEAqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=\n"
            b"-----END PUBLIC KEY-----\n",
            "a key that is neither ECDSA nor RSA nor Ed25519",
        ),
    ],
    ids=["empty", "rubbish", "two", "certificate", "more", "short", "X25519"],
)
def test_a_key_that_is_none_breaks_the_policy(content: bytes, reason: str) -> None:
    requirement = SigstoreSigned("sigstoreSigned", material(content), None, DEFAULT)
    with pytest.raises(ConfigurationError) as raised:
        Verifier(requirement)
    assert raised.value.message.startswith("place of the policy is unusable: ")
    assert reason in raised.value.message or reason == "not unusable"


def test_the_key_of_a_log_is_an_elliptic_one() -> None:
    requirement = by_keys(SIGNER)._replace(rekor=material(ed25519_signer().pem))
    with pytest.raises(ConfigurationError, match="the key of a log must be an ECDSA one"):
        Verifier(requirement)


# --- the log --------------------------------------------------------------------------------------

GOOD = SIGNER.sign(SIGNED)


def entered(entry: object) -> SigstoreSignature:
    text = entry if isinstance(entry, str) else compact(entry).decode()
    return found({SIGNATURE: b64(GOOD), ENTRY: text})


def body(**changes: Any) -> Json:  # noqa: ANN401  (JSON is any)
    return hashedrekord(GOOD, SIGNER.pem, SIGNED, **changes)


def test_an_entry_is_canonical_however_it_is_written() -> None:
    entry = LOG.entry(body())
    entry["Payload"] = dict(reversed(entry["Payload"].items()))
    assert claim_of(by_keys(SIGNER, log=LOG), entered(json.dumps(entry, indent=3))) == CLAIM


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (OTHER_LOG.entry(body()), "its entry in the log is not signed by the log"),
        (
            {**LOG.entry(body()), "SignedEntryTimestamp": b64(b"x")},
            "its entry in the log is not signed by the log",
        ),
        (
            {**LOG.entry(body()), "Payload": OTHER_LOG.entry(body())["Payload"]},
            "its entry in the log is not signed by the log",
        ),
        (
            LOG.entry(hashedrekord(OTHER.sign(SIGNED), SIGNER.pem, SIGNED)),
            "its entry in the log is about another signature",
        ),
        (
            LOG.entry(hashedrekord(GOOD, OTHER.pem, SIGNED)),
            "its entry in the log is about another key or certificate",
        ),
        (
            LOG.entry(hashedrekord(GOOD, SIGNER.pem, b"else")),
            "its entry in the log is about another content",
        ),
        (
            LOG.entry(dsse(GOOD, SIGNER.pem, SIGNED)),
            "its entry in the log is a dsse, expected hashedrekord",
        ),
        (
            LOG.entry(body(apiVersion="0.0.2")),
            "its entry in the log: kind: hashedrekord 0.0.2 is not supported",
        ),
        (
            LOG.entry(body(kind="intoto")),
            "its entry in the log: kind: intoto 0.0.1 is not supported",
        ),
        (LOG.entry(body(more=1)), "its entry in the log: more: unknown key"),
        (LOG.entry({}), "its entry in the log: kind: missing"),
        (LOG.entry(body(), logID="XYZ"), "its entry in the log: logID: expected hex digits"),
        (LOG.entry(body(), logIndex=-1), "its entry in the log: logIndex or integratedTime: out"),
        (LOG.entry(body(), logIndex=2**53), "its entry in the log: logIndex or integratedTime"),
        (LOG.entry(body(), more=1), "its entry in the log: Payload.more: unknown key"),
        (LOG.entry(body(), body="*"), "its entry in the log: Payload.body: not base64"),
        ("{", "its entry in the log: not JSON"),
        ('"\ud800"', "its entry in the log: "),
    ],
    ids=range(18),
)
def test_an_entry_of_the_log_is_about_this_signature(entry: object, reason: str) -> None:
    assert refusal(by_keys(SIGNER, log=LOG), entered(entry)).startswith(reason)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "hash", "algorithm"), "sha512"),
        (("signature", "content"), "*"),
        (("signature", "publicKey", "content"), b64(b"no PEM")),
        (("signature", "publicKey", "content"), b64(SIGNER.pem + SIGNER.pem)),
        (("signature", "publicKey", "content"), b64(b"-----BEGIN X-----\nAAAA\n-----END X-----\n")),
        (("data", "more"), 1),
        (("signature", "more"), 1),
        (("signature", "publicKey", "more"), 1),
        (("data", "hash", "more"), 1),
    ],
)
def test_an_entry_has_exactly_what_it_has(path: tuple[str, ...], value: object) -> None:
    document = body()
    spec = document["spec"]
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = value
    reason = refusal(by_keys(SIGNER, log=LOG), entered(LOG.entry(document)))
    assert reason.startswith("its entry in the log: ")


def test_without_an_entry_a_log_that_is_demanded_has_not_seen_it() -> None:
    reason = refusal(by_keys(SIGNER, log=LOG), found(annotated(SIGNED, SIGNER)))
    assert reason == "annotations.dev.sigstore.cosign/bundle: missing (expected a string)"


# --- Fulcio ---------------------------------------------------------------------------------------


def test_a_certificate_was_valid_when_the_log_saw_the_signature() -> None:
    chain = (MIDDLE.certificate_pem + ROOT.certificate_pem).decode()
    alone, whole = annotated(SIGNED, FRIEND, LOG), annotated(SIGNED, FRIEND, LOG, **{CHAIN: chain})
    assert claim_of(by_fulcio(), found(alone)) == CLAIM
    assert claim_of(by_fulcio(ROOT), found(whole)) == CLAIM
    assert claim_of(by_fulcio(), bundled(enveloped(statement(DIGEST, NAME), FRIEND, LOG))) == CLAIM
    assert claim_of(by_fulcio(), bundled(messaged(MANIFEST, FRIEND, LOG))) == UNNAMED


DER_ISSUER = b"\x0c" + bytes([len(ISSUER)]) + ISSUER.encode()
LONG_ISSUER = "https://" + "x" * 150


@pytest.mark.parametrize(
    ("issuers", "wanted"),
    [
        ([(ISSUER_2_OID, DER_ISSUER)], ISSUER),
        ([(ISSUER_OID, ISSUER.encode()), (ISSUER_2_OID, DER_ISSUER)], ISSUER),
        (
            [(ISSUER_2_OID, b"\x0c\x81" + bytes([len(LONG_ISSUER)]) + LONG_ISSUER.encode())],
            LONG_ISSUER,
        ),
    ],
    ids=["new", "both", "long"],
)
def test_the_issuer_stands_in_either_extension(
    issuers: list[tuple[x509.ObjectIdentifier, bytes]], wanted: str
) -> None:
    signature = found(annotated(SIGNED, MIDDLE.issue(issuers=issuers), LOG))
    assert claim_of(by_fulcio(issuer=wanted), signature) == CLAIM


def with_chain(signer: Issued, *chain: Issued) -> SigstoreSignature:
    pems = b"".join(each.certificate_pem for each in chain).decode()
    return found(annotated(SIGNED, signer, LOG, **({CHAIN: pems} if chain else {})))


NOT_TRUSTED = "its certificate is not trusted: "
ISSUED_FOR = "its certificate was issued for a token of "
MALFORMED = "its certificate has a malformed issuer"
LATER = SEEN + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (with_chain(MIDDLE.issue(start=LATER)), NOT_TRUSTED),
        (with_chain(MIDDLE.issue(lasting=timedelta(minutes=4))), NOT_TRUSTED),
        (with_chain(OTHER_ROOT.issue()), NOT_TRUSTED),
        (with_chain(OTHER_ROOT.issue(), OTHER_ROOT), NOT_TRUSTED),
        (with_chain(OTHER_ROOT.issue(), OTHER_ROOT, OTHER_ROOT), NOT_TRUSTED),
        (with_chain(FRIEND.issue(), FRIEND, MIDDLE, ROOT), NOT_TRUSTED),
        (with_chain(MIDDLE.issue(usages=None)), NOT_TRUSTED),
        (with_chain(MIDDLE.issue(usages=[ExtendedKeyUsageOID.SERVER_AUTH])), NOT_TRUSTED),
        (with_chain(MIDDLE.issue(names=())), NOT_TRUSTED),
        (
            with_chain(MIDDLE.issue(names=[x509.RFC822Name("SIGNER@example.com")])),
            f"its certificate is for SIGNER@example.com, expected {EMAIL}",
        ),
        (
            with_chain(MIDDLE.issue(names=[x509.DNSName("example.com")])),
            f"its certificate is for no name, expected {EMAIL}",
        ),
        (with_chain(MIDDLE.issue(issuers=())), f"{ISSUED_FOR}no issuer, expected {ISSUER}"),
        (
            with_chain(MIDDLE.issue(issuers=[(ISSUER_OID, b"https://else")])),
            f"{ISSUED_FOR}https://else, expected {ISSUER}",
        ),
        (
            with_chain(
                MIDDLE.issue(issuers=[(ISSUER_OID, b"https://else"), (ISSUER_2_OID, DER_ISSUER)])
            ),
            ISSUED_FOR,
        ),
        (with_chain(MIDDLE.issue(issuers=[(ISSUER_2_OID, ISSUER.encode())])), MALFORMED),
        (with_chain(MIDDLE.issue(issuers=[(ISSUER_2_OID, b"")])), MALFORMED),
        (with_chain(MIDDLE.issue(issuers=[(ISSUER_2_OID, DER_ISSUER + b"x")])), MALFORMED),
        (
            with_chain(MIDDLE.issue(issuers=[(ISSUER_2_OID, b"\x0c\x81" + DER_ISSUER[1:])])),
            MALFORMED,
        ),
        (
            with_chain(
                MIDDLE.issue(
                    extensions=[
                        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x"), True)
                    ]
                )
            ),
            NOT_TRUSTED,
        ),
        (
            with_chain(Issued(Signer().key, FRIEND.certificate)),
            "it is not by the key of its certificate",
        ),
    ],
    ids=range(20),
)
def test_a_certificate_that_says_something_else_is_refused(
    signature: SigstoreSignature, reason: str
) -> None:
    assert refusal(by_fulcio(ROOT, MIDDLE), signature).startswith(reason)


def test_a_certificate_below_one_that_is_missing_is_refused() -> None:
    assert refusal(by_fulcio(ROOT), with_chain(FRIEND)).startswith(NOT_TRUSTED)
    # The last one of a chain is the root, and not taken from there.
    assert refusal(by_fulcio(ROOT), with_chain(FRIEND, MIDDLE)).startswith(NOT_TRUSTED)


def test_an_authority_is_one_for_this() -> None:
    usages = {
        "digital_signature": True,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": False,
        "crl_sign": True,
        "encipher_only": False,
        "decipher_only": False,
    }
    for extension in (
        x509.KeyUsage(**usages),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.NameConstraints(None, [x509.RFC822Name("example.com")]),
    ):
        middle = ROOT.issue(
            "m",
            authority=True,
            start=SEEN - timedelta(days=9),
            lasting=timedelta(days=90),
            extensions=[(extension, True)],
        )
        signature = with_chain(middle.issue(), middle, ROOT)
        assert refusal(by_fulcio(ROOT), signature).startswith(NOT_TRUSTED)
    key_usage = x509.KeyUsage(**{**usages, "digital_signature": False, "key_cert_sign": True})
    leaf = MIDDLE.issue(extensions=[(key_usage, True)])
    assert refusal(by_fulcio(), with_chain(leaf)).startswith(NOT_TRUSTED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({CERTIFICATE: SIGNER.pem.decode()}, "expected one block of CERTIFICATE, got PUBLIC KEY"),
        ({CERTIFICATE: ""}, "not PEM"),
        ({CHAIN: "x"}, "not PEM"),
        ({ENTRY: "{}"}, "its entry in the log: Payload: missing"),
    ],
)
def test_what_is_needed_must_not_be_broken(changes: dict[str, str], reason: str) -> None:
    signature = found(annotated(SIGNED, FRIEND, LOG, **changes))
    assert refusal(by_fulcio(), signature).startswith(reason)


def test_a_certificate_that_does_not_parse_is_refused() -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    signature = FRIEND.sign(SIGNED)
    entry = LOG.entry(hashedrekord(signature, pem, SIGNED))
    annotations = {SIGNATURE: b64(signature), CERTIFICATE: pem.decode(), ENTRY: json.dumps(entry)}
    reason = refusal(by_fulcio(), found(annotations))
    assert reason.startswith("its certificate does not parse")


def test_an_entry_of_no_time_is_refused() -> None:
    signature = FRIEND.sign(SIGNED)
    log_body = hashedrekord(signature, FRIEND.certificate_pem, SIGNED)
    entry = LOG.entry(log_body, integratedTime=2**53 - 1)
    annotations = {
        SIGNATURE: b64(signature),
        CERTIFICATE: FRIEND.certificate_pem.decode(),
        ENTRY: json.dumps(entry),
    }
    reason = refusal(by_fulcio(), found(annotations))
    assert reason == "its entry in the log has an impossible time"


@pytest.mark.parametrize(
    "content", [b"x", SIGNER.pem, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_authorities_that_are_none_break_the_policy(content: bytes) -> None:
    requirement = by_fulcio()
    fulcio = Fulcio(material(content), ISSUER, EMAIL)
    with pytest.raises(ConfigurationError, match="place of the policy is unusable: "):
        Verifier(requirement._replace(signers=fulcio))


# --- certificates of a PKI ------------------------------------------------------------------------


def now(**changes: Any) -> Issued:  # noqa: ANN401  (see issue)
    return MIDDLE.issue(**{**NOW, **changes})


def plain(signer: Issued, *chain: Issued) -> SigstoreSignature:
    pems = b"".join(each.certificate_pem for each in chain).decode()
    return found(annotated(SIGNED, signer, None, **({CHAIN: pems} if chain else {})))


def test_a_certificate_is_valid_now() -> None:
    signer = now()
    for requirement, signature in (
        (by_pki(MIDDLE, email=EMAIL), plain(signer)),
        (by_pki(email=EMAIL), plain(signer, MIDDLE, ROOT)),
        (by_pki(MIDDLE, email=EMAIL), bundled(enveloped(statement(DIGEST, NAME), signer))),
    ):
        assert claim_of(requirement, signature) == CLAIM
    for long_ago in (FRIEND, now(start=datetime.now(UTC) + timedelta(days=1))):
        reason = refusal(by_pki(MIDDLE, email=EMAIL), plain(long_ago))
        assert reason.startswith(NOT_TRUSTED)
    assert refusal(by_pki(email=EMAIL), plain(signer)).startswith(NOT_TRUSTED)
    assert refusal(by_pki(MIDDLE, root=OTHER_ROOT, email=EMAIL), plain(signer)).startswith(
        NOT_TRUSTED
    )
    forged = Issued(Signer().key, signer.certificate)
    assert refusal(by_pki(MIDDLE, email=EMAIL), plain(forged)) == (
        "it is not by the key of its certificate"
    )


@pytest.mark.parametrize(
    ("name", "hostname", "fits"),
    [
        (x509.DNSName("build.example.com"), "build.example.com", True),
        (x509.DNSName("BUILD.example.com"), "build.Example.com", True),
        (x509.DNSName("*.example.com"), "build.example.com", True),
        (x509.DNSName("*.example.com"), "a.build.example.com", False),
        (x509.DNSName("*.example.com"), "example.com", False),
        (x509.DNSName("build.example.com"), "example.com", False),
        (x509.DNSName("example.com"), "examplexcom", False),
        (x509.IPAddress(IPv4Address("192.0.2.1")), "192.0.2.1", True),
        (x509.IPAddress(IPv4Address("192.0.2.1")), "192.0.2.2", False),
        (x509.RFC822Name("a@example.com"), "example.com", False),
    ],
)
def test_a_certificate_is_for_a_host(name: x509.GeneralName, hostname: str, *, fits: bool) -> None:
    requirement = by_pki(MIDDLE, hostname=hostname)
    signature = plain(now(names=[name]))
    if fits:
        assert claim_of(requirement, signature) == CLAIM
    else:
        assert refusal(requirement, signature).startswith("its certificate is for ")


def test_both_names_must_be_there() -> None:
    names = [x509.RFC822Name(EMAIL), x509.DNSName("example.com")]
    requirement = by_pki(MIDDLE, email=EMAIL, hostname="example.com")
    assert claim_of(requirement, plain(now(names=names))) == CLAIM
    for name in names:
        assert refusal(requirement, plain(now(names=[name]))).startswith("its certificate is for ")


def of_version_4(signer: Issued) -> bytes:
    """Return a certificate in DER of a version that does not exist."""
    version = bytes.fromhex("a003020102")
    assert signer.der.count(version) == 1
    return signer.der.replace(version, bytes.fromhex("a003020103"))


def in_pem(der: bytes) -> bytes:
    lines = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"


def test_a_certificate_of_an_unknown_version_is_a_bad_signature() -> None:
    """The library raises something other than a `ValueError`."""
    signer = ROOT.issue(**NOW)
    strange = in_pem(of_version_4(signer)).decode()
    chain = strange + ROOT.certificate_pem.decode()
    bundle = enveloped(statement(DIGEST, NAME), signer)
    bundle["verificationMaterial"]["certificate"]["rawBytes"] = b64(of_version_4(signer))
    requirement = by_pki(email=EMAIL)
    assert claim_of(requirement, found(annotated(SIGNED, signer))) == CLAIM
    for signature in (
        found(annotated(SIGNED, signer, **{CERTIFICATE: strange})),
        found(annotated(SIGNED, signer, **{CHAIN: chain})),
        bundled(bundle),
    ):
        assert refusal(requirement, signature).startswith("its certificate does not parse: ")


def test_a_certificate_of_an_unknown_version_in_the_policy_is_unusable() -> None:
    roots = material(in_pem(of_version_4(ROOT)))
    wanted = SigstoreSigned("sigstoreSigned", Pki(roots, None, EMAIL, ""), None, DEFAULT)
    with pytest.raises(ConfigurationError, match=r"^place of the policy is unusable: "):
        Verifier(wanted)


# --- bundles --------------------------------------------------------------------------------------


def changed(document: Json, *path: object, to: object = None) -> Json:
    """Return a bundle in which something is replaced or missing."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return copy  # type: ignore[no-any-return]


STATED = enveloped(statement(DIGEST), FRIEND, LOG)
MESSAGED = messaged(MANIFEST, FRIEND, LOG)
ENTRIES = ("verificationMaterial", "tlogEntries")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (changed(STATED, "mediaType", to="application/x"), "the bundle: mediaType: expected"),
        (changed(STATED, "more", to=1), "the bundle: more: unknown key"),
        (changed(STATED, "verificationMaterial"), "the bundle: verificationMaterial: missing"),
        (changed(STATED, "dsseEnvelope"), "the bundle: expected one of"),
        ({**STATED, **MESSAGED}, "the bundle: expected one of"),
        (changed(STATED, "dsseEnvelope", "payload", to=b64(statement("sha256:" + "0" * 64))), ""),
        (
            changed(STATED, "dsseEnvelope", "payloadType", to="text/plain"),
            "the bundle: dsseEnvelope.payloadType: expected",
        ),
        (
            changed(STATED, "dsseEnvelope", "signatures", to=[]),
            "the bundle: dsseEnvelope.signatures: expected one, got 0",
        ),
        (changed(MESSAGED, "messageSignature", "signature", to=b64(b"x")), ""),
        (
            changed(STATED, "verificationMaterial", "certificate"),
            "verificationMaterial.certificate: missing",
        ),
        (changed(STATED, *ENTRIES, to=[]), "it has 0 entries of logs"),
        (changed(STATED, *ENTRIES, 0, "inclusionPromise"), "its entry of the log has no signed"),
        (
            changed(
                changed(STATED, *ENTRIES, to=[]),
                *("verificationMaterial", "timestampVerificationData"),
                to={"rfc3161Timestamps": []},
            ),
            "it has only timestamps of RFC 3161",
        ),
        (changed(STATED, *ENTRIES, 0, "logIndex", to="7x"), "verificationMaterial.tlogEntries[0]."),
        (changed(STATED, *ENTRIES, 0, "logIndex", to="8"), "its entry in the log is not signed"),
        (changed(STATED, *ENTRIES, to=MESSAGED["verificationMaterial"]["tlogEntries"]), ""),
        (
            enveloped(
                statement(DIGEST, predicateType="https://slsa.dev/provenance/v1"), FRIEND, LOG
            ),
            "it is not a signature, but a statement of the type",
        ),
        (enveloped(statement(DIGEST, _type="x"), FRIEND, LOG), "the bundle: _type: "),
        (
            enveloped(statement(DIGEST, subject=[]), FRIEND, LOG),
            "the bundle: subject: expected one",
        ),
        (
            enveloped(statement(DIGEST, subject=[{"digest": {}}]), FRIEND, LOG),
            "the bundle: subject[0].digest: expected one, got 0",
        ),
        (
            enveloped(statement(DIGEST, subject=[{"digest": {"sha256": "x"}}]), FRIEND, LOG),
            'the bundle: "sha256:x"',
        ),
        (enveloped(statement(DIGEST, "A"), FRIEND, LOG), "the bundle: the image name"),
    ],
    ids=range(22),
)
def test_a_bundle_is_what_it_should_be(document: Json, reason: str) -> None:
    assert refusal(by_fulcio(), bundled(document)).startswith(reason)


def test_an_entry_of_a_statement_is_about_it() -> None:
    inner = STATED["dsseEnvelope"]
    signature = base64.b64decode(inner["signatures"][0]["sig"])
    content = statement(DIGEST)
    for log_body, reason in (
        (dsse(b"x", FRIEND.certificate_pem, content), "signature"),
        (dsse(signature, SIGNER.pem, content), "key or certificate"),
        (dsse(signature, FRIEND.certificate_pem, b"x"), "content"),
    ):
        entry = for_bundle(LOG.entry(log_body), "dsse")
        document = changed(STATED, *ENTRIES, to=[entry])
        assert refusal(by_fulcio(), bundled(document)) == (
            f"its entry in the log is about another {reason}"
        )
    two = dsse(signature, FRIEND.certificate_pem, content)
    two["spec"]["signatures"] *= 2
    document = changed(STATED, *ENTRIES, to=[for_bundle(LOG.entry(two), "dsse")])
    assert "signatures: expected one, got 2" in refusal(by_fulcio(), bundled(document))


# --- by the thousand ------------------------------------------------------------------------------


def test_no_mutation_of_a_bundle_is_accepted_as_something_else() -> None:
    """What survives a change claims what was signed before it."""
    source = random.Random(5)
    verifier = Verifier(by_fulcio())
    original = compact(enveloped(statement(DIGEST, NAME), FRIEND, LOG))
    claims = set()
    for _ in range(1000):
        content = bytearray(original)
        for _ in range(source.choice([1, 1, 3])):
            content[source.randrange(len(content))] = source.randrange(256)
        with suppress(SignatureError):
            claims.add(verifier.verify(BundleSignature("it", bytes(content)), DOCUMENT))
    assert claims <= {CLAIM}


def test_no_mutation_of_annotations_is_accepted_as_something_else() -> None:
    source = random.Random(6)
    verifier = Verifier(by_fulcio())
    original = annotated(SIGNED, FRIEND, LOG)
    claims = set()
    for _ in range(1000):
        annotations = dict(original)
        key = source.choice(list(annotations))
        text = annotations[key]
        at = source.randrange(len(text))
        annotations[key] = text[:at] + chr(source.randrange(128)) + text[at + 1 :]
        with suppress(SignatureError):
            claims.add(verifier.verify(found(annotations), DOCUMENT))
    assert claims <= {CLAIM}

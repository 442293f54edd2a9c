"""`sigstoreSigned`: signatures by keys or certificates, and their entries in Rekor's log.

Everything that is needed came with the signature or stands in the policy: there are no requests.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from imgproxy.config.signature_requirements import Fulcio, Material
from imgproxy.errors import clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.signing import rekor, sigstore
from imgproxy.specs.signing.signature import BundleSignature, SignatureError, SigstoreSignature
from imgproxy.verification.signatures import certificates, keys
from imgproxy.verification.signatures.keys import PublicKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate

    from imgproxy.config.signature_requirements import Pki, SigstoreSigned
    from imgproxy.specs.signing.rekor import Entry
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.specs.signing.sigstore import Evidence
    from imgproxy.specs.signing.simple_signing import Claim
    from imgproxy.verification.documents import VerifiedDocument


T = TypeVar("T")


class Verifier:
    """A requirement of sigstore signatures, with its keys and certificates read.

    Raises `ConfigurationError` for those that are unusable, `ImportError` without `cryptography`.
    """

    def __init__(self, requirement: SigstoreSigned) -> None:
        signers, log = requirement.signers, requirement.rekor
        self._log_keys = None if log is None else keys.log_keys(log)
        self._check: Callable[[Evidence], None]
        if isinstance(signers, Material):
            self._keys = keys.public_keys(signers)
            self._check = self._by_keys
        elif isinstance(signers, Fulcio):
            self._check = _by_fulcio(signers, self._log_keys or [])
        else:
            self._check = _by_pki(signers)

    def verify(self, signature: Signature, document: VerifiedDocument) -> Claim:
        """Return what a signature claims, if its signer meets the requirement.

        Raises `SignatureError`.
        """
        if isinstance(signature, SigstoreSignature):
            evidence = sigstore.from_annotations(signature)
        elif isinstance(signature, BundleSignature):
            evidence = sigstore.from_bundle(signature, document.raw, document.digest)
        else:
            raise SignatureError("it is not a sigstore signature")
        self._check(evidence)
        return evidence.claim

    def _by_keys(self, evidence: Evidence) -> None:
        key = next(
            (key for key in self._keys if key.verify(evidence.signature, evidence.signed)), None
        )
        if key is None:
            raise SignatureError("it is by none of the keys")
        if self._log_keys is not None:
            _check_entry(evidence, self._log_keys, key.der)


def _by_fulcio(signers: Fulcio, log_keys: list[PublicKey]) -> Callable[..., None]:
    """Return the check for a short-lived certificate, valid at the time of its entry in the log."""
    roots = keys.certificates(signers.authorities)

    def check(evidence: Evidence) -> None:
        found = _required(evidence.certificates)
        entry = _check_entry(evidence, log_keys, found.leaf)
        leaf = certificates.load(found.leaf)
        above = [certificates.load(der) for der in found.intermediates]
        certificates.check_chain(leaf, above, roots, _moment(entry.time))
        certificates.check_issuer(leaf, signers.issuer)
        certificates.check_email(leaf, signers.email)
        _check_signature(evidence, leaf)

    return check


def _by_pki(signers: Pki) -> Callable[[Evidence], None]:
    """Return the check for a certificate that must be valid now."""
    roots = keys.certificates(signers.authorities)
    between = [] if signers.intermediates is None else keys.certificates(signers.intermediates)

    def check(evidence: Evidence) -> None:
        found = _required(evidence.certificates)
        leaf = certificates.load(found.leaf)
        above = [*between, *(certificates.load(der) for der in found.intermediates)]
        certificates.check_chain(leaf, above, roots, datetime.now(UTC))
        if signers.email:
            certificates.check_email(leaf, signers.email)
        if signers.hostname:
            certificates.check_hostname(leaf, signers.hostname)
        _check_signature(evidence, leaf)

    return check


def _required(found: T | SignatureError) -> T:
    if isinstance(found, SignatureError):
        raise found
    return found


def _moment(time: int) -> datetime:
    try:
        return datetime.fromtimestamp(time, UTC)
    except (ValueError, OverflowError, OSError):
        raise SignatureError("its entry in the log has an impossible time") from None


def _check_entry(evidence: Evidence, log_keys: list[PublicKey], verifier: bytes) -> Entry:
    """Return the entry of a log for this signature by this key or certificate.

    Raises `SignatureError` where there is none that the log has signed.
    """
    entry = _required(evidence.entry)
    if not any(key.verify(entry.timestamp, entry.signed) for key in log_keys):
        raise SignatureError("its entry in the log is not signed by the log")
    logged = rekor.parse_body(entry.body)
    if logged.kind != evidence.log_kind:
        raise SignatureError(
            f"its entry in the log is a {logged.kind}, expected {evidence.log_kind}"
        )
    for what, found, wanted in (
        ("signature", logged.signature, evidence.signature),
        ("key or certificate", logged.verifier, verifier),
        ("content", logged.sha256, digests.compute(evidence.logged).encoded),
    ):
        if found != wanted:
            raise SignatureError(f"its entry in the log is about another {what}")
    return entry


def _check_signature(evidence: Evidence, leaf: Certificate) -> None:
    try:
        key = PublicKey(leaf.public_key)
    except ValueError as error:
        raise SignatureError(f"its certificate has {clean(str(error))}") from None
    if not key.verify(evidence.signature, evidence.signed):
        raise SignatureError("it is not by the key of its certificate")

"""Checks of the certificates of signers: RFC 5280, and Fulcio's extensions.

Chains are built by `cryptography`, with the rules for code signing in place of those for the web.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgproxy.errors import clean
from imgproxy.specs.signing.signature import SignatureError

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.x509 import Certificate, ExtensionType
    from cryptography.x509.verification import Policy

# Fulcio's oid-info.md: the issuer of the token, as bare text and as DER.
_ISSUER = "1.3.6.1.4.1.57264.1.1"
_ISSUER_2 = "1.3.6.1.4.1.57264.1.8"

_UTF8_STRING = 0x0C


def load(der: bytes) -> Certificate:
    """Return a certificate that came with a signature. Raises `SignatureError`."""
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(der)
    except Exception as error:  # noqa: BLE001  (whatever the library raises)
        raise SignatureError(f"its certificate does not parse: {clean(str(error))}") from None


def check_chain(
    leaf: Certificate, above: list[Certificate], roots: list[Certificate], time: datetime
) -> None:
    """Raise `SignatureError` where no chain for code signing was valid at a time.

    The chain goes from the leaf over any of those `above` to one of the `roots`.
    """
    from cryptography import x509
    from cryptography.x509.verification import (
        Criticality,
        ExtensionPolicy,
        PolicyBuilder,
        Store,
        VerificationError,
    )

    anywhere = Criticality.AGNOSTIC
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, anywhere, None)
        .may_be_present(x509.KeyUsage, anywhere, _signs_certificates)
        .may_be_present(x509.ExtendedKeyUsage, anywhere, _for_code)
    )
    signer = (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.KeyUsage, anywhere, _signs_documents)
        .require_present(x509.ExtendedKeyUsage, anywhere, _for_code)
        .require_present(x509.SubjectAlternativeName, anywhere, None)
    )
    try:
        PolicyBuilder().store(Store(roots)).time(time).extension_policies(
            ca_policy=authority, ee_policy=signer
        ).build_client_verifier().verify(leaf, above)
    except (VerificationError, ValueError) as error:
        reason = clean(str(error).partition(" (encountered")[0])
        raise SignatureError(f"its certificate is not trusted: {reason}") from None


# These raise `ValueError`, upon which the verifier does not use a certificate.


def _signs_certificates(_: Policy, __: Certificate, usage: ExtensionType | None) -> None:
    if usage is not None and not usage.key_cert_sign:  # type: ignore[attr-defined]
        raise ValueError("an authority that may not sign certificates")


def _signs_documents(_: Policy, __: Certificate, usage: ExtensionType | None) -> None:
    if usage is not None and not usage.digital_signature:  # type: ignore[attr-defined]
        raise ValueError("a key that may not sign")


def _for_code(_: Policy, __: Certificate, usages: ExtensionType | None) -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    signing = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usages is not None and not signing & set(usages):  # type: ignore[call-overload]
        raise ValueError("not for the signing of code")


def check_email(leaf: Certificate, wanted: str) -> None:
    """Raise `SignatureError` where a certificate is not for exactly this e-mail address."""
    from cryptography.x509 import RFC822Name

    found = _names(leaf, RFC822Name)
    if wanted not in found:
        raise SignatureError(
            f"its certificate is for {_listed(found) or 'no name'}, expected {clean(wanted)}"
        )


def check_hostname(leaf: Certificate, wanted: str) -> None:
    """Raise `SignatureError` where a certificate is not for a host: RFC 6125."""
    from cryptography.x509 import DNSName, IPAddress

    names = _names(leaf, DNSName)
    addresses = [str(address) for address in _names(leaf, IPAddress)]
    if not any(_is_host(wanted.lower(), name.lower()) for name in names) and (
        wanted not in addresses
    ):
        found = [*names, *addresses]
        raise SignatureError(
            f"its certificate is for {_listed(found) or 'no name'}, expected {clean(wanted)}"
        )


def _is_host(wanted: str, name: str) -> bool:
    if name.startswith("*."):
        return re.fullmatch(rf"[^.]+{re.escape(name[1:])}", wanted) is not None
    return wanted == name


def check_issuer(leaf: Certificate, wanted: str) -> None:
    """Raise `SignatureError` where Fulcio issued a certificate for a token of another issuer."""
    found = {
        _text_of(extension.value.value) if oid == _ISSUER_2 else extension.value.value
        for extension in leaf.extensions
        if (oid := extension.oid.dotted_string) in (_ISSUER, _ISSUER_2)
    }
    if found != {wanted.encode()}:
        issuers = [issuer.decode("utf-8", "replace") for issuer in found]
        raise SignatureError(
            f"its certificate was issued for a token of {_listed(issuers) or 'no issuer'},"
            f" expected {clean(wanted)}"
        )


def _text_of(der: bytes) -> bytes:
    """Return the content of a UTF8String: X.690 section 8.1."""
    if len(der) < 2 or der[0] != _UTF8_STRING:  # noqa: PLR2004
        raise SignatureError("its certificate has a malformed issuer")
    size, start = der[1], 2
    if size == 0x81 and len(der) > 2:  # noqa: PLR2004  (a length in one more byte)
        size, start = der[2], 3
    if size != len(der) - start or (start == 3 and size < 0x80):  # noqa: PLR2004
        raise SignatureError("its certificate has a malformed issuer")
    return der[start:]


def _names(leaf: Certificate, kind: type) -> list[str]:
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return list(names.get_values_for_type(kind))


def _listed(names: list[str]) -> str:
    return ", ".join(clean(name) for name in names)

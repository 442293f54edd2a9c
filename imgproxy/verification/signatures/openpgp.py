"""`signedBy`: OpenPGP signatures, verified by Sequoia.

Sequoia verifies that a signature was valid when it was made. Whether its key is still valid, as
GnuPG requires before skopeo accepts it, is checked here: a key that has since expired or been
revoked, for whatever reason, is not accepted, because signatures made with it now can be backdated.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgproxy.errors import clean
from imgproxy.specs.signing import keyring, openpgp, simple_signing
from imgproxy.specs.signing.keyring import Part
from imgproxy.specs.signing.signature import SignatureError, SimpleSignature
from imgproxy.verification.signatures import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pysequoia import Cert, Sig
    from pysequoia.packet import Packet

    from imgproxy.config.signature_requirements import SignedBy
    from imgproxy.specs.signing.openpgp import Message
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.specs.signing.simple_signing import Claim
    from imgproxy.verification.documents import VerifiedDocument


class Verifier:
    """A requirement of OpenPGP signatures, with its keyrings read.

    A key that cannot be read is passed over, and `warn` is called with a line about it: fewer keys
    accept fewer signatures. Raises `ConfigurationError` where none is left, `ImportError` without
    `pysequoia`.
    """

    def __init__(self, requirement: SignedBy, warn: Callable[[str], None]) -> None:
        from pysequoia import Cert, packet, verify  # noqa: F401  (an upgrade may replace them)

        self._certs: dict[str, Cert] = {}
        self._damaged: set[str] = set()
        problems: list[tuple[str, str]] = []
        keyrings = keys.read(requirement.keys)
        for name, content in keyrings:
            problems += [(name, problem) for problem in self._add(content)]
        for fingerprint in self._damaged:  # the damage may have been a revocation
            self._certs.pop(fingerprint, None)
        if not self._certs:
            first, _ = keyrings[0]
            reasons = [each if name == first else f"{name}: {each}" for name, each in problems]
            raise keys.unusable(first, "; ".join(reasons))
        for name, problem in problems:
            warn(f"{name}: {problem}; passed over")

    def _add(self, content: bytes) -> list[str]:
        """Add the keys of a keyring; return what cannot be read in it, and why."""
        problems: list[str] = []
        try:
            parts = keyring.split(content)
        except ValueError as error:
            return [str(error)]
        for part in parts:
            try:
                cert = _cert(part)
            except ValueError as error:
                problems.append(f"{part.name}: {error}")
                with suppress(ValueError):
                    self._damaged.add(_cert(Part(part.name, part.packets[:1])).fingerprint)
                continue
            known = self._certs.get(cert.fingerprint)
            self._certs[cert.fingerprint] = cert if known is None else known.merge(cert)
        return problems

    def verify(self, signature: Signature, _: VerifiedDocument) -> Claim:
        """Return what a signature claims, if it is by one of the keys.

        Raises `SignatureError`.
        """
        if not isinstance(signature, SimpleSignature):
            raise SignatureError("it is not an OpenPGP signature")
        message = openpgp.parse(signature.content)
        sig = _sig(message)
        primary, signer = _signer(message, sig, self._certs.values())
        cert = self._certs[primary]
        _check_primary(cert)
        if signer != primary:
            _check_subkey(cert, signer, message, sig)
        return simple_signing.parse(message.content, simple_signing.ATOMIC)


def _cert(part: Part) -> Cert:
    """Return a key of a keyring. Raises `ValueError`."""
    from pysequoia import Cert

    if part.problem:
        raise ValueError(part.problem)
    try:
        return Cert.from_bytes(b"".join(part.packets))
    except Exception as error:  # noqa: BLE001  (whatever the library raises)
        raise ValueError(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    """Return the first line of the library's message; a backtrace of its own may follow."""
    return clean(str(error).partition("\n")[0])


def _sig(message: Message) -> Sig:
    from pysequoia import Sig

    try:
        return Sig.from_bytes(message.signature)
    except Exception as error:  # noqa: BLE001  (whatever the library raises)
        raise SignatureError(f"its signature does not parse: {_first_line(error)}") from None


def _signer(message: Message, sig: Sig, certs: Iterable[Cert]) -> tuple[str, str]:
    """Return the fingerprints of the primary key and of the key that signed.

    Raises `SignatureError` where it was none of the keys.
    """
    from pysequoia import verify

    known = list(certs)
    try:
        if message.version == 3:  # noqa: PLR2004
            # Alone, Sequoia refuses one of this version, which nobody should make any more; in a
            # message it verifies it, and what it demands of keys and hashes is the same.
            found = verify(bytes=message.in_one_pass(), store=lambda _: known).valid_sigs
        else:
            found = verify(bytes=message.content, signature=sig, store=lambda _: known).valid_sigs
    except Exception as error:  # noqa: BLE001  (whatever the library raises)
        by = sig.issuer_fingerprint or sig.issuer_key_id
        own = [_unusable(each) for each in known if by and each.fingerprint.endswith(by)]
        raise SignatureError(
            "it is by none of the keys, or was not valid when it was made"
            f" (by {clean(by or 'a key that it does not name')}):"
            f" {'; '.join([_first_line(error), *filter(None, own)])}"
        ) from None
    ((primary, signer),) = {(each.certificate, each.signing_key) for each in found}
    return primary, signer


def _unusable(cert: Cert) -> str:
    """Return why no signature of a key is accepted; the library says it for the key alone."""
    try:
        _ = cert.expiration
    except Exception as error:  # noqa: BLE001  (whatever the library raises)
        causes, _, _ = str(error).partition("Stack backtrace")
        return f"the key itself: {clean(' '.join(causes.split()))}"
    return ""


def _check_primary(cert: Cert) -> None:
    packets = list(_packets(cert))
    if cert.is_revoked or any(_is(packet, "KeyRevocation") for packet in packets):
        raise SignatureError(f"its key {cert.fingerprint} is revoked")
    _check_expiry(cert.fingerprint, cert.expiration)


def _check_subkey(cert: Cert, signer: str, message: Message, sig: Sig) -> None:
    """Raise `SignatureError` where a signing subkey is revoked, or has expired since it signed.

    What counts is the binding that was valid when the subkey signed: only that one was verified.
    """
    packets = list(_packets(cert))
    start = next(n for n, packet in enumerate(packets) if packet.fingerprint == signer)
    own = _signatures_after(packets, start)
    if any(_is(packet, "SubkeyRevocation") for packet in own):
        raise SignatureError(f"its key {signer} is revoked")
    binding = _binding(packets, own, message, sig)
    created, period = packets[start].key_created, binding.key_validity_period
    if created is None:
        raise SignatureError(f"its key {signer} has no creation time")
    _check_expiry(signer, created + period if period else None)


def _check_expiry(fingerprint: str, expiration: datetime | None) -> None:
    if expiration is not None and expiration <= datetime.now(UTC):
        raise SignatureError(f"its key {fingerprint} has expired ({expiration:%Y-%m-%d})")


def _binding(packets: list[Packet], own: list[Packet], message: Message, sig: Sig) -> Packet:
    """Return the newest binding by the primary key that was valid when the subkey signed."""
    from pysequoia import Cert

    bindings = [packet for packet in own if _is(packet, "SubkeyBinding")]
    bindings.sort(key=lambda packet: packet.signature_created or datetime.min.replace(tzinfo=UTC))
    for candidate in reversed(bindings):
        others = [id(binding) for binding in bindings if binding is not candidate]
        alone = Cert.from_packets([each for each in packets if id(each) not in others])
        try:
            _signer(message, sig, [alone])
        except SignatureError:
            continue
        return candidate
    raise SignatureError("its key was not bound to a primary key when it signed")


def _packets(cert: Cert) -> Iterable[Packet]:
    from pysequoia.packet import PacketPile

    packets: Iterable[Packet] = PacketPile.from_bytes(bytes(cert))
    return packets


def _signatures_after(packets: list[Packet], start: int) -> list[Packet]:
    """Return the signatures that belong to the key at a position."""
    from pysequoia.packet import Tag

    own = []
    for packet in packets[start + 1 :]:
        if packet.tag != Tag.Signature:
            break
        own.append(packet)
    return own


def _is(packet: Packet, kind: str) -> bool:
    from pysequoia.packet import SignatureType

    return bool(packet.signature_type == getattr(SignatureType, kind))

"""OpenPGP signatures by the real program, and what resembles them."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.gnupg import Gnupg, gnupg

from imgproxy.config.signature_requirements import Material, SignedBy
from imgproxy.config.signed_identity import DEFAULT
from imgproxy.errors import ConfigurationError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing.signature import BundleSignature, SignatureError, SimpleSignature
from imgproxy.specs.signing.simple_signing import Claim
from imgproxy.verification.signatures.openpgp import Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = "sha256:" + "0" * 64
NAME = "quay.io/acme/os:1"
SIGNED = json.dumps(
    {
        "critical": {
            "type": "atomic container signature",
            "image": {"docker-manifest-digest": DIGEST},
            "identity": {"docker-reference": NAME},
        },
        "optional": {"creator": "a test", "timestamp": 1458239713},
    }
).encode()
CLAIM = Claim(digests.parse(DIGEST), references.parse_named(NAME))

MADE, EXPIRING, BETWEEN = "20250101T000000", "20250601T000000", "20250301T000000"


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gnupg]:
    with gnupg() as gpg:
        gpg.key("signer")
        gpg.key("other")
        yield gpg


def verifier(*keyrings: bytes) -> Verifier:
    return Verifier(SignedBy("signedBy", Material("place", contents=keyrings), DEFAULT))


def claim_of(keyring: bytes | Verifier, message: bytes) -> Claim:
    checking = keyring if isinstance(keyring, Verifier) else verifier(keyring)
    return checking.verify(SimpleSignature("it", message), None)  # type: ignore[arg-type]


def refusal(keyring: bytes | Verifier, message: bytes) -> str:
    with pytest.raises(SignatureError) as raised:
        claim_of(keyring, message)
    return str(raised.value)


BY_NONE = "it is by none of the keys, or was not valid when it was made "


@pytest.mark.parametrize("algorithm", ["none", "zip", "zlib", "bzip2"])
def test_a_message_may_be_compressed(gpg: Gnupg, algorithm: str) -> None:
    message = gpg.sign(SIGNED, "signer", "--compress-algo", algorithm)
    assert claim_of(gpg.export("signer"), message) == CLAIM


def test_a_keyring_has_one_key_or_several_in_binary_or_in_armor(gpg: Gnupg) -> None:
    message = gpg.sign(SIGNED, "signer")
    signer, other = gpg.export("signer"), gpg.export("other")
    for keyrings in (
        [gpg.export("signer", "other")],
        [gpg.export("other", "signer")],
        [gpg.export("signer", armor=True)],
        [other, signer],
        [signer, signer],
    ):
        assert claim_of(verifier(*keyrings), message) == CLAIM
    reason = refusal(other, message)
    assert reason.startswith(f"{BY_NONE}(by {gpg.fingerprints('signer')[0].lower()}): ")
    assert "\n" not in reason


@pytest.mark.parametrize("keyring", [b"", b"rubbish", b"\x99\x01\x0d\x04"])
def test_a_keyring_that_is_none_breaks_the_policy(keyring: bytes) -> None:
    with pytest.raises(ConfigurationError, match="place of the policy is unusable: "):
        verifier(keyring)


def test_a_keyring_that_cannot_be_read_breaks_the_policy(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.gpg")
    with pytest.raises(ConfigurationError) as raised:
        Verifier(SignedBy("signedBy", Material("keys", paths=(path,)), DEFAULT))
    assert raised.value.message == f"keys of the policy: reading {path}: No such file or directory"
    assert raised.value.detail == {"file": path}


def test_what_is_not_signed_once_over_a_binary_literal_is_no_signature(gpg: Gnupg) -> None:
    encrypting = gpg.key("reader", use="default", algorithm="default")
    both = ("--local-user", "other")
    for message, reason in (
        (gpg.sign(SIGNED, "signer", mode="--clear-sign"), "it is clear text or armored"),
        (gpg.sign(SIGNED, "signer", "--armor"), "it is clear text or armored"),
        (
            gpg.sign(SIGNED, "signer", mode="--detach-sign"),
            "it is not a message with one signature",
        ),
        (gpg.run("--store", given=SIGNED), "it is not a message with one signature, but"),
        (gpg.sign(SIGNED, "signer", *both), "it is not a message with one signature, but"),
        (gpg.sign(SIGNED, "signer", "--textmode"), "its signature is not of the type for binary"),
        (
            gpg.sign(SIGNED, "signer", "--encrypt", "--recipient", encrypting),
            "it is not a message with one signature, but consists of an encrypted session key",
        ),
        (gpg.sign(SIGNED, "signer") + b"\x00", "its compressed data is broken"),
        (SIGNED, "it is not an OpenPGP message (a packet begins with 0x7b)"),
    ):
        assert refusal(gpg.export("signer"), message).startswith(reason)


def test_the_other_kinds_of_signatures_are_not_for_this_requirement(gpg: Gnupg) -> None:
    with pytest.raises(SignatureError, match="it is not an OpenPGP signature"):
        verifier(gpg.export("signer")).verify(BundleSignature("it", b"{}"), None)  # type: ignore[arg-type]


def test_a_payload_has_what_it_has_and_no_more(gpg: Gnupg) -> None:
    document = {**json.loads(SIGNED), "more": 1}
    message = gpg.sign(json.dumps(document).encode(), "signer")
    assert refusal(gpg.export("signer"), message) == "its payload: more: unknown key"


# --- times ----------------------------------------------------------------------------------------


def test_a_signature_has_its_time(gpg: Gnupg) -> None:
    expired = gpg.sign(SIGNED, "signer", "--default-sig-expire", "1d", at=BETWEEN)
    tomorrow = gpg.sign(SIGNED, "signer", at="20990101T000000")
    before_its_key = gpg.sign(SIGNED, "signer", "--ignore-time-conflict", at="20240101T000000")
    for message in (expired, tomorrow, before_its_key):
        assert refusal(gpg.export("signer"), message).startswith(BY_NONE)


def test_a_key_that_has_expired_signs_nothing_any_more(gpg: Gnupg) -> None:
    """However the signature is dated: with the key it can be backdated."""
    fingerprint = gpg.key("expired", expire=EXPIRING)
    before = gpg.export("expired")
    message = gpg.sign(SIGNED, "expired", at=BETWEEN)
    assert refusal(before, message) == (f"its key {fingerprint.lower()} has expired (2025-06-01)")
    gpg.run("--quick-set-expire", fingerprint, "20y")
    after = gpg.export("expired")
    assert claim_of(after, gpg.sign(SIGNED, "expired")) == CLAIM
    # gpg drops the earlier binding of the key to its name; the old keyring still has it.
    assert refusal(after, message).startswith(BY_NONE)
    assert claim_of(verifier(before, after), message) == CLAIM


def test_a_key_that_is_revoked_signs_nothing_any_more(gpg: Gnupg) -> None:
    fingerprint = gpg.key("revoked")
    message = gpg.sign(SIGNED, "revoked", at=BETWEEN)
    assert claim_of(gpg.export("revoked"), message) == CLAIM
    gpg.revoke(fingerprint)
    assert refusal(gpg.export("revoked"), message)


def test_a_key_that_was_given_up_later_signs_nothing_any_more(gpg: Gnupg) -> None:
    """Sequoia takes what such a key has signed before."""
    fingerprint = gpg.key("superseded")
    message = gpg.sign(SIGNED, "superseded", at=BETWEEN)
    gpg.edit(fingerprint, "revkey", "y", "2", "", "y", "save")
    reason = refusal(gpg.export("superseded"), message)
    assert reason == f"its key {fingerprint.lower()} is revoked"


def test_a_subkey_signs_for_its_key(gpg: Gnupg) -> None:
    primary = gpg.key("with subkey", use="cert")
    subkey = gpg.subkey(primary)
    message = gpg.sign(SIGNED, f"{subkey}!", at=BETWEEN)
    assert claim_of(gpg.export(primary), message) == CLAIM
    gpg.edit(primary, "key 1", "revkey", "y", "2", "", "y", "save")
    assert refusal(gpg.export(primary), message) == f"its key {subkey.lower()} is revoked"


def test_a_subkey_that_has_expired_signs_nothing_any_more(gpg: Gnupg) -> None:
    primary = gpg.key("with expiring subkey", use="cert")
    subkey = gpg.subkey(primary, expire=EXPIRING)
    message = gpg.sign(SIGNED, f"{subkey}!", at=BETWEEN)
    before = gpg.export(primary)
    assert refusal(before, message) == f"its key {subkey.lower()} has expired (2025-06-01)"
    # How it is bound since cannot be verified as of then, so it does not count.
    gpg.run("--quick-set-expire", primary, "20y", subkey)
    after = gpg.export(primary)
    assert refusal(verifier(before, after), message).endswith("has expired (2025-06-01)")
    assert claim_of(verifier(before, after), gpg.sign(SIGNED, f"{subkey}!")) == CLAIM


def test_a_binding_that_is_not_by_the_key_says_nothing(gpg: Gnupg) -> None:
    """The newest one decides, if it is real; a forged one cannot make a subkey live longer."""
    from pysequoia.packet import PacketPile

    primary = gpg.key("with forged binding", use="cert")
    subkey = gpg.subkey(primary, expire=EXPIRING)
    message = gpg.sign(SIGNED, f"{subkey}!", at=BETWEEN)
    before = gpg.export(primary)
    gpg.run("--quick-set-expire", primary, "20y", subkey, at="20250201T000000")
    real = gpg.export(primary)
    forged = bytearray(real)
    forged[-1] ^= 1
    pile = list(PacketPile.from_bytes(bytes(forged)))
    both = before + bytes(pile[-1])
    assert claim_of(real, message) == CLAIM
    assert claim_of(before + bytes(list(PacketPile.from_bytes(real))[-1]), message) == CLAIM
    assert refusal(both, message).endswith("has expired (2025-06-01)")


@pytest.mark.parametrize("options", [("--digest-algo", "SHA1"), ("--digest-algo", "RIPEMD160")])
def test_weak_hashes_are_refused(gpg: Gnupg, options: tuple[str, ...]) -> None:
    message = gpg.sign(SIGNED, "signer", *options)
    assert refusal(gpg.export("signer"), message).startswith(BY_NONE)


def test_short_keys_are_refused(gpg: Gnupg) -> None:
    gpg.key("short", algorithm="rsa1024")
    assert refusal(gpg.export("short"), gpg.sign(SIGNED, "short")).startswith(BY_NONE)


# --- by the thousand ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["none", "zip"])
def test_no_mutation_is_accepted_as_something_else(gpg: Gnupg, algorithm: str) -> None:
    source = random.Random(7)
    judge = verifier(gpg.export("signer"))
    original = gpg.sign(SIGNED, "signer", "--compress-algo", algorithm)
    claims = set()
    for _ in range(1000):
        message = bytearray(original)
        for _ in range(source.choice([1, 1, 3])):
            message[source.randrange(len(message))] = source.randrange(256)
        if source.random() < 0.2:
            del message[source.randrange(len(message)) :]
        with suppress(SignatureError):
            claims.add(claim_of(judge, bytes(message)))
    assert claims <= {CLAIM}

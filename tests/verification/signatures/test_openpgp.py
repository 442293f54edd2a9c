"""OpenPGP signatures by the real program, and what resembles them."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pysequoia import ArmorKind, armor
from support import version3
from support.gnupg import Gnupg, gnupg
from support.version3 import packet

from imgproxy.config.signature_requirements import Material, SignedBy
from imgproxy.config.signed_identity import DEFAULT
from imgproxy.errors import ConfigurationError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing import openpgp
from imgproxy.specs.signing.signature import BundleSignature, SignatureError, SimpleSignature
from imgproxy.specs.signing.simple_signing import Claim
from imgproxy.verification.signatures.openpgp import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def never(line: str) -> None:
    raise AssertionError(line)


def verifier(*keyrings: bytes, warn: Callable[[str], None] = never) -> Verifier:
    return Verifier(SignedBy("signedBy", Material("place", contents=keyrings), DEFAULT), warn)


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


def public_key(version: int, rest: bytes) -> bytes:
    """Return a key packet made by hand, with a user."""
    body = bytes([version]) + (1_000_000_000).to_bytes(4) + rest
    return packet(6, body) + packet(13, b"old <old@acme.example>")


NUMBERS = b"\x08\x00\x80" + b"\x11" * 255 + b"\0\5\x11"
UNREADABLE = {
    "version 3": public_key(3, b"\0\0\1" + NUMBERS),
    "version 5": public_key(5, b"\1" + len(NUMBERS).to_bytes(4) + NUMBERS),
    "version 7": public_key(7, b"\1" + len(NUMBERS).to_bytes(4) + NUMBERS),
    "a broken one of version 6": public_key(6, b"\x1b" + (32).to_bytes(4) + bytes(31)),
    "a broken one of version 4": public_key(4, b"\1" + NUMBERS[:100]),
    "no version": packet(6, b"") + packet(13, b"old <old@acme.example>"),
}


@pytest.mark.parametrize("unreadable", UNREADABLE)
def test_a_key_that_cannot_be_read_does_not_spoil_the_others(gpg: Gnupg, unreadable: str) -> None:
    """Fewer keys accept fewer signatures, so that nothing is accepted that was not before."""
    bad, message = UNREADABLE[unreadable], gpg.sign(SIGNED, "signer")
    good, other = gpg.export("signer"), gpg.export("other")
    number = {(bad + good,): 1, (good + bad,): 2, (other + bad + good,): 2, (good, bad): 1}
    armored = gpg.export("signer", armor=True)
    number[armored + armor(bad, ArmorKind.PublicKey).encode(),] = 2
    number[b"Our keys:\n" + armor(bad, ArmorKind.PublicKey).encode() + armored,] = 1
    number[armor(bad + good, ArmorKind.PublicKey).encode(),] = 1
    for keyrings, n in number.items():
        lines: list[str] = []
        assert claim_of(verifier(*keyrings, warn=lines.append), message) == CLAIM
        (line,) = lines
        assert line.startswith(f"place of the policy: key {n}")
        assert "(old <old@acme.example>): " in line
        assert line.endswith("; passed over")
        assert f"version {unreadable[-1]}" in line or unreadable == "no version"


def test_a_key_that_is_cut_off_does_not_spoil_the_others(gpg: Gnupg) -> None:
    good, other = gpg.export("signer"), gpg.export("other")
    message = gpg.sign(SIGNED, "signer")
    for end in (1, 2, 10, len(other) // 2, len(other) - 1):
        lines: list[str] = []
        assert claim_of(verifier(good + other[:end], warn=lines.append), message) == CLAIM
        (line,) = lines
        assert line.startswith("place of the policy: key 2")
        assert line.endswith(": it ends in the middle of a packet; passed over")


def test_a_revocation_that_is_broken_takes_its_key_along(gpg: Gnupg) -> None:
    """Otherwise damage to a keyring would bring back a key that was given up."""
    from pysequoia.packet import PacketPile

    fingerprint = gpg.key("damaged")
    message = gpg.sign(SIGNED, fingerprint, at=BETWEEN)
    gpg.revoke(fingerprint)
    key, revocation, *rest = map(bytes, PacketPile.from_bytes(gpg.export(fingerprint)))
    other, before = gpg.export("other"), b"".join([key, *rest])
    assert claim_of(other + before, message) == CLAIM
    assert refusal(other + before + revocation, message)
    for end in range(1, len(revocation)):
        judge = verifier(other + before + revocation[:end], warn=lambda _: None)
        assert refusal(judge, message).startswith(BY_NONE)
    damaged = before + b"\0" + revocation
    foreign = before + packet(0, b"no packet of a key") + revocation
    # A newer export often stands behind the older one, or in a file of its own.
    for keyrings in (
        [other + damaged],
        [other + before + damaged],
        [other + before, damaged],
        [damaged, other + before],
        [other + before, foreign],
        [foreign + before + other],
    ):
        judge = verifier(*keyrings, warn=lambda _: None)
        assert refusal(judge, message).startswith(BY_NONE)
    with pytest.raises(ConfigurationError, match="what follows is no packet"):
        verifier(before, damaged)


def test_where_no_key_is_left_the_policy_is_broken() -> None:
    for name, bad in UNREADABLE.items():
        with pytest.raises(ConfigurationError) as raised:
            verifier(bad)
        assert raised.value.message.startswith("place of the policy is unusable: key 1")
        assert name[-1] in raised.value.message
    with pytest.raises(ConfigurationError) as raised:
        verifier(*UNREADABLE.values())
    assert raised.value.message.count("(old <old@acme.example>): ") == len(UNREADABLE)


def test_several_files_are_told_apart(gpg: Gnupg, tmp_path: Path) -> None:
    good, bad, keybox, empty = (str(tmp_path / name) for name in ("good", "bad", "box", "empty"))
    Path(good).write_bytes(gpg.export("signer"))
    Path(bad).write_bytes(UNREADABLE["version 3"])
    Path(keybox).write_bytes((gpg.home / "pubring.kbx").read_bytes())
    Path(empty).write_bytes(b"")
    lines: list[str] = []
    by_path = SignedBy("signedBy", Material("keyPaths", paths=(bad, keybox, good, empty)), DEFAULT)
    judge = Verifier(by_path, lines.append)
    assert claim_of(judge, gpg.sign(SIGNED, "signer")) == CLAIM
    assert [line.partition(": ")[0] for line in lines] == [bad, keybox, empty]
    assert "key 1 of version 3 (old <old@acme.example>): " in lines[0]
    assert "it is a keybox (pubring.kbx), which GnuPG alone reads" in lines[1]
    assert "gpg --export KEY > FILE" in lines[1]
    with pytest.raises(ConfigurationError) as raised:
        Verifier(by_path._replace(keys=Material("keyPaths", paths=(keybox, empty))), never)
    assert raised.value.message.startswith(f"{keybox} is unusable: it is a keybox (pubring.kbx)")
    assert raised.value.message.endswith(f"; {empty}: there is no key in it")
    assert raised.value.detail == {"file": keybox}


def test_a_keybox_says_how_to_do_it(gpg: Gnupg) -> None:
    """What the message proposes works."""
    content = (gpg.home / "pubring.kbx").read_bytes()
    with pytest.raises(ConfigurationError, match=r"is unusable: it is a keybox.* gpg --export KEY"):
        verifier(content)
    assert claim_of(gpg.run("--export", "signer"), gpg.sign(SIGNED, "signer")) == CLAIM


def test_a_keyring_that_cannot_be_read_breaks_the_policy(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.gpg")
    with pytest.raises(ConfigurationError) as raised:
        Verifier(SignedBy("signedBy", Material("keys", paths=(path,)), DEFAULT), never)
    assert raised.value.message == f"keys of the policy: reading {path}: No such file or directory"
    assert raised.value.detail == {"file": path}


@pytest.mark.slow
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


@pytest.mark.parametrize("version", [3, 4])
def test_a_key_that_is_signed_with_a_weak_hash_is_refused_and_says_so(
    gpg: Gnupg, version: int
) -> None:
    """Who finds a collision has the key's signature for another user, use or time of expiry.

    Keyrings from before 2010 have such keys, and newer exports of the same keys are without.
    """
    user = f"signed with SHA-1, {version}"
    gpg.run("--cert-digest-algo", "SHA1", "--quick-generate-key", user, "rsa2048", "sign", "never")
    fingerprint = gpg.fingerprints(user)[0]
    sign = gpg.sign_version_3 if version == 3 else gpg.sign
    reason = refusal(gpg.export(fingerprint), sign(SIGNED, fingerprint))
    assert reason.startswith(BY_NONE)
    assert "; the key itself: " in reason
    assert "SHA1 is not considered secure" in reason


# --- version 3 ------------------------------------------------------------------------------------


def rsa(gpg: Gnupg, name: str, **fields: str) -> str:
    return gpg.key(name, **{"algorithm": "rsa2048", **fields})


@pytest.fixture(scope="module")
def old(gpg: Gnupg) -> str:
    """Make a key that signs as GnuPG 1 did."""
    return rsa(gpg, "old")


@pytest.mark.slow
@pytest.mark.parametrize("hash_algorithm", [8, 9, 10])
@pytest.mark.parametrize("algorithm", [1, 3])
def test_a_signature_may_be_of_version_3(
    gpg: Gnupg, old: str, hash_algorithm: int, algorithm: int
) -> None:
    fields = {"hash_algorithm": hash_algorithm, "algorithm": algorithm}
    message = gpg.sign_version_3(SIGNED, old, **fields)
    assert gpg.verify(message)
    assert claim_of(gpg.export("signer", "old"), message) == CLAIM
    assert refusal(gpg.export("signer"), message).startswith(f"{BY_NONE}(by {old[-16:].lower()}): ")


def test_a_signature_of_version_3_may_be_in_front(gpg: Gnupg, old: str) -> None:
    """The older form of a message."""
    behind = gpg.sign_version_3(SIGNED, old)
    in_front = openpgp.parse(behind).signature + packet(11, b"b\0" + bytes(4) + SIGNED)
    assert gpg.verify(in_front)
    assert claim_of(gpg.export("old"), in_front) == CLAIM


def test_what_a_signature_of_version_3_covers_cannot_be_changed(gpg: Gnupg, old: str) -> None:
    """The content, its type and the time; a flipped bit anywhere else is no other claim."""
    message = gpg.sign_version_3(SIGNED, old, at=BETWEEN)
    content, body = SIGNED, openpgp.parse(message).signature[6:]
    altered = version3.message(content.replace(b"os:1", b"os:2"), body)
    judge = verifier(gpg.export("old"))
    assert not gpg.verify(altered)
    assert refusal(judge, altered).startswith(BY_NONE)
    for position in (*range(17), *range(19, len(body), 17)):
        flipped = bytearray(body)
        flipped[position] ^= 1
        assert refusal(judge, version3.message(content, bytes(flipped)))
    for wrong in (body + b"\0", body[:-1], body[:19]):
        assert refusal(judge, version3.message(content, wrong))
    # The quick test (RFC 4880 section 5.2.2) is no part of the proof, and gpg ignores it, too.
    quick = body[:17] + bytes([body[17] ^ 1]) + body[18:]
    assert gpg.verify(version3.message(content, quick))
    assert claim_of(judge, version3.message(content, quick)) == CLAIM


def test_a_signature_of_version_3_is_of_a_document(gpg: Gnupg, old: str) -> None:
    """One of text, or of a key, covers something else than it seems to."""
    for kind in (1, 2, 0x10, 0x13, 0x18, 0x1F, 0x20, 0x40, 0xFF):
        message = gpg.sign_version_3(SIGNED, old, kind=kind)
        assert "not of the type for binary" in refusal(gpg.export("old"), message)


@pytest.mark.parametrize("hash_algorithm", [1, 2, 11])
def test_a_signature_of_version_3_has_a_strong_hash(
    gpg: Gnupg, old: str, hash_algorithm: int
) -> None:
    """With MD5 and SHA-1, whoever has a signature can make a document that it fits as well."""
    message = gpg.sign_version_3(SIGNED, old, hash_algorithm=hash_algorithm)
    assert "not by RSA with SHA-256" in refusal(gpg.export("old"), message)
    # What it says of itself is not what was signed.
    body = bytearray(openpgp.parse(gpg.sign_version_3(SIGNED, old)).signature[6:])
    for other in (9, 10):
        body[16] = other
        assert refusal(gpg.export("old"), version3.message(SIGNED, bytes(body)))


# What a key must be when it signs, and now, does not depend on the version of the signature: each
# refusal that the tests above show for version 4 holds for version 3, which could otherwise be
# chosen to get around it.


def test_version_3_needs_a_time_at_which_its_key_was_valid(gpg: Gnupg, old: str) -> None:
    for time in ("20240101T000000", "20990101T000000"):
        message = gpg.sign_version_3(SIGNED, old, at=time)
        assert refusal(gpg.export("old"), message).startswith(BY_NONE)


def test_version_3_needs_a_key_that_has_not_expired(gpg: Gnupg) -> None:
    fingerprint = rsa(gpg, "expired, old", expire=EXPIRING)
    before = gpg.export(fingerprint)
    in_time = gpg.sign_version_3(SIGNED, fingerprint, at=BETWEEN)
    too_late = gpg.sign_version_3(SIGNED, fingerprint, at="20250701T000000")
    assert claimed_at_that_time(gpg, in_time)
    assert refusal(before, in_time) == f"its key {fingerprint.lower()} has expired (2025-06-01)"
    assert refusal(before, too_late).startswith(BY_NONE)
    gpg.run("--quick-set-expire", fingerprint, "20y")
    after = gpg.export(fingerprint)
    assert refusal(after, in_time).startswith(BY_NONE)
    assert claim_of(verifier(before, after), in_time) == CLAIM
    assert refusal(verifier(before, after), too_late).startswith(BY_NONE)


def claimed_at_that_time(gpg: Gnupg, message: bytes) -> bool:
    """Return whether gpg verified it then: what is refused is the key's age, and nothing else."""
    return gpg.verify(message, at=BETWEEN)


@pytest.mark.parametrize("reason", ["0", "1", "2", "3"])
def test_version_3_needs_a_key_that_is_not_revoked(gpg: Gnupg, reason: str) -> None:
    fingerprint = rsa(gpg, f"revoked, old, {reason}")
    message = gpg.sign_version_3(SIGNED, fingerprint, at=BETWEEN)
    assert claim_of(gpg.export(fingerprint), message) == CLAIM
    gpg.edit(fingerprint, "revkey", "y", reason, "", "y", "save")
    assert refusal(gpg.export(fingerprint), message)


def test_version_3_needs_a_key_that_is_long_enough(gpg: Gnupg) -> None:
    short = rsa(gpg, "short, old", algorithm="rsa1024")
    assert refusal(gpg.export(short), gpg.sign_version_3(SIGNED, short)).startswith(BY_NONE)


def test_version_3_needs_a_key_that_is_for_signing(gpg: Gnupg) -> None:
    """A key for certificates or encryption may be kept elsewhere, by others."""
    primary = rsa(gpg, "for certificates, old", use="cert")
    encrypting = gpg.subkey(primary, use="encr", algorithm="rsa2048")
    authenticating = gpg.subkey(primary, use="auth", algorithm="rsa2048")
    ring = gpg.export(primary)
    for key in (primary, encrypting, authenticating):
        assert refusal(ring, gpg.sign_version_3(SIGNED, key)).startswith(BY_NONE)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rsa2048", "ed25519"])
def test_version_3_may_be_by_a_subkey_that_signs(gpg: Gnupg, algorithm: str) -> None:
    primary = gpg.key(f"with old subkey, {algorithm}", use="cert", algorithm=algorithm)
    subkey = gpg.subkey(primary, algorithm="rsa2048")
    message = gpg.sign_version_3(SIGNED, subkey, at=BETWEEN)
    before = gpg.export(primary)
    assert gpg.verify(message)
    assert claim_of(before, message) == CLAIM
    early = gpg.sign_version_3(SIGNED, subkey, at="20250101T120000")
    assert refusal(before, early).startswith(BY_NONE)
    gpg.edit(primary, "key 1", "revkey", "y", "2", "", "y", "save")
    assert refusal(gpg.export(primary), message) == f"its key {subkey.lower()} is revoked"


def test_version_3_needs_a_subkey_that_has_not_expired(gpg: Gnupg) -> None:
    primary = gpg.key("with expiring old subkey", use="cert")
    subkey = gpg.subkey(primary, expire=EXPIRING, algorithm="rsa2048")
    message = gpg.sign_version_3(SIGNED, subkey, at=BETWEEN)
    before = gpg.export(primary)
    assert refusal(before, message) == f"its key {subkey.lower()} has expired (2025-06-01)"
    gpg.run("--quick-set-expire", primary, "20y", subkey)
    after = gpg.export(primary)
    assert refusal(verifier(before, after), message).endswith("has expired (2025-06-01)")
    assert claim_of(verifier(before, after), gpg.sign_version_3(SIGNED, subkey)) == CLAIM


def test_version_3_needs_a_subkey_that_is_bound_to_its_key(gpg: Gnupg) -> None:
    """Otherwise who is trusted for one key could pass off the signatures of another as its own."""
    from pysequoia.packet import PacketPile

    owner = gpg.key("owner of an old subkey", use="cert")
    subkey = gpg.subkey(owner, algorithm="rsa2048")
    message = gpg.sign_version_3(SIGNED, subkey, at=BETWEEN)
    mine, theirs = (list(PacketPile.from_bytes(gpg.export(name))) for name in ("signer", owner))
    taken = b"".join(map(bytes, [*mine, *theirs[-2:]]))
    assert claim_of(gpg.export(owner), message) == CLAIM
    assert refusal(taken, message).startswith(BY_NONE)


# --- by the thousand ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["none", "zip", "version 3"])
def test_no_mutation_is_accepted_as_something_else(gpg: Gnupg, old: str, form: str) -> None:
    source = random.Random(7)
    judge = verifier(gpg.export("signer", "old"))
    original = (
        gpg.sign_version_3(SIGNED, old)
        if form == "version 3"
        else gpg.sign(SIGNED, "signer", "--compress-algo", form)
    )
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

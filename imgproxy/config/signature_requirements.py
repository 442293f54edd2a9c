"""The requirements of containers-policy.json(5) about signatures, as values.

Parsed as strictly as skopeo does, or more strictly: a requirement with a mistake makes the file
unusable, because whatever it was meant to demand would not be demanded.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config import signed_identity
from imgproxy.parsing.typed_fields import FieldError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.config.signed_identity import SignedIdentity
    from imgproxy.parsing.typed_fields import Fields

# Of these, containers-policy.json(5) says that one is implemented; nor is any other one here.
_KEY_TYPES = frozenset({"GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"})
_KEY_SOURCES = ("keyPath", "keyPaths", "keyData", "keyDatas")
_REKOR_SOURCES = tuple(f"rekorPublicKey{each}" for each in ("Path", "Paths", "Data", "Datas"))


class Material(NamedTuple):
    """Keys or certificates, each set of them by the path of a file or by its content.

    `place` is where in the policy they are named.
    """

    place: str
    paths: tuple[str, ...] = ()
    contents: tuple[bytes, ...] = ()


class Rejecting(NamedTuple):
    """A requirement that no signature can meet, for a reason."""

    kind: str
    reason: str


class SignedBy(NamedTuple):
    """An OpenPGP signature by one of these keys, of a name like this: "simple signing"."""

    kind: str
    keys: Material
    identity: SignedIdentity


class Fulcio(NamedTuple):
    """Who must have been given a short-lived certificate, by which authorities."""

    authorities: Material
    issuer: str
    email: str


class Pki(NamedTuple):
    """Whose certificate it must be, by which authorities; a name that is empty is not asked for."""

    authorities: Material
    intermediates: Material | None
    email: str
    hostname: str


class SigstoreSigned(NamedTuple):
    """A sigstore signature by one of these signers, of a name like this.

    `rekor` are the keys of the transparency log that must have seen it, None for none.
    """

    kind: str
    signers: Material | Fulcio | Pki
    rekor: Material | None
    identity: SignedIdentity


Requirement = Rejecting | SignedBy | SigstoreSigned


def parse(fields: Fields, kind: str) -> Requirement:
    """Give the requirement of a kind that an object spells. Raises `FieldError`."""
    if kind == "signedBy":
        return _signed_by(fields)
    if kind == "sigstoreSigned":
        return _sigstore_signed(fields)
    if kind == "signedBaseLayer":
        fields.refuse_others({"type", "baseLayerIdentity"})
        signed_identity.parse(fields.object("baseLayerIdentity"))
        return Rejecting(kind, "nobody has ever said how that is verified")
    raise FieldError(f"{fields.at('type')}: unknown requirement {shown(kind)}")


def _signed_by(fields: Fields) -> Requirement:
    sources = _KEY_SOURCES[:3]
    fields.refuse_others({"type", "keyType", "signedIdentity", *sources})
    key_type = fields.text("keyType")
    if key_type not in _KEY_TYPES:
        raise FieldError(f"{fields.at('keyType')}: unknown type of key {shown(key_type)}")
    keys, identity = _material(fields, sources), _identity(fields)
    if key_type != "GPGKeys":
        return Rejecting(
            "signedBy", f"of the types of keys, {key_type} is not supported by anybody"
        )
    return SignedBy("signedBy", keys, identity)


def _sigstore_signed(fields: Fields) -> SigstoreSigned:
    signers = (*_KEY_SOURCES, "fulcio", "pki")
    fields.refuse_others({"type", "signedIdentity", *signers, *_REKOR_SOURCES})
    chosen = _only(fields, signers)
    rekor = _material(fields, _REKOR_SOURCES) if _present(fields, _REKOR_SOURCES) else None
    identity = _identity(fields)
    if chosen == "fulcio":
        if rekor is None:  # its certificates live for minutes, and the log says which
            raise FieldError(f"{fields.path}: fulcio needs one of {', '.join(_REKOR_SOURCES)}")
        return SigstoreSigned("sigstoreSigned", _fulcio(fields.object("fulcio")), rekor, identity)
    if chosen == "pki":
        if rekor is not None:
            raise FieldError(f"{fields.path}: pki goes with none of {', '.join(_REKOR_SOURCES)}")
        return SigstoreSigned("sigstoreSigned", _pki(fields.object("pki")), None, identity)
    return SigstoreSigned("sigstoreSigned", _material(fields, _KEY_SOURCES), rekor, identity)


def _fulcio(fields: Fields) -> Fulcio:
    sources = ("caPath", "caData")
    fields.refuse_others({*sources, "oidcIssuer", "subjectEmail"})
    return Fulcio(
        _material(fields, sources), _full(fields, "oidcIssuer"), _full(fields, "subjectEmail")
    )


def _pki(fields: Fields) -> Pki:
    roots = ("caRootsPath", "caRootsData")
    intermediates = ("caIntermediatesPath", "caIntermediatesData")
    names = ("subjectEmail", "subjectHostname")
    fields.refuse_others({*roots, *intermediates, *names})
    if not _present(fields, names):
        raise FieldError(f"{fields.path}: expected one of {', '.join(names)}")
    email, hostname = (_full(fields, name) if name in fields else "" for name in names)
    return Pki(
        _material(fields, roots),
        _material(fields, intermediates) if _present(fields, intermediates) else None,
        email,
        hostname,
    )


def _identity(fields: Fields) -> SignedIdentity:
    said = fields.optional_object("signedIdentity")
    return signed_identity.DEFAULT if said is None else signed_identity.parse(said)


def _material(fields: Fields, sources: Iterable[str]) -> Material:
    """Give what the only one of these keys names; its last letters say of which kind it is."""
    key = _only(fields, sources)
    place = fields.at(key)
    values = fields.texts(key) if key.endswith("s") else (_full(fields, key),)
    if not all(values) or not values:
        raise FieldError(f"{place}: expected something, got nothing")
    if key.rstrip("s").endswith("Path"):
        return Material(place, paths=values)
    return Material(place, contents=tuple(_decoded(place, value) for value in values))


def _decoded(place: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(f"{place}: not base64") from None


def _full(fields: Fields, key: str) -> str:
    text = fields.text(key)
    if not text:
        raise FieldError(f"{fields.at(key)}: expected something, got nothing")
    return text


def _only(fields: Fields, keys: Iterable[str]) -> str:
    """Give which of these keys is there, where one of them must be."""
    keys = tuple(keys)
    found = _present(fields, keys)
    if len(found) != 1:
        raise FieldError(
            f"{fields.path}: expected one of {', '.join(keys)}, got {' and '.join(found) or 'none'}"
        )
    return found[0]


def _present(fields: Fields, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key in fields]

"""The requirements of containers-policy.json(5) about signatures, as values.

They are parsed as strictly as by skopeo, or more strictly: a requirement with a mistake makes the
file unusable, because otherwise its intended effect would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config import signed_identity
from imgproxy.parsing.typed_fields import FieldError, decode_base64, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imgproxy.config.signed_identity import SignedIdentity
    from imgproxy.parsing.typed_fields import Fields

# According to containers-policy.json(5), only GPGKeys is implemented; the same holds here.
_KEY_TYPES = frozenset({"GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"})
_KEY_SOURCES = ("keyPath", "keyPaths", "keyData", "keyDatas")
_REKOR_SOURCES = tuple(f"rekorPublicKey{each}" for each in ("Path", "Paths", "Data", "Datas"))


class Material(NamedTuple):
    """Keys or certificates, each set of them by the path of a file or by its content.

    `field_path` is the path of the field in the policy that names them.
    """

    field_path: str
    paths: tuple[str, ...] = ()
    contents: tuple[bytes, ...] = ()


class UnsupportedRequirement(NamedTuple):
    """A requirement that no signature can satisfy, with the reason."""

    kind: str
    reason: str


class SignedBy(NamedTuple):
    """Requires an OpenPGP signature ("simple signing") by one of the keys, for the identity."""

    kind: str
    keys: Material
    identity: SignedIdentity


class Fulcio(NamedTuple):
    """Requires a short-lived certificate of the authorities for this issuer and e-mail address."""

    authorities: Material
    issuer: str
    email: str


class Pki(NamedTuple):
    """Requires a certificate of the authorities for these names; an empty one is not checked."""

    authorities: Material
    intermediates: Material | None
    email: str
    hostname: str


class SigstoreSigned(NamedTuple):
    """Requires a sigstore signature by one of the signers, for the identity.

    `rekor` are the keys of the transparency log that must have an entry of it, None where no log
    is required.
    """

    kind: str
    signers: Material | Fulcio | Pki
    rekor: Material | None
    identity: SignedIdentity


Requirement = UnsupportedRequirement | SignedBy | SigstoreSigned


def parse(fields: Fields, kind: str) -> Requirement:
    """Parse an object as a requirement of a kind. Raises `FieldError`."""
    if kind == "signedBy":
        return _signed_by(fields)
    if kind == "sigstoreSigned":
        return _sigstore_signed(fields)
    if kind == "signedBaseLayer":
        fields.refuse_unknown({"type", "baseLayerIdentity"})
        signed_identity.parse(fields.object("baseLayerIdentity"))
        return UnsupportedRequirement(kind, "its verification has never been specified")
    raise FieldError(f"{fields.at('type')}: unknown requirement {shown(kind)}")


def _signed_by(fields: Fields) -> Requirement:
    sources = _KEY_SOURCES[:3]
    fields.refuse_unknown({"type", "keyType", "signedIdentity", *sources})
    key_type = fields.text("keyType")
    if key_type not in _KEY_TYPES:
        raise FieldError(f"{fields.at('keyType')}: unknown type of key {shown(key_type)}")
    keys, identity = _material(fields, sources), _identity(fields)
    if key_type != "GPGKeys":
        return UnsupportedRequirement(
            "signedBy", f"keys of the type {key_type} are not supported by any program"
        )
    return SignedBy("signedBy", keys, identity)


def _sigstore_signed(fields: Fields) -> SigstoreSigned:
    signers = (*_KEY_SOURCES, "fulcio", "pki")
    fields.refuse_unknown({"type", "signedIdentity", *signers, *_REKOR_SOURCES})
    chosen = _only(fields, signers)
    rekor = _material(fields, _REKOR_SOURCES) if _present(fields, _REKOR_SOURCES) else None
    identity = _identity(fields)
    if chosen == "fulcio":
        if rekor is None:  # its certificates are valid for minutes, and the log has the time
            raise FieldError(f"{fields.path}: fulcio needs one of {', '.join(_REKOR_SOURCES)}")
        return SigstoreSigned("sigstoreSigned", _fulcio(fields.object("fulcio")), rekor, identity)
    if chosen == "pki":
        if rekor is not None:
            raise FieldError(
                f"{fields.path}: pki must not be combined with {', '.join(_REKOR_SOURCES)}"
            )
        return SigstoreSigned("sigstoreSigned", _pki(fields.object("pki")), None, identity)
    return SigstoreSigned("sigstoreSigned", _material(fields, _KEY_SOURCES), rekor, identity)


def _fulcio(fields: Fields) -> Fulcio:
    sources = ("caPath", "caData")
    fields.refuse_unknown({*sources, "oidcIssuer", "subjectEmail"})
    return Fulcio(
        _material(fields, sources), _full(fields, "oidcIssuer"), _full(fields, "subjectEmail")
    )


def _pki(fields: Fields) -> Pki:
    roots = ("caRootsPath", "caRootsData")
    intermediates = ("caIntermediatesPath", "caIntermediatesData")
    names = ("subjectEmail", "subjectHostname")
    fields.refuse_unknown({*roots, *intermediates, *names})
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
    identity = fields.optional_object("signedIdentity")
    return signed_identity.DEFAULT if identity is None else signed_identity.parse(identity)


def paths_in(requirement: object) -> Iterator[str]:
    """Yield the paths of the files that a requirement names, in whichever part of it."""
    if isinstance(requirement, Material):
        yield from requirement.paths
    elif isinstance(requirement, tuple):
        for part in requirement:
            yield from paths_in(part)


def _material(fields: Fields, sources: Iterable[str]) -> Material:
    """Return the value of the only one of these keys that is present.

    The end of its name tells paths from contents, and one value from a list.
    """
    key = _only(fields, sources)
    field_path = fields.at(key)
    values = fields.texts(key) if key.endswith("s") else (_full(fields, key),)
    if not all(values) or not values:
        raise FieldError(f"{field_path}: must not be empty")
    if key.rstrip("s").endswith("Path"):
        return Material(field_path, paths=values)
    return Material(
        field_path, contents=tuple(decode_base64(value, field_path) for value in values)
    )


def _full(fields: Fields, key: str) -> str:
    text = fields.text(key)
    if not text:
        raise FieldError(f"{fields.at(key)}: must not be empty")
    return text


def _only(fields: Fields, keys: Iterable[str]) -> str:
    """Return the only one of these keys that is present; exactly one of them must be."""
    keys = tuple(keys)
    found = _present(fields, keys)
    if len(found) != 1:
        raise FieldError(
            f"{fields.path}: expected one of {', '.join(keys)}, got {' and '.join(found) or 'none'}"
        )
    return found[0]


def _present(fields: Fields, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key in fields]

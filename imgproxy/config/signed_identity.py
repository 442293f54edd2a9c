"""`signedIdentity` of containers-policy.json(5): which name must stand in a signature.

A key signs many images, and a registry may hand out one of them under the name of another; what
the signature says about the name is compared here with the name that the image was asked for by.
References are compared as they are: `latest` is added to neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadRequestError
from imgproxy.parsing.typed_fields import FieldError, shown
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.parsing.typed_fields import Fields
    from imgproxy.specs.oci.reference import Reference

_KEYS: dict[str, frozenset[str]] = {
    "matchExact": frozenset(),
    "matchRepoDigestOrExact": frozenset(),
    "matchRepository": frozenset(),
    "exactReference": frozenset({"dockerReference"}),
    "exactRepository": frozenset({"dockerRepository"}),
    "remapIdentity": frozenset({"prefix", "signedPrefix"}),
}


class SignedIdentity(NamedTuple):
    """A requirement on the name in a signature.

    `reference` is that of the exact types; the prefixes are those of `remapIdentity`.
    """

    kind: str
    reference: Reference | None = None
    prefix: str = ""
    signed_prefix: str = ""


DEFAULT = SignedIdentity("matchRepoDigestOrExact")


def parse(fields: Fields) -> SignedIdentity:
    """Give the requirement that an object spells. Raises `FieldError`."""
    kind = fields.text("type")
    if kind not in _KEYS:
        raise FieldError(f"{fields.at('type')}: unknown identity {shown(kind)}")
    fields.refuse_others({"type", *_KEYS[kind]})
    if kind == "exactReference":
        reference = _reference(fields, "dockerReference")
        if reference.tag is None and reference.digest is None:
            raise FieldError(f"{fields.at('dockerReference')}: expected a tag or a digest")
        return SignedIdentity(kind, reference)
    if kind == "exactRepository":
        reference = _reference(fields, "dockerRepository")
        # skopeo takes it and forgets the tag, so that the file would read stricter than it is.
        if reference.tag or reference.digest:
            raise FieldError(f"{fields.at('dockerRepository')}: has a tag or a digest")
        return SignedIdentity(kind, reference)
    if kind == "remapIdentity":
        prefixes = (_prefix(fields, "prefix"), _prefix(fields, "signedPrefix"))
        return SignedIdentity(kind, None, *prefixes)
    return SignedIdentity(kind)


def _reference(fields: Fields, key: str) -> Reference:
    text = fields.text(key)
    try:
        return references.parse_named(text)
    except BadRequestError as error:
        raise FieldError(f"{fields.at(key)}: {error.message}") from None


def _prefix(fields: Fields, key: str) -> str:
    """Give a registry, or a namespace or repository in one, as it stands in full references."""
    text = fields.text(key)
    inside = f"{text}/x/x"  # deep enough for Docker Hub, where one component would get another
    try:
        if references.has_registry(inside) and str(references.parse_named(inside)) == inside:
            return text
    except BadRequestError:
        pass
    raise FieldError(
        f"{fields.at(key)}: expected host[:port][/path] as it stands in full references,"
        f" got {shown(text)}"
    )


def accepts(wanted: SignedIdentity, image: Reference | None, signed: Reference) -> bool:
    """Whether the name in a signature is one that the image may have.

    `image` is the name it was asked for by, None where its transport gives it none (a layout, a
    directory): then only the exact types can be met.
    """
    if wanted.reference is not None:
        same = _same if wanted.kind == "exactReference" else _same_repository
        return same(wanted.reference, signed)
    return image is not None and _BY_IMAGE[wanted.kind](_remapped(wanted, image), signed)


def accepts_unnamed(wanted: SignedIdentity, image: Reference | None) -> bool:
    """Whether a signature will do that names bytes and nothing else, as those of cosign 3 do.

    An image that was asked for by its digest is the one that was meant, wherever else it is kept.
    By a tag it is whatever the registry gives, so any image that the key has signed; only who
    does not ask for the tag to be signed either gets that.
    """
    if image is None:
        return False
    if wanted.kind == "matchRepository":
        return True
    is_by_digest = image.digest is not None and image.tag is None
    return is_by_digest and wanted.kind in ("matchRepoDigestOrExact", "remapIdentity")


def _same(one: Reference, other: Reference) -> bool:
    return one == other and bool(other.tag or other.digest)


def _same_repository(one: Reference, other: Reference) -> bool:
    return one.name == other.name


def _same_repository_or_exact(image: Reference, signed: Reference) -> bool:
    """Whether they are the same; where a digest says which image is meant, the tag need not be."""
    if image.tag is None and image.digest is not None:
        return bool(signed.tag or signed.digest) and _same_repository(image, signed)
    return _same(image, signed)


_BY_IMAGE: dict[str, Callable[[Reference, Reference], bool]] = {
    "matchExact": _same,
    "matchRepoDigestOrExact": _same_repository_or_exact,
    "matchRepository": _same_repository,
    "remapIdentity": _same_repository_or_exact,
}


def _remapped(wanted: SignedIdentity, image: Reference) -> Reference:
    """Give the image's name with its prefix replaced, at the end of a component alone."""
    name, prefix = image.name, wanted.prefix
    if not prefix or (name != prefix and not name.startswith(f"{prefix}/")):
        return image
    registry, _, repository = (wanted.signed_prefix + name[len(prefix) :]).partition("/")
    return image._replace(registry=registry, repository=repository)

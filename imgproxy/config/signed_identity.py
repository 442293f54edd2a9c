"""`signedIdentity` of containers-policy.json(5): the name that a signature must contain.

A key signs many images, and a registry may serve one of them under the name of another. So the name
in the signature is compared with the requested one. `latest` is added to neither. Registries are
compared as `registry_name.normal` has them: the name in a signature permits, and `host:443` need
not be the same place as `host` without TLS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadRequestError
from imgproxy.parsing.typed_fields import FieldError, shown
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

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

    `reference` is for the exact types, the prefixes are for `remapIdentity`.
    """

    kind: str
    reference: Reference | None = None
    prefix: str = ""
    signed_prefix: str = ""


DEFAULT = SignedIdentity("matchRepoDigestOrExact")


def parse(fields: Fields) -> SignedIdentity:
    """Parse an object as a requirement. Raises `FieldError`."""
    kind = fields.text("type")
    if kind not in _KEYS:
        raise FieldError(f"{fields.at('type')}: unknown identity {shown(kind)}")
    fields.refuse_unknown({"type", *_KEYS[kind]})
    if kind == "exactReference":
        reference = _reference(fields, "dockerReference")
        if reference.tag is None and reference.digest is None:
            raise FieldError(f"{fields.at('dockerReference')}: expected a tag or a digest")
        return SignedIdentity(kind, reference)
    if kind == "exactRepository":
        reference = _reference(fields, "dockerRepository")
        # skopeo accepts it and ignores the tag, which makes the file look stricter than it is.
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
    """Return a registry, or a namespace or repository in one, as written in full references."""
    text = fields.text(key)
    prefix = registry_name.normal(text)
    inside = f"{prefix}/x/x"  # deep enough for Docker Hub, where one component would get another
    try:
        if references.has_registry(inside) and str(references.parse_named(inside)) == inside:
            return prefix
    except BadRequestError:
        pass
    raise FieldError(
        f"{fields.at(key)}: expected host[:port][/path] as in full references, got {shown(text)}"
    )


def accepts(wanted: SignedIdentity, image: Reference | None, signed: Reference) -> bool:
    """Return whether the name in a signature satisfies the requirement.

    `image` is the requested name, None where the transport has no names (a layout, a directory):
    then only the exact types can be satisfied.
    """
    if wanted.reference is not None:
        same = _same if wanted.kind == "exactReference" else _same_repository
        return same(wanted.reference, signed)
    return image is not None and _BY_IMAGE[wanted.kind](_remapped(wanted, image), signed)


def accepts_unnamed(wanted: SignedIdentity, image: Reference | None) -> bool:
    """Return whether a signature without a name, as made by cosign 3, satisfies the requirement.

    Such a signature covers bytes only. An image requested by its digest is certainly the intended
    one. A tag may lead to any image that the key has signed, as the registry chooses; that is
    accepted only where the requirement does not cover tags.
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
    """Return whether they are equal; where a digest identifies the image, tags may differ."""
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
    """Return the image's name with its prefix replaced, if that ends with a component."""
    name, prefix = image.name, wanted.prefix
    if not prefix or (name != prefix and not name.startswith(f"{prefix}/")):
        return image
    registry, _, repository = (wanted.signed_prefix + name[len(prefix) :]).partition("/")
    return image._replace(registry=registry, repository=repository)

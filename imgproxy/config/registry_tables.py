"""The `[[registry]]` tables of containers-registries.conf(5), individually and in combination.

A table configures the location and the mirrors of the images whose names begin with its prefix.
Wrong types and contradictions raise `FieldError`; tables without effect are listed by `warnings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadRequestError
from imgproxy.parsing.typed_fields import FieldError, shown
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.parsing.typed_fields import Fields

# When mirrors are used: always, or only for references with, or without, a digest.
ALL, DIGEST_ONLY, TAG_ONLY = "all", "digest-only", "tag-only"

REGISTRY_KEYS = frozenset(
    {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"}
)
MIRROR_KEYS = frozenset({"location", "insecure", "pull-from-mirror"})

_WILDCARD = "*."


class Mirror(NamedTuple):
    """A mirror of a registry; `pull` is one of ALL, DIGEST_ONLY, TAG_ONLY.

    `field_path` is the path of its table in the file.
    """

    location: str
    insecure: bool
    pull: str
    field_path: str


class Registry(NamedTuple):
    """The settings for the images whose names begin with `prefix`.

    `location` replaces the prefix; it may be empty for a wildcard, which leaves names unchanged.
    `field_path` is the path of the table in the file `source`.
    """

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]
    field_path: str
    source: str

    @property
    def is_wildcard(self) -> bool:
        """Return whether the prefix matches a domain's subdomains (`*.example.com`)."""
        return self.prefix.startswith(_WILDCARD)


def parse(fields: Fields, source: str) -> Registry:
    """Parse a table of the file `source`."""
    location = _location(fields, "location")
    prefix = _location(fields, "prefix") if fields.optional_text("prefix") else location
    _check_prefix(fields, prefix, location)
    if fields.optional_text("pull-from-mirror"):
        raise FieldError(f"{fields.at('pull-from-mirror')}: only a mirror may have it")
    by_digest = fields.flag("mirror-by-digest-only")
    return Registry(
        prefix,
        location,
        fields.flag("insecure"),
        fields.flag("blocked"),
        tuple(_mirror(mirror, by_digest=by_digest) for mirror in fields.objects("mirror")),
        fields.path,
        source,
    )


def parse_location(text: str, field_path: str) -> str:
    """Return a location without a slash at its end; `field_path` is its path in the file."""
    if text.startswith(("http://", "https://")):
        got = references.shown(text)
        raise FieldError(f'{field_path}: expected host[:port][/path], got the URL "{got}"')
    return text.rstrip("/")


def _location(fields: Fields, key: str) -> str:
    return parse_location(fields.optional_text(key) or "", fields.at(key))


def _check_prefix(fields: Fields, prefix: str, location: str) -> None:
    wildcard = prefix.startswith(_WILDCARD)
    if not prefix and not location:
        raise FieldError(f"{fields.path}: location is missing, and so is prefix")
    if not location and not wildcard:
        raise FieldError(
            f"{fields.at('location')}: missing; only a prefix like *.example.com needs none"
        )
    if wildcard and any(character in prefix for character in "/@:"):
        raise FieldError(
            f"{fields.at('prefix' if 'prefix' in fields else 'location')}: expected a wildcard"
            f" like *.example.com, without port and path; got {shown(prefix)}"
        )


def _mirror(fields: Fields, *, by_digest: bool) -> Mirror:
    location = _location(fields, "location")
    if not location:
        raise FieldError(f"{fields.at('location')}: missing (expected host[:port][/path])")
    field_path = fields.at("pull-from-mirror")
    pull = fields.optional_text("pull-from-mirror")
    if pull and by_digest:
        raise FieldError(f"{field_path}: must not be combined with mirror-by-digest-only")
    if pull and pull not in (ALL, DIGEST_ONLY, TAG_ONLY):
        raise FieldError(
            f"{field_path}: expected {ALL}, {DIGEST_ONLY} or {TAG_ONLY}, got {shown(pull)}"
        )
    default = DIGEST_ONLY if by_digest else ALL
    return Mirror(location, fields.flag("insecure"), pull or default, fields.path)


def check_agreement(registries: list[Registry]) -> None:
    """Refuse tables of one file that have the same location and contradict each other."""
    first: dict[str, Registry] = {}
    for registry in registries:
        location = registry_name.place(registry.location or registry.prefix)
        other = first.setdefault(location, registry)
        for key in ("insecure", "blocked"):
            if getattr(registry, key) != getattr(other, key):
                raise FieldError(
                    f"{registry.field_path}.{key}: contradicts {other.field_path}, which has the"
                    f" same location ({references.shown(location)})"
                )


def first_of_each(registries: list[Registry]) -> tuple[Registry, ...]:
    """Return the first table of each prefix, the only one of its file that has an effect."""
    first: dict[str, Registry] = {}
    for registry in registries:
        first.setdefault(registry.prefix, registry)
    return tuple(first.values())


def warnings(registries: list[Registry]) -> Iterator[str]:
    """Yield a warning for each table of one file that has no effect."""
    effective = {registry.prefix: registry for registry in first_of_each(registries)}
    for registry in registries:
        other = effective[registry.prefix]
        if other is not registry:
            yield f"{registry.field_path}: ignored, since {other.field_path} has the same prefix"
        elif not _can_match(registry):
            prefix = references.shown(registry.prefix)
            yield (
                f'{registry.field_path}: the prefix "{prefix}" matches no image;'
                " expected host[:port][/path], without tag and digest, or *.example.com"
            )


def _can_match(registry: Registry) -> bool:
    """Return whether the prefix can match the name of an image, without tag and digest."""
    prefix = registry.prefix
    name = f"{'x' + prefix[1:] if registry.is_wildcard else prefix}/x/x"
    try:
        return references.parse_reference(name).name == registry_name.normal(name)
    except BadRequestError:
        return False

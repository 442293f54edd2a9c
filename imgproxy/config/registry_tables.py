"""The `[[registry]]` tables of containers-registries.conf(5), each for itself and among each other.

A table says for the images whose names begin with its prefix where they really are. Wrong types
and contradictions raise `FieldError`; what merely has no effect is listed by `doubts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadRequestError, clean
from imgproxy.parsing.typed_fields import FieldError, shown
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.parsing.typed_fields import Fields

# When mirrors are asked: always, or only for references with, without a digest.
ALL, DIGEST_ONLY, TAG_ONLY = "all", "digest-only", "tag-only"

REGISTRY_KEYS = frozenset(
    {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"}
)
MIRROR_KEYS = frozenset({"location", "insecure", "pull-from-mirror"})

_WILDCARD = "*."


class Mirror(NamedTuple):
    """Where else the images are; `pull` is one of ALL, DIGEST_ONLY, TAG_ONLY."""

    location: str
    insecure: bool
    pull: str
    place: str


class Registry(NamedTuple):
    """What applies to the images whose names begin with `prefix`.

    They are at `location`; empty below a wildcard, it is where their names say. `place` is where
    the table stands in the file `source`.
    """

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]
    place: str
    source: str

    @property
    def is_wildcard(self) -> bool:
        """Whether it is for a domain's subdomains (`*.example.com`)."""
        return self.prefix.startswith(_WILDCARD)


def parse(fields: Fields, source: str) -> Registry:
    """Give the table that the file `source` has here."""
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


def parse_location(text: str, place: str) -> str:
    """Give a location as it is compared and extended; `place` is where in the file it stands."""
    if text.startswith(("http://", "https://")):
        raise FieldError(f"{place}: expected host[:port][/path], got the URL {shown(text)}")
    return text.rstrip("/")


def _location(fields: Fields, key: str) -> str:
    return parse_location(fields.optional_text(key) or "", fields.at(key))


def _check_prefix(fields: Fields, prefix: str, location: str) -> None:
    wildcard = prefix.startswith(_WILDCARD)
    if not prefix and not location:
        raise FieldError(f"{fields.path}: location is missing, and so is prefix")
    if not location and not wildcard:
        raise FieldError(
            f"{fields.at('location')}: missing; only a prefix like *.example.com can do without"
        )
    if wildcard and any(character in prefix for character in "/@:"):
        raise FieldError(
            f"{fields.at('prefix' if 'prefix' in fields else 'location')}: expected a wildcard to"
            f" look like *.example.com, without port and path; got {shown(prefix)}"
        )


def _mirror(fields: Fields, *, by_digest: bool) -> Mirror:
    location = _location(fields, "location")
    if not location:
        raise FieldError(f"{fields.at('location')}: missing (expected host[:port][/path])")
    place = fields.at("pull-from-mirror")
    pull = fields.optional_text("pull-from-mirror")
    if pull and by_digest:
        raise FieldError(f"{place}: must not stand beside mirror-by-digest-only")
    if pull and pull not in (ALL, DIGEST_ONLY, TAG_ONLY):
        raise FieldError(f"{place}: expected {ALL}, {DIGEST_ONLY} or {TAG_ONLY}, got {shown(pull)}")
    default = DIGEST_ONLY if by_digest else ALL
    return Mirror(location, fields.flag("insecure"), pull or default, fields.path)


def check_agreement(registries: list[Registry]) -> None:
    """Refuse tables of one file that are about the same location and contradict each other."""
    first: dict[str, Registry] = {}
    for registry in registries:
        location = registry.location or registry.prefix
        other = first.setdefault(location, registry)
        for key in ("insecure", "blocked"):
            if getattr(registry, key) != getattr(other, key):
                raise FieldError(
                    f"{registry.place}.{key}: contradicts {other.place}, which has the same"
                    f" location ({clean(location)})"
                )


def first_of_each(registries: list[Registry]) -> tuple[Registry, ...]:
    """Give the first table of each prefix; within one file, that is the one that counts."""
    first: dict[str, Registry] = {}
    for registry in registries:
        first.setdefault(registry.prefix, registry)
    return tuple(first.values())


def doubts(registries: list[Registry]) -> Iterator[str]:
    """Give what has no effect among the tables of one file, though it was meant to have one."""
    counting = {registry.prefix: registry for registry in first_of_each(registries)}
    for registry in registries:
        other = counting[registry.prefix]
        if other is not registry:
            yield f"{registry.place}: passed over, for {other.place} has the same prefix"
        elif not _can_fit(registry):
            yield (
                f"{registry.place}: the prefix {shown(registry.prefix)} fits no image; expected"
                " host[:port][/path], without tag and digest, or *.example.com"
            )


def _can_fit(registry: Registry) -> bool:
    """Whether a name of an image, which is without tag and digest, can begin like this."""
    prefix = registry.prefix
    name = f"{'x' + prefix[1:] if registry.is_wildcard else prefix}/x/x"
    try:
        return references.parse_reference(name).name == name
    except BadRequestError:
        return False

"""Short names, which have no registry: containers-registries.conf(5), "Short-Name Aliasing".

If there is an alias, only that is used. Otherwise each of the `unqualified-search-registries` is
tried, in their order. There is never a terminal for a prompt, so the mode `enforcing` refuses a
name with more than one choice; the other two modes try them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from imgproxy.errors import AmbiguousError, BadRequestError, NotFoundError, clean
from imgproxy.parsing.typed_fields import FieldError, shown
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgproxy.parsing.typed_fields import Fields
    from imgproxy.specs.oci.reference import Reference

T = TypeVar("T")

SEARCH = "unqualified-search-registries"
MODE = "short-name-mode"
ALIASES = "aliases"

_ENFORCING = "enforcing"
_MODES = frozenset({_ENFORCING, "permissive", "disabled"})


class Setting(NamedTuple, Generic[T]):
    """A value, and the file that sets it."""

    value: T
    source: str


class ShortNames(NamedTuple):
    """The settings of one file, or of several after merging; None for missing ones.

    The value of an alias is a repository with its registry; an empty one deletes the alias.
    """

    files: tuple[str, ...]
    search: Setting[tuple[str, ...]] | None
    mode: Setting[str] | None
    aliases: Mapping[str, Setting[str]]


NOTHING = ShortNames((), None, None, {})


def parse(document: Fields, path: str) -> ShortNames:
    """Parse the settings in a document, the file `path`. Raises `FieldError`."""
    mode = document.optional_text(MODE)
    if mode and mode not in _MODES:
        raise FieldError(
            f"{document.at(MODE)}: expected enforcing, permissive or disabled, got {shown(mode)}"
        )
    aliases = document.optional_object(ALIASES)
    return ShortNames(
        (path,),
        Setting(parse_search(document, SEARCH), path) if SEARCH in document else None,
        Setting(mode, path) if mode else None,
        {short: Setting(_alias(aliases, short), path) for short in aliases} if aliases else {},
    )


def parse_search(fields: Fields, key: str) -> tuple[str, ...]:
    """Return a list of registries. Raises `FieldError` for entries other than `host[:port]`."""
    texts = fields.texts(key)
    for n, text in enumerate(texts):
        if not registry_name.is_registry(text.rstrip("/")):
            got = references.shown(text)
            raise FieldError(f'{fields.at(key)}[{n}]: expected host[:port], got "{got}"')
    return tuple(text.rstrip("/") for text in texts)


def _alias(fields: Fields, short: str) -> str:
    if _without_tag(short) is None or references.has_registry(short):
        raise FieldError(
            f"{fields.path}: {shown(short)} is not a short name; expected a repository without"
            " registry, tag and digest"
        )
    value = fields.text(short)
    if not value:
        return ""
    repository = _without_tag(value)
    if repository is None or not references.has_registry(value):
        raise FieldError(
            f"{fields.at(short)}: expected a repository with its registry, without tag and"
            f' digest, got "{references.shown(value)}"'
        )
    return repository.name


def _without_tag(text: str) -> Reference | None:
    """Parse a repository without tag and digest; return None for other text."""
    if "@" in text or ":" in text.rpartition("/")[2]:
        return None
    try:
        return references.parse_reference(text)
    except BadRequestError:
        return None


def merge(earlier: ShortNames, later: ShortNames) -> ShortNames:
    """Merge the settings of two files; the later one has precedence for each setting."""
    return ShortNames(
        earlier.files + later.files,
        later.search or earlier.search,
        later.mode or earlier.mode,
        {**earlier.aliases, **later.aliases},
    )


def with_aliases(names: ShortNames, own: ShortNames) -> ShortNames:
    """Return `names` with the aliases of short-name-aliases.conf, which the host's tools write.

    These have precedence; other settings in that file, `own`, are ignored.
    """
    return merge(names, NOTHING._replace(aliases=own.aliases))


def warnings(names: ShortNames) -> Iterator[str]:
    """Yield a warning for each setting that has no effect."""
    for n, registry in enumerate(names.search.value if names.search else ()):
        if not references.has_registry(f"{registry}/"):
            yield (
                f"{SEARCH}[{n}]: {shown(registry)} is ignored, since no image name can begin"
                " with a host that has neither dot nor port"
            )


def resolve(name: str, names: ShortNames) -> list[Reference]:
    """Return the images that a name may refer to, in the order in which to try them.

    Raises `BadRequestError` for a malformed name, `NotFoundError` for one without alias and search
    registries, and `AmbiguousError` where several images are possible and only one is allowed.
    """
    reference = references.parse_reference(name)
    if references.has_registry(name):
        return [reference]
    short = name.partition("@")[0].partition(":")[0]
    alias = names.aliases.get(short)
    if alias and alias.value:
        return [references.parse_reference(alias.value + name[len(short) :])]
    candidates = _candidates(name, names)
    if not candidates:
        raise NotFoundError(
            f'the short name "{clean(name)}" has no alias, and {_no_search(names)};'
            f" name the registry, as in docker://{reference}",
            code="NAME_UNKNOWN",
        )
    if len(candidates) > 1 and names.mode and names.mode.value == _ENFORCING:
        raise _ambiguous(name, short, candidates, names.mode.source)
    return candidates


def _candidates(name: str, names: ShortNames) -> list[Reference]:
    """Return the name at each of the search registries, without duplicates."""
    registries = names.search.value if names.search else ()
    return list(
        dict.fromkeys(
            references.parse_reference(f"{registry}/{name}")
            for registry in registries
            if references.has_registry(f"{registry}/")
        )
    )


def _no_search(names: ShortNames) -> str:
    if names.search:
        return f"{SEARCH} in {clean(names.search.source)} lists no usable registry"
    if names.files:
        return f"no {SEARCH} are set in {', '.join(map(clean, names.files))}"
    return "there is no registries.conf"


def _ambiguous(name: str, short: str, choices: list[Reference], source: str) -> AmbiguousError:
    listed = [str(choice) for choice in choices]
    return AmbiguousError(
        f'the short name "{clean(name)}" could be {" or ".join(listed)}, and {clean(source)}'
        f' forbids a guess ({MODE} = "{_ENFORCING}"); name one of them, or set an alias for'
        f' "{clean(short)}"',
        choices=listed,
    )

"""registries.conf: containers-registries.conf(5), where the images of a registry really are.

Both versions of the format, and how several files become one configuration. A wrong type or a
contradiction makes a file unusable; what cannot have been meant but harms nobody (an unknown key,
a prefix that fits no image) is passed over with a warning. As for every Go program that reads
these files, upper and lower case are the same in keys.

What follows for one image is for `endpoints` and `short_names` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.config import registry_tables as tables
from imgproxy.config import short_names
from imgproxy.config.registry_tables import MIRROR_KEYS, REGISTRY_KEYS, Registry
from imgproxy.config.short_names import ALIASES, MODE, SEARCH, Setting, ShortNames
from imgproxy.errors import ConfigurationError, clean
from imgproxy.parsing.typed_fields import FieldError, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Stands among the credential helpers for the files of containers-auth.json(5).
AUTH_FILES = "containers-auth.json"

_HELPERS = "credential-helpers"
# The program by which a store that shares layers gets credentials; we have no such store.
_LAYER_STORE = "additional-layer-store-auth-helper"

_SETTINGS = frozenset({SEARCH, MODE, ALIASES, _HELPERS, _LAYER_STORE, "registry"})
_LISTS = ("block", "insecure", "search")
_TABLES = frozenset({"registry", "mirror", "registries", *_LISTS})
_KEYS = _SETTINGS | REGISTRY_KEYS | MIRROR_KEYS | _TABLES


class File(NamedTuple):
    """What one file says; None for a setting that it leaves open."""

    path: str
    registries: tuple[Registry, ...]
    credential_helpers: tuple[str, ...] | None
    short_names: ShortNames
    warnings: tuple[str, ...]


class Registries(NamedTuple):
    """What all files say together."""

    registries: tuple[Registry, ...]
    credential_helpers: tuple[str, ...]
    short_names: ShortNames
    warnings: tuple[str, ...]


def parse(raw: bytes, path: str, *, version_1: bool = False) -> File:
    """Give what the file `path` with this content says; `version_1`: in the old format as well.

    Raises `ConfigurationError` with the place of what is wrong.
    """
    try:
        return _parse(_load(raw), path, version_1=version_1)
    except FieldError as error:
        reason = str(error)
    except RecursionError:
        reason = "tables and arrays are nested too deep"
    except ValueError:  # int() and str() refuse more than `sys.get_int_max_str_digits`
        reason = "a number has too many digits"
    raise ConfigurationError(f"{clean(path)}: {reason}", file=path)


def _load(raw: bytes) -> Fields:
    import tomllib

    try:
        return Fields(_folded(tomllib.loads(raw.decode("utf-8-sig"))))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FieldError(f"not UTF-8 (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise FieldError(f"not TOML: {clean(str(error), 1024)}") from None


def _folded(value: Any, path: str = "") -> Any:  # noqa: ANN401  (TOML is any)
    """Give tables with the keys that we know in lower case; the keys of [aliases] are names."""
    if isinstance(value, list):
        return [_folded(item, f"{path}[{n}]") for n, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    folded: dict[str, Any] = {}
    for key, item in value.items():
        name = key.lower() if key.lower() in _KEYS else key
        place = f"{path}.{name}" if path else name
        if name in folded:
            raise FieldError(f"{place}: stands twice, in different case")
        folded[name] = _folded(item, place) if name in _TABLES else item
    return folded


def _parse(document: Fields, path: str, *, version_1: bool) -> File:
    file = _version_2(document, path)
    lists = _lists(document)
    if not any(section.texts("registries") for section in lists.values()):
        return file  # empty ones stood in the templates of version 1, and say nothing
    if not version_1:
        raise FieldError(
            "registries: this is version 1 of the format, which is not read in this place;"
            f" expected version 2, with {SEARCH} and [[registry]]"
        )
    if _says_something(file):
        raise FieldError("registries: version 1 of the format is mixed with version 2")
    return _version_1(lists, file)


def _version_2(document: Fields, path: str) -> File:
    every = [tables.parse(fields, path) for fields in document.objects("registry")]
    tables.check_agreement(every)
    names = short_names.parse(document, path)
    helpers = document.texts(_HELPERS)
    document.optional_text(_LAYER_STORE)  # for its type alone
    complaints = [*_unknown_keys(document), *tables.doubts(every), *short_names.doubts(names)]
    return File(
        path,
        tables.first_of_each(every),
        helpers if _HELPERS in document else None,
        names,
        _warnings(path, complaints),
    )


def _lists(document: Fields) -> dict[str, Fields]:
    """Give the tables of version 1, empty for those that are not there."""
    registries = document.optional_object("registries") or Fields({}, "registries")
    return {
        key: registries.optional_object(key) or Fields({}, registries.at(key)) for key in _LISTS
    }


def _says_something(file: File) -> bool:
    names = file.short_names
    search = names.search and names.search.value
    return bool(file.registries or file.credential_helpers or search or names.mode or names.aliases)


def _version_1(lists: dict[str, Fields], file: File) -> File:
    """Give the file with what the tables of version 1 say, in the terms of version 2."""
    search = short_names.parse_search(lists["search"], "registries")
    blocked, insecure = _locations(lists["block"]), _locations(lists["insecure"])
    every = [
        Registry(
            location, location, location in insecure, location in blocked, (), place, file.path
        )
        for location, place in {**insecure, **blocked}.items()
    ]
    names = file.short_names._replace(search=Setting(search, file.path) if search else None)
    complaints = [*tables.doubts(every), *short_names.doubts(names)]
    return file._replace(
        registries=tuple(every),
        short_names=names,
        warnings=file.warnings + _warnings(file.path, complaints),
    )


def _locations(section: Fields) -> dict[str, str]:
    """Give the locations in a list of version 1, with the place of each."""
    places = {}
    for n, text in enumerate(section.texts("registries")):
        place = f"{section.at('registries')}[{n}]"
        location = tables.parse_location(text, place)
        if not location:
            raise FieldError(f"{place}: expected host[:port][/path], got nothing")
        places[location] = place
    return places


def _unknown_keys(document: Fields) -> Iterator[str]:
    yield from _unknown(document, _SETTINGS | {"registries"})
    for registry in document.objects("registry"):
        yield from _unknown(registry, REGISTRY_KEYS | {"pull-from-mirror"})
        for mirror in registry.objects("mirror"):
            yield from _unknown(mirror, MIRROR_KEYS)
    registries = document.optional_object("registries")
    if registries:
        yield from _unknown(registries, frozenset(_LISTS))
        for section in _lists(document).values():
            yield from _unknown(section, frozenset({"registries"}))


def _unknown(fields: Fields, known: frozenset[str]) -> Iterator[str]:
    return (f"{fields.at(key)}: unknown key" for key in fields if key not in known)


def _warnings(path: str, complaints: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{clean(path)}: {complaint}" for complaint in complaints)


def merge(files: Iterable[File]) -> Registries:
    """Give what the files say together, in the order in which they are read.

    A later file replaces each setting, and the table of a prefix whole; aliases are replaced one
    by one.
    """
    registries: dict[str, Registry] = {}
    helpers: tuple[str, ...] = ()
    names = short_names.NOTHING
    warnings: tuple[str, ...] = ()
    for file in files:
        registries.update({registry.prefix: registry for registry in file.registries})
        helpers = helpers if file.credential_helpers is None else file.credential_helpers
        names = short_names.merge(names, file.short_names)
        warnings += file.warnings
    return Registries(tuple(registries.values()), helpers or (AUTH_FILES,), names, warnings)

"""registries.conf, which configures mirrors and short names: containers-registries.conf(5).

Both versions of the format, and the merging of several files into one configuration. A wrong type
or a contradiction makes a file unusable; a harmless mistake (an unknown key, a prefix that matches
no image) is ignored with a warning. Keys are case-insensitive, as in every Go program that reads
these files.

`endpoints` and `short_names` apply the configuration to one image.
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

# The entry among the credential helpers that means the files of containers-auth.json(5).
AUTH_FILES = "containers-auth.json"

_HELPERS = "credential-helpers"
# The program that gets credentials for a store that shares layers, which does not exist here.
_LAYER_STORE = "additional-layer-store-auth-helper"

_SETTINGS = frozenset({SEARCH, MODE, ALIASES, _HELPERS, _LAYER_STORE, "registry"})
_LISTS = ("block", "insecure", "search")
_TABLES = frozenset({"registry", "mirror", "registries", *_LISTS})
_KEYS = _SETTINGS | REGISTRY_KEYS | MIRROR_KEYS | _TABLES


class File(NamedTuple):
    """The content of one file; None for a setting that it does not have."""

    path: str
    registries: tuple[Registry, ...]
    credential_helpers: tuple[str, ...] | None
    short_names: ShortNames
    warnings: tuple[str, ...]


class Registries(NamedTuple):
    """The merged content of all files."""

    registries: tuple[Registry, ...]
    credential_helpers: tuple[str, ...]
    short_names: ShortNames
    warnings: tuple[str, ...]


def parse(raw: bytes, path: str, *, version_1: bool = False) -> File:
    """Parse the file `path` with this content; `version_1` permits the old format as well.

    Raises `ConfigurationError` with the path of the faulty field.
    """
    try:
        return _parse(_load(raw), path, version_1=version_1)
    except FieldError as error:
        reason = str(error)
    except RecursionError:
        reason = "tables and arrays are nested too deep"
    except ValueError:  # int() and str() refuse more digits than `sys.get_int_max_str_digits`
        reason = "a number has too many digits"
    raise ConfigurationError(f"{clean(path)}: {reason}", file=path)


def _load(raw: bytes) -> Fields:
    import tomllib

    try:
        return Fields(_fold_keys(tomllib.loads(raw.decode("utf-8-sig"))))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FieldError(f"not UTF-8 (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise FieldError(f"not TOML: {clean(str(error), 1024)}") from None


def _fold_keys(value: Any, path: str = "") -> Any:  # noqa: ANN401  (TOML is any)
    """Return tables with their known keys in lower case, except those of [aliases], the names."""
    if isinstance(value, list):
        return [_fold_keys(item, f"{path}[{n}]") for n, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    folded: dict[str, Any] = {}
    for key, item in value.items():
        name = key.lower() if key.lower() in _KEYS else key
        field_path = f"{path}.{name}" if path else name
        if name in folded:
            raise FieldError(f"{field_path}: occurs twice, in different case")
        folded[name] = _fold_keys(item, field_path) if name in _TABLES else item
    return folded


def _parse(document: Fields, path: str, *, version_1: bool) -> File:
    file = _version_2(document, path)
    lists = _lists(document)
    if not any(section.texts("registries") for section in lists.values()):
        return file  # the templates of version 1 contained empty ones, which have no effect
    if not version_1:
        raise FieldError(
            "registries: this is version 1 of the format, which is not supported in this file;"
            f" expected version 2, with {SEARCH} and [[registry]]"
        )
    if _has_settings(file):
        raise FieldError("registries: version 1 of the format is mixed with version 2")
    return _version_1(lists, file)


def _version_2(document: Fields, path: str) -> File:
    every = [tables.parse(fields, path) for fields in document.objects("registry")]
    tables.check_agreement(every)
    names = short_names.parse(document, path)
    helpers = document.texts(_HELPERS)
    document.optional_text(_LAYER_STORE)  # only its type is checked
    warnings = [*_unknown_keys(document), *tables.warnings(every), *short_names.warnings(names)]
    return File(
        path,
        tables.first_of_each(every),
        helpers if _HELPERS in document else None,
        names,
        _prefixed(path, warnings),
    )


def _lists(document: Fields) -> dict[str, Fields]:
    """Return the tables of version 1, empty where they are absent."""
    registries = document.optional_object("registries") or Fields({}, "registries")
    return {
        key: registries.optional_object(key) or Fields({}, registries.at(key)) for key in _LISTS
    }


def _has_settings(file: File) -> bool:
    names = file.short_names
    search = names.search and names.search.value
    return bool(file.registries or file.credential_helpers or search or names.mode or names.aliases)


def _version_1(lists: dict[str, Fields], file: File) -> File:
    """Return the file with the settings of version 1, converted to version 2."""
    search = short_names.parse_search(lists["search"], "registries")
    blocked, insecure = _locations(lists["block"]), _locations(lists["insecure"])
    every = [
        Registry(
            location, location, location in insecure, location in blocked, (), field_path, file.path
        )
        for location, field_path in {**insecure, **blocked}.items()
    ]
    names = file.short_names._replace(search=Setting(search, file.path) if search else None)
    warnings = [*tables.warnings(every), *short_names.warnings(names)]
    return file._replace(
        registries=tuple(every),
        short_names=names,
        warnings=file.warnings + _prefixed(file.path, warnings),
    )


def _locations(section: Fields) -> dict[str, str]:
    """Return the locations in a list of version 1, with the path of each in the file."""
    paths = {}
    for n, text in enumerate(section.texts("registries")):
        field_path = f"{section.at('registries')}[{n}]"
        location = tables.parse_location(text, field_path)
        if not location:
            raise FieldError(f"{field_path}: expected host[:port][/path], got nothing")
        paths[location] = field_path
    return paths


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


def _prefixed(path: str, warnings: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{clean(path)}: {warning}" for warning in warnings)


def merge(files: Iterable[File]) -> Registries:
    """Merge the files, in the order in which they are read.

    A later file replaces each setting that it has, and the table of a prefix as a whole; aliases
    are replaced one by one.
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

"""registries.d: containers-registries.d(5), where the signatures of images are kept.

Several YAML files that must not speak of the same thing. A setting that the section of a scope
leaves open is looked for in those of the scopes around it, and in `default-docker` last: the
manual says that only the closest section counts, but this is what every program does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import ConfigurationError, clean
from imgproxy.parsing.typed_fields import FieldError, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOKASIDE, _ATTACHMENTS = "lookaside", "use-sigstore-attachments"
# What is written to is not ours to know; the `sigstore` ones are older names.
_KEYS = frozenset({_LOOKASIDE, "lookaside-staging", "sigstore", "sigstore-staging", _ATTACHMENTS})


class Section(NamedTuple):
    """What is said of a scope: the URL of a lookaside, and whether attachments are looked at.

    Empty or None is what a section leaves open; `source` is the file that names the lookaside.
    """

    lookaside: str = ""
    attachments: bool | None = None
    source: str = ""


class File(NamedTuple):
    """What one file says: sections by scope, that of `default-docker` by the empty one."""

    path: str
    sections: dict[str, Section]
    warnings: tuple[str, ...]


def parse(raw: bytes, path: str) -> File:
    """Give what the file `path` with this content says.

    Raises `ConfigurationError` with the place of what is wrong, `ImportError` without PyYAML.
    """
    try:
        document = Fields(_load(raw))
        docker = document.optional_object("docker") or Fields({}, "docker")
        sections = {scope: docker.object(scope) for scope in docker}
        if "default-docker" in document:
            sections[""] = document.object("default-docker")
        unknown = [document.at(key) for key in document if key not in ("docker", "default-docker")]
        for section in sections.values():
            unknown += [section.at(key) for key in section if key not in _KEYS]
        return File(
            path,
            {scope: _section(section, path) for scope, section in sections.items()},
            tuple(f"{clean(path)}: {place}: unknown key" for place in unknown),
        )
    except FieldError as error:
        raise ConfigurationError(f"{clean(path)}: {error}", file=path) from None


def _load(raw: bytes) -> Any:  # noqa: ANN401  (YAML is any)
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader of plain values, to which a key that stands twice is a mistake."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (its signature)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if not isinstance(key, str):
                    raise FieldError(f"line {node.start_mark.line + 1}: a key is no string")
                if keys.count(key) > 1:
                    raise FieldError(
                        f"line {node.start_mark.line + 1}: the key {clean(key)} stands twice"
                    )
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(raw, Loader)  # noqa: S506  (a subclass of the safe one)
    except yaml.YAMLError as error:
        raise FieldError(f"not YAML: {clean(str(error), 1024)}") from None
    except FieldError:
        raise
    except Exception:  # noqa: BLE001  (values are made of text in many ways, and fail in as many)
        raise FieldError("not YAML that can be read") from None
    return {} if value is None else value


def _section(fields: Fields, path: str) -> Section:
    lookaside = fields.optional_text(_LOOKASIDE) or fields.optional_text("sigstore") or ""
    attachments = fields.flag(_ATTACHMENTS) if _ATTACHMENTS in fields else None
    return Section(lookaside, attachments, path if lookaside else "")


def merge(files: Iterable[File]) -> dict[str, Section]:
    """Give the sections of all files. Raises `ConfigurationError` for a scope in two of them."""
    sections: dict[str, Section] = {}
    places: dict[str, str] = {}
    for file in files:
        for scope, section in file.sections.items():
            if scope in sections:
                what = f"docker.{clean(scope)}" if scope else "default-docker"
                raise ConfigurationError(
                    f"{what} stands in both {clean(places[scope])} and {clean(file.path)}",
                    file=file.path,
                )
            sections[scope], places[scope] = section, file.path
    return sections


def find(sections: dict[str, Section], scopes: Iterable[str], default: str) -> Section:
    """Give what holds for an image by its scopes, most specific first.

    `default` is the lookaside where nothing names one.
    """
    applying = [sections[scope] for scope in (*scopes, "") if scope in sections]
    named = next((each for each in applying if each.lookaside), Section(default))
    said = (each.attachments for each in applying if each.attachments is not None)
    return Section(named.lookaside, next(said, False), named.source)

"""registries.d, which configures the sources of signatures: containers-registries.d(5).

There are several YAML files, and each scope may be in only one of them. A setting that is missing
in the section of a scope is taken from those of the scopes around it, and from `default-docker`
last: according to the manual only the closest section counts, but every program does it this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import ConfigurationError, clean
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOKASIDE, _ATTACHMENTS = "lookaside", "use-sigstore-attachments"
# The `-staging` keys are for writing signatures, and so ignored; the `sigstore` ones are older
# names.
_KEYS = frozenset({_LOOKASIDE, "lookaside-staging", "sigstore", "sigstore-staging", _ATTACHMENTS})


class Section(NamedTuple):
    """The settings of a scope: the URL of a lookaside, and whether attachments are used.

    A missing setting is empty or None; `source` is the file that sets the lookaside.
    """

    lookaside: str = ""
    attachments: bool | None = None
    source: str = ""


class File(NamedTuple):
    """The content of one file: sections by scope, that of `default-docker` by the empty one.

    Scopes are in the form of `registry_name.place`.
    """

    path: str
    sections: dict[str, Section]
    warnings: tuple[str, ...]


def parse(raw: bytes, path: str) -> File:
    """Parse the file `path` with this content.

    Raises `ConfigurationError` with the path of the faulty field, `ImportError` without PyYAML.
    """
    try:
        document = Fields(_load(raw))
        docker = document.optional_object("docker") or Fields({}, "docker")
        sections = _by_place(docker)
        if "default-docker" in document:
            sections[""] = document.object("default-docker")
        unknown = [document.at(key) for key in document if key not in ("docker", "default-docker")]
        for section in sections.values():
            unknown += [section.at(key) for key in section if key not in _KEYS]
        return File(
            path,
            {scope: _section(section, path) for scope, section in sections.items()},
            tuple(f"{clean(path)}: {field_path}: unknown key" for field_path in unknown),
        )
    except FieldError as error:
        raise ConfigurationError(f"{clean(path)}: {error}", file=path) from None


def _by_place(docker: Fields) -> dict[str, Fields]:
    sections: dict[str, Fields] = {}
    for written in docker:
        scope = registry_name.place(written)
        if scope in sections:
            raise FieldError(f"{docker.at(written)}: the same scope as {sections[scope].path}")
        sections[scope] = docker.object(written)
    return sections


def _load(raw: bytes) -> Any:  # noqa: ANN401  (YAML is any)
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader of plain values that refuses duplicate keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (its signature)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if not isinstance(key, str):
                    raise FieldError(f"line {node.start_mark.line + 1}: a key is not a string")
                if keys.count(key) > 1:
                    raise FieldError(
                        f"line {node.start_mark.line + 1}: the key {clean(key)} occurs twice"
                    )
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(raw, Loader)  # noqa: S506  (a subclass of the safe one)
    except yaml.YAMLError as error:
        raise FieldError(f"not YAML: {clean(str(error), 1024)}") from None
    except FieldError:
        raise
    except Exception:  # noqa: BLE001  (the conversions of values raise many kinds of exceptions)
        raise FieldError("not YAML that can be read") from None
    return {} if value is None else value


def _section(fields: Fields, path: str) -> Section:
    lookaside = fields.optional_text(_LOOKASIDE) or fields.optional_text("sigstore") or ""
    attachments = fields.flag(_ATTACHMENTS) if _ATTACHMENTS in fields else None
    return Section(lookaside, attachments, path if lookaside else "")


def merge(files: Iterable[File]) -> dict[str, Section]:
    """Return the sections of all files. Raises `ConfigurationError` for a scope in two of them."""
    sections: dict[str, Section] = {}
    paths: dict[str, str] = {}
    for file in files:
        for scope, section in file.sections.items():
            if scope in sections:
                what = f"docker.{clean(scope)}" if scope else "default-docker"
                raise ConfigurationError(
                    f"{what} is in both {clean(paths[scope])} and {clean(file.path)}",
                    file=file.path,
                )
            sections[scope], paths[scope] = section, file.path
    return sections


def find(sections: dict[str, Section], scopes: Iterable[str], default: str) -> Section:
    """Return the settings for an image by its scopes, most specific first.

    `default` is the lookaside where no section sets one.
    """
    applying = [sections[scope] for scope in (*scopes, "") if scope in sections]
    named = next((each for each in applying if each.lookaside), Section(default))
    attachments = (each.attachments for each in applying if each.attachments is not None)
    return Section(named.lookaside, next(attachments, False), named.source)

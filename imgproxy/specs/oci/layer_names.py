"""What the files and directories are called that layers become: imgproxy(1), COMMANDS, "copy".

The title of a layer (image-spec, annotations.md: `org.opencontainers.image.title`) is its name
where it has one. It comes from outside, and never leads out of the directory that it is meant for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import AmbiguousError, InvalidError, clean
from imgproxy.specs import compression
from imgproxy.specs.oci import layer_selection, tar_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.layer_selection import Layer

# As systems have it (PATH_MAX, NAME_MAX).
MAX_NAME = 4096
MAX_COMPONENT = 255

# Enough of a digest to tell the layers of an image from each other.
_SHORT = 12

# An escaped brace, a field, a brace that is wrong, or other text.
_PART = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|([{}])|([^{}]+)")
_ANNOTATION = "annotation:"

_EXTENSIONS_OF_COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}

# What begins with these is an archive or a compression that is not read here.
_UNREAD = {
    b"PK\x03\x04": ".zip",
    b"PK\x05\x06": ".zip",
    b"7z\xbc\xaf\x27\x1c": ".7z",
    b"\x04\x22\x4d\x18": ".lz4",
    b"\x1f\x9d": ".Z",
    b"LZIP": ".lz",
}

# What begins like this has a meaning in a directory that is not whole.
RESERVED = ".imgproxy-"

# By the whole media type, else by what follows its last `+`, else by what precedes its `/`.
_EXTENSIONS = {
    "application/json": ".json",
    "application/pdf": ".pdf",
    "application/pgp-signature": ".asc",
    "application/toml": ".toml",
    "application/vnd.cncf.helm.chart.provenance.v1.prov": ".prov",
    "application/wasm": ".wasm",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
    "application/x-yaml": ".yaml",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/spdx": ".spdx",
    "text/xml": ".xml",
    "text/yaml": ".yaml",
}
_EXTENSIONS_BY_SUFFIX = {
    "cbor": ".cbor",
    "json": ".json",
    "jwt": ".jwt",
    "toml": ".toml",
    "wasm": ".wasm",
    "xml": ".xml",
    "yaml": ".yaml",
}
_EXTENSIONS_BY_KIND = {"text": ".txt"}
_ANY = ".bin"


class Template(NamedTuple):
    """A name with fields in it: texts, and in between names of fields, in turn."""

    parts: tuple[str, ...]

    @property
    def needs_content(self) -> bool:
        """Whether the name depends on what is in the layer."""
        return "ext" in self.parts[1::2]


def parse(text: str) -> Template:
    """Parse a TEMPLATE. Raises `ValueError`, with the column (from 1) of the mistake."""
    if not text:
        raise ValueError("column 1: it is empty")
    parts = [""]
    for match in _PART.finditer(text):
        brace, field, wrong, plain = match.groups()
        column = match.start() + 1
        if wrong is not None:
            raise ValueError(f'column {column}: a "{wrong}" alone is written "{wrong}{wrong}"')
        if field is None:
            parts[-1] += plain or brace[0]
            continue
        if field not in _FIELDS and field.removeprefix(_ANNOTATION) in {field, ""}:
            known = ", ".join([*_FIELDS, f"{_ANNOTATION}KEY"])
            raise ValueError(f'column {column}: "{clean(field)}" is none of {known}')
        parts += [field, ""]
    return Template(tuple(parts))


def file_template(template: Template | None, layer: Layer) -> Template:
    """Return the template for the file of a layer, by default for its title or else a number."""
    if template is not None:
        return template
    return _UNTITLED if layer.descriptor.title is None else _TITLE


def name(template: Template, layer: Layer, extension: str = "") -> str:
    """Return the name of a layer by a template: components with `/` between them.

    Raises `InvalidError` where a field is missing, and for what would not be a name inside of a
    directory.
    """
    pieces = list(template.parts)
    pieces[1::2] = [_value(field, layer, extension) for field in template.parts[1::2]]
    text = "".join(pieces)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    reason = _impossible(text, parts)
    if reason:
        way_out = "" if template != _TITLE else "; --name gives it another one"
        raise InvalidError(
            f'layer {layer.index} ({layer.descriptor.digest}): its name "{clean(text)}"'
            f" {reason}{way_out}",
        )
    return "/".join(parts)


class Names:
    """The names of several layers, no two of which may be the same, or one in another."""

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._parents: dict[str, Layer] = {}

    def add(self, name: str, layer: Layer) -> None:
        """Add the name of a layer. Raises `AmbiguousError`."""
        parts = name.split("/")
        parents = ["/".join(parts[:n]) for n in range(1, len(parts))]
        taken = [self._layers.get(each) for each in (name, *parents)]
        other = next((each for each in (*taken, self._parents.get(name)) if each is not None), None)
        if other is not None:
            raise AmbiguousError(
                f"the layers {other.index} and {layer.index} would both have the name"
                f' "{clean(name)}", or one would be in the other; choose by --layer, or give them'
                " other names",
                layers=layer_selection.detail([other, layer], clean),
            )
        self._layers[name] = layer
        self._parents.update(dict.fromkeys(parents, layer))


def _impossible(text: str, parts: list[str]) -> str:
    """Return why a name is refused, nothing for one that is not."""
    if not parts:
        return "is empty"
    if text.startswith("/"):
        return "begins at the root of the file system"
    if ".." in parts:
        return 'has ".." in it'
    if parts[0].startswith(RESERVED):
        return f"begins with {RESERVED}"
    if "\0" in text:
        return "has a NUL in it"
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        return "is no text"
    if len(text.encode()) > MAX_NAME or max(map(len, encoded)) > MAX_COMPONENT:
        return f"is longer than {MAX_COMPONENT} bytes, or {MAX_NAME} in all"
    return ""


def _value(field: str, layer: Layer, extension: str) -> str:
    if field in _FIELDS:
        return extension if field == "ext" else _FIELDS[field](layer)
    return _annotation(layer, field.removeprefix(_ANNOTATION))


def _annotation(layer: Layer, key: str) -> str:
    value = layer.descriptor.annotation(key)
    if value is None:
        raise InvalidError(
            f"layer {layer.index} ({layer.descriptor.digest}) has no annotation {clean(key)},"
            " which its name is to be made of",
        )
    return value


_FIELDS: dict[str, Callable[[Layer], str]] = {
    "title": lambda layer: _annotation(layer, "org.opencontainers.image.title"),
    "index": lambda layer: str(layer.index),
    "offset": lambda layer: str(layer.offset),
    "algorithm": lambda layer: layer.descriptor.digest.algorithm,
    "digest": lambda layer: layer.descriptor.digest.encoded,
    "short": lambda layer: layer.descriptor.digest.encoded[:_SHORT],
    "ext": lambda _: "",
}
_TITLE = parse("{title}")
_UNTITLED = parse("{index}-{short}{ext}")


def extension(media_type: str, head: bytes, inflated_head: bytes) -> str:
    """Return the extension for a layer, with its dot.

    `head` are its first bytes, and `inflated_head` the first block of what they decompress to.
    """
    for mark, found in _UNREAD.items():
        if head.startswith(mark):
            return found
    codec = compression.codec("", head)
    is_tar = tar_fields.is_header(inflated_head)
    if codec is not None:
        return (".tar" if is_tar else "") + _EXTENSIONS_OF_COMPRESSIONS[codec.name]
    if is_tar:
        return ".tar"
    media_type = media_type.lower()
    return (
        _EXTENSIONS.get(media_type)
        or _EXTENSIONS_BY_SUFFIX.get(media_type.rpartition("+")[2])
        or _EXTENSIONS_BY_KIND.get(media_type.partition("/")[0])
        or _ANY
    )

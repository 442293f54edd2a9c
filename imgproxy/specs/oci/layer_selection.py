r"""The choice of layers: `--layer SPEC`, imgproxy(1), SELECTION.

A SPEC is a list of conditions with commas between them, all of which must hold:
`type=MEDIATYPE`, `title=GLOB`, `annotation:KEY=VALUE`, `digest=DIGEST`, and `offset=N` or
`offset=N-M`, which counts from 0 among the layers that the other conditions leave, negative numbers
from the end. In keys and values `\` stands before each `,`, `=` and `\`.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from imgproxy.errors import InvalidError, NotFoundError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import convert
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor

_KEYS = ("type", "title", "annotation:KEY", "digest", "offset")
_QUERY = ("type", "title", "annotation", "offset")
_ANNOTATION = "annotation:"

# A key or a value, up to the character that ends it or that is wrong there.
_PART = re.compile(r"(?:[^\\,=]|\\[\\,=])*")
_ESCAPED = re.compile(r"\\([\\,=])")
_SPECIAL = re.compile(r"([\\,=])")

# No manifest has a thousand million layers.
_OFFSETS = re.compile(r"(-?[0-9]{1,9})(?:-(-?[0-9]{1,9}))?")

# A manifest may have thousands of layers; a message that lists all of them is of no use.
_MAX_SHOWN = 10


class Offsets(NamedTuple):
    """The offsets from `first` to `last`, which is included; negative ones count from the end."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"

    def within(self, count: int) -> slice:
        """Return the part of a list of `count` that these are, which may be empty."""
        first, last = (each + count if each < 0 else each for each in self)
        return slice(max(first, 0), max(last + 1, 0))


class LayerSpec(NamedTuple):
    """Conditions for layers, all of which must hold; None and empty ones are not stated."""

    media_type: str | None = None
    title: str | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    digest: Digest | None = None
    offsets: Offsets | None = None

    def __str__(self) -> str:
        stated: list[tuple[str, object]] = [
            ("type", self.media_type),
            ("title", self.title),
            *((f"{_ANNOTATION}{key}", value) for key, value in self.annotations),
            ("digest", self.digest),
            ("offset", self.offsets),
        ]
        return ",".join(
            f"{_escaped(key)}={_escaped(str(value))}" for key, value in stated if value is not None
        )

    def choose(self, layers: Sequence[Layer]) -> Sequence[Layer]:
        """Return those of the layers that fit, in their order."""
        fitting = [each for each in layers if self._fits(each.descriptor)]
        return fitting if self.offsets is None else fitting[self.offsets.within(len(fitting))]

    def _fits(self, layer: Descriptor) -> bool:
        title = layer.title
        return (
            self.media_type in (None, layer.media_type, convert.media_type(layer.media_type))
            and self.digest in (None, layer.digest)
            and (self.title is None or (title is not None and fnmatchcase(title, self.title)))
            and all(layer.annotation(key) == value for key, value in self.annotations)
        )


class Layer(NamedTuple):
    """A layer, with its places from 0: `index` in the manifest, `offset` among those chosen."""

    descriptor: Descriptor
    index: int  # type: ignore[assignment]  # nobody searches in it with the method of a tuple
    offset: int


def parse(text: str) -> LayerSpec:
    """Parse a SPEC.

    Raises `ValueError`, with the column (from 1) of the mistake.
    """
    return _spec(_conditions(text))


def of_query(pairs: Iterable[tuple[str, str]]) -> LayerSpec:
    """Return what the keys and values of a query state: imgproxy-protocol(7), REQUESTS.

    The value of `annotation` is `KEY=VALUE`. Raises `ValueError`.
    """
    conditions = []
    for key, value in pairs:
        if key not in _QUERY:
            raise ValueError(f'"{clean(key)}" is none of {", ".join(_QUERY)}')
        name, is_whole, rest = value.partition("=")
        if key != "annotation":
            conditions.append((key, 0, value, 0))
        elif is_whole:
            conditions.append((_ANNOTATION + name, 0, rest, 0))
        else:
            raise ValueError(f'"{clean(value)}" is not an annotation KEY=VALUE')
    return _spec(conditions)


def _spec(conditions: Iterable[tuple[str, int, str, int]]) -> LayerSpec:
    """Return the SPEC with these keys and values, each with its column, if it has one."""
    spec = LayerSpec()
    for key, key_at, value, value_at in conditions:
        name = key.removeprefix(_ANNOTATION)
        if name != key:
            if not name:
                _refuse(key_at, "the key of an annotation is missing")
            if name in dict(spec.annotations):
                _refuse(key_at, f'"{clean(key)}" is given twice')
            spec = spec._replace(annotations=(*spec.annotations, (name, value)))
            continue
        if key not in _READERS:
            _refuse(key_at, f'"{clean(key)}" is none of {", ".join(_KEYS)}')
        field, read = _READERS[key]
        if getattr(spec, field) is not None:
            _refuse(key_at, f'"{key}" is given twice')
        try:
            spec = spec._replace(**{field: read(value)})
        except ValueError as error:
            _refuse(value_at, str(error))
    return spec


def choose(specs: Sequence[LayerSpec], layers: Sequence[Descriptor], name: str) -> list[Layer]:
    """Return the layers of a manifest that one of the SPECs chooses, all where there are none.

    They are in the manifest's order. `name` is that of the image in messages. Raises
    `NotFoundError`, with the layers that there are, where nothing is chosen.
    """
    every = [Layer(layer, index, index) for index, layer in enumerate(layers)]
    chosen = narrow(specs, every, name) if specs else every
    return [each._replace(offset=offset) for offset, each in enumerate(chosen)]


def narrow(specs: Sequence[LayerSpec], layers: Sequence[Layer], name: str) -> list[Layer]:
    """Return those of the layers that one of the SPECs chooses, with the offsets that they have.

    Raises the same as `choose`.
    """
    kept = {each.index for spec in specs for each in spec.choose(layers)}
    chosen = [each for each in layers if each.index in kept]
    if not chosen:
        raise _absent(" or ".join(clean(str(spec)) for spec in specs), layers, name)
    return chosen


def at(offset: int, layers: Sequence[Layer], name: str) -> Layer:
    """Return the chosen layer at an offset. Raises the same as `choose` beyond the end."""
    if offset >= len(layers):
        raise _absent(f"offset {offset}", layers, name)
    return layers[offset]


def _absent(condition: str, layers: Sequence[Layer], name: str) -> NotFoundError:
    return NotFoundError(
        f"{name} has no layer with {condition} (there are: {listed(layers)})",
        code="BLOB_UNKNOWN",
        layers=detail(layers, clean),
    )


def detail(layers: Sequence[Layer], show: Callable[[str], str] = str) -> list[dict[str, Any]]:
    """Return the layers as programs are told of them; `show` is applied to text from outside."""
    return [
        {
            "index": each.index,
            "offset": each.offset,
            "mediaType": show(each.descriptor.media_type),
            "digest": str(each.descriptor.digest),
            "size": each.descriptor.size,
            "title": None if each.descriptor.title is None else show(each.descriptor.title),
            "annotations": {show(key): show(value) for key, value in each.descriptor.annotations},
        }
        for each in layers
    ]


def parse_detail(raw: bytes, name: str) -> list[Layer]:
    """Return the layers that a JSON array describes, as `detail` does; `name` stands for it.

    Raises `InvalidError`.
    """
    try:
        return [
            Layer(manifests.parse_descriptor(each), each.integer("index"), each.integer("offset"))
            for each in Fields({"layers": strict_json.loads(raw)}).each_object("layers")
        ]
    except (FieldError, strict_json.JsonError) as error:
        raise InvalidError(f"parsing {name}: {error}") from None


def _conditions(text: str) -> Iterator[tuple[str, int, str, int]]:
    """Yield the keys and values of a SPEC, each with its column."""
    at = 0
    while True:
        equals = _end_of_part(text, at)
        if text[equals : equals + 1] != "=":
            _refuse(equals + 1, f'"=" is missing; a condition is one of {", ".join(_KEYS)}')
        end = _end_of_part(text, equals + 1)
        if text[end : end + 1] == "=":
            _refuse(end + 1, r'an "=" in a value is written "\="')
        yield _plain(text[at:equals]), at + 1, _plain(text[equals + 1 : end]), equals + 2
        if end == len(text):
            return
        at = end + 1


def _end_of_part(text: str, start: int) -> int:
    """Return where a key or a value ends: at a `,`, an `=` or the end of the text."""
    match = _PART.match(text, start)
    assert match is not None  # noqa: S101  (it matches the empty text)
    if text[match.end() : match.end() + 1] == "\\":
        _refuse(match.end() + 1, r'"\" stands before ",", "=" and "\" alone')
    return match.end()


def _plain(part: str) -> str:
    return _ESCAPED.sub(r"\1", part)


def _escaped(part: str) -> str:
    return _SPECIAL.sub(r"\\\1", part)


def _media_type(value: str) -> str:
    if not types.is_valid(value):
        raise ValueError(f'"{clean(value)}" is not a media type')
    return value


def _offsets(value: str) -> Offsets:
    """Parse `N` or `N-M`. Raises `ValueError`."""
    match = _OFFSETS.fullmatch(value)
    if match is None:
        raise ValueError(f'"{clean(value)}" is not an offset N or a range N-M of offsets')
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first and (first < 0) == (last < 0):
        raise ValueError(f'"{value}" is reversed; write {last}-{first}')
    return Offsets(first, last)


# The field that holds what a key states, and what reads its value.
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "type": ("media_type", _media_type),
    "title": ("title", str),
    "digest": ("digest", digests.parse),
    "offset": ("offsets", _offsets),
}


def listed(layers: Sequence[Layer]) -> str:
    """Return layers as a message lists them."""
    shown = [
        f"{each.offset} {clean(each.descriptor.media_type) or '?'}"
        + ("" if each.descriptor.title is None else f' "{clean(each.descriptor.title)}"')
        + f" {each.descriptor.digest} ({each.descriptor.size} bytes)"
        for each in layers[:_MAX_SHOWN]
    ]
    more = len(layers) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")


def _refuse(column: int, reason: str) -> NoReturn:
    raise ValueError(f"column {column}: {reason}" if column else reason)

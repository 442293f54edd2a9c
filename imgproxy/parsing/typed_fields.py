"""Typed getters over JSON, TOML and YAML values, whose error messages contain the field's path.

For example: `layers[2].size: expected an integer, got "12"`. `null` counts as absent, as it does
for every Go program that reads the same documents.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from imgproxy.errors import clean
from imgproxy.parsing.strict_json import Twice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Self

T = TypeVar("T")

NOT_SHOWN = "(not shown)"

# A host with a dot or a port, in lower case, as neither base64 nor a token is; perhaps with a
# scheme and a path.
_HOST_AND_PATH = re.compile(
    r"(?:https?://)?(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+|[a-z0-9-]+(?=:[0-9]))"
    r"(?::[0-9]{1,5})?(?:/[a-z0-9._/-]*)?"
)


class FieldError(ValueError):
    """A value is missing or has the wrong type; the message begins with its path."""


class Fields:
    """An object of a document. `value` must be a mapping, `path` is its path in the document.

    The constructor and every getter raise `FieldError`.
    """

    __slots__ = ("_values", "path")

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise FieldError(
                f"{path or 'the document'}: expected an object, got {self.shown(value)}"
            )
        self._values: dict[str, Any] = value
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def at(self, key: str) -> str:
        """Return the path of a member, in a form fit for messages."""
        key = self.shown_key(key)
        return f"{self.path}.{key}" if self.path else key

    @classmethod
    def shown_key(cls, key: str) -> str:
        """Return a key in the form that error messages show."""
        return clean(key)

    def shown(self, value: object) -> str:
        """Return a value in the form that error messages show."""
        return shown(value)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse unknown keys and `null`, where every member must have a meaning."""
        for key, value in self._values.items():
            if key not in known:
                raise FieldError(f"{self.at(key)}: unknown key")
            if value is None:
                raise FieldError(f"{self.at(key)}: expected a value, got null")

    def folded(self, known: Collection[str]) -> Self:
        """Return the object with the known keys in this spelling, whatever their case in it.

        So Go reads them. Raises `FieldError` for a key that is there in two spellings.
        """
        spellings = {key.casefold(): key for key in known}
        values: dict[str, Any] = {}
        for key, value in self._values.items():
            name = spellings.get(key.casefold(), key)
            if name in values:
                raise FieldError(f"{self.at(name)}: ambiguous, there in two spellings")
            values[name] = value
        return type(self)(values, self.path)

    def optional_text(self, key: str) -> str | None:
        """Return a string, None where it is absent."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise FieldError(f"{self.at(key)}: expected a string, got {self.shown(value)}")
        return value

    def text(self, key: str) -> str:
        """Return a string that must be present."""
        return self._present(key, self.optional_text(key), "string")

    def optional_integer(self, key: str) -> int | None:
        """Return an integer, None where it is absent."""
        value = self._values.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise FieldError(f"{self.at(key)}: expected an integer, got {self.shown(value)}")
        return value

    def optional_whole_number(self, key: str) -> int | None:
        """Return a number without a fraction, also if it is written as `1.0`, None where absent."""
        value = self._values.get(key)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return self.optional_integer(key)

    def optional_base64(self, key: str) -> bytes | None:
        """Return the bytes of a string in base64 (RFC 4648 section 4), None where it is absent."""
        text = self.optional_text(key)
        return None if text is None else decode_base64(text, self.at(key))

    def base64(self, key: str) -> bytes:
        """Return the bytes of a string in base64 that must be present."""
        return decode_base64(self.text(key), self.at(key))

    def integer(self, key: str) -> int:
        """Return an integer that must be present."""
        return self._present(key, self.optional_integer(key), "integer")

    def flag(self, key: str) -> bool:
        """Return a boolean, false where it is absent."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise FieldError(f"{self.at(key)}: expected true or false, got {self.shown(value)}")
        return bool(value)

    def optional_object(self, key: str) -> Self | None:
        """Return an object, None where it is absent."""
        value = self._values.get(key)
        return None if value is None else type(self)(value, self.at(key))

    def object(self, key: str) -> Self:
        """Return an object that must be present."""
        return self._present(key, self.optional_object(key), "object")

    def objects(self, key: str) -> list[Self]:
        """Return the objects of an array, an empty list where it is absent."""
        return list(self.each_object(key))

    def each_object(self, key: str) -> Iterator[Self]:
        """Yield the objects of an array, so that one is refused before the next one is made."""
        for n, item in enumerate(self._array(key)):
            yield type(self)(item, f"{self.at(key)}[{n}]")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the strings of an array, an empty tuple where it is absent."""
        items = self._array(key)
        for n, item in enumerate(items):
            if not isinstance(item, str):
                raise FieldError(f"{self.at(key)}[{n}]: expected a string, got {self.shown(item)}")
        return tuple(items)

    def text_map(self, key: str) -> dict[str, str]:
        """Return an object whose members are all strings, empty where it is absent."""
        value = self.optional_object(key)
        return {} if value is None else {member: value.text(member) for member in value}

    def _array(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise FieldError(f"{self.at(key)}: expected an array, got {self.shown(value)}")
        return value

    def _present(self, key: str, value: T | None, kind: str) -> T:
        if value is None:
            raise FieldError(f"{self.at(key)}: missing (expected {_article(kind)} {kind})")
        return value


class PrivateFields(Fields):
    """An object of a document that holds secrets.

    Error messages show only the kind of a value. Keys are shown if they are `known`, which a
    subclass sets, or may be the name of a registry or a repository; any other may be a secret that
    got into the wrong place.
    """

    __slots__ = ()
    known: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def shown_key(cls, key: str) -> str:
        """Return a key if it is not secret."""
        is_public = key in cls.known or _HOST_AND_PATH.fullmatch(key)
        return clean(key if is_public else NOT_SHOWN)

    def shown(self, value: object) -> str:
        """Return the kind of a value, which error messages show in its place."""
        if isinstance(value, str):
            return "a string"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return "a number"
        return shown(value)  # an object, an array, true, false


def shown(value: object) -> str:
    """Return a short form of a value for messages; objects and arrays only by their kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, Twice):
        return "two values"
    return clean(json.dumps(value, ensure_ascii=False, default=str), 80)


def decode_base64(text: str, path: str) -> bytes:
    """Return the bytes of a text in base64; `path` is where it is in the document.

    Line breaks are skipped, as Go does, which wrote most of these documents. Raises `FieldError`.
    """
    import base64
    import binascii

    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(f"{path}: not base64") from None


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"

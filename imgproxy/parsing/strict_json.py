"""JSON (RFC 8259), parsed so that no two parsers can disagree about the meaning of a document.

RFC 8259 leaves open what duplicate keys, NaN, lone surrogates and huge numbers mean; each has been
a way to show one document to the verifier and another to the user. All of them are refused here,
and the depth of nesting has a limit.
"""

from __future__ import annotations

import json
import math
from functools import partial

from imgproxy.errors import clean

TYPE_CHECKING = False  # `typing` would take a tenth of the time until Initialize is answered
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# The deepest documents in practice (an index's platform, a config's health check) stay under 10,
# signatures of payloads in payloads under 20. Interpreters have different limits; this one is the
# same everywhere.
MAX_DEPTH = 64


class Twice:
    """The value of a key that occurs twice in one object, in place of either."""


class JsonError(ValueError):
    """The document is not acceptable JSON; the message states the reason and the position."""


def loads(raw: bytes, shown_key: Callable[[str], str] = clean) -> Any:  # noqa: ANN401  (JSON is any)
    """Return the value of a JSON document in UTF-8; `shown_key` returns a key as messages show it.

    Raises `JsonError` for anything that RFC 8259 forbids or leaves open to interpretation.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    value = _loads(text, partial(_object, shown_key))
    if "\\u" in text:
        _check_unicode(value)
    return value


def loads_tolerant(raw: bytes) -> Any:  # noqa: ANN401  (JSON is any)
    """Return the value of a JSON document of which only some members have a meaning here.

    What is not text in UTF-8 is replaced, and a key that occurs twice has a `Twice` for its
    value, which none of the getters in `typed_fields` accepts. Raises `JsonError`.
    """
    return _loads(raw.decode(errors="replace"), _object_with_twice)


def _loads(text: str, make_object: Callable[[list[tuple[str, Any]]], Any]) -> Any:  # noqa: ANN401
    try:
        value = json.loads(
            text,
            object_pairs_hook=make_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error}") from None
    except RecursionError:
        raise JsonError(f"nested deeper than {MAX_DEPTH}") from None
    except JsonError:
        raise
    except ValueError:  # int() refuses more digits than `sys.get_int_max_str_digits`
        raise JsonError("a number has too many digits") from None
    _check_depth(value)
    return value


def _object(shown_key: Callable[[str], str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise JsonError(f'the key "{shown_key(_repeated(pairs)[0])}" occurs twice in one object')
    return result


def _object_with_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        result |= dict.fromkeys(_repeated(pairs), Twice())
    return result


def _repeated(pairs: list[tuple[str, Any]]) -> list[str]:
    seen: set[str] = set()
    return [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def _refuse_constant(name: str) -> None:
    raise JsonError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError("a number is out of range")
    return value


def _check_depth(value: Any) -> None:  # noqa: ANN401  (JSON is any)
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise JsonError(f"nested deeper than {MAX_DEPTH}")


def _check_unicode(value: Any) -> None:  # noqa: ANN401  (JSON is any)
    """Refuse lone surrogates, which have no UTF-8 form and so fit into no reply or header."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("a lone surrogate is not text") from None

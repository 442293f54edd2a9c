"""The ways in which a server may quote a secret."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Callable


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def every_character(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def escaped(text: str) -> str:
    """Return a text as it stands between the quotes of JSON."""
    return json.dumps(text)[1:-1]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "base64": b64,
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 of more": lambda text: b64(f"x:{text};"),
    "base64 in lines": lambda text: "\r\n".join(re.findall(".{1,4}", b64(text))),
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded, all of it": every_character,
    "percent-encoded twice": lambda text: quote(quote(text, safe=""), safe=""),
    "form": quote_plus,
    "JSON": escaped,
    "JSON in JSON": lambda text: escaped(escaped(text)),
    "JSON, all of it": lambda text: "".join(
        f"\\u{text.encode('utf-16-be')[n : n + 2].hex()}"
        for n in range(0, len(text.encode("utf-16-be")), 2)
    ),
    "base64, percent-encoded": lambda text: quote(b64(text), safe=""),
    "Python": lambda text: repr(bytearray(text.encode())),
    "Latin-1": lambda text: text.encode().decode("latin-1"),
    "another case": lambda text: re.sub("[A-Za-z]", lambda each: each[0].swapcase(), text),
    "broken off": lambda text: f"{text[: len(text) // 2]}\r\n\t{text[len(text) // 2 :]}",
}

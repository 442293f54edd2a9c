"""What the body of a refusal says, in whatever form a server says it.

The distribution specification's errors, the JSON of other services (RFC 9457, RFC 6749 section 5.2,
token servers), the XML of object stores, pages of proxies, plain text.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from imgproxy.errors import clean
from imgproxy.parsing import strict_json

# The members that hold a sentence, the most telling first.
_SENTENCES = ("message", "error_description", "detail", "details", "msg", "title", "reason")
_CODES = ("code", "error")

_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.DOTALL | re.IGNORECASE)
_ELEMENT = r"<{0}>([^<]*)</{0}>"
_UNSHOWN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|head)\b.*?(?:</\1\s*>|\Z)|<[^>]*(?:>|\Z)",
    re.DOTALL | re.IGNORECASE,
)

# A page says what it is at its beginning; its markup takes time to remove, all the more if hostile.
_MAX_TEXT = 4096


class RefusalBody(NamedTuple):
    """The codes of the specification's errors, and a summary for messages; empty for neither."""

    codes: list[str]
    summary: str


def parse(body: bytes) -> RefusalBody:
    """Return what a body says, without markup, in one line of printable characters."""
    try:
        document = strict_json.loads_tolerant(body)
    except strict_json.JsonError:
        return RefusalBody([], clean(_of_text(body.decode(errors="replace"))))
    errors = document.get("errors", document) if isinstance(document, dict) else document
    listed = errors if isinstance(errors, list) else [errors]
    found = [_error(each) for each in listed]
    summary = "; ".join(": ".join(filter(None, each)) for each in found)
    return RefusalBody([code for code, _ in found if code], clean(summary.strip("; ")))


def _error(value: Any) -> tuple[str, str]:  # noqa: ANN401  (JSON is any)
    """Return the code and the sentence of one error, either of which may be empty."""
    if isinstance(value, str):
        return "", value
    if not isinstance(value, dict):
        return "", ""
    code = next((value[key] for key in _CODES if isinstance(value.get(key), str)), "")
    sentence = next((value[key] for key in _SENTENCES if isinstance(value.get(key), str)), "")
    nested = value.get("error")
    if not sentence and isinstance(nested, dict):
        return _error(nested)
    return code, sentence


def _of_text(text: str) -> str:
    text = text[:_MAX_TEXT].lstrip("\ufeff \t\r\n")
    if "\ufffd" in text or "\0" in text:
        return ""  # no text
    if not text.startswith("<"):
        return " ".join(text.split())
    code, message = (re.search(_ELEMENT.format(name), text) for name in ("Code", "Message"))
    if message:
        # what else an object store says may quote the request and how it was signed
        return f"{code[1]}: {message[1]}" if code else message[1]
    from html import unescape

    title = _TITLE.search(text)
    return " ".join(unescape(_UNSHOWN.sub(" ", title[1] if title else text)).split())

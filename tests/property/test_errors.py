"""Text from outside in messages."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from imgproxy.errors import NotFoundError, clean
from imgproxy.server.error_body import error_body

CONTROLS = {"Cc", "Cs", "Zl", "Zp"}

# Unicode's property Bidi_Control.
DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

NASTY = st.sampled_from([*sorted(DIRECTIONS), *"\0\t\r\n\x1b\x7f\x85\x9b\u2028\u2029\ud800\udcff "])
ANYTHING = st.text(st.characters() | NASTY)


@given(ANYTHING, st.integers(1, 300))
def test_cleaned_text_is_one_bounded_line_without_controls(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert not {unicodedata.category(letter) for letter in cleaned} & CONTROLS
    assert not set(cleaned) & DIRECTIONS
    assert len(cleaned) <= limit + 1
    assert clean(cleaned, limit) == cleaned


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=256))
def test_printable_text_is_kept(text: str) -> None:
    assert clean(text) == text.strip()


@given(ANYTHING)
def test_an_error_s_message_arrives(text: str) -> None:
    message = clean(text)
    (error,) = json.loads(error_body(NotFoundError(message), str))["errors"]
    assert error["message"] == message
    message.encode()

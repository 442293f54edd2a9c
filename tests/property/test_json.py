"""Strict JSON: valid documents are read back, all others raise one kind of error."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import JSON, attempt

from imgproxy.parsing.strict_json import JsonError, loads


@given(JSON, st.booleans(), st.sampled_from([None, 0, 3]))
def test_what_was_written_is_read_back(value: Any, ascii_only: Any, indent: int | None) -> None:  # noqa: ANN401  (JSON is any)
    assert loads(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@given(st.binary())
@example(b"\xef\xbb\xbf{}")
@example(b'{"\\ud800":1}')
@example(b'{"a":1,"a":2}')
def test_bytes_are_json_or_a_complaint(raw: bytes) -> None:
    attempt(loads, raw, expected=JsonError)


SYNTAX = ["{", "}", "[", "]", ":", ",", '"', "\\", "\\u", "d800", "0", "9" * 5000, "e", ".", "-"]


@given(st.lists(st.sampled_from([*SYNTAX, "true", "NaN", "Infinity", " ", "a"])).map("".join))
def test_pieces_of_json_are_json_or_a_complaint(text: str) -> None:
    value = attempt(loads, text.encode(), expected=JsonError)
    if isinstance(value, JsonError):
        assert len(str(value)) < 1000
    else:
        json.dumps(value, ensure_ascii=False).encode()
        assert value == json.loads(text)

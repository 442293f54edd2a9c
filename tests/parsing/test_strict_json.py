"""JSON that has one meaning; everything else is refused (RFC 8259, RFC 7493)."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from imgproxy.parsing.strict_json import JsonError, Twice, loads, loads_tolerant


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b" \t\r\n[] \n", []),
        (b'{"a":{"a":1},"b":[{"a":2}]}', {"a": {"a": 1}, "b": [{"a": 2}]}),
        ('"ä漢🐳"'.encode(), "ä漢🐳"),
        (rb'"\ud83d\udc33 \u00e4"', "🐳 ä"),
        (rb'"\\ud800"', "\\ud800"),
        (b"[true,false,null]", [True, False, None]),
        (b"[0,-1,1.5,1e3]", [0, -1, 1.5, 1000.0]),
        (b"12345678901234567890123", 12345678901234567890123),
    ],
)
def test_json_is_read(raw: bytes, value: object) -> None:
    assert loads(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{} {}", id="trailing"),
        pytest.param(b"[1,]", id="trailing-comma"),
        pytest.param(b"{'a':1}", id="single-quotes"),
        pytest.param(b'"a\nb"', id="raw-control"),
        pytest.param(b"01", id="leading-zero"),
        pytest.param(b"\xef\xbb\xbf{}", id="bom"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(raw: bytes) -> None:
    with pytest.raises(JsonError, match=r"^not JSON: .* \(char \d+\)$"):
        loads(raw)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        pytest.param(b'{"a":"\xff"}', "not UTF-8 at byte 6", id="latin-1"),
        pytest.param('{"a":1}'.encode("utf-16"), "not UTF-8 at byte 0", id="utf-16"),
        pytest.param(b'"\xed\xa0\x80"', "not UTF-8 at byte 1", id="encoded-surrogate"),
        pytest.param(b'"\\ud800"', "a lone surrogate is not text", id="lone-surrogate"),
        pytest.param(b'{"\\udc00":1}', "a lone surrogate is not text", id="surrogate-in-a-key"),
        pytest.param(b"NaN", "NaN is not JSON", id="nan"),
        pytest.param(b"[Infinity]", "Infinity is not JSON", id="infinity"),
        pytest.param(b"[-Infinity]", "-Infinity is not JSON", id="negative-infinity"),
        pytest.param(b"1e999", "a number is out of range", id="overflow"),
        pytest.param(b"-1e999", "a number is out of range", id="negative-overflow"),
        pytest.param(
            b'{"b":1,"a":2,"c":3,"a":2}', 'the key "a" occurs twice in one object', id="twice"
        ),
        pytest.param(
            b'[{"x":{"a":1,"\\u0061":2}}]',
            'the key "a" occurs twice in one object',
            id="twice-by-escape",
        ),
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(JsonError) as caught:
        loads(raw)
    assert str(caught.value) == complaint


def test_an_integer_has_as_many_digits_as_the_interpreter_reads() -> None:
    digits = sys.get_int_max_str_digits()
    assert isinstance(loads(b"9" * digits), int)
    with pytest.raises(JsonError, match=r"^a number has too many digits$"):
        loads(b"9" * (digits + 1))


@pytest.mark.parametrize(
    ("opening", "inside", "closing"),
    [(b"[", b"", b"]"), (b'{"a":', b"{}", b"}"), (b'[{"a":', b"0", b"}]")],
    ids=["arrays", "objects", "both"],
)
def test_nesting_has_one_limit(opening: bytes, inside: bytes, closing: bytes) -> None:
    levels = 64 // len(closing) - (inside == b"{}")
    value: Any = loads(opening * levels + inside + closing * levels)
    assert isinstance(value, list | dict)
    with pytest.raises(JsonError, match=r"^nested deeper than 64$"):
        loads(opening * (levels + 1) + inside + closing * (levels + 1))


def test_nesting_that_no_interpreter_follows_is_refused_the_same_way() -> None:
    with pytest.raises(JsonError, match=r"^nested deeper than 64$"):
        loads(b"[" * 1_000_000)


def test_a_key_in_a_complaint_is_bounded() -> None:
    key = b'"' + b"a" * 100_000 + b'":1'
    with pytest.raises(JsonError) as caught:
        loads(b"{" + key + b"," + key + b"}")
    assert len(str(caught.value)) < 1000


def test_what_is_read_tolerantly_has_no_value_where_it_has_two() -> None:
    value = loads_tolerant(b'{"a":1,"b":{"c":1,"d":2,"c":3},"a":1}')
    assert list(value) == ["a", "b"]
    assert isinstance(value["a"], Twice)
    assert isinstance(value["b"]["c"], Twice)
    assert value["b"]["d"] == 2


def test_what_is_read_tolerantly_is_text_as_far_as_it_is() -> None:
    assert loads_tolerant(b'{"a":"J\xf6rg","b":"\\ud800"}') == {"a": "J\ufffdrg", "b": "\ud800"}


@pytest.mark.parametrize("raw", [b"", b"\xff", b"{}{}", b"NaN", b"1e999", b"[" * 70 + b"]" * 70])
def test_what_is_no_json_is_not_read_tolerantly_either(raw: bytes) -> None:
    with pytest.raises(JsonError):
        loads_tolerant(raw)

"""Typed getters: their results, and the path of the field in their messages."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from imgproxy.parsing.typed_fields import FieldError, Fields, PrivateFields, shown

if TYPE_CHECKING:
    from collections.abc import Callable

GETTERS: dict[str, Callable[[Fields, str], Any]] = {
    "optional_text": Fields.optional_text,
    "text": Fields.text,
    "optional_integer": Fields.optional_integer,
    "flag": Fields.flag,
    "integer": Fields.integer,
    "optional_object": Fields.optional_object,
    "object": Fields.object,
    "objects": Fields.objects,
    "texts": Fields.texts,
    "text_map": Fields.text_map,
    "optional_whole_number": Fields.optional_whole_number,
    "optional_base64": Fields.optional_base64,
    "base64": Fields.base64,
}


def get(getter: str, value: object) -> Any:  # noqa: ANN401  (JSON is any)
    return GETTERS[getter](Fields({"key": value}), "key")


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        ("optional_text", "text"),
        ("text", "text"),
        ("text", ""),
        ("optional_integer", 12),
        ("flag", True),
        ("flag", False),
        ("integer", 12),
        ("integer", 0),
        ("integer", -1),
        ("text_map", {"a": "b"}),
        ("text_map", {}),
    ],
)
def test_a_value_of_the_wanted_type_is_given_as_it_is(getter: str, value: object) -> None:
    assert get(getter, value) == value


@pytest.mark.parametrize(
    ("getter", "absent"),
    [
        ("optional_text", None),
        ("optional_integer", None),
        ("flag", False),
        ("optional_object", None),
        ("objects", []),
        ("texts", ()),
        ("text_map", {}),
    ],
)
def test_what_may_be_absent_may_be_null(getter: str, absent: object) -> None:
    assert get(getter, None) == absent
    assert GETTERS[getter](Fields({}), "key") == absent


@pytest.mark.parametrize(
    ("getter", "complaint"),
    [
        ("text", "key: missing (expected a string)"),
        ("integer", "key: missing (expected an integer)"),
        ("object", "key: missing (expected an object)"),
    ],
)
def test_what_must_be_there_must_not_be_null(getter: str, complaint: str) -> None:
    for document in ({}, {"key": None}):
        with pytest.raises(FieldError) as caught:
            GETTERS[getter](Fields(document), "key")
        assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("getter", "value", "complaint"),
    [
        ("optional_text", 5, "key: expected a string, got 5"),
        ("text", ["a"], "key: expected a string, got an array"),
        ("optional_integer", "12", 'key: expected an integer, got "12"'),
        ("flag", 1, "key: expected true or false, got 1"),
        ("flag", "true", 'key: expected true or false, got "true"'),
        ("integer", True, "key: expected an integer, got true"),
        ("integer", 2.0, "key: expected an integer, got 2.0"),
        ("optional_object", [], "key: expected an object, got an array"),
        ("object", "{}", 'key: expected an object, got "{}"'),
        ("objects", {}, "key: expected an array, got an object"),
        ("objects", [{}, 5], "key[1]: expected an object, got 5"),
        ("objects", [None], "key[0]: expected an object, got null"),
        ("texts", "a", 'key: expected an array, got "a"'),
        ("texts", ["a", None], "key[1]: expected a string, got null"),
        ("text_map", ["a"], "key: expected an object, got an array"),
        ("text_map", {"a": 5}, "key.a: expected a string, got 5"),
    ],
)
def test_a_complaint_says_where_what_was_wanted_and_what_is_there(
    getter: str, value: object, complaint: str
) -> None:
    with pytest.raises(FieldError) as caught:
        get(getter, value)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("value", [[], "text", 5, True, None])
def test_a_document_is_an_object(value: object) -> None:
    with pytest.raises(FieldError, match=r"^the document: expected an object, got "):
        Fields(value)


def test_arrays_are_given_whole_and_in_order() -> None:
    assert get("texts", ["b", "a"]) == ("b", "a")
    assert [fields.integer("n") for fields in get("objects", [{"n": 2}, {"n": 1}])] == [2, 1]


def test_a_path_grows_with_the_depth() -> None:
    layers = Fields({"layers": [{}, {"platform": {"os": 5}}]}).objects("layers")
    with pytest.raises(FieldError, match=r"^layers\[1\]\.platform\.os: expected a string, got 5$"):
        layers[1].object("platform").text("os")
    assert Fields({}, "layers[1]").at("size") == "layers[1].size"
    assert Fields({}).at("size") == "size"


def test_null_counts_as_absent() -> None:
    fields = Fields({"there": 0, "null": None})
    assert "there" in fields
    assert "null" not in fields
    assert "absent" not in fields
    assert list(fields) == ["there", "null"]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"map": {"a\x1b[31m\n": 5}}, id="controls"),
        pytest.param({"map": {"a" * 100_000: 5}}, id="length"),
    ],
)
def test_a_key_from_outside_is_quoted_as_other_text_is(document: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as caught:
        Fields(document).text_map("map")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": 1}, "an object"),
        ([1], "an array"),
        ("ä\n", '"ä\\n"'),
        (None, "null"),
        (1.5, "1.5"),
        (date(2000, 1, 31), '"2000-01-31"'),
        ("a" * 100, '"' + "a" * 79 + "…"),
    ],
    ids=str,
)
def test_a_value_is_shown_short(value: object, words: str) -> None:
    assert shown(value) == words


class Known(PrivateFields):
    known = frozenset("abcd")


@pytest.mark.parametrize(
    ("value", "shown", "kind"),
    [
        ("secret", '"secret"', "a string"),
        (12, "12", "a number"),
        (1.5, "1.5", "a number"),
        (True, "true", "true"),
        (["secret"], "an array", "an array"),
    ],
)
def test_private_fields_are_complained_of_without_their_values(
    value: object, shown: str, kind: str
) -> None:
    document = {"a": {"b": value}}
    for fields, words in (Fields(document), shown), (Known(document), kind):
        with pytest.raises(FieldError) as error:
            fields.object("a").object("b")
        assert str(error.value) == f"a.b: expected an object, got {words}"


def test_what_private_fields_hold_is_private() -> None:
    fields = Known({"a": [{"b": "secret"}], "c": ["x", {}]})
    with pytest.raises(FieldError, match=r"^a\[0\]\.b: expected an integer, got a string$"):
        fields.objects("a")[0].integer("b")
    with pytest.raises(FieldError, match=r"^c\[1\]: expected a string, got an object$"):
        fields.texts("c")
    with pytest.raises(FieldError, match=r"^d: missing \(expected an object\)$"):
        fields.object("d")


def test_where_every_member_must_mean_something_others_are_refused() -> None:
    fields = Fields({"a": 1, "b": None}, "x")
    Fields({"a": 1}, "x").refuse_unknown({"a", "b"})
    with pytest.raises(FieldError, match=r"^x\.b: expected a value, got null$"):
        fields.refuse_unknown({"a", "b"})
    with pytest.raises(FieldError, match=r"^x\.a: unknown key$"):
        fields.refuse_unknown({"b"})


@pytest.mark.parametrize("text", ["YWI=", "YW\nI=", "\r\nYW\r\nI=\n"])
@pytest.mark.parametrize("getter", ["optional_base64", "base64"])
def test_base64_may_have_line_breaks(getter: str, text: str) -> None:
    """Go, which writes and reads these documents, skips them."""
    assert get(getter, text) == b"ab"


@pytest.mark.parametrize("text", ["YWI", "YW I=", "YW\tI=", "*", "ä", "YWI=YWI="])
@pytest.mark.parametrize("getter", ["optional_base64", "base64"])
def test_what_is_not_base64_has_its_path(getter: str, text: str) -> None:
    with pytest.raises(FieldError, match=r"^key: not base64$"):
        get(getter, text)


@pytest.mark.parametrize(("value", "number"), [(1, 1), (1.0, 1), (-1e9, -(10**9)), (None, None)])
def test_a_whole_number_may_be_written_with_a_fraction_of_zero(
    value: object, number: int | None
) -> None:
    assert get("optional_whole_number", value) == number


@pytest.mark.parametrize("value", [1.5, "1", True])
def test_a_number_that_is_not_whole_has_its_path(value: object) -> None:
    with pytest.raises(FieldError, match=r"^key: expected an integer, got "):
        get("optional_whole_number", value)


def test_the_first_bad_object_of_many_is_found_without_the_others() -> None:
    """An array of a million empty objects takes little text, and no more memory than it must."""
    objects = Fields({"a": [{}, 5, *[{}] * 9]}).each_object("a")
    assert next(objects).path == "a[0]"
    with pytest.raises(FieldError, match="expected an object, got 5"):
        next(objects)

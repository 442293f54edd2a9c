from __future__ import annotations

import pytest

from imgproxy.fields import FieldError, Fields, PrivateFields


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
    for fields, words in (Fields(document), shown), (PrivateFields(document), kind):
        with pytest.raises(FieldError) as error:
            fields.object("a").object("b")
        assert str(error.value) == f"a.b: expected an object, got {words}"


def test_what_private_fields_hold_is_private() -> None:
    fields = PrivateFields({"a": [{"b": "secret"}], "c": ["x", {}]})
    with pytest.raises(FieldError, match=r"^a\[0\]\.b: expected an integer, got a string$"):
        fields.objects("a")[0].integer("b")
    with pytest.raises(FieldError, match=r"^c\[1\]: expected a string, got an object$"):
        fields.texts("c")
    with pytest.raises(FieldError, match=r"^d: missing \(expected an object\)$"):
        fields.object("d")


def test_a_path_is_fit_for_a_message() -> None:
    with pytest.raises(FieldError, match=r"^a \[31mb\.cc{200,}…: expected an object, got 1$"):
        Fields({"a\x1b[31m\nb".replace("\n", ""): {"c" * 1000: 1}}).object("a\x1b[31mb").object(
            "c" * 1000
        )

"""The images to choose from, in messages and for programs."""

from __future__ import annotations

import pytest

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.platform import Platform
from imgproxy.transports.local.listing import Choice, detail, listed

DIGEST = digests.compute(b"x")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(0, [], None), ":@0"),
        (Choice(3, ["a"], None), ":@3 (:a)"),
        (Choice(1, ["a:1", "b"], DIGEST), f":@1 (:a:1) (:b) {DIGEST}"),
        (Choice(1, [], DIGEST, Platform("linux", "arm")), f":@1 {DIGEST}"),
    ],
)
def test_a_choice_is_listed_as_it_is_typed(choice: Choice, words: str) -> None:
    assert listed([choice]) == words


def test_choices_are_listed_in_order() -> None:
    assert listed([Choice(n, [f"n{n}"], None) for n in (2, 0, 1)]) == (
        ":@2 (:n2), :@0 (:n0), :@1 (:n1)"
    )
    assert listed([]) == "none"


def test_no_more_are_listed_than_help() -> None:
    choices = [Choice(n, [], None) for n in range(20)]
    assert " and " not in listed(choices)
    assert listed([*choices, Choice(20, [], None)]) == f"{listed(choices)} and 1 more"
    many = listed([Choice(n, [f"t{m}" for m in range(1000)], None) for n in range(1000)])
    assert "t19" in many
    assert "t20" not in many
    assert many.endswith(" and 980 more")


def test_a_name_that_would_write_elsewhere_is_cleaned() -> None:
    words = listed([Choice(0, ["\x1b[31mred\n", "x" * 1000], None)])
    assert words.isprintable()
    assert "[31mred" in words
    assert len(words) < 400


def test_a_program_has_names_that_are_text() -> None:
    (choice,) = detail([Choice(0, ["a\x1b[31m\n", "b\udcff\u202ec"], None)])
    assert (choice["name"], choice["names"]) == ("a [31m", ["a [31m", "b c"])


def test_a_program_has_all_of_it() -> None:
    assert detail(
        [
            Choice(0, ["a", "b"], DIGEST, Platform("linux", "arm", "v7")),
            Choice(7, [], None),
        ]
    ) == [
        {
            "position": "@0",
            "name": "a",
            "names": ["a", "b"],
            "digest": str(DIGEST),
            "platform": "linux/arm/v7",
        },
        {"position": "@7", "name": None, "names": [], "digest": None, "platform": None},
    ]
    assert len(detail([Choice(n, [], None) for n in range(100)])) == 100

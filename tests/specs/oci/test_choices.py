"""The images to choose from, in messages and for programs."""

from __future__ import annotations

import pytest

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.choices import Choice, detail, listed, listed_by_digest, of
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.specs.oci.platform import Platform

DIGEST = digests.compute(b"x")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(0, [], None), ":@0"),
        (Choice(3, ["a"], None), ":@3 (:a)"),
        (Choice(1, ["a:1", "b"], DIGEST), f":@1 (:a:1) (:b) {DIGEST}"),
        (Choice(1, [], DIGEST, Platform("linux", "arm")), f":@1 {DIGEST} (linux/arm)"),
        (Choice(1, [], DIGEST, media_type=types.OCI_INDEX), f":@1 {DIGEST} (index)"),
        (
            Choice(1, ["a"], DIGEST, Platform("linux", "arm"), artifact_type="application/x.y"),
            f":@1 (:a) {DIGEST} (application/x.y, linux/arm)",
        ),
        (Choice(1, [], DIGEST, artifact_type=types.OCI_CONFIG), f":@1 {DIGEST}"),
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
    choices = [Choice(n, [], None) for n in range(10)]
    assert " and " not in listed(choices)
    assert listed([*choices, Choice(10, [], None)]) == f"{listed(choices)} and 1 more"
    many = listed([Choice(n, [f"t{m}" for m in range(1000)], None) for n in range(1000)])
    assert "t9" in many
    assert "t10" not in many
    assert many.endswith(" and 990 more")


def test_a_name_that_would_write_elsewhere_is_cleaned() -> None:
    words = listed([Choice(0, ["\x1b[31mred\n", "x" * 1000], None)])
    assert words.isprintable()
    assert "[31mred" in words
    assert len(words) < 400


def test_a_program_has_names_that_are_text() -> None:
    (choice,) = detail([Choice(0, ["a\x1b[31m\n", "b\udcff\u202ec"], None)])
    assert (choice["name"], choice["names"]) == ("a [31m", ["a [31m", "b c"])


def test_those_in_an_index_are_listed_by_what_names_them_anywhere() -> None:
    choices = [
        Choice(0, ["a"], DIGEST),
        Choice(4, [], DIGEST, Platform("linux", "arm"), artifact_type="a/\x1bb"),
    ]
    assert listed_by_digest(choices) == f"@{DIGEST} (:a), @{DIGEST} (a/ b, linux/arm)"


def test_an_entry_is_a_choice_with_all_its_names() -> None:
    entry = Descriptor(
        types.OCI_MANIFEST,
        DIGEST,
        7,
        platform=Platform("linux", "arm", "v7"),
        artifact_type="application/x.y",
        annotations=(
            ("org.opencontainers.image.ref.name", "1"),
            ("io.containerd.image.name", "quay.io/a/b:1"),
            ("x", "\x1b[31m"),
        ),
    )
    assert detail([of(3, entry)]) == [
        {
            "position": "@3",
            "name": "1",
            "names": ["1", "quay.io/a/b:1"],
            "digest": str(DIGEST),
            "kind": "artifact",
            "mediaType": types.OCI_MANIFEST,
            "artifactType": "application/x.y",
            "platform": "linux/arm/v7",
            "annotations": {
                "org.opencontainers.image.ref.name": "1",
                "io.containerd.image.name": "quay.io/a/b:1",
                "x": "[31m",
            },
            "size": 7,
            "path": [],
        }
    ]


def test_what_is_not_known_is_null() -> None:
    assert detail([Choice(7, [], None)]) == [
        {
            "position": "@7",
            "name": None,
            "names": [],
            "digest": None,
            "kind": "image",
            "mediaType": types.OCI_MANIFEST,
            "artifactType": None,
            "platform": None,
            "annotations": {},
            "size": None,
            "path": [],
        }
    ]
    assert len(detail([Choice(n, [], None) for n in range(100)])) == 100


def test_a_nested_one_has_the_way_to_it() -> None:
    (choice,) = detail([Choice(0, [], None, path=[DIGEST, DIGEST])])
    assert choice["path"] == [str(DIGEST), str(DIGEST)]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "image"),
        ({"media_type": types.DOCKER_MANIFEST}, "image"),
        ({"media_type": types.DOCKER_LIST}, "index"),
        ({"artifact_type": types.DOCKER_CONFIG}, "image"),
        ({"artifact_type": "application/x.y"}, "artifact"),
        ({"artifact_type": "application/x.y", "media_type": types.OCI_INDEX}, "artifact"),
    ],
)
def test_a_kind_is_one_word(fields: dict[str, str], kind: str) -> None:
    assert Choice(0, [], None, **fields).kind == kind  # type: ignore[arg-type]

"""Sideload patterns: imgproxy(1), SIDELOADING."""

from __future__ import annotations

import pytest

from imgproxy.config.sideload_pattern import Pattern, parse
from imgproxy.specs.oci.reference import parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


def paths(text: str, image: str) -> list[str]:
    return parse(text).paths(parse_reference(image))


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r"^column \d") as caught:
        parse(text)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/<name>/<ref>", "/a/acme/big/os/v1"),
        ("/a/<basename>-<ref>.tar.gz", "/a/os-v1.tar.gz"),
        ("/a/<ref>-<basename>", "/a/v1-os"),
        ("/<registry>/<name>/<ref>", "/quay.io:5000/acme/big/os/v1"),
        ("/srv/<name>/manifests/<ref>", "/srv/acme/big/os/manifests/v1"),
        ("/<ref><name>", "/v1acme/big/os"),
        ("/<ref>/<ref>/<name>/<name>", "/v1/v1/acme/big/os/acme/big/os"),
        ("/<basename>/<basename>/<ref>", "/os/os/v1"),
        ("//a b/%s/{}/$HOME/~/\\/<name>/<ref>/", "//a b/%s/{}/$HOME/~/\\/acme/big/os/v1/"),
        ("/ä/*?[x]/<name>@<ref>", "/ä/*?[x]/acme/big/os@v1"),
    ],
)
def test_placeholders_are_put_in_and_nothing_else_means_anything(text: str, path: str) -> None:
    assert paths(text, "quay.io:5000/acme/big/os:v1") == [path]


@pytest.mark.parametrize(
    ("image", "refs"),
    [
        ("quay.io/os", ["latest"]),
        ("quay.io/os:v1", ["v1"]),
        (f"quay.io/os@{DIGEST}", [DIGEST]),
        (f"quay.io/os:v1@{DIGEST}", [DIGEST, "v1"]),
    ],
)
def test_the_digest_stands_before_the_tag(image: str, refs: list[str]) -> None:
    assert paths("/<name>-<ref>", image) == [f"/os-{ref}" for ref in refs]


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("busybox", "/docker.io/library/busybox/latest"),
        ("docker.io/busybox:1", "/docker.io/library/busybox/1"),
        ("index.docker.io/a/b:1", "/docker.io/a/b/1"),
        ("[::1]:5000/a:1", "/[::1]:5000/a/1"),
        ("localhost/a:_", "/localhost/a/_"),
        ("Quay.IO/a:1", "/quay.io/a/1"),
        ("Quay.IO:443/a:1", "/quay.io/a/1"),
        ("LOCALHOST:05000/a:1", "/localhost:5000/a/1"),
        ("[0::1]/a:1", "/[::1]/a/1"),
    ],
)
def test_an_image_is_called_by_its_whole_name(image: str, path: str) -> None:
    assert paths("/<registry>/<name>/<ref>", image) == [path]


def test_a_path_may_be_asked_for_by_any_reference() -> None:
    reference = parse_reference("quay.io/acme/os:v1")
    assert parse("/<name>/<ref>").path(reference, "other") == "/acme/os/other"


@pytest.mark.parametrize("text", ["/<name>/<ref>", "/a/<ref>-<basename>.tar", "/<ref><name>"])
def test_a_pattern_is_written_as_it_is_read(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(text) == parse(str(parse(text)))
    assert isinstance(parse(text), Pattern)


UNKNOWN = "is none of <ref>, <name>, <basename>, <registry>"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "column 1: a pattern is an absolute path"),
        ("a/<name>/<ref>", "column 1: a pattern is an absolute path"),
        ("<registry>/<name>/<ref>", "column 1: a pattern is an absolute path"),
        ("./<name>/<ref>", "column 1: a pattern is an absolute path"),
        ("~/<name>/<ref>", "column 1: a pattern is an absolute path"),
        ("file:///<name>/<ref>", "column 1: a pattern is an absolute path"),
        ("/<name>\0/<ref>", "column 8: a path has no NUL"),
        ("/<name>/x", "column 10: <ref> is missing"),
        ("/<ref>/x", "column 9: <name> or <basename> is missing"),
        ("/<ref>/<registry>", "column 18: <name> or <basename> is missing"),
        ("/x", "column 3: <ref> is missing"),
        ("/", "column 2: <ref> is missing"),
        ("/<name>/<basename>/<ref>", "column 9: only one of <name> and <basename>"),
        ("/<basename>/<ref>/<name>", "column 19: only one of <name> and <basename>"),
        ("/<name>/<tag>/<ref>", f'column 9: "<tag>" {UNKNOWN}'),
        ("/<name>/<ref>/<>", f'column 15: "<>" {UNKNOWN}'),
        ("/<Name>/<ref>", f'column 2: "<Name>" {UNKNOWN}'),
        ("/< name>/<ref>", f'column 2: "< name>" {UNKNOWN}'),
        ("/<name|basename>/<ref>", f'column 2: "<name|basename>" {UNKNOWN}'),
        ("/<x\x1b\n>/<name>/<ref>", f'column 2: "<x >" {UNKNOWN}'),
        ("/<name>/<ref", 'column 9: "<" is unpaired'),
        ("/name>/<ref>", 'column 6: ">" is unpaired'),
        ("/<<name>>/<ref>", 'column 2: "<" is unpaired'),
        ("/<name>>/<ref>", 'column 8: ">" is unpaired'),
        ("/<name>/<ref>/a<", 'column 16: "<" is unpaired'),
    ],
)
def test_a_pattern_that_is_wrong_is_told_with_the_column(text: str, complaint: str) -> None:
    assert refusal(text) == complaint

"""One row for each key of a `[[registry]]` table, and for each mistake in it."""

from __future__ import annotations

from typing import Any

import pytest

from imgproxy.config import registry_tables as tables
from imgproxy.config.registry_tables import ALL, DIGEST_ONLY, TAG_ONLY, Mirror, Registry
from imgproxy.parsing.typed_fields import FieldError, Fields

SOURCE = "/etc/r.conf"


def parse(n: int = 0, /, **keys: Any) -> Registry:  # noqa: ANN401  (TOML is any)
    table = {key.replace("_", "-"): value for key, value in keys.items()}
    return tables.parse(Fields(table, f"registry[{n}]"), SOURCE)


def parse_mirror(registry: dict[str, Any], **keys: Any) -> Mirror:  # noqa: ANN401  (TOML is any)
    mirror = {key.replace("_", "-"): value for key, value in keys.items()}
    return parse(location="a.io", mirror=[mirror], **registry).mirrors[0]


def test_the_least() -> None:
    assert parse(location="a.io") == Registry(
        prefix="a.io",
        location="a.io",
        insecure=False,
        blocked=False,
        mirrors=(),
        field_path="registry[0]",
        source=SOURCE,
    )


def test_everything() -> None:
    mirrors = [
        {"location": "m.io/a", "insecure": True, "pull-from-mirror": "digest-only"},
        {"location": "n.io"},
    ]
    registry = parse(
        7, prefix="a.io/b", location="c.io/d", insecure=True, blocked=True, mirror=mirrors
    )
    assert registry == Registry(
        prefix="a.io/b",
        location="c.io/d",
        insecure=True,
        blocked=True,
        mirrors=(
            Mirror("m.io/a", insecure=True, pull=DIGEST_ONLY, field_path="registry[7].mirror[0]"),
            Mirror("n.io", insecure=False, pull=ALL, field_path="registry[7].mirror[1]"),
        ),
        field_path="registry[7]",
        source=SOURCE,
    )


@pytest.mark.parametrize(
    ("keys", "prefix", "location"),
    [
        ({"location": "a.io"}, "a.io", "a.io"),
        ({"location": "a.io//"}, "a.io", "a.io"),
        ({"location": "a.io", "prefix": ""}, "a.io", "a.io"),
        ({"location": "a.io/x/", "prefix": "b.io/y/"}, "b.io/y", "a.io/x"),
        ({"prefix": "*.a.io"}, "*.a.io", ""),
        ({"prefix": "*.a.io", "location": ""}, "*.a.io", ""),
        ({"prefix": "*.a.io", "location": "b.io/c"}, "*.a.io", "b.io/c"),
        ({"location": "*.a.io"}, "*.a.io", "*.a.io"),
        # Only URLs are refused here; a malformed reference is detected after the rewriting.
        ({"location": "a.io", "prefix": "/"}, "", "a.io"),
        ({"location": "no host", "prefix": "b.io"}, "b.io", "no host"),
        ({"location": "ftp://a.io", "prefix": "b.io"}, "b.io", "ftp://a.io"),
    ],
)
def test_prefix_and_location(keys: dict[str, str], prefix: str, location: str) -> None:
    registry = parse(**keys)
    assert (registry.prefix, registry.location) == (prefix, location)


@pytest.mark.parametrize(
    ("prefix", "is_wildcard"), [("*.a.io", True), ("a.io", False), ("*a.io", False)]
)
def test_a_wildcard(prefix: str, *, is_wildcard: bool) -> None:
    assert parse(prefix=prefix, location="b.io").is_wildcard is is_wildcard


@pytest.mark.parametrize(
    ("registry", "mirror", "pull"),
    [
        ({}, {}, ALL),
        ({}, {"pull_from_mirror": ""}, ALL),
        ({}, {"pull_from_mirror": "all"}, ALL),
        ({}, {"pull_from_mirror": "digest-only"}, DIGEST_ONLY),
        ({}, {"pull_from_mirror": "tag-only"}, TAG_ONLY),
        ({"mirror_by_digest_only": False}, {"pull_from_mirror": "all"}, ALL),
        ({"mirror_by_digest_only": True}, {}, DIGEST_ONLY),
        ({"mirror_by_digest_only": True}, {"pull_from_mirror": ""}, DIGEST_ONLY),
        ({"pull_from_mirror": ""}, {}, ALL),
    ],
)
def test_when_a_mirror_is_asked(
    registry: dict[str, Any], mirror: dict[str, Any], pull: str
) -> None:
    assert parse_mirror(registry, location="m.io", **mirror).pull == pull


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "registry[0]: location is missing, and so is prefix"),
        ({"location": ""}, "registry[0]: location is missing, and so is prefix"),
        ({"location": "/"}, "registry[0]: location is missing, and so is prefix"),
        (
            {"prefix": "a.io"},
            "registry[0].location: missing; only a prefix like *.example.com needs none",
        ),
        (
            {"prefix": "*a.io"},
            "registry[0].location: missing; only a prefix like *.example.com needs none",
        ),
        ({"location": 1}, "registry[0].location: expected a string, got 1"),
        ({"prefix": True}, "registry[0].prefix: expected a string, got true"),
        (
            {"location": "http://a.io"},
            'registry[0].location: expected host[:port][/path], got the URL "http://a.io"',
        ),
        (  # A password is not shown.
            {"location": "https://u:hunter2@a.io"},
            'registry[0].location: expected host[:port][/path], got the URL "…@a.io"',
        ),
        (
            {"location": "a.io", "prefix": "https://a.io/b"},
            'registry[0].prefix: expected host[:port][/path], got the URL "https://a.io/b"',
        ),
        (
            {"prefix": "*.a.io/b", "location": "a.io"},
            "registry[0].prefix: expected a wildcard like *.example.com, without port and"
            ' path; got "*.a.io/b"',
        ),
        (
            {"prefix": "*.a.io:5000"},
            "registry[0].prefix: expected a wildcard like *.example.com, without port and"
            ' path; got "*.a.io:5000"',
        ),
        (
            {"prefix": "*.a.io@b"},
            "registry[0].prefix: expected a wildcard like *.example.com, without port and"
            ' path; got "*.a.io@b"',
        ),
        (
            {"location": "*.a.io/b"},
            "registry[0].location: expected a wildcard like *.example.com, without port and"
            ' path; got "*.a.io/b"',
        ),
        (
            {"location": "a.io", "insecure": "yes"},
            'registry[0].insecure: expected true or false, got "yes"',
        ),
        (
            {"location": "a.io", "blocked": 1},
            "registry[0].blocked: expected true or false, got 1",
        ),
        (
            {"location": "a.io", "mirror_by_digest_only": "x"},
            'registry[0].mirror-by-digest-only: expected true or false, got "x"',
        ),
        (
            {"location": "a.io", "mirror": "b.io"},
            'registry[0].mirror: expected an array, got "b.io"',
        ),
        (
            {"location": "a.io", "mirror": [{"location": "b.io"}, "c.io"]},
            'registry[0].mirror[1]: expected an object, got "c.io"',
        ),
        (
            {"location": "a.io", "pull_from_mirror": "all"},
            "registry[0].pull-from-mirror: only a mirror may have it",
        ),
        (
            {"location": "a.io", "pull_from_mirror": 1},
            "registry[0].pull-from-mirror: expected a string, got 1",
        ),
    ],
)
def test_a_wrong_table(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(**keys)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("registry", "mirror", "message"),
    [
        ({}, {}, "location: missing (expected host[:port][/path])"),
        ({}, {"location": "/"}, "location: missing (expected host[:port][/path])"),
        ({}, {"location": ["m.io"]}, "location: expected a string, got an array"),
        (
            {},
            {"location": "https://m.io"},
            'location: expected host[:port][/path], got the URL "https://m.io"',
        ),
        (
            {},
            {"location": "m.io", "insecure": 0},
            "insecure: expected true or false, got 0",
        ),
        (
            {},
            {"location": "m.io", "pull_from_mirror": False},
            "pull-from-mirror: expected a string, got false",
        ),
        (
            {},
            {"location": "m.io", "pull_from_mirror": "never"},
            'pull-from-mirror: expected all, digest-only or tag-only, got "never"',
        ),
        (
            {"mirror_by_digest_only": True},
            {"location": "m.io", "pull_from_mirror": "digest-only"},
            "pull-from-mirror: must not be combined with mirror-by-digest-only",
        ),
    ],
)
def test_a_wrong_mirror(registry: dict[str, Any], mirror: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_mirror(registry, **mirror)
    assert str(caught.value) == f"registry[0].mirror[0].{message}"


# --- tables among each other -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"location": "a.io"}, None),
        ({"location": "b.io", "insecure": True, "blocked": True}, None),
        ({"location": "b.io", "prefix": "a.io", "insecure": True}, None),
        (
            {"location": "a.io", "insecure": True},
            "registry[1].insecure: contradicts registry[0], which has the same location (a.io)",
        ),
        (
            {"location": "a.io/", "prefix": "b.io", "blocked": True},
            "registry[1].blocked: contradicts registry[0], which has the same location (a.io)",
        ),
        *(
            (
                {"location": location, "blocked": True},
                f"registry[1].blocked: contradicts registry[0], which has the same location ({at})",
            )
            for location, at in (("A.io", "a.io"), ("a.io:443", "a.io"), ("a.IO:0443/", "a.io"))
        ),
        ({"location": "a.io:5000", "insecure": True}, None),
    ],
)
def test_agreement(second: dict[str, Any], message: str | None) -> None:
    registries = [parse(location="a.io"), parse(1, **second)]
    if message is None:
        tables.check_agreement(registries)
        return
    with pytest.raises(FieldError) as caught:
        tables.check_agreement(registries)
    assert str(caught.value) == message


def test_agreement_below_a_wildcard() -> None:
    registries = [parse(prefix="*.a.io"), parse(1, prefix="*.a.io", insecure=True)]
    with pytest.raises(FieldError, match=r"same location \(\*\.a\.io\)"):
        tables.check_agreement(registries)


def test_the_first_of_each_prefix_counts() -> None:
    first, second = parse(location="a.io"), parse(1, prefix="a.io", location="b.io")
    other = parse(2, location="c.io")
    assert tables.first_of_each([first, second, other]) == (first, other)
    assert list(tables.warnings([first, second, other])) == [
        "registry[1]: ignored, since registry[0] has the same prefix"
    ]


@pytest.mark.parametrize(
    "prefix",
    [
        "a.io",
        "A.io",
        "localhost",
        "host:5000",
        "a.io:5000/x",
        "[::1]:5000/x",
        "docker.io",
        "docker.io/library",
        "docker.io/alpine",
        "a.io/x/y",
        "*.a.io",
        "*.io",
    ],
)
def test_a_prefix_that_can_fit(prefix: str) -> None:
    assert list(tables.warnings([parse(prefix=prefix, location="a.io")])) == []


@pytest.mark.parametrize(
    "prefix",
    [
        "host",  # without dot and port it is the name of a repository
        "busybox",
        "a.io/x:1",
        "a.io/x@sha256:" + "0" * 64,
        "a.io/X",
        "a.io:99999",
        "oci://a.io",
        "a.*.io",
        "*",
        "*.a_b.io",
        "no host",
        "/",
    ],
)
def test_a_prefix_that_cannot_fit(prefix: str) -> None:
    (doubt,) = tables.warnings([parse(prefix=prefix, location="a.io")])
    assert doubt == (
        f'registry[0]: the prefix "{prefix.rstrip("/")}" matches no image; expected'
        " host[:port][/path], without tag and digest, or *.example.com"
    )

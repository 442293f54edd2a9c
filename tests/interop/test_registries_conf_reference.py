"""The same configuration, the same image: the endpoints that skopeo asks, and those that we do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import skopeo
from support.home import mirror, table

from imgproxy.config import endpoints, registries_conf
from imgproxy.errors import ConfigurationError, DeniedError
from imgproxy.specs.oci.reference import parse_reference

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "@sha256:" + "0123456789abcdef" * 4


MIRRORS = table("", "a.io") + mirror("m.io/x") + mirror("n.io", "insecure = true")
BLOCKED = table("", "a.io", "blocked = true")

# A configuration, and images that it has something to say about.
CONFIGURATIONS: list[tuple[str, list[str]]] = [
    ("", ["a.io/x", "busybox", "localhost:5000/x:1", f"a.io/x{DIGEST}"]),
    # prefixes
    (table("a.io", "b.io"), ["a.io/x:1", "a.io:5000/x:1", "aa.io/x:1", "x.a.io/x:1"]),
    (table("a.io/x", "b.io/y"), ["a.io/x:1", "a.io/x/z:1", "a.io/xx:1", f"a.io/x{DIGEST}"]),
    (table("a.io:5000", "b.io"), ["a.io:5000/x:1", "a.io/x:1"]),
    (table("a.io/", "b.io/"), ["a.io/x:1"]),
    (table("docker.io", "b.io"), ["busybox", "index.docker.io/busybox"]),
    (table("docker.io/library", "b.io"), ["busybox", "n/busybox"]),
    (table("a.io/x:1", "b.io/y"), ["a.io/x:1"]),
    (table("a.io", "b.io") + table("a.io/x", "c.io/x"), ["a.io/x:1", "a.io/y:1"]),
    (table("a.io/x", "c.io/x") + table("a.io", "b.io"), ["a.io/x:1", "a.io/y:1"]),
    (table("a.io", "b.io") + table("a.io", "c.io"), ["a.io/x:1"]),
    (table("", "a.io", "insecure = true"), ["a.io/x:1", "a.io:80/x:1"]),
    # wildcards
    (
        table("*.a.io", "b.io"),
        ["x.a.io/y:1", "z.x.a.io/y:1", "a.io/y:1", "x.a.io:5000/y:1", "x.a.iox/y:1"],
    ),
    (table("*.a.io", "b.io/c"), ["x.a.io/y:1", "c.com/x.a.io/y:1", "xa.io/y:1"]),
    (table("*.a.io", ""), ["x.a.io/y:1"]),
    (table("*.a.io", "", "insecure = true") + mirror("m.io/n"), ["x.a.io/y:1", "x.a.io:5/y:1"]),
    (table("*.a.io", "b.io") + table("*.x.a.io", "c.io"), ["y.x.a.io/y:1", "x.a.io/y:1"]),
    (table("*.a.io", "b.io") + table("xx.a.io:5000", "c.io"), ["xx.a.io:5000/y:1"]),
    # mirrors
    (MIRRORS, ["a.io/x:1", f"a.io/x{DIGEST}", "b.io/x"]),
    (
        table("", "a.io", "mirror-by-digest-only = true") + mirror("m.io"),
        ["a.io/x:1", f"a.io/x{DIGEST}"],
    ),
    *(
        (
            table("", "a.io") + mirror("m.io", f'pull-from-mirror = "{pull}"') + mirror("n.io"),
            ["a.io/x:1", f"a.io/x{DIGEST}"],
        )
        for pull in ("", "all", "digest-only", "tag-only")
    ),
    (table("", "a.io") + mirror("m.io", "insecure = true"), ["a.io/x:1"]),
    # blocked
    (BLOCKED, ["a.io/x:1", "b.io/x:1"]),
    (BLOCKED + mirror("m.io"), ["a.io/x:1"]),
    (BLOCKED + table("", "a.io/x"), ["a.io/x:1", "a.io/y:1"]),
    (MIRRORS + table("", "n.io", "blocked = true"), ["a.io/x:1"]),
    (BLOCKED + table("c.io", "a.io/z", "blocked = true"), ["c.io/x:1"]),
    # rewriting to what is no image
    (table("a.io/x", "a.io"), ["a.io/x:1", "a.io/x/y:1"]),
    (table("a.io", "mirror"), ["a.io/x:1"]),
    (table("a.io", "docker.io"), ["a.io/x:1", "a.io/n/x:1"]),
    (table("a.io", "localhost"), ["a.io/x:1"]),
    (table("a.io", "b.io/c"), ["a.io:5000/x:1"]),
    (table("a.io", "b.io:80"), ["a.io:5000/x:1", "a.io/x:1"]),
    (table("a.io/x", "b.io/y:2"), ["a.io/x:1"]),
    (table("", "a.io") + mirror("mirror"), ["a.io/x:1"]),
    # keys
    ('[[Registry]]\nPrefix = "a.io"\nLOCATION = "b.io"\nInsecure = true', ["a.io/x:1"]),
    (f"colour = 1\n{MIRRORS}\ncolour = 1", ["a.io/x:1"]),
    ("[registries.search]\nregistries = []\n" + MIRRORS, ["a.io/x:1"]),
    # version 1
    (
        '[registries.block]\nregistries = ["a.io/x"]\n[registries.insecure]\nregistries = ["a.io"]',
        ["a.io/x:1", "a.io/y:1"],
    ),
    ('[registries.search]\nregistries = ["a.io"]\n' + MIRRORS, ["a.io/x:1"]),
    # broken files
    *(
        (config, ["a.io/x:1"])
        for config in (
            "a b",
            "[[registry]]",
            table("a.io", ""),
            table("", "http://a.io"),
            table("https://a.io", "a.io"),
            table("*.a.io/x", "a.io"),
            table("*.a.io:5000", ""),
            table("", "a.io", "insecure = 'yes'"),
            table("", "a.io", "blocked = 1"),
            table("", "a.io", "pull-from-mirror = 'all'"),
            table("", "a.io") + mirror(""),
            table("", "a.io") + mirror("http://m.io"),
            table("", "a.io") + mirror("m.io", "pull-from-mirror = 'never'"),
            table("", "a.io", "mirror-by-digest-only = true")
            + mirror("m.io", "pull-from-mirror = 'all'"),
            table("", "a.io") + table("", "a.io", "insecure = true"),
            table("b.io", "a.io") + table("", "a.io", "blocked = true"),
            "[registry]\nlocation = 'a.io'",
            "unqualified-search-registries = 'a.io'",
            "unqualified-search-registries = ['a.io/x']",
            "unqualified-search-registries = ['https://a.io']",
            "unqualified-search-registries = ['']",
            "credential-helpers = 'x'",
            "short-name-mode = 'Enforcing'",
            "[aliases]\n'a.io/x' = 'a.io/x'",
            "[aliases]\n'x:1' = 'a.io/x'",
            "[aliases]\n'X' = 'a.io/x'",
            "[aliases]\nx = 'y'",
            "[aliases]\nx = 'a.io/x:1'",
            "[aliases]\nx = 1",
        )
    ),
]


def theirs(config: str, image: str, home: Path) -> tuple[str, list[skopeo.Asked]]:
    """Return what skopeo does: `broken` file, a location that makes no `name`, or `asked`."""
    path = home / "registries.conf"
    path.write_text(config)
    attempt = skopeo.inspect(image, home, "--registries-conf", str(path))
    if "loading registries configuration" in attempt.failure:
        return "broken", []
    return ("name" if "rewriting reference" in attempt.failure else "asked"), attempt.asked


def ours(config: str, image: str) -> tuple[str, list[skopeo.Asked]]:
    try:
        file = registries_conf.parse(config.encode(), "registries.conf", version_1=True)
    except ConfigurationError:
        return "broken", []
    tables = registries_conf.merge([file]).registries
    try:
        found = endpoints.find(parse_reference(image), tables)
    except ConfigurationError:
        return "name", []
    except DeniedError as error:
        refused = [text.partition(": ")[0] for text in error.message.split("; ")]
        return "asked", [skopeo.Asked(each, insecure=False, blocked=True) for each in refused]
    return "asked", [
        skopeo.Asked(
            str(endpoint.reference),
            insecure=endpoint.insecure and not endpoint.refusal,
            blocked=bool(endpoint.refusal),
        )
        for endpoint in found
    ]


@pytest.mark.parametrize(
    ("config", "image"),
    [
        pytest.param(config, image, id=f"{n}-{image.replace(DIGEST, '@D')}")
        for n, (config, images) in enumerate(CONFIGURATIONS)
        for image in images
    ],
)
def test_the_endpoints_are_those_of_skopeo(config: str, image: str, tmp_path: Path) -> None:
    assert ours(config, image) == theirs(config, image, tmp_path), config


# Spellings of one registry, the endpoint that we ask, and the one that skopeo does.
SPELLINGS = [
    (table("index.docker.io", "b.io"), "busybox", "b.io/library/busybox:latest", None),
    (table("A.io", "b.io"), "a.io/x:1", "b.io/x:1", None),
    (table("a.io", "b.io"), "A.io/x:1", "b.io/x:1", "A.io/x:1"),
    (table("a.io/x", "b.io/x"), "a.io:443/x/y:1", "b.io/x/y:1", None),
    (table("a.io:443", "b.io"), "a.io/x:1", "b.io/x:1", None),
    (table("a.io", "b.io"), "a.io:443/x:1", "b.io/x:1", "b.io:443/x:1"),
]


@pytest.mark.parametrize(("config", "image", "endpoint", "by_skopeo"), SPELLINGS)
def test_where_spellings_are_compared_we_differ_on_purpose(
    config: str, image: str, endpoint: str, by_skopeo: str | None, tmp_path: Path
) -> None:
    """Skopeo compares text, so that a block or a mirror is evaded by another spelling."""
    unchanged = str(parse_reference(image))
    assert ours(config, image) == ("asked", [skopeo.Asked(endpoint, insecure=False, blocked=False)])
    asked = [skopeo.Asked(by_skopeo or unchanged, insecure=False, blocked=False)]
    assert theirs(config, image, tmp_path) == ("asked", asked)

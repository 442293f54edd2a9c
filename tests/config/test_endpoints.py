"""Matching and rewriting: one row for each rule and each quirk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.home import mirror, table

from imgproxy.config import endpoints, registries_conf
from imgproxy.config.endpoints import Endpoint
from imgproxy.errors import ConfigurationError, DeniedError
from imgproxy.specs.oci.reference import parse_reference

if TYPE_CHECKING:
    from imgproxy.config.registry_tables import Registry

DIGEST = "@sha256:" + "0123456789abcdef" * 4


def find(config: str, image: str, *, mirrors: bool = True) -> list[Endpoint]:
    """Find the endpoints with a configuration: lines as in a file, or `prefix -> location`."""
    lines = [
        f'[[registry]]\nprefix = "{line.split()[0]}"\nlocation = "{line.split()[2]}"'
        if "->" in line
        else line
        for line in config.splitlines()
    ]
    file = registries_conf.parse("\n".join(lines).encode(), "r.conf")
    merged = registries_conf.merge([file])
    return endpoints.find(parse_reference(image), merged.registries, mirrors=mirrors)


def names(found: list[Endpoint]) -> list[str]:
    return [str(endpoint.reference).replace(DIGEST, "@D") for endpoint in found]


def test_nothing_configured() -> None:
    assert find("", "a.io/x:1") == [Endpoint(parse_reference("a.io/x:1"))]


# --- which table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "image", "physical"),
    [
        # the whole name, or up to a separator
        ("a.io -> b.io", "a.io/x:1", "b.io/x:1"),
        ("a.io/x -> b.io/y", "a.io/x:1", "b.io/y:1"),
        ("a.io/x -> b.io/y", "a.io/x/z:1", "b.io/y/z:1"),
        ("a.io/x -> b.io/y", "a.io/xx:1", "a.io/xx:1"),
        ("a.io -> b.io", "aa.io/x:1", "aa.io/x:1"),
        ("a.io -> b.io", "a.iox.io/x:1", "a.iox.io/x:1"),
        ("a.io -> b.io", "x.a.io/x:1", "x.a.io/x:1"),
        ("a.io/x/y -> b.io", "a.io/x:1", "a.io/x:1"),
        ("a.io:5000 -> b.io", "a.io:5000/x:1", "b.io/x:1"),
        ("a.io:5000 -> b.io", "a.io/x:1", "a.io/x:1"),
        ("a.io:500 -> b.io", "a.io:5000/x:1", "a.io:5000/x:1"),
        ("localhost -> b.io", "localhost/x:1", "b.io/x:1"),
        ("[::1]:5000 -> b.io", "[::1]:5000/x:1", "b.io/x:1"),
        ("[::1] -> b.io", "[::1]:5000/x:1", "b.io:5000/x:1"),
        # a host without a port is a prefix of the one with it, and the port stays
        ("a.io -> b.io", "a.io:5000/x:1", "b.io:5000/x:1"),
        # tags and digests are not compared
        ("a.io/x:1 -> b.io/y", "a.io/x:1", "a.io/x:1"),
        (f"a.io/x{DIGEST} -> b.io/y", f"a.io/x{DIGEST}", "a.io/x@D"),
        # Docker Hub's names in full form
        ("docker.io -> b.io", "busybox", "b.io/library/busybox:latest"),
        ("docker.io/library -> b.io", "busybox", "b.io/busybox:latest"),
        ("docker.io/busybox -> b.io/x", "busybox", "docker.io/library/busybox:latest"),
        ("docker.io -> b.io", "index.docker.io/busybox", "b.io/library/busybox:latest"),
        ("index.docker.io -> b.io", "busybox", "b.io/library/busybox:latest"),
        ("registry-1.docker.io -> b.io", "busybox", "b.io/library/busybox:latest"),
        ("docker.io -> b.io", "registry-1.docker.io/a/b:1", "b.io/a/b:1"),
        # all spellings of a host
        ("A.io -> b.io", "a.io/x:1", "b.io/x:1"),
        ("a.io -> B.IO", "A.IO/x:1", "b.io/x:1"),
        ("a.io:443/x -> b.io", "a.io/x/y:1", "b.io/y:1"),
        ("a.io/x -> b.io", "a.io:443/x/y:1", "b.io/y:1"),
        ("a.io:443 -> b.io:5000", "A.io:0443/x:1", "b.io:5000/x:1"),
        ("a.io -> b.io:5000", "a.io:443/x:1", "b.io:5000/x:1"),
        ("127.0.0.1:5000 -> b.io", "127.1:5000/x:1", "b.io/x:1"),
        ("[0::1]:5000 -> b.io", "[::1]:5000/x:1", "b.io/x:1"),
        # which does not make of port 443 another one
        ("a.io:443 -> b.io", "a.io:5000/x:1", "a.io:5000/x:1"),
        ("a.io:443 -> b.io", "a.io:80/x:1", "a.io:80/x:1"),
        ("a.io -> b.io\na.io:443/x -> c.io", "a.io:5000/x/y:1", "b.io:5000/x/y:1"),
        # the longest prefix applies, in any order
        ("a.io -> b.io\na.io/x -> c.io/x", "a.io/x:1", "c.io/x:1"),
        ("a.io/x -> c.io/x\na.io -> b.io", "a.io/x:1", "c.io/x:1"),
        ("a.io/x/y -> c.io/x\na.io -> b.io", "a.io/x:1", "b.io/x:1"),
        ("a.io -> b.io\na.io:5000 -> c.io", "a.io:5000/x:1", "c.io/x:1"),
    ],
)
def test_prefixes(config: str, image: str, physical: str) -> None:
    assert names(find(config, image)) == [physical]


@pytest.mark.parametrize(
    ("config", "image", "physical"),
    [
        ("*.a.io -> b.io", "x.a.io/y:1", "b.io/y:1"),
        ("*.A.io -> b.io", "X.a.IO/y:1", "b.io/y:1"),
        ("*.a.io -> b.io", "x.a.io:443/y:1", "b.io/y:1"),
        ("*.a.io -> b.io", "z.x.a.io/y:1", "b.io/y:1"),
        ("*.io -> b.io", "x.a.io/y:1", "b.io/y:1"),
        ("*.a.io -> b.io/c", "x.a.io/y:1", "b.io/c/y:1"),
        ("*.a.io -> b.io", f"x.a.io/y{DIGEST}", "b.io/y@D"),
        # not the domain itself, not another one with the same end, not in a path
        ("*.a.io -> b.io", "a.io/y:1", "a.io/y:1"),
        ("*.a.io -> b.io", "xa.io/y:1", "xa.io/y:1"),
        ("*.a.io -> b.io", "x.a.iox/y:1", "x.a.iox/y:1"),
        ("*.a.io -> b.io", "x.a.io.b/y:1", "x.a.io.b/y:1"),
        ("*.a.io -> b.io", "c.com/x.a.io/y:1", "c.com/x.a.io/y:1"),
        ("*.a.io -> b.io", "[::1]:5000/y:1", "[::1]:5000/y:1"),
        # the port is not a part of the match, and stays
        ("*.sub.a.io -> b.io", "x.sub.a.io:5000/y:1", "b.io:5000/y:1"),
        # the end of the host counts, however often the domain occurs in it
        ("*.a.io -> b.io", "x.a.io.a.io/y:1", "b.io/y:1"),
        ("*.a.io -> b.io", "x.a.ioo.a.io/y:1", "b.io/y:1"),
        # the length of a wildcard is that of its text
        ("*.a.io -> b.io\n*.x.a.io -> c.io", "y.x.a.io/y:1", "c.io/y:1"),
        ("*.x.a.io -> c.io\ny.x.a.io:5000 -> d.io", "y.x.a.io:5000/y:1", "d.io/y:1"),
        ("*.x.a.io -> c.io\nx.a.io -> d.io", "y.x.a.io/y:1", "c.io/y:1"),
        # as long as the host's own table, which is more specific
        ("*.a.io -> b.io\nx.a.io -> c.io", "x.a.io/y:1", "c.io/y:1"),
        ("x.a.io -> c.io\n*.a.io -> b.io", "x.a.io/y:1", "c.io/y:1"),
    ],
)
def test_wildcards(config: str, image: str, physical: str) -> None:
    assert names(find(config, image)) == [physical]


def test_a_wildcard_without_location_leaves_names_alone() -> None:
    config = """
        [[registry]]
        prefix = "*.a.io"
        insecure = true
        [[registry.mirror]]
        location = "m.io/n"
    """
    assert find(config, "x.a.io/y:1") == [
        Endpoint(
            parse_reference("m.io/n/y:1"), is_mirror=True, source="registry[0].mirror[0] of r.conf"
        ),
        Endpoint(parse_reference("x.a.io/y:1"), insecure=True, source="registry[0] of r.conf"),
    ]


@pytest.mark.parametrize("image", ["a.io/x:1", f"a.io/x{DIGEST}", f"a.io/x:1{DIGEST}"])
def test_tag_and_digest_stay(image: str) -> None:
    expected = [image.replace("a.io", "b.io/c").replace(DIGEST, "@D")]
    assert names(find("a.io -> b.io/c", image)) == expected


# --- mirrors -----------------------------------------------------------------------------------

MIRRORS = """
    [[registry]]
    location = "a.io"
    mirror-by-digest-only = {by_digest}
    [[registry.mirror]]
    location = "one.io/hub"
    {one}
    [[registry.mirror]]
    location = "two.io"
    insecure = true
    {two}
"""


def test_mirrors_first_in_order_and_the_primary_last() -> None:
    config = MIRRORS.format(by_digest="false", one="", two="")
    assert find(config, "a.io/x:1") == [
        Endpoint(
            parse_reference("one.io/hub/x:1"),
            is_mirror=True,
            source="registry[0].mirror[0] of r.conf",
        ),
        Endpoint(
            parse_reference("two.io/x:1"),
            insecure=True,
            is_mirror=True,
            source="registry[0].mirror[1] of r.conf",
        ),
        Endpoint(parse_reference("a.io/x:1"), source="registry[0] of r.conf"),
    ]


def test_the_primary_only() -> None:
    config = MIRRORS.format(by_digest="false", one="", two="")
    assert names(find(config, "a.io/x:1", mirrors=False)) == ["a.io/x:1"]


@pytest.mark.parametrize(
    ("image", "expected"), [("a.io/x", True), ("b.io/x", False), ("c.io", False)]
)
def test_whether_there_are_mirrors(image: str, *, expected: bool) -> None:
    """Whatever they are asked for."""
    config = table("", "a.io") + mirror("m.io", 'pull-from-mirror = "tag-only"') + table("", "b.io")
    tables = registries_conf.merge([registries_conf.parse(config.encode(), "r.conf")]).registries
    for reference in (f"{image}/y:1", f"{image}/y{DIGEST}"):
        assert endpoints.has_mirrors(parse_reference(reference), tables) is expected


@pytest.mark.parametrize(
    ("by_digest", "one", "two", "for_tag", "for_digest"),
    [
        ("false", "", "", "12", "12"),
        ("true", "", "", "", "12"),
        ("false", "all", "all", "12", "12"),
        ("false", "digest-only", "all", "2", "12"),
        ("false", "tag-only", "", "12", "2"),
        ("false", "tag-only", "digest-only", "1", "2"),
    ],
)
def test_mirrors_by_tag_and_by_digest(
    by_digest: str, one: str, two: str, for_tag: str, for_digest: str
) -> None:
    config = MIRRORS.format(
        by_digest=by_digest,
        one=f'pull-from-mirror = "{one}"' if one else "",
        two=f'pull-from-mirror = "{two}"' if two else "",
    )
    hosts = {"one.io": "1", "two.io": "2", "a.io": ""}

    def asked(image: str) -> str:
        return "".join(hosts[endpoint.reference.registry] for endpoint in find(config, image))

    assert asked("a.io/x:1") == for_tag
    assert asked(f"a.io/x{DIGEST}") == for_digest
    assert asked(f"a.io/x:1{DIGEST}") == for_digest


# --- what cannot be rewritten ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "image", "reason"),
    [
        # a host alone is not an image
        ("a.io/x -> a.io", "a.io/x:1", '"a.io:1" is not the full name of an image'),
        (
            "a.io/x -> a.io",
            f"a.io/x{DIGEST}",
            f'"a.io{DIGEST}" is not the full name of an image',
        ),
        # no defaults apply to a location: neither a registry nor `library/`
        ("a.io -> mirror", "a.io/x:1", '"mirror/x:1" is not the full name of an image'),
        ("a.io -> docker.io", "a.io/x:1", '"docker.io/x:1" is not the full name of an image'),
        (
            "a.io -> index.docker.io",
            "a.io/x:1",
            '"index.docker.io/x:1" is not the full name of an image',
        ),
        # a port that stays must have a host before it
        (
            "a.io -> b.io/c",
            "a.io:5000/x:1",
            'the image name "b.io/c:5000/x:1": the tag "5000/x:1" is malformed',
        ),
        (
            "a.io -> b.io:80",
            "a.io:5000/x:1",
            'the image name "b.io:80:5000/x:1": the registry "b.io:80:5000" is malformed',
        ),
        (
            "a.io/x -> b.io/y:2",
            "a.io/x:1",
            'the image name "b.io/y:2:1": the tag "2:1" is malformed',
        ),
        ("a.io -> B.io/Y", "a.io/x:1", 'the image name "B.io/Y/x:1": the repository must be'),
        ("*.a.io -> *.b.io", "x.a.io/y:1", 'the image name "*.b.io/y:1": the registry'),
    ],
)
def test_rewriting_to_no_image(config: str, image: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find(config, image)
    expected = f"r.conf: registry[0].location: rewriting {image}: {reason}"
    assert caught.value.message.startswith(expected)
    assert caught.value.detail == {"file": "r.conf"}


def test_a_location_with_a_tag_serves_digests() -> None:
    found = find("a.io/x -> b.io/y:2", f"a.io/x{DIGEST}")
    assert names(found) == ["b.io/y:2@D"]


def test_a_mirror_to_no_image_is_named() -> None:
    config = """
        [[registry]]
        location = "a.io"
        [[registry.mirror]]
        location = "mirror"
    """
    with pytest.raises(ConfigurationError, match=r"^r\.conf: registry\[0\]\.mirror\[0\]\.location"):
        find(config, "a.io/x:1")
    assert names(find(config, "a.io/x:1", mirrors=False)) == ["a.io/x:1"]


# --- blocked -----------------------------------------------------------------------------------

BLOCKED = "the registry {} is blocked by registry[{}] of r.conf"


@pytest.mark.parametrize(
    ("config", "image", "message"),
    [
        (
            '[[registry]]\nlocation = "a.io"\nblocked = true',
            "a.io/x:1",
            f"a.io/x:1: {BLOCKED.format('a.io', 0)}",
        ),
        (
            '[[registry]]\nprefix = "*.a.io"\nblocked = true',
            "x.a.io/x:1",
            f"x.a.io/x:1: {BLOCKED.format('*.a.io', 0)}",
        ),
        # a location elsewhere does not evade the block
        (
            'b.io -> b.io\n[[registry]]\nprefix = "a.io"\nlocation = "b.io/c"\nblocked = true',
            "a.io/x:1",
            f"b.io/c/x:1: {BLOCKED.format('a.io', 1)}",
        ),
        # the mirror's own location is blocked
        (
            'a.io -> b.io/c\n[[registry]]\nlocation = "b.io"\nblocked = true',
            "a.io/x:1",
            f"b.io/c/x:1: {BLOCKED.format('b.io', 1)}",
        ),
        # all endpoints are blocked
        (
            """
            [[registry]]
            location = "a.io"
            blocked = true
            [[registry.mirror]]
            location = "b.io"
            [[registry]]
            location = "b.io"
            blocked = true
            """,
            "a.io/x:1",
            f"b.io/x:1: {BLOCKED.format('b.io', 1)}; a.io/x:1: {BLOCKED.format('a.io', 0)}",
        ),
    ],
)
def test_blocked(config: str, image: str, message: str) -> None:
    with pytest.raises(DeniedError) as caught:
        find(config, image)
    assert caught.value.message == message


SPELLINGS = [
    ("a.io", ["A.io", "a.io:443", "A.IO:0443"]),
    ("A.io:0443", ["a.io", "a.io:443"]),
    ("localhost:5000", ["LOCALHOST:5000", "localhost:05000"]),
    ("*.A.io", ["x.a.io", "X.a.io:443", "x.a.IO:5000"]),
    ("docker.io", ["index.docker.io", "Docker.IO", "docker.io:443", "registry-1.docker.io"]),
    ("registry-1.docker.io", ["docker.io", "registry-1.docker.io:443"]),
    ("[::1]:5000", ["[0:0:0:0:0:0:0:1]:5000", "[::0001]:05000"]),
    ("127.0.0.1:5000", ["127.1:5000", "0x7f000001:5000", "[::ffff:7f00:1]:5000"]),
    ("a.io/ns", ["A.io:443/ns"]),
]


@pytest.mark.parametrize(
    ("prefix", "written"), [(prefix, each) for prefix, names in SPELLINGS for each in names]
)
def test_no_spelling_evades_a_block(prefix: str, written: str) -> None:
    """Each leads to the same server, and whoever blocked it meant the server."""
    table = f'[[registry]]\nprefix = "{prefix}"\nlocation = "{prefix.removeprefix("*.")}"\n'
    with pytest.raises(DeniedError, match="is blocked by"):
        find(table + "blocked = true", f"{written}/library/x:1")
    # A location, of a rewritten name or of a mirror, is another road to the same place.
    blocked, reference = f"{table}blocked = true", parse_reference("c.io/library/x:1")
    rewritten = f"[[registry]]\nprefix = 'c.io'\nlocation = '{written}'"
    with pytest.raises(DeniedError, match="is blocked by"):
        endpoints.find(reference, read(rewritten, blocked))
    mirrored = f"[[registry]]\nlocation = 'c.io'\n[[registry.mirror]]\nlocation = '{written}'"
    found = endpoints.find(reference, read(mirrored, blocked))
    assert [bool(endpoint.refusal) for endpoint in found] == [True, False]


def read(*files: str) -> tuple[Registry, ...]:
    every = [registries_conf.parse(file.encode(), f"{n}.conf") for n, file in enumerate(files)]
    return registries_conf.merge(every).registries


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("written", ["a.io", "A.io", "a.io:443", "A.IO:443"])
def test_no_other_spelling_lifts_what_is_forbidden(written: str, order: int) -> None:
    """A later file replaces the table of a prefix, but only of the prefix that it names."""
    stricter = '[[registry]]\nlocation = "a.io"\nblocked = true'
    laxer = '[[registry]]\nlocation = "A.io:443"\ninsecure = true'
    reference = parse_reference(f"{written}/x:1")
    with pytest.raises(DeniedError, match=r"the registry a\.io is blocked"):
        endpoints.find(reference, read(*[stricter, laxer][::order]))
    secure = stricter.replace("blocked", "insecure").replace("true", "false")
    (found,) = endpoints.find(reference, read(*[secure, laxer][::order]))
    assert not found.insecure


def test_of_two_spellings_the_later_one_applies() -> None:
    one = '[[registry]]\nprefix = "a.io"\nlocation = "one.io"'
    two = '[[registry]]\nprefix = "A.io"\nlocation = "two.io"'
    assert names(endpoints.find(parse_reference("a.io/x:1"), read(one, two))) == ["two.io/x:1"]
    assert names(endpoints.find(parse_reference("a.io/x:1"), read(two, one))) == ["one.io/x:1"]


@pytest.mark.parametrize(
    ("location", "image", "physical"),
    [
        ("a.io", "a.io/x:1", "a.io/x:1"),
        ("a.io", "a.io:443/x:1", "a.io:443/x:1"),
        ("a.io:443", "a.io/x:1", "a.io:443/x:1"),
        ("a.io:443", "A.IO:443/x:1", "a.io:443/x:1"),
    ],
)
def test_port_443_is_kept_for_plain_http(location: str, image: str, physical: str) -> None:
    """Without TLS it is another port than that of the bare host, which nobody named here."""
    config = f'[[registry]]\nlocation = "{location}"\ninsecure = true'
    (found,) = find(config, image)
    assert (str(found.reference), found.insecure) == (physical, True)


BLOCKED_BESIDE_OTHERS = """
    [[registry]]
    location = "a.io"
    blocked = {origin}
    [[registry.mirror]]
    location = "one.io"
    [[registry.mirror]]
    location = "two.io"
    [[registry]]
    location = "two.io"
    blocked = {mirror}
"""


def test_mirrors_of_a_blocked_registry_are_asked() -> None:
    """The purpose is to keep a host inside its network."""
    found = find(BLOCKED_BESIDE_OTHERS.format(origin="true", mirror="false"), "a.io/x:1")
    refusal = f"a.io/x:1: {BLOCKED.format('a.io', 0)}"
    assert [endpoint.refusal for endpoint in found] == ["", "", refusal]


def test_a_blocked_mirror_is_not_asked() -> None:
    found = find(BLOCKED_BESIDE_OTHERS.format(origin="false", mirror="true"), "a.io/x:1")
    refusal = f"two.io/x:1: {BLOCKED.format('two.io', 1)}"
    assert [endpoint.refusal for endpoint in found] == ["", refusal, ""]


def test_a_blocked_registry_without_its_mirrors() -> None:
    config = '[[registry]]\nlocation = "a.io"\nblocked = true\n[[registry.mirror]]\nlocation="b.io"'
    assert names(find(config, "a.io/x:1")) == ["b.io/x:1", "a.io/x:1"]
    with pytest.raises(DeniedError):
        find(config, "a.io/x:1", mirrors=False)


def test_a_more_specific_table_lifts_the_block() -> None:
    config = '[[registry]]\nlocation = "a.io"\nblocked = true\n[[registry]]\nlocation = "a.io/x"'
    (endpoint,) = find(config, "a.io/x:1")
    assert not endpoint.refusal

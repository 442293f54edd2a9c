"""registries.conf in front of real registries: who is asked, and who is passed over.

skopeo is given the same files where it does the same.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.damage import flip, lose, respace, shorten
from support.home import REGISTRIES_CONF, mirror, table
from support.networks import Cut, Line, line_to
from support.servers import docker_registry, require, stored_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child, Reply

DROP_INS = ".config/containers/registries.conf.d"
INSECURE = "insecure = true"

# The port of a service that has gone out of use.
DEAD = "127.0.0.1:9"


class Lines(NamedTuple):
    """Lines to the same registry under three names."""

    first: Line
    second: Line
    primary: Line

    def spell(self, text: str, registry: Registry) -> str:
        """Put addresses where FIRST, SECOND, PRIMARY and DEAD stand, and the digest for DIGEST."""
        for name, value in (
            ("FIRST", self.first.address),
            ("SECOND", self.second.address),
            ("PRIMARY", self.primary.address),
            ("DEAD", DEAD),
            ("DIGEST", registry.images["latest"]["digest"]),
        ):
            text = text.replace(name, value)
        return text

    @property
    def asked(self) -> str:
        """Who was asked for manifests: F, S and P, in this order."""
        return "".join(
            letter * bool(line.paths("/manifests/"))
            for letter, line in zip("FSP", self, strict=True)
        )


@contextmanager
def lines_to(registry: Registry) -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(*(stack.enter_context(line_to(registry.address)) for _ in range(3)))


@pytest.fixture
def lines(registry: Registry) -> Iterator[Lines]:
    with lines_to(registry) as lines:
        yield lines


PRIMARY = table("", "PRIMARY", INSECURE)
BOTH = PRIMARY + mirror("FIRST", INSECURE) + mirror("SECOND", INSECURE)
NAME = "docker://PRIMARY/images/all"


class Case(NamedTuple):
    """A configuration, the image, and who is asked for its manifest."""

    configuration: str
    image: str
    asked: str
    options: tuple[str, ...] = ()


def only(pull: str) -> str:
    mirrors = mirror("FIRST", INSECURE, f'pull-from-mirror = "{pull}"') + mirror("SECOND", INSECURE)
    return PRIMARY + mirrors


LOGICAL = "docker://registry.example/team/all"
WANTED = {
    "the first mirror": Case(BOTH, f"{NAME}:latest", "F"),
    "the second where the first is dead": Case(
        PRIMARY + mirror("DEAD", INSECURE) + mirror("SECOND", INSECURE), f"{NAME}:latest", "S"
    ),
    "the primary where mirrors are dead": Case(
        PRIMARY + mirror("DEAD", INSECURE), f"{NAME}:latest", "P"
    ),
    "the primary where a mirror lacks it": Case(
        PRIMARY + mirror("FIRST/elsewhere", INSECURE), f"{NAME}:latest", "FP"
    ),
    "the primary where a mirror has to be secure": Case(
        PRIMARY + mirror("FIRST"), f"{NAME}:latest", "P"
    ),
    "--no-mirrors": Case(BOTH, f"{NAME}:latest", "P", ("--no-mirrors",)),
    "digest-only, a digest": Case(only("digest-only"), f"{NAME}@DIGEST", "F"),
    "digest-only, a tag": Case(only("digest-only"), f"{NAME}:latest", "S"),
    "digest-only, both": Case(only("digest-only"), f"{NAME}:latest@DIGEST", "F"),
    "tag-only, a digest": Case(only("tag-only"), f"{NAME}@DIGEST", "S"),
    "tag-only, a tag": Case(only("tag-only"), f"{NAME}:latest", "F"),
    "mirror-by-digest-only, a digest": Case(
        table("", "PRIMARY", INSECURE, "mirror-by-digest-only = true") + mirror("FIRST", INSECURE),
        f"{NAME}@DIGEST",
        "F",
    ),
    "mirror-by-digest-only, a tag": Case(
        table("", "PRIMARY", INSECURE, "mirror-by-digest-only = true") + mirror("FIRST", INSECURE),
        f"{NAME}:latest",
        "P",
    ),
    "a prefix rewritten": Case(
        table("registry.example/team", "FIRST/images", INSECURE), f"{LOGICAL}:latest", "F"
    ),
    "the whole name rewritten": Case(
        table("registry.example/team/all", "FIRST/images/all", INSECURE), f"{LOGICAL}@DIGEST", "F"
    ),
    "the longest prefix": Case(
        table("registry.example", "SECOND/images", INSECURE)
        + table("registry.example/team", "FIRST/images", INSECURE),
        f"{LOGICAL}:latest",
        "F",
    ),
    "a prefix ends with a component": Case(
        table("registry.example/te", "SECOND/images", INSECURE)
        + table("registry.example", "FIRST", INSECURE)
        + mirror("DEAD/no", INSECURE),
        "docker://registry.example/images/all:latest",
        "F",
    ),
    "a wildcard": Case(
        table("*.registry.example", "FIRST", INSECURE),
        "docker://a.b.registry.example/images/all:latest",
        "F",
    ),
    "a mirror of a blocked registry": Case(
        table("", "PRIMARY", INSECURE, "blocked = true") + mirror("FIRST", INSECURE),
        f"{NAME}:latest",
        "F",
    ),
    "Docker Hub": Case(
        table("docker.io/library", "FIRST/images", INSECURE), "docker://all:latest", "F"
    ),
}


def test_those_are_asked_whom_the_configuration_names(
    together: Together, registry: Registry
) -> None:
    expected = registry.layout.read(registry.images["latest"]["digest"])

    def check(case: Case, pull: Pull, home: Home) -> None:
        with lines_to(registry) as lines:
            conf = home.write(REGISTRIES_CONF, lines.spell(case.configuration, registry))
            image = lines.spell(case.image, registry)
            child = pull(image, "--retries=0", *case.options)
            reply = child.client.get("/manifest")
            assert reply.status == 200, reply.body
            assert reply.body == expected
            assert child.finish() == 0
            assert child.stderr == ""
            assert lines.asked == case.asked
            assert case.options or by_skopeo(image, conf) == expected

    together(WANTED, check)


def by_skopeo(image: str, conf: Path) -> bytes:
    """Return the manifest as skopeo sees it with the same configuration."""
    if ":latest@" in image:  # which it does not take
        image = image.replace(":latest@", "@")
    return subprocess.run(
        [require("skopeo"), f"--registries-conf={conf}", "inspect", "--raw", image],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout


# --- what is refused -------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, int, str, list[str]]] = {
    "blocked": (table("", "PRIMARY", INSECURE, "blocked = true"), 403, "DENIED", ["PRIMARY"]),
    "secure": (table("", "PRIMARY"), 502, "TLS", ["PRIMARY", "--tls-verify=false"]),
    "no TOML": ("a = b", 500, "CONFIGURATION", ["line 1"]),
    "a wrong type": (table("", "PRIMARY", "insecure = 1"), 500, "CONFIGURATION", ["insecure"]),
    "no location": (table("PRIMARY", ""), 500, "CONFIGURATION", ["location"]),
    "a scheme": (table("", "http://PRIMARY"), 500, "CONFIGURATION", ["location"]),
    "a contradiction": (
        PRIMARY + table("x.io", "PRIMARY"),
        500,
        "CONFIGURATION",
        ["insecure", "PRIMARY"],
    ),
    "a bad mirror": (
        PRIMARY + mirror("FIRST", 'pull-from-mirror = "never"'),
        500,
        "CONFIGURATION",
        ["pull-from-mirror"],
    ),
    "no image there": (
        table("PRIMARY/images/all", "PRIMARY", INSECURE),
        500,
        "CONFIGURATION",
        ["location"],
    ),
}


def test_what_the_configuration_forbids_or_gets_wrong_is_said(
    together: Together, lines: Lines, registry: Registry
) -> None:
    def check(case: tuple[str, int, str, list[str]], pull: Pull, home: Home) -> None:
        configuration, status, code, words = case
        conf = home.write(REGISTRIES_CONF, lines.spell(configuration, registry))
        child = pull(lines.spell(NAME, registry), "--retries=0")
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (status, code), reply.body
        assert reply.error["detail"]["retryable"] is False
        expected = [lines.spell(word, registry) for word in words]
        expected += [str(conf)] * (code != "TLS")
        assert all(word in reply.message for word in expected), reply.message
        assert child.finish() == 0

    together(REFUSED, check)
    assert lines.asked == ""


def test_tls_verify_has_precedence_over_insecure(
    lines: Lines, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(REGISTRIES_CONF, lines.spell(PRIMARY, registry))
    child = pull(lines.spell(NAME, registry), "--tls-verify=true")
    assert child.client.get("/manifest").code == "TLS"
    assert child.finish() == 0


def test_an_error_lists_every_endpoint_with_its_own_cause(
    lines: Lines, registry: Registry, pull: Pull, home: Home
) -> None:
    text = PRIMARY + mirror("DEAD", INSECURE) + mirror("FIRST/elsewhere", INSECURE)
    home.write(REGISTRIES_CONF, lines.spell(text, registry))
    child = pull(lines.spell(f"{NAME}:no-such-tag", registry), "--retries=0")
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    endpoints = reply.error["detail"]["endpoints"]
    names = [f"{DEAD}/images/all", f"{lines.first.address}/elsewhere/images/all"]
    names.append(f"{lines.primary.address}/images/all")
    assert [each["endpoint"] for each in endpoints] == names
    assert [each["retryable"] for each in endpoints] == [True, False, False]
    assert all(name in reply.message for name in names)
    assert all(each["message"] in reply.message for each in endpoints)
    assert child.finish() == 0


# --- files -----------------------------------------------------------------------------------


def test_an_option_names_the_file_and_drop_ins_count(
    lines: Lines, registry: Registry, pull: Pull, home: Home
) -> None:
    """The later one replaces the table of a prefix, mirrors and all."""
    home.write(REGISTRIES_CONF, lines.spell(table("", "PRIMARY", "blocked = true"), registry))
    conf = home.write("option.conf", lines.spell(BOTH, registry))
    image = lines.spell(f"{NAME}:latest", registry)
    child = pull(image, f"--registries-conf={conf}")
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert lines.asked == "F"
    home.write(f"{DROP_INS}/10-a.conf", lines.spell(PRIMARY, registry))
    second = lines.spell(PRIMARY + mirror("SECOND", INSECURE), registry)
    home.write(f"{DROP_INS}/20-b.conf", second)
    home.write(f"{DROP_INS}/30-c.txt", "no configuration")
    child = pull(image, f"--registries-conf={conf}")
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert lines.asked == "FS"


@pytest.mark.parametrize("variable", ["CONTAINERS_REGISTRIES_CONF", "REGISTRIES_CONFIG_PATH"])
def test_a_variable_names_the_file(
    variable: str, lines: Lines, registry: Registry, pull: Pull, home: Home
) -> None:
    conf = home.write("variable.conf", lines.spell(BOTH, registry))
    child = pull(lines.spell(f"{NAME}:latest", registry), env={variable: str(conf)})
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert lines.asked == "F"


def test_a_file_that_is_named_must_be_there(pull: Pull) -> None:
    child = pull("docker://x.io/y", env={"CONTAINERS_REGISTRIES_CONF": "/no/such.conf"})
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (500, "CONFIGURATION")
    assert "/no/such.conf" in reply.message
    assert child.finish() == 0
    child = pull("docker://x.io/y", "--registries-conf=/no/such.conf")
    assert child.wait() == 2
    assert "/no/such.conf" in child.stderr


def test_unknown_keys_are_warned_about_once(
    lines: Lines, registry: Registry, pull: Pull, home: Home
) -> None:
    text = f"colour = 1\n{PRIMARY}mirrors-by-digest = true\n" + mirror("FIRST", INSECURE, "x = 1")
    home.write(REGISTRIES_CONF, lines.spell(text, registry))
    child = pull(lines.spell(f"{NAME}:latest", registry), sockets=2)
    for client in child.clients * 2:
        assert client.get("/manifest").status == 200
    assert child.finish() == 0
    warnings = child.stderr.splitlines()
    assert len(warnings) == 3, warnings
    for key, line in zip(("colour", "mirrors-by-digest", "x"), warnings, strict=True):
        assert REGISTRIES_CONF in line
        assert key in line


# --- short names -----------------------------------------------------------------------------

SEARCH = 'unqualified-search-registries = ["DEAD", "FIRST", "SECOND"]\n'
PLACES = "".join(table("", place, INSECURE) for place in ("DEAD", "FIRST", "SECOND"))

SHORT: dict[str, tuple[str, str, int, str]] = {
    "an alias": ('[aliases]\nx = "SECOND/images/all"\n', "x:latest", 200, "S"),
    "an alias, by digest": ('[aliases]\nx = "SECOND/images/all"\n', "x@DIGEST", 200, "S"),
    "an alias decides alone": (
        f'{SEARCH}short-name-mode = "enforcing"\n[aliases]\n"images/all" = "SECOND/images/all"\n',
        "images/all:latest",
        200,
        "S",
    ),
    "a name with a registry": ("", "FIRST/images/all:latest", 200, "F"),
    "searched": (SEARCH, "images/all:latest", 200, "F"),
    "searched, disabled": (f'{SEARCH}short-name-mode = "disabled"\n', "images/all", 200, "F"),
    "one place, enforcing": (
        'unqualified-search-registries = ["SECOND"]\nshort-name-mode = "enforcing"\n',
        "images/all",
        200,
        "S",
    ),
    "several places, enforcing": (
        f'{SEARCH}short-name-mode = "enforcing"\n',
        "images/all",
        409,
        "",
    ),
    "nowhere to search": ("", "images/all", 404, ""),
    "a bad mode": ('short-name-mode = "strict"\n', "images/all", 500, ""),
    "nobody has it": (SEARCH, "images/none", 404, "FS"),
}


def test_short_names_are_resolved(together: Together, registry: Registry) -> None:
    def check(case: tuple[str, str, int, str], pull: Pull, home: Home) -> None:
        configuration, name, status, asked = case
        with lines_to(registry) as lines:
            home.write(REGISTRIES_CONF, lines.spell(configuration + PLACES, registry))
            child = pull(lines.spell(name, registry), "--retries=0")
            reply = child.client.get("/manifest")
            assert reply.status == status, reply.body
            if status == 409:
                assert_choices(reply, [DEAD, lines.first.address, lines.second.address])
            elif status == 404:
                assert name.partition(":")[0] in reply.message
            assert child.finish() == 0
            assert lines.asked == asked

    together(SHORT, check)


def assert_choices(reply: Reply, addresses: list[str]) -> None:
    choices = [f"{address}/images/all" for address in addresses]
    said = str(reply.error["detail"]["choices"])
    assert all(choice in reply.message and choice in said for choice in choices)


# --- mirrors that lie or break ---------------------------------------------------------------


@pytest.fixture
def liar(registry: Registry, tmp_path: Path) -> Iterator[Registry]:
    """Return a registry over a copy of the data, which a test may damage."""
    copy = tmp_path / "data"
    shutil.copytree(registry.directory, copy)
    with docker_registry(copy) as address:
        yield type(registry)(address, copy, registry.layout, registry.images)


@pytest.fixture
def mirrored(liar: Registry, registry: Registry, pull: Pull, home: Home) -> Callable[..., Child]:
    """Start the program on a tag of the honest registry, with the other as its mirror."""

    def start(tag: str, *options: str, **named: Any) -> Child:  # noqa: ANN401
        configuration = table("", registry.address, INSECURE) + mirror(liar.address, INSECURE)
        home.write(REGISTRIES_CONF, configuration)
        return pull(registry.name(tag), "--debug", *options, **named)

    return start


DAMAGES = [flip, lose, shorten]


def asked_of(child: Child, registry: Registry, digest: str) -> list[str]:
    """Return the lines of --debug about requests to a registry for something."""
    lines = child.stderr.splitlines()
    return [line for line in lines if f"GET http://{registry.address}/" in line and digest in line]


@pytest.mark.slow
@pytest.mark.parametrize("reference", [":latest", "@DIGEST", ":latest@DIGEST"])
@pytest.mark.parametrize("damage", [respace, lose, shorten])
def test_a_mirror_with_a_bad_manifest_is_passed_over(
    damage: Callable[[Path], None],
    reference: str,
    liar: Registry,
    registry: Registry,
    mirrored: Callable[..., Child],
) -> None:
    digest = registry.images["latest"]["digest"]
    damage(stored_blob(liar.directory, digest))
    child = mirrored(reference.replace("DIGEST", digest))
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert reply.body == registry.layout.read(digest)
    assert child.finish() == 0
    assert len(asked_of(child, liar, "/manifests/")) == 1


def test_a_mirror_with_a_bad_manifest_behind_an_index_is_passed_over(
    liar: Registry, registry: Registry, mirrored: Callable[..., Child]
) -> None:
    digest = registry.layout.document(registry.images["index"])["manifests"][0]["digest"]
    respace(stored_blob(liar.directory, digest))
    child = mirrored(":index")
    assert child.client.get("/manifest").body == registry.layout.read(digest)
    assert child.finish() == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_mirror_with_a_bad_small_blob_is_passed_over(
    damage: Callable[[Path], None],
    liar: Registry,
    registry: Registry,
    mirrored: Callable[..., Child],
) -> None:
    bad, good = (layer["digest"] for layer in registry.layers("latest"))
    damage(stored_blob(liar.directory, bad))
    child = mirrored(":latest")
    for digest in (bad, bad, good):
        reply = child.client.get(f"/blobs/{digest}")
        assert reply.status == 200, reply.body
        assert reply.body == registry.layout.read(digest)
    assert child.finish() == 0
    assert len(asked_of(child, liar, bad)) <= 1 + (damage is lose), "not again after wrong bytes"
    assert len(asked_of(child, liar, good)) == 1, "whatever else it has is welcome"


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, -1])
def test_after_a_bad_large_blob_another_endpoint_is_asked(
    place: int, liar: Registry, registry: Registry, mirrored: Callable[..., Child]
) -> None:
    (layer,) = registry.layers("large")
    digest = layer["digest"]
    flip(stored_blob(liar.directory, digest), place)
    child = mirrored(":large", sockets=3)
    first, second, third = child.clients
    reply = first.get(f"/blobs/{digest}")
    assert reply.status == 200
    assert len(reply.body) < layer["size"] == reply.length
    assert reply.ending == "end"
    for client in (second, third):
        assert client.get(f"/blobs/{digest}").body == registry.layout.read(digest)
    assert child.finish() == 4
    failures = [line for line in child.stderr.splitlines() if "its bytes" in line]
    assert len(failures) == 1, child.stderr
    assert f"{liar.address}/images/all" in failures[0]
    assert registry.address not in failures[0].partition(" from ")[2]
    assert digest in failures[0]
    assert len(asked_of(child, liar, digest)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose, shorten])
def test_a_large_blob_that_is_missing_or_of_another_size_comes_from_elsewhere(
    damage: Callable[[Path], None],
    liar: Registry,
    registry: Registry,
    mirrored: Callable[..., Child],
) -> None:
    """Known before the head, it is no failure at all."""
    (layer,) = registry.layers("large")
    damage(stored_blob(liar.directory, layer["digest"]))
    child = mirrored(":large")
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.body == registry.layout.read(layer["digest"])
    assert child.finish() == 0


def test_where_all_lie_the_error_names_them_all(
    liar: Registry, registry: Registry, pull: Pull, home: Home
) -> None:
    """The liar is its own mirror, by another line."""
    bad, _ = (layer["digest"] for layer in registry.layers("latest"))
    flip(stored_blob(liar.directory, bad))
    with line_to(liar.address) as line:
        configuration = table("", liar.address, INSECURE) + mirror(line.address, INSECURE)
        home.write(REGISTRIES_CONF, configuration)
        child = pull(liar.name(":latest"))
        for _ in range(2):
            reply = child.client.get(f"/blobs/{bad}")
            assert (reply.status, reply.code) == (422, "DIGEST_INVALID"), reply.body
            names = [each["endpoint"] for each in reply.error["detail"]["endpoints"]]
            assert names == [f"{line.address}/images/all", f"{liar.address}/images/all"]
            assert all(name in reply.message for name in names)
        assert child.finish() == 0
    assert len(line.paths(bad)) == 1


@pytest.mark.slow
def test_a_mirror_that_dies_in_mid_blob_is_gone_on_with_elsewhere(
    registry: Registry, pull: Pull, home: Home
) -> None:
    (layer,) = registry.layers("large")
    with line_to(registry.address, Cut(5 << 20, "end")) as line, line_to(registry.address) as rest:
        configuration = table("", rest.address, INSECURE) + mirror(line.address, INSECURE)
        home.write(REGISTRIES_CONF, configuration)
        child = pull(registry.name(":large", rest.address), "--retries=1")
        assert child.client.get("/manifest").status == 200
        child.client.ask("GET", f"/blobs/{layer['digest']}")
        reply = child.client.head()
        line.dead = True
        reply.body = child.client.read(layer["size"])
        assert reply.body == registry.layout.read(layer["digest"])
        assert child.finish() == 0
        assert child.stderr == ""
    assert rest.paths() == [f"/v2/images/all/blobs/{layer['digest']}"]
    assert rest.asked[0].range == f"bytes={layer['size'] - rest_of(rest)}-{layer['size'] - 1}"


def rest_of(line: Line) -> int:
    """Return the length of the body that went over the line, by what was asked."""
    first, last = line.asked[0].range.removeprefix("bytes=").split("-")
    size = int(last) + 1 - int(first)
    assert size <= line.passed <= size + 1024, "the body and a head"
    return size


def test_a_mirror_that_wants_credentials_is_passed_over(
    registry: Registry, pull: Pull, home: Home
) -> None:
    with docker_registry(registry.directory, auth="htpasswd") as guarded:
        configuration = table("", registry.address, INSECURE) + mirror(guarded, INSECURE)
        home.write(REGISTRIES_CONF, configuration)
        child = pull(registry.name(":latest"), "--creds=somebody:something", "--debug")
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0
    assert "--creds" not in child.stderr, "which are not for mirrors on another host"

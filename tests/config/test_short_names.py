from __future__ import annotations

from typing import Any

import pytest

from imgproxy.config import short_names
from imgproxy.config.short_names import NOTHING, Setting, ShortNames
from imgproxy.errors import AmbiguousError, BadRequestError, NotFoundError
from imgproxy.parsing.typed_fields import FieldError, Fields

DIGEST = "@sha256:" + "0123456789abcdef" * 4
SEARCH = "unqualified-search-registries"
MODE = "short-name-mode"


def parse(path: str = "r.conf", /, **keys: Any) -> ShortNames:  # noqa: ANN401  (TOML is any)
    return short_names.parse(
        Fields({key.replace("_", "-"): value for key, value in keys.items()}), path
    )


def searching(*registries: str, mode: str = "", **aliases: str) -> ShortNames:
    return parse(unqualified_search_registries=[*registries], short_name_mode=mode, aliases=aliases)


def resolve(name: str, names: ShortNames) -> list[str]:
    return [str(each).replace(DIGEST, "@D") for each in short_names.resolve(name, names)]


# --- what a file says --------------------------------------------------------------------------


def test_nothing() -> None:
    assert parse() == NOTHING._replace(files=("r.conf",))


def test_everything() -> None:
    assert parse(
        "/etc/r.conf",
        unqualified_search_registries=["a.io", "b.io:5000/"],
        short_name_mode="enforcing",
        aliases={"x": "docker.io/x", "gone": ""},
    ) == ShortNames(
        ("/etc/r.conf",),
        Setting(("a.io", "b.io:5000"), "/etc/r.conf"),
        Setting("enforcing", "/etc/r.conf"),
        {
            "x": Setting("docker.io/library/x", "/etc/r.conf"),
            "gone": Setting("", "/etc/r.conf"),
        },
    )


@pytest.mark.parametrize("mode", ["enforcing", "permissive", "disabled"])
def test_a_mode(mode: str) -> None:
    assert parse(short_name_mode=mode).mode == Setting(mode, "r.conf")


def test_an_empty_mode_is_none() -> None:
    assert parse(short_name_mode="").mode is None


def test_an_empty_list_is_a_list() -> None:
    assert parse(unqualified_search_registries=[]).search == Setting((), "r.conf")


@pytest.mark.parametrize(
    "registry", ["a.io", "A.io", "a", "localhost", "a.io:5000", "[::1]:5000", "127.0.0.1", "a.io/"]
)
def test_a_search_registry(registry: str) -> None:
    search = parse(unqualified_search_registries=[registry]).search
    assert search
    assert search.value == (registry.rstrip("/"),)


@pytest.mark.parametrize(
    "registry",
    [
        "",
        "/",
        "a.io/b",
        "https://a.io",
        "a_b.io",
        "a.io:",
        "a.io:0",
        "a.io:65536",
        "a:" + "9" * 5000,
    ],
)
def test_no_search_registry(registry: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(unqualified_search_registries=["a.io", registry])
    expected = f'{SEARCH}[1]: expected host[:port], got "{registry[:40]}'
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("short", "repository"),
    [
        ("x", "a.io/x"),
        ("x", "localhost/x"),
        ("x", "a:5000/x"),
        ("x.y", "a.io/x"),
        ("opensuse/leap", "a.io/x/y/z"),
        ("localhost", "a.io/x"),
    ],
)
def test_an_alias(short: str, repository: str) -> None:
    assert parse(aliases={short: repository}).aliases == {short: Setting(repository, "r.conf")}


@pytest.mark.parametrize(
    "short", ["a.io/x", "localhost/x", "a:5000/x", "x:1", "x" + DIGEST, "X", "", "x/", "x y"]
)
def test_no_short_name(short: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(aliases={short: "a.io/x"})
    assert str(caught.value).endswith(
        " is not a short name; expected a repository without registry, tag and digest"
    )
    assert str(caught.value).startswith(f'aliases: "{short[:40]}')


@pytest.mark.parametrize(
    "value",
    ["x", "x/y", "a.io", "a.io/x:1", "a.io:5000", "a.io/x" + DIGEST, "a.io/X", "a.io/", " "],
)
def test_no_target_of_an_alias(value: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(aliases={"x": value})
    assert str(caught.value).startswith(
        "aliases.x: expected a repository with its registry, without tag and digest, got"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unqualified_search_registries": "a.io"}, f'{SEARCH}: expected an array, got "a.io"'),
        ({"unqualified_search_registries": [1]}, f"{SEARCH}[0]: expected a string, got 1"),
        ({"short_name_mode": 1}, f"{MODE}: expected a string, got 1"),
        (
            {"short_name_mode": "Enforcing"},
            f'{MODE}: expected enforcing, permissive or disabled, got "Enforcing"',
        ),
        ({"aliases": ["x"]}, "aliases: expected an object, got an array"),
        ({"aliases": {"x": 1}}, "aliases.x: expected a string, got 1"),
        ({"aliases": {"x": {"y": "a.io/x"}}}, "aliases.x: expected a string, got an object"),
    ],
)
def test_a_wrong_type(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse(**keys)
    assert str(caught.value) == message


def test_a_search_registry_without_dot_and_port_is_doubtful() -> None:
    assert list(short_names.warnings(searching("a.io", "host", "localhost"))) == [
        f'{SEARCH}[1]: "host" is ignored, since no image name can begin with a host that'
        " has neither dot nor port"
    ]
    assert list(short_names.warnings(NOTHING)) == []


# --- several files -----------------------------------------------------------------------------


def test_the_later_file_has_the_last_word() -> None:
    earlier = parse(
        "a.conf",
        unqualified_search_registries=["a.io"],
        short_name_mode="disabled",
        aliases={"x": "a.io/x", "y": "a.io/y", "z": "a.io/z"},
    )
    later = parse(
        "b.conf",
        unqualified_search_registries=[],
        short_name_mode="enforcing",
        aliases={"y": "b.io/y", "z": ""},
    )
    aliases = {
        "x": Setting("a.io/x", "a.conf"),
        "y": Setting("b.io/y", "b.conf"),
        "z": Setting("", "b.conf"),
    }
    assert short_names.merge(earlier, later) == later._replace(
        files=("a.conf", "b.conf"), aliases=aliases
    )


def test_what_the_later_file_leaves_open_stays() -> None:
    earlier = searching("a.io", mode="disabled", x="a.io/x")
    merged = short_names.merge(earlier, parse("b.conf"))
    assert merged == earlier._replace(files=("r.conf", "b.conf"))


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("x", ["docker.io/library/alpine:latest"]),
        ("x:3", ["docker.io/library/alpine:3"]),
        ("x" + DIGEST, ["docker.io/library/alpine@D"]),
        ("x:3" + DIGEST, ["docker.io/library/alpine:3@D"]),
        ("y", ["a.io/y:latest", "b.io:5000/y:latest"]),
        ("y:3", ["a.io/y:3", "b.io:5000/y:3"]),
        ("y" + DIGEST, ["a.io/y@D", "b.io:5000/y@D"]),
        ("y:3" + DIGEST, ["a.io/y:3@D", "b.io:5000/y:3@D"]),
        ("n/x", ["a.io/n/x:latest", "b.io:5000/n/x:latest"]),
        ("gone", ["a.io/gone:latest", "b.io:5000/gone:latest"]),
        # a name with a registry is not a short one
        ("c.io/x", ["c.io/x:latest"]),
        ("localhost/x:1", ["localhost/x:1"]),
    ],
)
def test_a_name(name: str, candidates: list[str]) -> None:
    names = searching("a.io", "b.io:5000", x="docker.io/alpine", gone="")
    assert resolve(name, names) == candidates


@pytest.mark.parametrize("mode", ["", "permissive", "disabled"])
def test_all_candidates(mode: str) -> None:
    assert len(resolve("x", searching("a.io", "b.io", mode=mode))) == 2


def test_only_one_candidate_is_allowed() -> None:
    with pytest.raises(AmbiguousError) as caught:
        resolve("x:1", searching("a.io", "b.io", mode="enforcing"))
    assert caught.value.message == (
        'the short name "x:1" could be a.io/x:1 or b.io/x:1, and r.conf forbids a guess'
        ' (short-name-mode = "enforcing"); name one of them, or set an alias for "x"'
    )
    assert caught.value.detail == {"choices": ["a.io/x:1", "b.io/x:1"]}


@pytest.mark.parametrize(
    "names",
    [
        searching("a.io", mode="enforcing"),
        searching("a.io", "a.io", mode="enforcing"),
        searching("a.io", "b.io", mode="enforcing", x="a.io/x"),
    ],
)
def test_there_is_only_one_candidate(names: ShortNames) -> None:
    assert resolve("x", names) == ["a.io/x:latest"]


def test_docker_hub() -> None:
    assert resolve("x", searching("docker.io", "index.docker.io")) == ["docker.io/library/x:latest"]
    assert resolve("n/x", searching("docker.io")) == ["docker.io/n/x:latest"]


def test_a_search_registry_that_cannot_be_one_is_passed_over() -> None:
    """Otherwise requests would go to Docker Hub's namespace of that name."""
    assert resolve("x", searching("host", "a.io")) == ["a.io/x:latest"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (NOTHING, "there is no registries.conf"),
        (
            short_names.merge(parse("a.conf"), parse("b.conf")),
            f"no {SEARCH} are set in a.conf, b.conf",
        ),
        (searching(), f"{SEARCH} in r.conf lists no usable registry"),
        (searching("host"), f"{SEARCH} in r.conf lists no usable registry"),
    ],
)
def test_no_candidate(names: ShortNames, reason: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve("x:1", names)
    assert caught.value.message == (
        f'the short name "x:1" has no alias, and {reason}; name the registry, as in'
        " docker://docker.io/library/x:1"
    )
    assert caught.value.code == "NAME_UNKNOWN"


@pytest.mark.parametrize("name", ["", "X", "x:", "x@sha256:0", "x y", "0123456789abcdef" * 4])
def test_no_name(name: str) -> None:
    with pytest.raises(BadRequestError):
        resolve(name, searching("a.io"))


def test_a_name_that_only_fits_without_registry() -> None:
    with pytest.raises(BadRequestError, match="longer than 255"):
        resolve("x" * 240, searching("a" * 20 + ".io"))


def test_the_aliases_that_tools_keep_have_precedence_and_nothing_else_there_counts() -> None:
    names = parse(unqualified_search_registries=["a.io"], aliases={"x": "a.io/x", "y": "a.io/y"})
    own = parse(
        unqualified_search_registries=["z.io"],
        short_name_mode="enforcing",
        aliases={"x": "b.io/x", "y": ""},
    )
    both = short_names.with_aliases(names, own)
    assert (both.files, both.search, both.mode) == (names.files, names.search, names.mode)
    assert {name: alias.value for name, alias in both.aliases.items()} == {"x": "b.io/x", "y": ""}

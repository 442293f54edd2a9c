"""Files of both versions, individually and merged; tables and names have tests of their own."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest

from imgproxy.config import endpoints, registries_conf, short_names
from imgproxy.config.registries_conf import File, Registries
from imgproxy.config.short_names import Setting
from imgproxy.errors import ConfigurationError, Failure, clean
from imgproxy.specs.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/etc/containers/registries.conf"

EVERYTHING = """\
unqualified-search-registries = ["a.io", "b.io:5000"]
credential-helpers = ["containers-auth.json", "pass"]
short-name-mode = "enforcing"
additional-layer-store-auth-helper = "helper"

[[registry]]
prefix = "a.io/x"
location = "b.io/y"
insecure = true
blocked = true
mirror-by-digest-only = true

  [[registry.mirror]]
  location = "m.io"
  insecure = true

[[registry]]
prefix = "*.c.io"

  [[registry.mirror]]
  location = "m.io/c"
  pull-from-mirror = "tag-only"

[aliases]
"x" = "docker.io/x"
"n/y" = ""
"""

VERSION_1 = """\
[registries.search]
registries = ["a.io", "b.io/"]

[registries.insecure]
registries = ["c.io:5000", "d.io"]

[registries.block]
registries = ["d.io/", "e.io/f"]
"""


def parse(text: str, path: str = PATH, *, version_1: bool = False) -> File:
    return registries_conf.parse(text.encode(), path, version_1=version_1)


def complaint(text: str | bytes, *, version_1: bool = False) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigurationError) as caught:
        registries_conf.parse(raw, PATH, version_1=version_1)
    assert caught.value.code == "CONFIGURATION"
    assert caught.value.detail == {"file": PATH}
    prefix, _, rest = caught.value.message.partition(": ")
    assert prefix == PATH
    return rest


# --- version 2 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n# a comment\n", "registry = []", "\ufeff", "[aliases]"])
def test_nothing(text: str) -> None:
    file = parse(text)
    assert file == File(PATH, (), None, short_names.NOTHING._replace(files=(PATH,)), ())


def test_everything() -> None:
    file = parse(EVERYTHING)
    assert [registry.prefix for registry in file.registries] == ["a.io/x", "*.c.io"]
    assert [registry.source for registry in file.registries] == [PATH, PATH]
    assert file.registries[1].mirrors[0].field_path == "registry[1].mirror[0]"
    assert file.credential_helpers == ("containers-auth.json", "pass")
    assert file.short_names.search == Setting(("a.io", "b.io:5000"), PATH)
    assert file.short_names.mode == Setting("enforcing", PATH)
    assert set(file.short_names.aliases) == {"x", "n/y"}
    assert file.warnings == ()


def test_upper_and_lower_case_are_the_same_in_keys() -> None:
    text = """
        Credential-Helpers = ["x"]
        [[Registry]]
        Prefix = "a.io"
        LOCATION = "b.io"
        Insecure = true
        [[Registry.Mirror]]
        Location = "m.io"
        Pull-From-Mirror = "tag-only"
        [Aliases]
        x = "a.io/x"
    """
    lower = "".join(
        line.partition("=")[0].lower() + "=" * ("=" in line) + line.partition("=")[2]
        for line in text.splitlines(keepends=True)
    )
    assert parse(text) == parse(lower)
    assert parse(text).warnings == ()
    assert parse(VERSION_1.title().replace("Io", "io"), version_1=True).registries


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[[registry]]\nlocation = "a.io"\nLocation = "b.io"', "registry[0].location"),
        (
            '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\ninsecure=true\nInsecure=false',
            "registry[0].mirror[0].insecure",
        ),
        ("short-name-mode = ''\nShort-Name-Mode = ''", "short-name-mode"),
    ],
)
def test_a_key_in_two_spellings(text: str, place: str) -> None:
    assert complaint(text) == f"{place}: occurs twice, in different case"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("colour = 1", ["colour"]),
        ("search = ['a.io']", ["search"]),
        ("[registrys]\na = 1", ["registrys"]),
        ("'\u202e\\n' = 1", ["\\n"]),
        ('[[registry]]\nlocation = "a.io"\nmirrors = []', ["registry[0].mirrors"]),
        (
            'x = 1\n[[registry]]\nlocation = "a.io"\ny = 1\n[[registry.mirror]]\n'
            'location = "b.io"\nblocked = true\nmirror = 1',
            ["x", "registry[0].y", "registry[0].mirror[0].blocked", "registry[0].mirror[0].mirror"],
        ),
        ("[registries]\nx = 1", ["registries.x"]),
        ("[registries.search]\nx = []\nregistries = []", ["registries.search.x"]),
    ],
)
def test_unknown_keys_are_warned_about(text: str, places: list[str]) -> None:
    assert parse(text).warnings == tuple(f"{PATH}: {place}: unknown key" for place in places)


def test_what_has_no_effect_is_warned_about() -> None:
    file = parse("""
        unqualified-search-registries = ["host"]
        [[registry]]
        location = "a.io"
        [[registry]]
        location = "a.io"
        blocked = false
        [[registry]]
        prefix = "a.io/x:1"
        location = "b.io"
    """)
    assert [warning.partition(" ")[0] for warning in file.warnings] == [f"{PATH}:"] * 3
    assert "registry[1]: ignored" in file.warnings[0]
    assert 'registry[2]: the prefix "a.io/x:1" matches no image' in file.warnings[1]
    assert 'unqualified-search-registries[0]: "host" is ignored' in file.warnings[2]
    assert [registry.field_path for registry in file.registries] == ["registry[0]", "registry[2]"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"# \n\nx = '\xff'", "not UTF-8 (at line 3)"),
        (b"\xff\xfea\x00", "not UTF-8 (at line 1)"),
        ("a = " + "9" * 5000, "a number has too many digits"),
        ("insecure = 1\nblocked = true\ncredential-helpers = 0x" + "f" * 5000, "a number has too"),
        ("a = " + "[" * 100_000, "tables and arrays are nested too deep"),
        ("[registries" + ".search" * 5000 + "]", "tables and arrays are nested too deep"),
        ("credential-helpers = 'x'", 'credential-helpers: expected an array, got "x"'),
        ("credential-helpers = ['x', 1]", "credential-helpers[1]: expected a string, got 1"),
        (
            "additional-layer-store-auth-helper = []",
            "additional-layer-store-auth-helper: expected a string, got an array",
        ),
        (
            "unqualified-search-registries = ['a/b']",
            'unqualified-search-registries[0]: expected host[:port], got "a/b"',
        ),
        (
            "short-name-mode = 'x'",
            'short-name-mode: expected enforcing, permissive or disabled, got "x"',
        ),
        (
            "short-name-mode = 1979-05-27",
            'short-name-mode: expected a string, got "1979-05-27"',
        ),
        ("[aliases]\nx = 'y'", "aliases.x: expected a repository with its registry"),
        ("[registry]\nlocation = 'a.io'", "registry: expected an array, got an object"),
        ("registry = [1]", "registry[0]: expected an object, got 1"),
        ("[[registry]]", "registry[0]: location is missing, and so is prefix"),
        (
            "[[registry]]\nlocation = 'a.io'\n[registry.mirror]\nlocation = 'b.io'",
            "registry[0].mirror: expected an array, got an object",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'b.io'\n[[registry.mirror]]",
            "registry[1].mirror[0].location: missing (expected host[:port][/path])",
        ),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'a.io'\nblocked = true",
            "registry[1].blocked: contradicts registry[0], which has the same location (a.io)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_file(text: str | bytes, message: str) -> None:
    assert complaint(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a b", "line 1, column 3"),
        ("\n\na = [1,", "end of document"),
        ("a = 1\na = 2\n", "line 2, column "),
        ("[aliases]\nx = ''\nx = ''\n", "line 3, column "),
        ("a = 1\n[[registry]\n", "line 2, column 11"),
        ("a = '\0'", "line 1, column 6"),
        ("a = '" + "x" * 3000, "end of document"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_toml(text: str, place: str) -> None:
    """The reason is Python's message, which differs between versions."""
    message = complaint(text)
    assert message.startswith("not TOML: ")
    assert f"(at {place}" in message


def test_a_path_in_a_message_is_clean() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("x", "/etc/a\nb")
    assert caught.value.message.startswith("/etc/a b: not TOML")
    assert parse("x = 1", "a\nb").warnings == ("a b: x: unknown key",)


# --- version 1 ---------------------------------------------------------------------------------


def test_version_1() -> None:
    file = parse(VERSION_1, version_1=True)
    assert {
        registry.prefix: (
            registry.location,
            registry.insecure,
            registry.blocked,
            registry.field_path,
        )
        for registry in file.registries
    } == {
        "c.io:5000": ("c.io:5000", True, False, "registries.insecure.registries[0]"),
        "d.io": ("d.io", True, True, "registries.block.registries[0]"),
        "e.io/f": ("e.io/f", False, True, "registries.block.registries[1]"),
    }
    assert file.short_names.search == Setting(("a.io", "b.io"), PATH)
    assert file.credential_helpers is None
    assert file.warnings == ()


@pytest.mark.parametrize("key", ["insecure", "block"])
def test_version_1_in_part(key: str) -> None:
    file = parse(f"[registries.{key}]\nregistries = ['a.io']", version_1=True)
    assert [registry.location for registry in file.registries] == ["a.io"]
    assert file.short_names.search is None


@pytest.mark.parametrize("version_1", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "[registries]",
        "[registries.search]",
        "[registries.search]\nregistries = []\n[registries.block]\nregistries = []",
    ],
)
def test_version_1_with_nothing_in_it(text: str, *, version_1: bool) -> None:
    """Templates had empty lists, below which version 2 was written."""
    file = parse(f"{EVERYTHING}\n{text}", version_1=version_1)
    assert file == parse(EVERYTHING)


def test_version_1_is_not_read_everywhere() -> None:
    assert complaint(VERSION_1) == (
        "registries: this is version 1 of the format, which is not supported in this file; expected"
        " version 2, with unqualified-search-registries and [[registry]]"
    )


@pytest.mark.parametrize(
    "text",
    [
        "unqualified-search-registries = ['a.io']",
        "credential-helpers = ['x']",
        "short-name-mode = 'disabled'",
        "[[registry]]\nlocation = 'a.io'",
        "[aliases]\nx = 'a.io/x'",
    ],
)
def test_both_versions_in_one_file(text: str) -> None:
    message = "registries: version 1 of the format is mixed with version 2"
    assert complaint(f"{text}\n{VERSION_1}", version_1=True) == message


@pytest.mark.parametrize(
    "text",
    [
        "unqualified-search-registries = []",
        "credential-helpers = []",
        "short-name-mode = ''",
        "registry = []",
        "[aliases]",
        "",
    ],
)
def test_version_1_beside_nothing(text: str) -> None:
    file = parse(f"{text}\n{VERSION_1}", version_1=True)
    assert file.registries == parse(VERSION_1, version_1=True).registries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("registries = 1", "registries: expected an object, got 1"),
        ("[registries]\nsearch = 1", "registries.search: expected an object, got 1"),
        (
            "[registries.block]\nregistries = 'a.io'",
            'registries.block.registries: expected an array, got "a.io"',
        ),
        (
            "[registries.search]\nregistries = ['a.io', 'http://b.io']",
            'registries.search.registries[1]: expected host[:port], got "http://b.io"',
        ),
        (
            "[registries.insecure]\nregistries = ['https://b.io']",
            "registries.insecure.registries[0]: expected host[:port][/path], got the URL"
            ' "https://b.io"',
        ),
        (
            "[registries.block]\nregistries = ['a.io', '/']",
            "registries.block.registries[1]: expected host[:port][/path], got nothing",
        ),
    ],
)
def test_a_broken_file_of_version_1(text: str, message: str) -> None:
    assert complaint(text, version_1=True) == message


def test_warnings_of_version_1() -> None:
    text = """
        [registries]
        x = 1
        [registries.search]
        registries = ["host"]
        y = 1
        [registries.block]
        registries = ["busybox"]
    """
    warnings = parse(text, version_1=True).warnings
    assert [warning.split(": ")[1] for warning in warnings] == [
        "registries.x",
        "registries.search.y",
        "registries.block.registries[0]",
        "unqualified-search-registries[0]",
    ]


# --- several files -----------------------------------------------------------------------------


def merge(*texts: str) -> Registries:
    return registries_conf.merge(parse(text, f"{n}.conf") for n, text in enumerate(texts))


def test_no_file() -> None:
    assert merge() == Registries((), ("containers-auth.json",), short_names.NOTHING, ())


def test_a_later_file_replaces_the_table_of_a_prefix_whole() -> None:
    first = """
        [[registry]]
        location = "a.io"
        insecure = true
        [[registry.mirror]]
        location = "m.io"
        [[registry]]
        location = "b.io"
    """
    second = '[[registry]]\nprefix = "a.io/"\nlocation = "c.io"'
    merged = {registry.prefix: registry for registry in merge(first, second).registries}
    assert set(merged) == {"a.io", "b.io"}
    replacing = merged["a.io"]
    assert (replacing.location, replacing.insecure, replacing.mirrors) == ("c.io", False, ())
    assert (replacing.source, merged["b.io"].source) == ("1.conf", "0.conf")


def test_files_may_contradict_each_other() -> None:
    """A contradiction within one file is a mistake; drop-ins exist to override other files."""
    first = '[[registry]]\nlocation = "a.io"'
    second = '[[registry]]\nprefix = "b.io"\nlocation = "a.io"\ninsecure = true'
    assert [registry.insecure for registry in merge(first, second).registries] == [False, True]


@pytest.mark.parametrize(
    ("texts", "helpers"),
    [
        (["", ""], ("containers-auth.json",)),
        (["credential-helpers = ['x']", ""], ("x",)),
        (["credential-helpers = ['x']", "credential-helpers = ['y', 'z']"], ("y", "z")),
        (["credential-helpers = ['x']", "credential-helpers = []"], ("containers-auth.json",)),
        (["credential-helpers = []", "credential-helpers = ['x']"], ("x",)),
    ],
)
def test_credential_helpers(texts: list[str], helpers: tuple[str, ...]) -> None:
    assert merge(*texts).credential_helpers == helpers


def test_short_names() -> None:
    merged = merge(
        "unqualified-search-registries = ['a.io', 'b.io']\n[aliases]\nx = 'a.io/x'\ny = 'a.io/y'",
        "short-name-mode = 'enforcing'\n[aliases]\nx = ''",
        "unqualified-search-registries = ['c.io']",
    )
    names = merged.short_names
    assert names.files == ("0.conf", "1.conf", "2.conf")
    assert names.search == Setting(("c.io",), "2.conf")
    assert names.mode == Setting("enforcing", "1.conf")
    assert names.aliases == {"x": Setting("", "1.conf"), "y": Setting("a.io/y", "0.conf")}


def test_warnings_of_all_files() -> None:
    assert merge("x = 1", "", "y = 1").warnings == (
        "0.conf: x: unknown key",
        "2.conf: y: unknown key",
    )


# --- mutation ----------------------------------------------------------------------------------

MUTATIONS = 3000
SEED = 20

TOKENS = [
    *b"\n\"'=[]{}.,#\\*:/@-_ \t\r\0",
    *(b"[[registry]]\n", b"[[registry.mirror]]\n", b"[registries.search]\n", b"[aliases]\n"),
    *(b'location = "a.io"\n', b'prefix = "*.a.io"\n', b"insecure = true\n", b"registries = []\n"),
    *(b"1", b"true", b"nan", b"-inf", b"1979-05-27T07:32:00Z", b"0x" + b"f" * 5000, b"9" * 5000),
    *(b"\xff", b"\xef\xbb\xbf", "\u202e".encode(), b"\\ud800", b"\\U0010ffff", b"'''", b'"""'),
    *(b"https://", b"*.", b"[" * 2000, b"{a=" * 2000, b"a." * 2000, b"A" * 300),
]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 2)):
        at, size = rng.randrange(len(content) + 1), rng.randint(0, 10)
        match rng.randrange(4):
            case 0:
                del content[at : at + size]
            case 1:
                token = rng.choice(TOKENS)
                content[at:at] = token if isinstance(token, bytes) else bytes([token])
            case 2:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                content[at : at + size] = other[start : start + rng.randint(0, 60)]
            case _:
                content[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(content)


def everything_asked(file: File) -> Iterator[object]:
    """Return all results of a configuration, failures included."""
    merged = registries_conf.merge([file, file])
    for image in ("a.io/x:1", "y.c.io:5000/z@sha256:" + "0" * 64, "e.io/f/g", "busybox"):
        try:
            yield endpoints.find(parse_reference(image), merged.registries)
        except Failure as failure:
            yield str(failure)
    for name in ("x", "n/y:1", "z"):
        try:
            yield short_names.resolve(name, merged.short_names)
        except Failure as failure:
            yield str(failure)


def test_mutated_files_are_read_or_refused() -> None:
    rng = random.Random(SEED)
    seeds = [EVERYTHING.encode(), VERSION_1.encode()]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTATIONS):
        raw = mutated(rng, seeds)
        try:
            file = registries_conf.parse(raw, PATH, version_1=bool(rng.getrandbits(1)))
        except ConfigurationError as error:
            outcomes["refused"] += 1
            messages = [error.message]
        else:
            outcomes["read"] += 1
            messages = [*file.warnings]
            assert len(list(everything_asked(file))) == 7
        for message in messages:
            assert message.startswith(PATH), raw
            assert message == clean(message, 2000), raw
    assert min(outcomes.values()) > MUTATIONS // 20, outcomes


def test_nothing_is_parsed_before_it_is_needed() -> None:
    """A host without the file must not spend time on the import of its parser."""
    import subprocess

    program = "import sys, imgproxy.config.registries_conf; sys.exit('tomllib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

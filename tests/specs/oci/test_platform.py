"""The choice of an index's entry: the table in imgproxy(1), PLATFORMS."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from imgproxy.parsing.typed_fields import Fields
from imgproxy.specs.oci.manifest import parse_descriptor, parse_platform
from imgproxy.specs.oci.platform import Platform, choose, normalized, of_host, parse

SHA256 = f"sha256:{'0' * 64}"

# wanted: the variants tried, best first; those in one string are equal, the first entry wins
ORDERS = {
    "linux/amd64": ["plain v1"],
    "linux/amd64/v1": ["plain v1"],
    "linux/amd64/v2": ["v2", "plain v1"],
    "linux/amd64/v3": ["v3", "v2", "plain v1"],
    "linux/amd64/v4": ["v4", "v3", "v2", "plain v1"],
    "linux/arm": ["plain", "v7", "v6", "v5"],
    "linux/arm/v5": ["v5", "plain"],
    "linux/arm/v6": ["v6", "v5", "plain"],
    "linux/arm/v7": ["v7", "v6", "v5", "plain"],
    "linux/arm/v8": ["v8", "v7", "v6", "v5", "plain"],
    "linux/arm64": ["plain v8"],
    "linux/arm64/v8": ["plain v8"],
    "linux/arm64/v9": ["v9", "plain v8"],
    "linux/386": ["plain"],
    "linux/riscv64": ["plain"],
    "linux/riscv64/rva23u64": ["rva23u64", "plain"],
    "linux/ppc64le/power9": ["power9", "plain"],
    "linux/s390x": ["plain"],
    "freebsd/amd64": ["plain v1"],
    "windows/amd64": ["plain v1 v2 v3 v4 v5 v6 v7 v8 v9 power9 rva23u64"],
    "windows/arm/v7": ["plain v1 v2 v3 v4 v5 v6 v7 v8 v9 power9 rva23u64"],
}
VARIANTS = ["plain", *(f"v{level}" for level in range(1, 10)), "power9", "rva23u64"]


def offered(wanted: Platform, variant: str) -> Platform:
    return wanted._replace(variant="" if variant == "plain" else variant)


def rank(wanted: str, variant: str) -> int | None:
    ranks = [n for n, equal in enumerate(ORDERS[wanted]) if variant in equal.split()]
    return ranks[0] if ranks else None


@pytest.mark.parametrize("wanted", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_fits_if_the_table_names_it(wanted: str, variant: str) -> None:
    platform = parse(wanted)
    expected = None if rank(wanted, variant) is None else 0
    assert choose(platform, [offered(platform, variant)]) == expected


@pytest.mark.parametrize("wanted", ORDERS)
def test_of_two_variants_the_table_s_first_is_chosen_and_of_equals_the_first_entry(
    wanted: str,
) -> None:
    platform = parse(wanted)
    for pair in permutations(VARIANTS, 2):
        ranks = [rank(wanted, variant) for variant in pair]
        fitting = [n for n in ranks if n is not None]
        expected = ranks.index(min(fitting)) if fitting else None
        assert choose(platform, [offered(platform, each) for each in pair]) == expected, pair


@pytest.mark.parametrize("wanted", ORDERS)
def test_a_whole_index_gives_the_best_wherever_it_stands(wanted: str) -> None:
    platform = parse(wanted)
    best = ORDERS[wanted][0].split()
    for entries in (VARIANTS, VARIANTS[::-1]):
        at = choose(platform, [offered(platform, each) for each in entries])
        assert at == min(entries.index(each) for each in best)


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        ("linux/amd64", ["linux/386", "linux/arm64", "windows/amd64", "freebsd/amd64"]),
        ("linux/arm64", ["linux/arm", "linux/arm/v7", "linux/arm/v8", "linux/amd64"]),
        ("linux/386", ["linux/amd64"]),
        ("linux/riscv64", ["linux/riscv64/rva23u64"]),
        ("windows/amd64", ["windows/arm64", "linux/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm64/v6"]),
    ],
)
def test_nothing_else_is_ever_chosen(wanted: str, others: list[str]) -> None:
    assert choose(parse(wanted), [parse(other) for other in others]) is None
    assert choose(parse(wanted), []) is None


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([None], 0),
        ([None, None], 0),
        ([None, "linux/arm64"], 0),
        ([None, "linux/amd64"], 1),
        (["linux/amd64", None], 0),
        (["linux/arm64", None, "linux/amd64"], 2),
    ],
    ids=str,
)
def test_an_entry_without_a_platform_is_taken_only_when_no_other_fits(
    entries: list[str | None], expected: int
) -> None:
    platforms = [None if entry is None else parse(entry) for entry in entries]
    assert choose(parse("linux/amd64/v3"), platforms) == expected


def test_on_windows_too() -> None:
    assert choose(parse("windows/amd64"), [None, parse("windows/amd64/v3")]) == 1


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("Linux/AMD64/V3", Platform("linux", "amd64", "v3")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("linux/x86_64/v3", Platform("linux", "amd64", "v3")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/aarch64/v8", Platform("linux", "arm64", "v8")),
        ("linux/i686", Platform("linux", "386")),
        ("linux/armv7l", Platform("linux", "arm", "v7")),
        ("linux/armv7l/v6", Platform("linux", "arm", "v6")),
        ("windows/amd64", Platform("windows", "amd64")),
        ("plan9/mips_x.y-z", Platform("plan9", "mips_x.y-z")),
    ],
)
def test_a_platform_is_written_with_slashes(text: str, platform: Platform) -> None:
    assert parse(text) == platform
    assert parse(str(platform)) == platform


@pytest.mark.parametrize(
    "text",
    [
        "",
        "linux",
        "linux/",
        "/amd64",
        "linux/amd64/",
        "linux//v8",
        "a/b/c/d",
        "linux/am d64",
        "linux/amd64\n",
        "linux/ämd64",
    ],
)
def test_anything_else_is_no_platform(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^expected OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64$"
    ):
        parse(text)


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        (Platform("linux", "arm", "v7"), "linux/arm/v7"),
        (Platform("linux", "amd64"), "linux/amd64"),
        (Platform("", "amd64"), "amd64"),
    ],
)
def test_a_platform_says_what_it_has(platform: Platform, text: str) -> None:
    assert str(platform) == text


# --- the host: levels of the x86-64 psABI, by the flags that Linux shows ----------------------

V2 = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
V3 = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]
V4 = ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
LEVELS = [("v2", V2), ("v3", V3), ("v4", V4)]


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ([], ""),
        (["sse2", "fxsr"], ""),
        (V2, "v2"),
        (V2 + V3, "v3"),
        (V2 + V3 + V4, "v4"),
        (V2 + V4, "v2"),
        (V3 + V4, ""),
    ],
    ids=["unknown", "baseline", "v2", "v3", "v4", "v3-missing", "v2-missing"],
)
def test_the_level_of_a_processor_includes_those_below(flags: list[str], variant: str) -> None:
    assert of_host("linux", "x86_64", flags) == Platform("linux", "amd64", variant)


@pytest.mark.parametrize(
    ("below", "missing"),
    [(n, flag) for n, (_, flags) in enumerate(LEVELS) for flag in flags],
)
def test_a_level_wants_every_flag_of_its_own(below: int, missing: str) -> None:
    flags = {*V2, *V3, *V4} - {missing}
    expected = ["", "v2", "v3"][below]
    assert of_host("linux", "x86_64", flags) == Platform("linux", "amd64", expected)


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("armv5tel", "linux/arm/v5"),
        ("armv5l", "linux/arm/v5"),
        ("armv6l", "linux/arm/v6"),
        ("armv7l", "linux/arm/v7"),
        ("armv8l", "linux/arm/v8"),
        ("i386", "linux/386"),
        ("i486", "linux/386"),
        ("i586", "linux/386"),
        ("i686", "linux/386"),
        ("loongarch64", "linux/loong64"),
        ("ppc64le", "linux/ppc64le"),
        ("riscv64", "linux/riscv64"),
        ("s390x", "linux/s390x"),
    ],
)
def test_a_machine_has_go_s_name(machine: str, platform: str) -> None:
    flags = {*V2, *V3, *V4}  # which are used only for x86-64
    assert of_host("linux", machine, flags) == parse(platform)


@pytest.mark.parametrize(
    ("words", "platform"),
    [
        ("Linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("LINUX/X86_64/V3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64/v8"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armhf/v6", "linux/arm/v6"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/i686", "linux/386"),
        ("linux/ppc64le/power9", "linux/ppc64le/power9"),
        ("macOS/arm64", "darwin/arm64"),
    ],
)
def test_options_and_entries_may_use_the_same_words(words: str, platform: str) -> None:
    assert str(parse(words)) == str(normalized(*words.split("/"))) == platform
    entry = json.dumps(dict(zip(("os", "architecture", "variant"), words.split("/"), strict=False)))
    assert str(parse_platform(entry.encode())) == platform
    described = f'{{"mediaType":"a/b","digest":"{SHA256}","size":1,"platform":{entry}}}'
    assert str(parse_descriptor(Fields(json.loads(described))).platform) == platform


def test_a_platform_in_a_config_that_is_given_twice_is_none() -> None:
    assert parse_platform(b'{"os":"linux","os":"windows","architecture":"amd64"}') is None
    assert parse_platform(b'{"os":"linux","a":1,"a":2,"architecture":"amd64"}') is not None

"""The choice for a platform is total, and independent of entries that do not match."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import attempt

from imgproxy.specs.oci.platform import Platform, choose, of_host, parse

if TYPE_CHECKING:
    from random import Random

VARIANTS = ["", *(f"v{level}" for level in range(1, 10)), "v10", "power9", "V7"]
PLATFORMS = st.builds(
    Platform,
    st.sampled_from(["linux", "windows", "freebsd", "unknown", ""]),
    st.sampled_from(["amd64", "arm", "arm64", "386", "riscv64", "unknown", ""]),
    st.sampled_from(VARIANTS),
    st.sampled_from([(), (), ("nydus.remoteimage.v1",), ("a", "b")]),
)
ENTRIES = st.lists(st.none() | PLATFORMS, max_size=8)


def fits(wanted: Platform, entry: Platform | None) -> bool:
    return choose(wanted, [entry]) == 0


@given(PLATFORMS, ENTRIES)
def test_nothing_is_chosen_only_where_nothing_fits(
    wanted: Platform, entries: list[Platform | None]
) -> None:
    at = choose(wanted, entries)
    if at is None:
        assert not any(fits(wanted, entry) for entry in entries)
    else:
        assert fits(wanted, entries[at])
        assert entries.index(entries[at]) == at  # of equal entries the first


@given(PLATFORMS, ENTRIES, ENTRIES, st.randoms(use_true_random=False))
def test_what_does_not_fit_changes_nothing(
    wanted: Platform,
    entries: list[Platform | None],
    others: list[Platform | None],
    chance: Random,
) -> None:
    mixed: list[tuple[int, Platform | None]] = list(enumerate(entries))
    for other in others:
        if not fits(wanted, other):
            mixed.insert(chance.randint(0, len(mixed)), (-1, other))
    before = choose(wanted, entries)
    after = choose(wanted, [entry for _, entry in mixed])
    assert (None if after is None else mixed[after][0]) == before


@given(PLATFORMS, ENTRIES, ENTRIES)
def test_the_choice_from_two_lists_is_the_choice_from_their_choices(
    wanted: Platform, first: list[Platform | None], second: list[Platform | None]
) -> None:
    joined = choose(wanted, first + second)
    best = [each[at] for each in (first, second) if (at := choose(wanted, each)) is not None]
    again = choose(wanted, best)
    assert (joined is None) == (again is None)
    if joined is not None and again is not None:
        assert (first + second)[joined] == best[again]


@given(PLATFORMS, ENTRIES)
def test_an_entry_without_a_platform_comes_after_those_that_fit_as_they_are(
    wanted: Platform, entries: list[Platform | None]
) -> None:
    at = choose(wanted, [None, *entries])
    assert at is not None
    fitting = any(
        entry is not None and not entry.os_features and fits(wanted, entry) for entry in entries
    )
    assert (at != 0) == fitting


@given(PLATFORMS, ENTRIES)
def test_what_requires_features_comes_last(
    wanted: Platform, entries: list[Platform | None]
) -> None:
    at = choose(wanted, entries)
    if at is not None and (chosen := entries[at]) is not None and chosen.os_features:
        others = [entry for entry in entries if entry is None or not entry.os_features]
        assert choose(wanted, others) is None


@given(PLATFORMS.filter(lambda platform: platform.os and platform.architecture))
def test_a_platform_serves_itself_and_is_read_as_it_is_written(platform: Platform) -> None:
    assert fits(platform, platform)
    assert parse(str(platform)) == platform._replace(
        variant=platform.variant.lower(), os_features=()
    )


@given(st.text())
def test_text_is_a_platform_or_a_value_error(text: str) -> None:
    platform = attempt(parse, text, expected=ValueError)
    if isinstance(platform, Platform):
        assert parse(str(platform)) == platform
    else:
        assert type(platform) is ValueError


@given(st.text(), st.text(), st.sets(st.text()))
def test_every_host_has_a_platform_that_serves_it(os: str, machine: str, flags: set[str]) -> None:
    platform = of_host(os, machine, flags)
    assert fits(platform, platform)

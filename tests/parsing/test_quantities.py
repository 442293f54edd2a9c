"""Sizes and durations with units."""

from __future__ import annotations

import pytest

from imgproxy.parsing import quantities

SIZES = {
    "0": 0,
    "500": 500,
    "1K": 1024,
    "500M": 500 << 20,
    "20GiB": 20 << 30,
    "2TiB": 2 << 40,
    "20GB": 20 * 10**9,
}
DURATIONS = {"0": 0, "90": 90, "90s": 90, "1.5m": 90, "12h": 43200, "7d": 604800}


@pytest.mark.parametrize("text", SIZES)
def test_a_size_is_bytes(text: str) -> None:
    assert quantities.size(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1iB", "1B", "1m", "1 G", "1GG", "\u0661"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        quantities.size(text)


@pytest.mark.parametrize("text", DURATIONS)
def test_a_duration_is_seconds(text: str) -> None:
    assert quantities.duration(text) == DURATIONS[text]


@pytest.mark.parametrize("text", ["", "d", "-1d", "1w", "1D", "1e3", "inf", "1 d", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        quantities.duration(text)

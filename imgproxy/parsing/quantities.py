"""Sizes and durations as people write them, with units."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]{1,12})(?:([KMGT])(B|iB)?)?", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", re.ASCII)

_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def size(text: str) -> int:
    """Return the bytes of `500`, `500M` or `500MiB`, or of `500MB`, which is less.

    Raises `ValueError`.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}" is not a size, as 500M and 20GiB are')
    count, unit, rest = match.groups()
    base = 1000 if rest == "B" else 1024
    factor: int = base ** _POWERS.get(unit, 0)
    return int(count) * factor


def duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `15m`, `12h` or `7d`. Raises `ValueError`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}" is not a duration, as 90s, 12h and 7d are')
    return float(match[1]) * _SECONDS[match[2]]

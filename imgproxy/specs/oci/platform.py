"""Platforms, and the choice of an index's entry for a platform.

OCI image specification, image-index.md, "platform"; the names are Go's GOOS and GOARCH. The order
in which variants are tried is the table in imgproxy(1), PLATFORMS: the variant that the wanted
processor runs best comes first, and one that it cannot run is never chosen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_COMPONENT = re.compile(r"[a-z0-9_.-]+")

# Names printed by `uname -m`, used by distributions or typed by people, with Go's equivalents.
_MACHINES: dict[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armel": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "armv5l": ("arm", "v5"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
_SYSTEMS = {"macos": "darwin"}

# The x86-64 psABI's micro-architecture levels, by the flags that Linux shows in /proc/cpuinfo
# (`pni` is SSE3, `abm` is LZCNT, `xsave` stands for OSXSAVE).
_AMD64_LEVELS = {
    "v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


class Platform(NamedTuple):
    """The platform of an image; `variant` is empty where there is none.

    `os_features` are what it requires of the system beside that (nydus and EROFS images have some).
    """

    os: str
    architecture: str
    variant: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(filter(None, self[:3]))


def parse(text: str) -> Platform:
    """Parse `OS/ARCH[/VARIANT]`.

    Raises `ValueError` for other text.
    """
    parts = text.lower().split("/")
    if len(parts) not in (2, 3) or not all(map(_COMPONENT.fullmatch, parts)):
        raise ValueError("expected OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64")
    return normalized(*parts)


def normalized(
    os: str, architecture: str, variant: str = "", *, os_features: tuple[str, ...] = ()
) -> Platform:
    """Return the platform in Go's words, whatever an option, an index or a config calls it.

    `Linux/x86_64` is `linux/amd64`, `linux/arm/7` and `linux/armhf` are `linux/arm/v7`.
    """
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    architecture, implied = _MACHINES.get(architecture, (architecture, ""))
    if variant.isdecimal():
        variant = f"v{variant}"
    return Platform(_SYSTEMS.get(os, os), architecture, variant or implied, os_features)


def of_host(os: str, machine: str, cpu_flags: Collection[str]) -> Platform:
    """Return the platform of a host.

    `machine` is that of uname(2); `cpu_flags` are those of one x86 processor, else empty.
    """
    host = normalized(os, machine)
    if host.architecture == "amd64":
        return host._replace(variant=_amd64_variant(cpu_flags))
    return host


def _amd64_variant(flags: Collection[str]) -> str:
    variant = ""
    for level, wanted in _AMD64_LEVELS.items():
        if not wanted.issubset(flags):
            break
        variant = level
    return variant


def choose(wanted: Platform, entries: Iterable[Platform | None]) -> int | None:
    """Return the position of the entry to choose for `wanted`, None where no entry matches.

    `entries` are the platforms of an index in its order, None for an entry without one, which is
    chosen only where no other matches. One that requires features of the system comes after all
    that do not, for nothing says which this system has.
    """
    ranks = {variant: rank for rank, variant in reversed([*enumerate(_variants(wanted))])}
    best: tuple[int, int] | None = None
    for position, entry in enumerate(entries):
        rank = len(ranks) if entry is None else _rank(wanted, entry, ranks)
        if rank is not None and (best is None or rank < best[0]):
            best = rank, position
    return None if best is None else best[1]


def _rank(wanted: Platform, entry: Platform, ranks: dict[str, int]) -> int | None:
    if (entry.os, entry.architecture) != (wanted.os, wanted.architecture):
        return None
    variant = _plain(entry.architecture, entry.variant)
    rank = 0 if wanted.os == "windows" else ranks.get(variant)
    return rank if rank is None or not entry.os_features else rank + len(ranks) + 1


def _plain(architecture: str, variant: str) -> str:
    """Return the variant in the form of the table, where an architecture's baseline is empty."""
    baseline = {"amd64": "v1", "arm64": "v8"}.get(architecture)
    return "" if variant == baseline else variant


def _variants(wanted: Platform) -> list[str]:
    """Return the variants that `wanted` runs, best first; the plain entry is the empty string."""
    variant = _plain(wanted.architecture, wanted.variant)
    if wanted.architecture == "arm":
        return [*_down(variant, 5), ""] if variant else ["", "v7", "v6", "v5"]
    if wanted.architecture == "amd64":
        return [*_down(variant, 2), ""]
    return [variant, ""]


def _down(variant: str, last: int) -> list[str]:
    """Return vN, …, v`last`; a variant that is not a level stands for itself."""
    if re.fullmatch(r"v[1-9]", variant) is None:
        return [variant] if variant else []
    return [variant, *(f"v{level}" for level in range(int(variant[1:]) - 1, last - 1, -1))]

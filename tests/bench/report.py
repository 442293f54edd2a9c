"""The table, and the facts about the machine that are needed to interpret it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import ssl
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from .child import FAULTS, capture
from .contenders import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .turns import Measure, Result

NONE = "—"
ASKING = 10.0  # seconds for a program to print its version

Row = Sequence[str]


def table(results: Sequence[Result], peers: Sequence[str]) -> str:
    """Return a markdown table: a row for each measure, and imgproxy's ratio to each rival."""
    rivals = [word for peer in peers for word in (peer, f"{OURS} ÷ {peer}")]
    head = ["row", "measure", "better", OURS, "limit", f"{OURS} ÷ limit", *rivals]
    ruler = [":--", ":--", ":--", *["--:"] * (len(head) - 3)]
    return "\n".join(map(_line, [head, ruler, *_rows(results, peers)]))


def _rows(results: Sequence[Result], peers: Sequence[str]) -> Iterator[Row]:
    for result in results:
        experiment = result.experiment
        rows = product(experiment.measures, experiment.ways) if result.medians else ()
        for measure, way in rows:
            title = f"{measure.title}, {experiment.subject}{way.removeprefix(OURS)}"
            ours = _median(result, way, measure)
            limit_name = experiment.limit_of(measure)
            limit = _median(result, limit_name, measure)
            shown = _limit(measure, limit, limit_name)
            row = [f"`{experiment.name}`", title, measure.better, _value(measure, ours)]
            row += [shown, _ratio(ours, limit)]
            for peer in peers:
                theirs = _median(result, peer, measure)
                row += [_value(measure, theirs), _ratio(ours, theirs)]
            yield row


def _line(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"


def _median(result: Result, name: str | None, measure: Measure) -> float | None:
    return result.medians.get(name or "", {}).get(measure)


def _value(measure: Measure, value: float | None) -> str:
    return NONE if value is None else measure.show(value)


def _limit(measure: Measure, value: float | None, name: str | None) -> str:
    return NONE if value is None else f"{measure.show(value)} ({name})"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"**{ours / theirs:.2f}**" if ours is not None and theirs else NONE


def facts() -> list[str]:
    """Describe the machine and the programs."""
    return [
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()} with {ssl.OPENSSL_VERSION}",
        *(f"{name} {_installed(name)}" for name in ("trio", "h11")),
        *_told("openssl", "version"),
        *_told("docker-registry", "--version"),
    ]


def _processor() -> str:
    """Return the processor's name in the kernel."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _told(*argv: str) -> list[str]:
    """Return the version that a program prints, up to a parenthesis, if it is installed."""
    try:
        return [f"`{argv[0]}`: {capture(argv, ASKING).partition(' (')[0]}"]
    except FAULTS:
        return []

"""The command: options, the run, and notes on omitted rows."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import trees, whole
from .chart import chart
from .child import FAULTS, describe
from .contenders import BEFORE, OURS, Contender, Imgproxy, find_imgproxy, find_limits, find_skopeo
from .pulls import OTHERS
from .registries import NAMES
from .report import facts, table
from .rows import CLIENTS, LINES, QUICK_CLIENTS, QUICK_LINES, ROWS, Plan, belongs, experiments
from .stage import GIB, MIB, Stage
from .turns import Result, take_turns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

SIZES = (64 * MIB, 256 * MIB, GIB, 4 * GIB)
ARCHIVES, QUICK_ARCHIVES = (200 * MIB, 2 * GIB), (16 * MIB,)
COUNTS = (1, 10, 100, 1000)
QUICK_COUNTS = (50,)
RUNS, QUICK_RUNS = 5, 3
# Many files take a slow disk a minute, for each contender.
QUICK_TREES = ("debian", "large")
PATIENCE, QUICK_PATIENCE = 180.0, 60.0  # seconds for one attempt of one contender
UNITS = {"M": MIB, "G": GIB}


def main() -> int:
    """Run the bench, and return 1 if imgproxy is missing or failed a row, for checks."""
    options = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    load = f"load average {os.getloadavg()[0]:.1f} at the start"  # the load by other programs
    notes: list[str] = []
    contenders = _contenders(options, notes)
    limits, missing = find_limits()
    notes += missing
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    with Stage(_filler(options.skopeo)) as stage:
        _keep_bytecode(stage.bytecode())
        seconds = QUICK_PATIENCE if options.quick else PATIENCE
        results = _measure(_plan(options, contenders, limits), stage, runs, seconds)
        notes += stage.notes
    notes += [
        f"`{result.experiment.name}`: {name} is left out: {reason}"
        for result in results
        for name, reason in result.failures.items()
    ]
    peers = [contender.name for contender in contenders if contender.name != OURS]
    peers += [
        each
        for each in (*OTHERS, *trees.PEERS, *NAMES, *whole.peers(contenders))
        if any(each in result.medians for result in results)
    ]
    ours = [contender.version for contender in contenders if isinstance(contender, Imgproxy)]
    lead = [_command(), f"medians over {runs} turns after a warm-up", load, *ours, *facts()]
    _publish(" · ".join(lead), table(results, peers), notes, options.output)
    if options.chart is not None:
        options.chart.write_text(chart(results, peers))
    return int(not ours or any(OURS in result.failures for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tests/bench",
        description="Measure imgproxy beside its peers and its limits; print a table of ratios.",
        epilog=f"Rows: {', '.join(ROWS)}.",
    )
    add = parser.add_argument
    add("--imgproxy", metavar="CMD", type=shlex.split, help="how ours is started")
    add("--before", metavar="CMD", type=shlex.split, help="an earlier imgproxy to compare with")
    add("--skopeo", metavar="PATH", action="append", default=[], help="one more, repeatable")
    add("--size", metavar="SIZE", type=_size, help="of the large blob: 256M, 1G (the default)")
    add("--runs", metavar="N", type=_count, help=f"turns a median is taken of, {RUNS} if not said")
    add("--only", metavar="ROW", nargs="+", type=_row, default=[], help="such as blob-oci, or blob")
    add("--skip-growth", action="store_true", help="neither other sizes nor many layers")
    add("--quick", action="store_true", help="64 MiB and few turns: a minute or two")
    add("--output", metavar="FILE", type=Path, help="write the table there as well")
    add("--chart", metavar="FILE", type=Path, help="draw the run there, as SVG")
    return parser


def _size(text: str) -> int:
    number, unit = text[:-1], text[-1:].upper()
    if unit not in UNITS or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"expected a number with M or G, got {text!r}")
    return int(number) * UNITS[unit]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _row(text: str) -> str:
    if not any(belongs(row, text) for row in ROWS):
        raise argparse.ArgumentTypeError(f"no such row: {text!r}")
    return text


def _stop(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that children and files are removed, even if there is a second signal."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _contenders(options: argparse.Namespace, notes: list[str]) -> list[Contender]:
    """Find the contenders that are installed; note the others."""
    found: list[Contender] = []
    try:
        found.append(find_imgproxy(options.imgproxy or [sys.executable, "-m", "imgproxy"]))
    except FAULTS as error:
        notes.append(f"No imgproxy: {describe(error)}.")
    if options.before is not None:
        try:
            found.append(find_imgproxy(options.before, BEFORE))
        except FAULTS as error:
            notes.append(f"No earlier imgproxy: {describe(error)}.")
    for path in ["skopeo", *options.skopeo]:
        try:
            found.append(find_skopeo(path, [contender.name for contender in found]))
        except FAULTS as error:
            notes.append(f"No {Path(path).name}: {describe(error)}.")
    return found


def _filler(paths: Sequence[str]) -> str | None:
    """Return the skopeo that fills the registry, of any version."""
    return next(filter(None, map(shutil.which, ["skopeo", *paths])), None)


def _keep_bytecode(folder: Path) -> None:
    """Let the measured Pythons use bytecode, in any environment.

    An installed program has bytecode. Without it, as where PYTHONDONTWRITEBYTECODE is set, each
    start would compile the program again.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def _plan(
    options: argparse.Namespace, contenders: Sequence[Contender], limits: Sequence[str]
) -> Plan:
    size = options.size or (SIZES[0] if options.quick else GIB)
    brief = options.quick or options.skip_growth
    return Plan(
        contenders=contenders,
        limits=limits,
        size=size,
        sizes=() if brief else [other for other in SIZES if other != size],
        lines=QUICK_LINES if options.quick else LINES,
        archives=QUICK_ARCHIVES if options.quick else ARCHIVES,
        clients=QUICK_CLIENTS if options.quick else CLIENTS,
        trees=QUICK_TREES if options.quick else trees.WORKS,
        counts=() if options.skip_growth else QUICK_COUNTS if options.quick else COUNTS,
        only=options.only,
    )


def _measure(plan: Plan, stage: Stage, runs: int, seconds: float) -> list[Result]:
    results = []
    for experiment in experiments(plan, stage):
        print(f"{experiment.name}: {experiment.subject}", file=sys.stderr, flush=True)
        results.append(take_turns(experiment, runs, seconds))
    return results


def _command() -> str:
    return f"`{shlex.join(['python', 'tests/bench', *sys.argv[1:]])}`"


def _portable(text: str) -> str:
    """Shorten this machine's paths to their last component, since the rest has no meaning."""

    def shorten(match: re.Match[str]) -> str:
        return "" if Path("/", match[1]).is_dir() else match[0]

    return re.sub(r"(?<![\w:/.])/([\w.+-]+)/(?:[\w.+-]+/)*", shorten, text)


def _publish(lead: str, rows: str, notes: Sequence[str], output: Path | None) -> None:
    """Print the page, and write it to a file if one is named."""
    remarks = "\n".join(f"- {note}" for note in notes)
    text = "\n\n".join(filter(None, [_portable(lead), rows, _portable(remarks)]))
    print(text)
    if output is not None:
        output.write_text(f"{text}\n")

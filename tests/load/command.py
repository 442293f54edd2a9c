"""`python tests/load`: a soak of the registry, and what it leaves behind.

    python tests/load --clients 200 --seconds 600

It fails if anything arrived wrong, a client was starved, or something has leaked: descriptors
beyond those of before, or memory that grows after the first half of the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from support import parent, registry_doors
from support.parent import descriptors, eventually

from load import clients

MIB = 1 << 20


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * 4096


def main() -> int:
    """Run rounds, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/load")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0, help="in all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=4 * MIB, help="of a blob")
    parser.add_argument("--growth", type=int, default=16, help="MiB after the first half of rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        layout = clients.write_images(Path(directory) / "layout", options.size)
        with registry_doors.running("--images", str(layout.path), "--quiet") as door:
            return 0 if soak(door, layout, options) else 1


def soak(door: registry_doors.Door, layout: clients.Layout, options: argparse.Namespace) -> bool:
    """Return whether all rounds have gone well."""
    pid = door.child.pid
    clients.run(door, layout, clients=2, seconds=0.0, hang_ups=0.0)  # what is opened stays open
    before, sizes = descriptors(pid), list[int]()
    is_good = True
    for n in range(options.rounds):
        seconds = options.seconds / options.rounds
        tally = clients.run(door, layout, clients=options.clients, seconds=seconds)
        left = eventually(lambda: descriptors(pid) <= before)
        sizes.append(resident(pid))
        print(
            f"round {n + 1}: {dict(tally.counts)}, slowest {tally.slowest:.1f} s,"
            f" {descriptors(pid) - before} descriptors left, {sizes[-1] // MIB} MiB resident,"
            f" {parent.peak_memory(pid) // MIB} MiB at most",
            flush=True,
        )
        for failure in tally.failures[:5]:
            print(f"  {failure}", flush=True)
        is_good = is_good and left and not tally.failures and door.child.running
    half = len(sizes) // 2
    grown = (sizes[-1] - max(sizes[: half or 1])) // MIB
    print(f"grown by {grown} MiB since the first half", flush=True)
    return is_good and grown <= options.growth

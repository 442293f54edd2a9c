"""How many system calls `unpack` makes, which a busy machine does not change."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from interop.test_counts import UNCOUNTED, calls
from support.commands import run
from support.images import Layout
from support.parent import INSECURE
from support.real_trees import image
from support.traced import strace
from support.unpacking import END, directory, entry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MIB = 1 << 20

# By root: openat, write, fchown, fchmod, utimensat, close.
MAX_PER_FILE = 6.5
MAX_OPENAT2_PER_FILE = 0.1

# Of pieces of 256 KiB, where what is read and what comes out have ends of their own.
MAX_WRITES_PER_MIB = 6


def counted(place: Path, archive: bytes) -> dict[str, int]:
    """Unpack an image of a layer, and return how often each system call was made."""
    name = image(Layout(place / "layout"), archive + END)
    file = place / "calls"
    tracing = [strace(), "-f", "-c", "-qq", "-o", str(file)]
    done = run("unpack", INSECURE, "--quiet", name, str(place / "tree"), prefix=tracing)
    assert done.status == 0, done.stderr
    return calls(file)


def rates(few: dict[str, int], many: dict[str, int], amount: int) -> dict[str, float]:
    """Return how often each call was made for one more."""
    return {
        name: (many[name] - few.get(name, 0)) / amount for name in many if name not in UNCOUNTED
    }


def test_a_small_file_takes_few_system_calls(tmp_path: Path) -> None:
    found = []
    for count in (100, 1100):
        place = tmp_path / str(count)
        files = b"".join(entry(f"d/file{n}", b"%1024d" % n) for n in range(count))
        found.append(counted(place, directory("d") + files))
    each = rates(*found, 1000)
    assert each["write"] >= 1, "nothing counted"
    assert sum(each.values()) <= MAX_PER_FILE, each
    assert each.get("openat2", 0) <= MAX_OPENAT2_PER_FILE, each


def test_a_large_file_takes_few_system_calls(tmp_path: Path) -> None:
    block = b"".join(random.Random(n).randbytes(2048) + bytes(2048) for n in range(MIB // 4096))
    found = [counted(tmp_path / str(mib), entry("f", block * mib)) for mib in (4, 36)]
    each = rates(*found, 32)
    assert 1 <= each["write"] <= MAX_WRITES_PER_MIB, each

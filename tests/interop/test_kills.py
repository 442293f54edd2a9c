"""Commands that change a store, killed after each call that changes the disk.

Whatever is there afterwards is right, every name stands for a whole image, the same command
finishes when it is run again, and `gc` leaves exactly what is named.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.disk_calls import CALLS, Forks
from support.effort import SLOW
from support.parent import COMMAND, environment
from support.stages import COMMANDS, Stage, two_images
from support.traced import strace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.images import Layout

# Kills that are tried where not all are.
QUICK = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return two_images(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


FILES = [".imgproxy/index.lock", ".imgproxy/lock", "index.json", "oci-layout"]


@pytest.mark.parametrize("case", COMMANDS)
def test_a_kill_leaves_nothing_wrong(
    case: str, source: Layout, tmp_path: Path, forks: Forks
) -> None:
    stage = Stage(case, source, tmp_path, forks)
    ended = stage.run()
    assert ended.status == 0
    total = ended.total
    done = stage.named()
    assert total >= (2 if case != "gc" else 1)
    kills = range(1, total + 1)
    for kill in kills if SLOW else sorted({*kills[:: max(1, total // QUICK)], total}):
        assert stage.run(kill=kill).status == -9, f"killed after call {kill} of {total}"
        stage.blobs()
        if (stage.store.path / "index.json").exists():
            stage.named()
            if (stage.store.path / "oci-layout").exists():
                stage.gc()
                assert stage.blobs() == stage.named()
                stage.run(kill=kill)
        # the name may have been taken away already, and then that is told
        assert stage.again() == 0 or (case == "rm" and stage.again() == 3), kill
        assert stage.named() == done
        stage.gc()
        assert stage.blobs() == stage.named()
        assert set(stage.others()) <= set(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_no_call_that_changes_the_disk_is_overlooked(
    case: str, source: Layout, tmp_path: Path, forks: Forks
) -> None:
    """What a command calls in `os` is what the system is called for."""
    stage = Stage(case, source, tmp_path, forks)
    ended = stage.run()
    assert ended.status == 0
    stage.restore()
    file = tmp_path / "calls"
    done = subprocess.run(
        [
            *(strace(), "-f", "-qq", "-y", "-s0", "-e", "trace=%file,%desc", "-e", "signal=none"),
            *("-o", str(file), *COMMAND, *stage.command, "--quiet"),
        ],
        env=environment(PYTHONDONTWRITEBYTECODE="1", COVERAGE_PROCESS_START=None),
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    ours = {call: name for name, calls in CALLS.items() for call in calls}
    harmless = re.compile(
        r"stat|access|getdents|read|lseek|close|flock|fcntl|ioctl|mmap|epoll|poll|dup|getcwd|fadvise"
    )
    found: dict[str, int] = {}
    for line in file.read_text().splitlines():
        call = re.search(r"^\d+ +(\w+)\(", line)
        if call is None or str(stage.store.path) not in line or harmless.search(call[1]):
            continue
        if call[1] == "openat" and "O_CREAT" not in line:
            continue
        name = ours.get(call[1], call[1])
        found[name] = found.get(name, 0) + 1
    assert found == ended.calls

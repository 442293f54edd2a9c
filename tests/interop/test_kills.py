"""Commands that change a store, killed after each call that changes the disk.

Whatever is there afterwards is right, every name stands for a whole image, the same command
finishes when it is run again, and `gc` leaves exactly what is named.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.disk_calls import CALLS, Forks
from support.effort import SLOW
from support.images import REF_NAME, Layout, digest_of, named
from support.parent import COMMAND, INSECURE, environment
from support.traced import strace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Kills that are tried where not all are.
QUICK = 3

BYTES = random.Random(1).randbytes(5 << 20)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout with two images, of three blobs each, of which they share one."""
    layout = Layout(tmp_path_factory.mktemp("source"))
    images = {"one": (BYTES, b"shared"), "two": (b"two" * 9, b"shared")}
    layout.save(*(named(layout.image(*layers), name) for name, layers in images.items()))
    return layout


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


# What there is before, by commands, and the command that is killed; {source} and {store}.
PULL = ["pull", INSECURE, "oci:{source}:one", "oci:{store}:os"]
OTHER = ["pull", INSECURE, "oci:{source}:two", "oci:{store}:os"]
COMMANDS: dict[str, tuple[list[list[str]], list[str]]] = {
    "pull": ([], PULL),
    "pull that moves a name": ([OTHER], PULL),
    "pull of what is there": ([PULL], [*PULL[:3], "oci:{store}:other"]),
    "pull after rm": ([PULL, ["rm", "oci:{store}:os"]], PULL),
    "tag": ([OTHER], ["tag", "oci:{store}:os", "other"]),
    "rm": ([PULL, OTHER], ["rm", "oci:{store}:os"]),
    "gc": ([PULL, OTHER], ["gc", "oci:{store}", "--grace=0"]),
}


class Stage:
    """A store that is made anew for each kill."""

    def __init__(self, case: str, source: Layout, directory: Path, forks: Forks) -> None:
        self.store = Layout(directory / "store")
        self._before = directory / "before"
        self._source = source
        self._forks = forks
        shutil.rmtree(self.store.path)
        before, command = COMMANDS[case]
        self.command = self._filled(command)
        self.calls: dict[str, int] = {}
        for each in before:
            assert forks.run(*self._filled(each), "--quiet").status == 0
        if before:
            shutil.copytree(self.store.path, self._before)

    def _filled(self, command: list[str]) -> list[str]:
        return [each.format(source=self._source.path, store=self.store.path) for each in command]

    def run(self, kill: int = 0) -> tuple[int, int]:
        """Run the command on the store as it was before; return its status and count of calls."""
        self.restore()
        ended = self._forks.run(*self.command, "--quiet", kill=kill)
        self.calls = ended.calls
        return ended.status, ended.total

    def restore(self) -> None:
        """Make the store as it was before."""
        shutil.rmtree(self.store.path, ignore_errors=True)
        if self._before.exists():
            shutil.copytree(self._before, self.store.path)

    def again(self) -> int:
        return self._forks.run(*self.command, "--quiet").status

    def gc(self) -> None:
        ended = self._forks.run("gc", f"oci:{self.store.path}", "--grace=0")
        assert ended.status == 0, ended.stderr

    def named(self) -> set[str]:
        """Return the digests that names need, each of which must be there and right."""
        entries = json.loads((self.store.path / "index.json").read_bytes())["manifests"]
        found = set()
        for entry in entries:
            document = self.store.document(entry)
            parts = [entry["digest"], *(each["digest"] for each in document["layers"])]
            found |= {*parts, document["config"]["digest"]}
        for digest in found:
            assert digest_of(self.store.read(digest)) == digest
        names = [entry["annotations"][REF_NAME] for entry in entries]
        assert len(names) == len(set(names))
        return found

    def blobs(self) -> set[str]:
        """Return the digests of what has the name of a blob, and must be right."""
        files = [f for f in self.store.path.glob("blobs/*/*") if re.fullmatch("[0-9a-f]+", f.name)]
        found = {digest_of(file.read_bytes()) for file in files}
        assert found == {f"sha256:{file.name}" for file in files}
        return found

    def others(self) -> list[str]:
        """Return the paths of what is no blob."""
        files = [f for f in self.store.path.rglob("*") if f.is_file()]
        paths = [str(f.relative_to(self.store.path)) for f in files]
        return sorted(each for each in paths if not each.startswith("blobs/sha256/"))


FILES = [".imgproxy/index.lock", ".imgproxy/lock", "index.json", "oci-layout"]


@pytest.mark.parametrize("case", COMMANDS)
def test_a_kill_leaves_nothing_wrong(
    case: str, source: Layout, tmp_path: Path, forks: Forks
) -> None:
    stage = Stage(case, source, tmp_path, forks)
    status, total = stage.run()
    assert status == 0
    done = stage.named()
    assert total >= (2 if case != "gc" else 1)
    kills = range(1, total + 1)
    for kill in kills if SLOW else sorted({*kills[:: max(1, total // QUICK)], total}):
        assert stage.run(kill)[0] == -9, f"killed after call {kill} of {total}"
        stage.blobs()
        if (stage.store.path / "index.json").exists():
            stage.named()
            if (stage.store.path / "oci-layout").exists():
                stage.gc()
                assert stage.blobs() == stage.named()
                stage.run(kill)
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
    status, _ = stage.run()
    assert status == 0
    counted = stage.calls
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
    assert found == counted

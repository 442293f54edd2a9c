"""`unpack` at its destination: mount points, full disks, SIGKILL, and what a file costs."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.images import (
    Layout,
)
from support.parent import INSECURE
from support.servers import (
    require,
    skip,
)
from support.unpacking import (
    BASE,
    IS_ROOT,
    UPPER,
    directory,
    entry,
    image,
    names,
    public_directory,
    unpack_image,
)

from imgproxy.unpacking.destination import INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MARK = os.fsdecode(INCOMPLETE)


# Those that have to do with files; others depend on what the threads wait for.
CALLS = {
    *("open", "openat", "openat2", "creat", "read", "write", "pwrite64", "lseek", "ftruncate"),
    *("fchown", "fchownat", "chown", "fchmod", "fchmodat", "chmod", "utimensat", "close", "dup"),
    *("fstat", "newfstatat", "statx", "unlink", "unlinkat", "mkdirat", "fsetxattr", "fsync"),
}


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory() as path:
        yield path


@pytest.fixture
def layout(place: Path) -> Layout:
    made = Layout(place / "layout")
    made.save(image(made, BASE, UPPER))
    return made


@pytest.fixture
def at(place: Path) -> Path:
    (place / "work").mkdir()
    return place / "work/tree"


# --- other file systems -------------------------------------------------------------------------


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own."""
    path.mkdir()
    if not IS_ROOT:
        skip("only root can mount a file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        skip("no tmpfs can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.slow
def test_a_mount_point_becomes_the_top_of_the_tree(layout: Layout, place: Path) -> None:
    layout.save(image(layout, BASE + directory(".", mode=0o751, mtime=5)))
    with disk(place / "disk", "1m") as path:
        device = path.stat().st_dev
        assert unpack_image(layout, path).status == 0
        assert names(path) == ["bin", "etc", "etc/gone", "etc/os"]
        state = path.stat()
        assert (state.st_dev, state.st_mtime_ns, stat.S_IMODE(state.st_mode)) == (device, 5, 0o751)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1m", "1m,nr_inodes=5"])
def test_a_full_disk_is_left_as_it_was(layout: Layout, place: Path, size: str) -> None:
    layout.save(image(layout, BASE, UPPER, entry("zeros", bytes(2 << 20))))
    with disk(place / "disk", size) as path:
        for out in (path / "absent", path):
            done = unpack_image(layout, out, "--format=json")
            assert done.status == 6, done.stderr
            assert "No space left on device" in done.stderr
            assert os.listdir(path) == []


# --- a process that is killed -------------------------------------------------------------------


def strace(call: str, when: int) -> list[str]:
    program = require("strace")
    return [
        *(program, "-f", "-qq", "-o/dev/null"),
        *("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("call", "when"), [("fchmod", 1), ("symlinkat", 1), ("syncfs", 1)])
def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(
    layout: Layout,
    at: Path,
    call: str,
    when: int,
    in_place: bool,  # noqa: FBT001  (a parameter)
) -> None:
    if in_place:
        at.mkdir()
    killed = run(*("unpack", INSECURE, f"oci:{layout.path}:v1", str(at)), prefix=strace(call, when))
    assert killed.status in (-9, 137)
    again = unpack_image(layout, at)
    if not in_place:
        assert again.status == 0, again.stderr
        assert os.listdir(at.parent) == ["tree"]
        assert names(at) == ["bin", "etc", "etc/os", "sbin"]
        return
    assert MARK in names(at)
    assert again.status == 6
    assert "is not whole" in again.stderr


# --- what load does not touch -------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_costs_few_system_calls(layout: Layout, at: Path, place: Path) -> None:
    """Open, write, owner, mode, times, close; and now and then something for a piece."""
    few, many = 100, 1100
    counts = {}
    for number in (few, many):
        layout.save(image(layout, b"".join(entry(f"d/f{n}", b"x") for n in range(number))))
        log = place / f"calls-{number}"
        traced = [require("strace"), "-f", "-qq", "-c", "-S", "calls", "-o", str(log)]
        name = f"oci:{layout.path}:v1"
        done = run("unpack", INSECURE, name, str(at.with_name(f"{number}")), prefix=traced)
        assert done.status == 0, done.stderr
        lines = [line.split() for line in log.read_text().splitlines()]
        counts[number] = {line[-1]: int(line[3]) for line in lines if line[-1] in CALLS}
    more = {call: counts[many].get(call, 0) - counts[few].get(call, 0) for call in CALLS}
    assert sum(more.values()) <= 6.5 * (many - few), more
    assert more["openat2"] <= 10, more

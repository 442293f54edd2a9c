"""Disks that are full, broken, read-only or somebody else's: exit status 6, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.disk_calls import Forks
from support.effort import SLOW
from support.images import Layout
from support.parent import INSECURE
from support.servers import require, skip
from support.stages import COMMANDS, Stage, two_images
from support.traced import strace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20

# Failures that are tried where not all are.
QUICK = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return two_images(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


FAULTS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: errno.errorcode[each])
@pytest.mark.parametrize("case", COMMANDS)
def test_a_fault_from_any_call_on_loses_nothing(
    case: str, fault: int, source: Layout, tmp_path: Path, forks: Forks
) -> None:
    stage = Stage(case, source, tmp_path, forks)
    total = stage.run().total
    done = stage.named()
    stage.restore()
    before = stage.named() if stage.store.path.exists() else set()
    # the program tells a full disk from a broken one; of the others it knows nothing else
    is_whole = SLOW and fault in {errno.ENOSPC, errno.EIO}
    for fail in range(1, total + 1, 1 if is_whole else max(1, total // QUICK)):
        ended = stage.run(fail=fail, errno=fault)
        if ended.status != 0:  # what is tidied up at the end may stay
            assert (ended.status, os.strerror(fault) in ended.stderr) == (6, True), ended.stderr
            assert ended.stderr.splitlines()[-1].startswith(f"imgproxy: {stage.command[0]}: ")
        stage.blobs()
        if (stage.store.path / "index.json").exists():
            assert stage.named() in ((done,) if ended.status == 0 else (before, done))
        if ended.status == 0 and case == "rm":
            continue
        assert stage.again() in ((0, 3) if case == "rm" else (0,))
        assert stage.named() == done
        stage.gc()
        assert stage.blobs() == stage.named()


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory of some size."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        skip(f"no tmpfs can be mounted: {made.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk has no room."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def entries(store: Path) -> int:
    return len(json.loads((store / "index.json").read_bytes())["manifests"])


@pytest.mark.slow
def test_a_full_disk_is_told_and_gc_makes_room(source: Layout, tmp_path: Path) -> None:
    pull = ("pull", INSECURE, f"oci:{source.path}:one")
    with disk(tmp_path / "disk", "3m") as path:
        at = f"oci:{path}/store"
        assert run("pull", INSECURE, f"oci:{source.path}:two", f"{at}:two").status == 0
        done = run(*pull, f"{at}:one", "--format=json")
        assert (done.status, done.json()["errors"][0]["code"]) == (6, "DESTINATION")
        assert "are missing, and the disk has room for" in done.stderr
        assert run("verify", at).status == 0
        fill(path / "rest")
        for command in (("tag", f"{at}:two", "new"), ("rm", f"{at}:two")):
            done = run(*command)
            assert (done.status, "No space left on device" in done.stderr) == (6, True)
            assert entries(path / "store") == 1
        assert run("verify", at).status == 0
        assert run("gc", at, "--grace=0", "--format=json").json()["files"] >= 1
        (path / "rest").unlink()
        remount(path, "size=9m")
        assert run(*pull, f"{at}:one").status == 0
        assert entries(path / "store") == 2
        assert run("verify", at).status == 0


@pytest.mark.slow
def test_a_disk_that_is_read_only_can_be_read(source: Layout, tmp_path: Path) -> None:
    pull = ("pull", INSECURE, f"oci:{source.path}:one")
    with disk(tmp_path / "disk", "20m") as path:
        at = f"oci:{path}/store"
        assert run(*pull, f"{at}:one").status == 0
        assert run("tag", f"{at}:one", "two").status == 0
        Layout(path / "store").add(b"dead", "x/y")
        remount(path, "ro")
        for command in (
            (*pull, f"{at}:new"),
            ("tag", f"{at}:one", "new"),
            ("rm", f"{at}:two"),
            ("gc", at, "--grace=0"),
        ):
            done = run(*command)
            assert (done.status, done.stdout) == (6, "")
            assert done.stderr.endswith(": Read-only file system\n")
        assert run("verify", at).status == 0
        planned = run("gc", at, "--grace=0", "--dry-run", "--format=json")
        assert (planned.status, planned.json()["files"]) == (0, 1)
        remount(path, "rw")
        assert run("gc", at, "--grace=0", "--format=json").json() == {
            **planned.json(),
            "dryRun": False,
        }


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fdatasync", "fsync", "rename", "pwrite64", "flock"])
def test_a_disk_that_breaks_is_told(call: str, source: Layout, tmp_path: Path) -> None:
    store = tmp_path / "store"
    fault = [strace(), "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:error=EIO:when=1+"]
    pull = ("pull", INSECURE, f"oci:{source.path}:one", f"oci:{store}:os")
    done = run(*pull, prefix=fault)
    assert (done.status, done.stdout) == (6, ""), done.stderr
    assert done.stderr.splitlines()[-1].endswith("Input/output error")
    done = run(*pull)
    assert done.status == 0, done.stderr
    assert run("verify", f"oci:{store}").status == 0


@pytest.mark.slow
def test_what_belongs_to_another_user_is_left_alone(source: Layout, tmp_path: Path) -> None:
    if os.geteuid():
        skip("only root can become another user")
    user = [require("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    if run("--version", prefix=user).status:
        skip("the program is not for other users here")
    at, pull = f"oci:{tmp_path}/store", ("pull", INSECURE, f"oci:{source.path}:two")
    assert run(*pull, f"{at}:os").status == 0
    for command in (
        (*pull, f"{at}:new"),
        ("tag", f"{at}:os", "new"),
        ("rm", f"{at}:os"),
        ("gc", at, "--grace=0"),
        ("verify", at),
    ):
        done = run(*command, prefix=user)
        assert (done.status, "Permission denied" in done.stderr) == (6, True), done.stderr
    assert run("verify", at).status == 0
    assert entries(tmp_path / "store") == 1

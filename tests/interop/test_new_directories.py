"""DIR of `copy` and `extract`: whole or not at all, on mount points, full disks, after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from support import forked, packages
from support.effort import rounds
from support.images import Layout
from support.packages import Part, tarball, titled
from support.parent import INSECURE
from support.servers import skip

from imgproxy import __main__

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = ".imgproxy-incomplete"
FILES = {f"d{n}/f{n}": b"content %d" % n for n in range(8)}

# What Python tells of before it does it, of what changes a directory.
EVENTS = {
    *("open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
    *("os.symlink", "os.utime", "ctypes.set_errno", "ctypes.get_errno"),
}


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Return an image that can be copied and extracted, to the same number of files."""
    parts = [titled(f"{name}.tar", tarball({name: content})) for name, content in FILES.items()]
    return packages.save(Layout(tmp_path / "layout"), *parts)


def names(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())


WHOLE = {"copy": [f"{name}.tar" for name in FILES], "extract": list(FILES)}


def killed_at(number: int, *arguments: str) -> bool:
    """Run the program until what it does for the `number`th time; return whether it got there."""

    def main() -> int:
        left = number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.argv = ["imgproxy", *arguments]
        sys.addaudithook(count)
        return __main__.main()

    forked.load()
    done = forked.call(main)
    assert done.status in {0, -signal.SIGKILL}, done.stderr
    return done.status != 0


@pytest.mark.slow
@pytest.mark.parametrize("command", WHOLE)
@pytest.mark.parametrize("place", ["absent", "empty"])
def test_killed_at_any_time_it_is_whole_or_not_there(
    command: str, place: str, image: str, tmp_path: Path
) -> None:
    number, step, kills = 0, rounds("IMGPROXY_TEST_KILL_STEP", slow=1, quick=30), 0
    partial = False
    while True:
        number += step
        base = tmp_path / f"at-{number}"
        (base / "empty").mkdir(parents=True)
        out = base / place
        arguments = (command, INSECURE, image, str(out))
        was_killed = killed_at(number, *arguments)
        if not was_killed:
            break
        kills += 1
        partial |= (out / MARK).exists() if place == "empty" else len(os.listdir(base)) > 1
        if place == "absent" and out.exists():
            assert names(out) == WHOLE[command]
        if place == "empty" and not (out / MARK).exists():
            assert names(out) in ([], WHOLE[command])
        again = forked.run(*arguments)
        if place == "absent":
            assert again.status == (6 if names(out) and "exists" in again.stderr else 0)
            # What was left of the first is gone, and nothing else.
            assert sorted(os.listdir(base)) == ["absent", "empty"]
            assert names(out) == WHOLE[command]
        elif (out / MARK).exists():
            assert (again.status, MARK in again.stderr) == (6, True)
    assert names(out) == WHOLE[command]
    assert kills > 10
    assert partial


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own."""
    path.mkdir()
    if os.geteuid():
        skip("only root can mount a file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    made = subprocess.run(mount, capture_output=True, check=False)
    if made.returncode:
        skip(f"no tmpfs can be mounted: {made.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("command", WHOLE)
def test_a_mount_point_is_filled_in_place(command: str, image: str, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m") as path:
        path.chmod(0o701)
        before = path.stat()
        done = forked.run(command, INSECURE, image, str(path))
        assert done.status == 0, done.stderr
        assert names(path) == WHOLE[command]
        after = path.stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        assert not (path / MARK).exists()


@pytest.mark.parametrize("command", WHOLE)
def test_a_full_disk_is_left_as_it_was(command: str, tmp_path: Path) -> None:
    part = Part(tarball({"f": os.urandom(2 << 20)}))
    image = packages.save(Layout(tmp_path / "layout"), part)
    with disk(tmp_path / "disk", "1m") as path:
        for out in (path / "absent", path):
            done = forked.run(command, INSECURE, image, str(out), "--format=json")
            assert done.status == 6, done.stderr
            assert done.json()["errors"][0]["code"] == "DESTINATION"
            assert "No space left on device" in done.stderr
            assert os.listdir(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", WHOLE)
def test_a_disk_without_inodes_is_full_as_well(command: str, image: str, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m,nr_inodes=6") as path:
        done = forked.run(command, INSECURE, image, str(path))
        assert (done.status, os.listdir(path)) == (6, [])


@pytest.mark.slow
@pytest.mark.parametrize("command", WHOLE)
def test_a_place_of_others_is_not_permitted(command: str) -> None:
    if os.geteuid():
        skip("only root can become another user")
    with TemporaryDirectory() as name:  # others do not reach `tmp_path`
        place = Path(name)
        place.chmod(0o755)
        image = packages.save(Layout(place / "layout"), Part(tarball(FILES)))
        done = forked.run(command, INSECURE, image, str(place / "out"), uid=forked.NOBODY)
        assert (done.status, "Permission denied" in done.stderr) == (6, True)
        assert os.listdir(place) == ["layout"]

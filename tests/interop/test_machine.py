"""demo/machine.py: an image that is installed into a directory, and started."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import machines
from support.images import Layout
from support.parent import INSECURE, ROOT, eventually
from support.real_trees import archive, debian, image
from support.servers import require, skip
from support.unpacking import IS_ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_ROOT, reason="only root can start a machine"),
]


DEMO = [sys.executable, str(ROOT / "demo/machine.py")]

# A Debian is read, inflated and written meanwhile.
INSTALLING = 300.0


def machine(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_a_debian_is_installed_once_and_runs(tmp_path: Path) -> None:
    source = debian()
    require("systemd-nspawn")
    name = image(Layout(tmp_path / "layout"), archive(source))
    at = tmp_path / "machine"
    words = (str(at), name, "sh", "-c", "cat /etc/debian_version; id -un 42", "--", INSECURE)
    done = machine(*words)
    if done.returncode and at.exists():
        skip(f"systemd-nspawn does not run here: {done.stderr}")
    version = (source / "etc/debian_version").read_text()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [version.strip(), "_apt"]
    assert done.stdout.startswith(f"{at}: ")
    inode = at.stat().st_ino
    again = machine(*words)
    assert again.stdout.splitlines() == [version.strip(), "_apt"]
    assert at.stat().st_ino == inode


def test_a_debian_is_installed_boots_and_is_powered_off(tmp_path: Path) -> None:
    with machines.running({}):  # else the test is skipped
        source = machines.operating_system()
    name = image(Layout(tmp_path / "layout"), archive(source))
    at, console = tmp_path / "machine", tmp_path / "console"
    with (
        console.open("wb") as file,
        subprocess.Popen(
            [*DEMO, str(at), name, "--", INSECURE],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            # A line tells that it is installed; imgproxy has ended then.
            assert eventually(
                lambda: process.poll() is not None or bool(console.read_bytes()), INSTALLING
            )
            booted = machines.booted(process, pytest.fail)
            assert booted.run("systemctl", "is-system-running", "--wait") == "running\n"
            assert booted.run("systemctl", "is-active", "multi-user.target") == "active\n"
            assert booted.root.samefile(at)
            booted.write("/etc/installed", "written by the machine")
            booted.ask("systemctl", "poweroff")  # it may be killed with the machine
            assert process.wait(machines.STARTING) == 0
        finally:
            process.kill()
    assert console.read_text(errors="replace").startswith(f"{at}: ")
    assert (at / "etc/installed").read_text() == "written by the machine"


def test_what_cannot_be_installed_is_told(tmp_path: Path) -> None:
    at = tmp_path / "machine"
    done = machine(str(at), f"oci:{tmp_path}/nothing:v1", "true", "--", INSECURE)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: /manifest: 404 ")
    assert os.listdir(tmp_path) == []
    assert machine(str(at)).stderr.startswith("usage: ")

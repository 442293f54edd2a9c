"""A machine in a container: Debian with systemd, booted by systemd-nspawn as root.

Its root file system is made once, in `build/`. What a machine writes is in its memory: the next one
is as new. Its network is of its own, and has a loopback device only; servers and clients of this
host may be started in it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tomllib
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from support.parent import ROOT, eventually
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Of the release that this host has, so that wheels that this host's Python gets are for it too.
_PYTHON = "/usr/bin/python3"
_PACKAGES = "systemd,dbus,python3-venv"

# A release is fetched from a mirror in a minute or so.
_MAKING = 900.0

STARTING = 60.0

# Not of the checkout: what is fetched or built there, and what the program does not consist of.
_LEFT_OUT = shutil.ignore_patterns(".*", "build", "tests", "__pycache__")


def operating_system() -> Path:
    """Return the root file system of a Debian with systemd, which must not be written to.

    Skip the test where none can be made; the programs for it have to be installed.
    """
    for program in ("debootstrap", "systemd-nspawn", "nsenter"):
        require(program)
    if os.geteuid() != 0:
        pytest.skip("an operating system in a container needs root")
    release = platform.freedesktop_os_release()
    if release["ID"] != "debian":
        pytest.skip(f"debootstrap makes a Debian, and this host is {release['ID']}")
    directory = ROOT / "build/machine"
    directory.mkdir(parents=True, exist_ok=True)
    root = directory / release["VERSION_CODENAME"]
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _make(root, release["VERSION_CODENAME"])
    return root


def _make(root: Path, name: str) -> None:
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    words = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", name, str(partial)]
    made = subprocess.run(words, capture_output=True, text=True, timeout=_MAKING, check=False)
    if made.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(f"debootstrap cannot make an operating system: {made.stdout[-500:]}")
    partial.rename(root)


def wheels(directory: Path) -> Path:
    """Write wheels of the program, of all that it may need, and of what builds it.

    They are for the Python of a machine.
    """
    source = directory / "source"
    shutil.copytree(ROOT, source, ignore=_LEFT_OUT)
    builds = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    words = [_PYTHON, "-m", "pip", "wheel", "--quiet", f"--wheel-dir={directory / 'wheels'}"]
    subprocess.run([*words, f"{source}[signatures,registry]", *builds], check=True, timeout=_MAKING)
    return directory / "wheels"


@dataclass(frozen=True)
class Machine:
    """A machine that runs, by the number that its first process has on this host."""

    pid: int

    @property
    def root(self) -> Path:
        """Return its root directory, as this host sees it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def network(self) -> list[str]:
        """Return what begins the command line of a program of this host in its network."""
        return ["nsenter", f"--target={self.pid}", "--net", "--"]

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in it, with the directories that are missing; one that exists is kept."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)

    def ask(self, *words: str) -> tuple[int, str]:
        """Run a command in it; return the exit status, and all of the output."""
        inside = ["nsenter", f"--target={self.pid}", "--all", "--", *words]
        ended = subprocess.run(
            inside,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STARTING,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"},
        )
        return ended.returncode, ended.stdout

    def run(self, *words: str) -> str:
        """Run a command in it that has to succeed; return its output."""
        status, output = self.ask(*words)
        assert status == 0, f"{words}: {status} {output}"
        return output

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """Return what a unit has written."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


@contextmanager
def running(binds: Mapping[str, Path]) -> Iterator[Machine]:
    """Boot a machine for the block, in which directories of this host can be read by these paths.

    Skip the test where this host does not permit that.
    """
    words = [
        *("systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no"),
        *("--private-network", "--volatile=overlay", "--console=pipe", "--link-journal=no"),
        *(f"--machine=imgproxy-{uuid.uuid4().hex[:8]}", f"--directory={operating_system()}"),
        *(f"--bind-ro={outside}:{inside}" for inside, outside in binds.items()),
    ]
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield booted(process, pytest.skip)
        finally:
            process.terminate()
            try:
                process.wait(STARTING)
            except subprocess.TimeoutExpired:
                process.kill()


def booted(process: subprocess.Popen[str], fail: Callable[[str], NoReturn]) -> Machine:
    """Wait until the machine of systemd-nspawn, which a process is, has started all of its units.

    `fail` is called where that ends instead; its standard error is a pipe.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def ask() -> bool:
        if process.poll() is not None:
            assert process.stderr
            fail(f"systemd-nspawn does not boot here: {process.stderr.read()[-500:]}")
        pids = children.read_text().split()
        # The first process has a name of its own once it is systemd.
        return bool(pids) and Path(f"/proc/{pids[0]}/comm").read_text() == "systemd\n"

    assert eventually(ask, STARTING)
    machine = Machine(int(children.read_text().split()[0]))
    states: list[str] = []

    def up() -> bool:
        states[:] = [machine.ask("systemctl", "is-system-running")[1].strip()]
        return states == ["running"]

    assert eventually(up, STARTING), (states, machine.ask("systemctl", "--failed")[1])
    return machine

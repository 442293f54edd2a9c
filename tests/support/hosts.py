"""Two hosts in network namespaces, joined by a cable that can be pulled out.

What a program does when a network goes away is seen only where there is one: on loopback every
loss is an error at once. This needs no root where the kernel gives user namespaces to everybody.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.parent import eventually
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "registry.test"
SERVER = "10.9.0.1"
PROGRAM = "10.9.0.2"


class Host:
    """Namespaces for network and mounts, which a process that does nothing else holds."""

    def __init__(self, *around: str) -> None:
        self._process = subprocess.Popen(
            [*around, require("unshare"), "--net", "--mount", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # until it has its namespaces, the process is still the program that makes them
        comm = Path(f"/proc/{self.pid}/comm")
        assert eventually(lambda: self._process.poll() is not None or comm.read_text() == "cat\n")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def entered(self) -> tuple[str, ...]:
        """Return what a command line begins with that runs here."""
        program = require("nsenter")
        kinds = ("--user", "--net", "--mount")
        return (program, f"--target={self.pid}", *kinds, "--preserve-credentials")

    def run(self, *arguments: str) -> None:
        """Run a command here; show its output if it fails."""
        command = [*self.entered, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0, (arguments, done.stderr)

    def ip(self, arguments: str) -> None:
        """Change the network with these words for ip."""
        self.run(require("ip"), *arguments.split())

    def close(self) -> str:
        """End it; return what it wrote to standard error."""
        self._process.kill()
        return self._process.communicate()[1]


class Hosts:
    """A host with servers at `SERVER`, and one where programs run that know it as `NAME`."""

    def __init__(self, server: Host, program: Host, names: Path) -> None:
        self.server = server
        self.program = program
        self._names = names
        self._name(SERVER)
        program.run("mount", "--bind", str(names), "/etc/hosts")
        server.ip(f"link add cable type veth peer name cable netns {program.pid}")
        for host, address in ((server, SERVER), (program, PROGRAM)):
            host.ip(f"address add {address}/24 dev cable")
            host.ip("link set lo up")
            host.ip("link set cable up")

    def pull_out(self) -> None:
        """Take the cable out where the program runs."""
        self.program.ip("link set cable down")

    def plug_in(self) -> None:
        self.program.ip("link set cable up")

    def move(self, host: Host, address: str) -> None:
        """Give a host this address in place of the one it has; the server's name follows."""
        host.ip("address flush dev cable")
        host.ip(f"address add {address}/24 dev cable")
        if host is self.server:
            self._name(address)

    def _name(self, address: str) -> None:
        # in place, for the file is mounted
        self._names.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n")


@contextmanager
def hosts(directory: Path) -> Iterator[Hosts]:
    """Yield two hosts that are joined; skip the test where the system gives no namespaces."""
    with ExitStack() as stack:
        server = Host(require("unshare"), "--map-root-user")
        stack.callback(server.close)
        try:
            server.run("true")
        except AssertionError:
            pytest.skip(f"no network namespaces here: {server.close()}")
        program = Host(*server.entered)
        stack.callback(program.close)
        yield Hosts(server, program, directory / "hosts")

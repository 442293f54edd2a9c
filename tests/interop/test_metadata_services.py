"""What answers never lead to: the tests of `metadata_services.py`, in a network of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from shutil import which
from typing import TYPE_CHECKING

import pytest
from interop import metadata_services as network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_in_a_network_of_its_own(tmp_path: Path) -> None:
    """The names stand for those that whoever wrote an answer has in the DNS."""
    if which("unshare") is None or which("ip") is None:
        pytest.skip("needs unshare and ip")
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{each} {name}\n" for name, each in network.NAMES.items()))
    addresses = [
        network.REGISTRY,
        network.INTERNAL,
        *network.SERVICES,
        *(f"{each} nodad" for each in network.SERVICES_6),
    ]
    commands = [
        "ip link set lo up",
        *(f"ip addr add {each} dev lo" for each in addresses),
        f'mount --bind "{hosts}" /etc/hosts',
        f'"{sys.executable}" -m pytest -q -p no:cacheprovider -p no:xdist'
        f' --basetemp="{tmp_path}/inside" "{network.__file__}"',
    ]
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", " && ".join(commands)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "unshare" in done.stderr:
        pytest.skip("this system allows no network of its own")
    assert done.returncode == 0, done.stdout + done.stderr

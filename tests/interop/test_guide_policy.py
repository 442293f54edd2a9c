"""The guide's way from a key to an enforced policy, walked as it stands there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.gnupg import Gnupg
from support.home import REGISTRIES_CONF, Home, table
from support.images import Layout, named
from support.parent import COMMAND, ROOT
from support.servers import require, skopeo_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.filled import Registry


def blocks() -> list[str]:
    _, _, text = (
        (ROOT / "GUIDE.md").read_text().partition("\n### From a key to an enforced policy\n")
    )
    return re.findall(r"^```sh\n(.*?)^```$", text.partition("\n## ")[0], re.DOTALL | re.MULTILINE)


@pytest.fixture
def home() -> Iterator[Home]:
    """Give a home whose path is short, because gpg's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="h", ignore_cleanup_errors=True) as path:
        home = Home(Path(path))
        Gnupg(home.path / ".gnupg")
        try:
            yield home
        finally:
            subprocess.run(
                [require("gpgconf"), "--homedir", f"{path}/.gnupg", "--kill", "all"], check=False
            )


@pytest.mark.slow
def test_the_guide_leads_from_a_key_to_an_enforced_policy(registry: Registry, home: Home) -> None:
    for program in ("gpg", "skopeo"):
        require(program)
    layout = Layout(home.path / "os")
    layout.save(named(layout.image(b"an operating system"), "os"))
    home.write(REGISTRIES_CONF, table(registry.address, registry.address, "insecure = true"))
    home.program("imgproxy", f'exec {" ".join(COMMAND)} "$@"')
    names = {"registry.example.com": registry.address, "/srv/": f"{home.path}/"}

    def run(script: str) -> str:
        for name, ours in names.items():
            script = script.replace(name, ours)
        return subprocess.run(
            ["sh", "-euc", script],
            env=home.environment(),
            cwd=home.path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    *preparing, enforcing = blocks()
    run("\n".join(preparing))
    assert run(enforcing).startswith("HTTP/1.1 200 ")
    asking = next(line for line in enforcing.splitlines() if line.startswith("printf"))
    image = f"{registry.address}/acme/os"
    for other in ("acme/os:2", "acme/else:1"):  # signed, but not as that
        skopeo_copy(
            f"docker://{image}:1", f"docker://{registry.address}/{other}", "--src-tls-verify=false"
        )
        answer = run(asking.replace("acme/os:1", other))
        assert answer.startswith("HTTP/1.1 403 ")
        assert "signature" in answer
    answer = run(asking.replace("acme/os:1", "images/all:latest"))
    assert answer.startswith("HTTP/1.1 403 ")
    assert "policy.json (default)" in answer

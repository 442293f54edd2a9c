"""A registry with TLS or passwords, and curl, which asks it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

from support.parent import COMMAND, INSECURE, LIMIT, environment
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from support.registry_doors import Door
    from support.servers import Certificates


class Fetched(NamedTuple):
    """What curl has got: 0 for the status where there was no reply, and why not."""

    status: int
    body: str
    trouble: str


def curl(url: str, *options: str | Path, around: Sequence[str] = ()) -> Fetched:
    """Ask with curl; `around` is what its command line begins with."""
    result = subprocess.run(
        [*around, require("curl"), "-sS", "-w", "\n%{http_code}", *options, url],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    body, _, status = result.stdout.rpartition("\n")
    return Fetched(int(status), body, result.stderr)


def https(door: Door, target: str, files: Certificates, *options: str | Path) -> Fetched:
    """Ask over TLS; the certificate has to be from the authority in the files."""
    return curl(f"https://localhost:{door.port}{target}", "--cacert", files.authority, *options)


def tls_options(files: Certificates) -> tuple[str, ...]:
    return (f"--tls-cert={files.certificate}", f"--tls-key={files.key}")


def usage_error(*options: str, env: Mapping[str, str] | None = None) -> str:
    """Return the line with which the program refuses a command line."""
    result = subprocess.run(
        [*COMMAND, "registry", INSECURE, "--listen=127.0.0.1:0", *options],
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, ""), result
    (line,) = result.stderr.splitlines()
    return line

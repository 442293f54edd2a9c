"""A home directory with configuration, and an environment without any other."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import parent

if TYPE_CHECKING:
    from pathlib import Path

REGISTRIES_CONF = ".config/containers/registries.conf"


@dataclass(frozen=True)
class Home:
    """A user's home at `path`, whose runtime directory is `run` in it and whose programs `bin`."""

    path: Path

    def write(self, name: str, content: object) -> Path:
        """Write a file: text and bytes as they are, anything else as JSON."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def program(self, name: str, script: str) -> None:
        """Install a program in $PATH."""
        self.write(f"bin/{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Return an environment in which no configuration but this home's is found."""
        return parent.environment(
            **{
                "HOME": str(self.path),
                "PATH": f"{self.path}/bin:{os.environ['PATH']}",
                "XDG_RUNTIME_DIR": f"{self.path}/run",
                **changes,
            }
        )


def table(prefix: str, location: str, *configuration: str) -> str:
    """Return a [[registry]] of registries.conf; empty ones are left out."""
    lines = [f'prefix = "{prefix}"' * bool(prefix), f'location = "{location}"' * bool(location)]
    return "\n".join(["[[registry]]", *lines, *configuration, ""])


def mirror(location: str, *configuration: str) -> str:
    """Return a mirror for the [[registry]] before it."""
    return "\n".join(["[[registry.mirror]]", f'location = "{location}"', *configuration, ""])

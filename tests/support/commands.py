"""Commands of the program, run to their end."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from support.parent import COMMAND, LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Done(NamedTuple):
    """What a command has said and done."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        """Return the document on standard output."""
        return json.loads(self.stdout)


def run(*arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> Done:
    """Run the program with these arguments; `prefix` is a program that runs it."""
    result = subprocess.run(
        [*prefix, *COMMAND, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
        check=False,
    )
    return Done(result.returncode, result.stdout, result.stderr)

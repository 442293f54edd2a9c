#!/usr/bin/env python3
"""An installer: unpack an image into a directory, and start that with systemd-nspawn.

    machine.py DIR IMAGE [COMMAND …] [-- OPTIONS OF IMGPROXY]

Without COMMAND, the machine is booted, for which the image needs an init such as systemd, and runs
until it is powered off. Its network has a loopback device alone. DIR is not unpacked again where it
is there: it appears when it is whole, so that an installer that was killed can be started again.
It needs root.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from imgproxy import parent

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


def install(directory: str, image: str, options: list[str]) -> None:
    """Unpack an image, and tell what could not be kept. Raises `ParentError`."""
    with parent.start(image, *options) as child:
        done = parent.unpack(child, directory, warn=lambda line: print(line, file=sys.stderr))
    lost = "".join(f", {count} {kind} lost" for kind, count in done.lost.items())
    print(f"{directory}: {done.files} files, {done.size >> 20} MiB{lost}", flush=True)


def start(directory: str, command: list[str]) -> NoReturn:
    """Become a machine that runs the command, or boots."""
    nspawn = ["systemd-nspawn", "--quiet", "--private-network", f"--directory={directory}"]
    if not os.path.isdir("/run/systemd/system"):  # nobody is there to register with
        nspawn += ["--register=no", "--keep-unit"]
    nspawn += ["--as-pid2", *command] if command else ["--boot"]
    os.execvp(nspawn[0], nspawn)  # noqa: S606  (no shell is wanted)


def main() -> int:
    """Parse the command line, install the machine, and start it."""
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    match arguments:
        case [directory, image, *command]:
            pass
        case _:
            sys.exit("usage: machine.py DIR IMAGE [COMMAND …] [-- OPTIONS OF IMGPROXY]")
    try:
        if not os.path.isdir(directory):
            install(directory, image, options)
    except (parent.ParentError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return TRY_AGAIN if getattr(error, "retryable", False) else 1
    start(directory, command)


if __name__ == "__main__":
    sys.exit(main())

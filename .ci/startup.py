#!/usr/bin/env python3
"""Compare how two commands start: `startup.py IMAGE COMMAND... -- COMMAND...`.

Each serves the image's manifest, in turns. The output are the medians in milliseconds and the
ratio of the second to the first: only a hint if the machine is busy.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15

REQUEST = b"GET /manifest HTTP/1.1\r\nHost: startup\r\n\r\n"


def seconds(command: list[str], image: str) -> float:
    """Return the time in seconds that a command takes to serve one manifest and end."""
    started = time.perf_counter()
    result = subprocess.run(  # noqa: S603  (the commands are the caller's)
        [*command, "--insecure-policy", "--platform=linux/amd64", image],
        input=REQUEST,
        capture_output=True,
        check=True,
    )
    taken = time.perf_counter() - started
    if b" 200 OK" not in result.stdout:
        sys.exit(f"{command}: {result.stderr.decode()}")
    return taken


def main() -> None:
    """Measure both commands, and print the results."""
    image, *arguments = sys.argv[1:]
    cut = arguments.index("--")
    commands = arguments[:cut], arguments[cut + 1 :]
    for command in commands:
        seconds(command, image)  # so that all files are in the page cache
    rounds = [[seconds(command, image) for command in commands] for _ in range(ROUNDS)]
    first, second = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"start-up: {first * 1000:.0f} ms, {second * 1000:.0f} ms: {second / first:.2f} times")


if __name__ == "__main__":
    main()

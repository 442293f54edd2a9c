#!/usr/bin/env python3
"""Compare how two commands start: `startup.py IMAGE COMMAND... -- COMMAND...`.

Each serves the image's manifest, in turns. What is printed are the medians in milliseconds and the
ratio of the second to the first: on a machine that does other things as well, a hint and no more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15

REQUEST = b"GET /manifest HTTP/1.1\r\nHost: startup\r\n\r\n"


def seconds(command: list[str], image: str) -> float:
    """Give how long it takes from the start to the end of one served manifest."""
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
    """Measure, and print."""
    image, *words = sys.argv[1:]
    cut = words.index("--")
    commands = words[:cut], words[cut + 1 :]
    for command in commands:
        seconds(command, image)  # whatever is read is in memory afterwards
    rounds = [[seconds(command, image) for command in commands] for _ in range(ROUNDS)]
    first, second = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"start-up: {first * 1000:.0f} ms, {second * 1000:.0f} ms: {second / first:.2f} times")


if __name__ == "__main__":
    main()

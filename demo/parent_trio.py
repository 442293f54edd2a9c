#!/usr/bin/env python3
"""A parent that uses the library `imgproxy.parent` on trio: list an image's layers, or save them.

    parent_trio.py IMAGE [DIRECTORY] [-- OPTIONS OF IMGPROXY]

Several layers are fetched at a time, with their progress on a terminal. The library counts the
bytes: a blob that has been read to its end is verified, and any other raises an exception.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgproxy.parent import ParentError, with_trio

if TYPE_CHECKING:
    from imgproxy.parent.with_trio import Blob, Child
    from imgproxy.specs.oci.manifest import Descriptor

IMGPROXY = [os.environ.get("IMGPROXY", "imgproxy")]

SOCKETS = 3  # how many layers are fetched at a time

CHUNK = 1 << 20


class Progress:
    """The received share of all layers, in one line on a terminal."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def add(self, count: int) -> None:
        """Count received bytes."""
        self.done += count
        if sys.stderr.isatty():
            end = "\n" if self.done == self.total else ""
            percent = 100 * self.done // max(self.total, 1)
            print(f"\r   {percent:3} % of {self.total} bytes", end=end, file=sys.stderr, flush=True)


async def save(blob: Blob, file: Path, progress: Progress) -> None:
    """Save a blob; only a complete file gets its name."""
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as output:
            while chunk := await blob.receive_some(CHUNK):
                await trio.to_thread.run_sync(output.write, chunk)  # a disk may be slow
                progress.add(len(chunk))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


async def save_all(child: Child, layers: list[Descriptor], directory: Path) -> None:
    """Save layers. The first failure cancels all of them, and is raised."""
    progress = Progress(sum(layer.size for layer in layers))

    async def save_one(layer: Descriptor) -> None:
        async with await child.blob(layer) as blob:
            await save(blob, directory / str(layer.digest).replace(":", "-"), progress)

    try:
        async with trio.open_nursery() as nursery:
            for layer in layers:
                nursery.start_soon(save_one, layer)
    except* (ParentError, OSError) as errors:
        raise errors.exceptions[0] from None


async def show(child: Child, directory: Path | None) -> None:
    """Print the parts of the image, and save its layers if there is a directory."""
    manifest = await child.manifest()
    print(f"   manifest {manifest.digest}")
    print(f"   config   {manifest.config.digest}")
    if directory:
        unique = {layer.digest: layer for layer in manifest.layers}
        await save_all(child, list(unique.values()), directory)
    done = ", verified and saved" if directory else ""
    for layer in manifest.layers:
        print(f"   layer    {layer.digest}, {layer.size} bytes{done}")


async def run(image: str, directory: Path | None, options: list[str]) -> int:
    """Show or save the image, and return the exit status."""
    failed = False
    async with with_trio.start(image, *options, sockets=SOCKETS, command=IMGPROXY) as child:
        try:
            await show(child, directory)
        except (ParentError, OSError) as error:
            print(f"   failed: {error}")
            failed = True
    print(*child.diagnostics, sep="\n", end="\n" * bool(child.diagnostics), file=sys.stderr)
    ending = child.ending
    print(f"   {ending}")
    return 1 if failed or ending is None or ending.status else 0


def main() -> int:
    """Parse the command line, and run."""
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    match arguments:
        case [image]:
            directory = None
        case [image, name]:
            directory = Path(name)
            directory.mkdir(parents=True, exist_ok=True)
        case _:
            sys.exit("usage: parent_trio.py IMAGE [DIRECTORY] [-- OPTIONS OF IMGPROXY]")
    try:
        return trio.run(run, image, directory, options)
    except FileNotFoundError as error:
        sys.exit(f"cannot start {IMGPROXY[0]}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())

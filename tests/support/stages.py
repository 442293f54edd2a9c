"""A store in a known state, and a command that changes it, as often as a test wants."""

from __future__ import annotations

import json
import random
import re
import shutil
from typing import TYPE_CHECKING

from support.images import REF_NAME, Layout, digest_of, named
from support.parent import INSECURE

if TYPE_CHECKING:
    from pathlib import Path

    from support.disk_calls import Ended, Forks

BYTES = random.Random(1).randbytes(5 << 20)


def two_images(path: Path) -> Layout:
    """Write a layout with two images, of three blobs each, of which they share one."""
    layout = Layout(path)
    images = {"one": (BYTES, b"shared"), "two": (b"two" * 9, b"shared")}
    layout.save(*(named(layout.image(*layers), name) for name, layers in images.items()))
    return layout


# What there is before, by commands, and the command that is killed; {source} and {store}.
PULL = ["pull", INSECURE, "oci:{source}:one", "oci:{store}:os"]
OTHER = ["pull", INSECURE, "oci:{source}:two", "oci:{store}:os"]
COMMANDS: dict[str, tuple[list[list[str]], list[str]]] = {
    "pull": ([], PULL),
    "pull that moves a name": ([OTHER], PULL),
    "pull of what is there": ([PULL], [*PULL[:3], "oci:{store}:other"]),
    "pull after rm": ([PULL, ["rm", "oci:{store}:os"]], PULL),
    "tag": ([OTHER], ["tag", "oci:{store}:os", "other"]),
    "rm": ([PULL, OTHER], ["rm", "oci:{store}:os"]),
    "gc": ([PULL, OTHER], ["gc", "oci:{store}", "--grace=0"]),
}


class Stage:
    """A store that is made anew for each kill."""

    def __init__(self, case: str, source: Layout, directory: Path, forks: Forks) -> None:
        self.store = Layout(directory / "store")
        self._before = directory / "before"
        self._source = source
        self._forks = forks
        shutil.rmtree(self.store.path)
        before, command = COMMANDS[case]
        self.command = self._filled(command)
        for each in before:
            assert forks.run(*self._filled(each), "--quiet").status == 0
        if before:
            shutil.copytree(self.store.path, self._before)

    def _filled(self, command: list[str]) -> list[str]:
        return [each.format(source=self._source.path, store=self.store.path) for each in command]

    def run(self, *, kill: int = 0, fail: int = 0, errno: int = 0) -> Ended:
        """Run the command on the store as it was before; see `Forks.run`."""
        self.restore()
        return self._forks.run(*self.command, kill=kill, fail=fail, errno=errno)

    def restore(self) -> None:
        """Make the store as it was before."""
        shutil.rmtree(self.store.path, ignore_errors=True)
        if self._before.exists():
            shutil.copytree(self._before, self.store.path)

    def again(self) -> int:
        """Run the command on the store as it is; return its status."""
        return self._forks.run(*self.command, "--quiet").status

    def gc(self) -> None:
        """Remove what is not named."""
        ended = self._forks.run("gc", f"oci:{self.store.path}", "--grace=0")
        assert ended.status == 0, ended.stderr

    def named(self) -> set[str]:
        """Return the digests that names need, each of which must be there and right."""
        entries = json.loads((self.store.path / "index.json").read_bytes())["manifests"]
        found = set()
        for entry in entries:
            document = self.store.document(entry)
            parts = [entry["digest"], *(each["digest"] for each in document["layers"])]
            found |= {*parts, document["config"]["digest"]}
        for digest in found:
            assert digest_of(self.store.read(digest)) == digest
        names = [entry["annotations"][REF_NAME] for entry in entries]
        assert len(names) == len(set(names))
        return found

    def blobs(self) -> set[str]:
        """Return the digests of what has the name of a blob, and must be right."""
        files = [f for f in self.store.path.glob("blobs/*/*") if re.fullmatch("[0-9a-f]+", f.name)]
        found = {digest_of(file.read_bytes()) for file in files}
        assert found == {f"sha256:{file.name}" for file in files}
        return found

    def others(self) -> list[str]:
        """Return the paths of what is no blob."""
        files = [f for f in self.store.path.rglob("*") if f.is_file()]
        paths = [str(f.relative_to(self.store.path)) for f in files]
        return sorted(each for each in paths if not each.startswith("blobs/sha256/"))

"""`imgproxy registry --upstream`, before a real registry that is reached over a line."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from support import registry_doors
from support.networks import line_to
from support.registry_doors import blob, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.filled import Registry
    from support.networks import Cut, Line
    from support.parent import Reply
    from support.registry_doors import Door

HTTP = "--tls-verify=false"


class Scene(NamedTuple):
    """A registry behind a line that can be cut, and a cache before it that is empty at first."""

    registry: Registry
    line: Line
    cache: Path

    @property
    def name(self) -> str:
        """The repository with all images, as it is asked for."""
        return f"{self.line.address}/images/all"

    @contextmanager
    def door(self, *options: str, upstream: str = "", policy: str = "") -> Iterator[Door]:
        """Run the program before the registry, for the block."""
        chosen = [f"--upstream={upstream or self.line.address}", f"--cache={self.cache}"]
        with registry_doors.running(
            *chosen, HTTP, "--no-creds", *options, **({"policy": policy} if policy else {})
        ) as door:
            yield door

    def pull(self, door: Door, tag: str) -> list[Reply]:
        """Pull all documents and blobs of an image; every reply is right."""
        replies = [door.ask(manifest(self.name, tag))]
        wanted = [self.registry.images[tag]["digest"]]
        assert replies[0].status == 200, replies[0]
        assert replies[0].get("Docker-Content-Digest") == wanted[0]
        while wanted:
            digest = wanted.pop()
            document = door.ask(manifest(self.name, digest))
            assert document.body == self.registry.layout.read(digest), document
            replies.append(document)
            parsed = document.json()
            wanted += [each["digest"] for each in parsed.get("manifests", ())]
            blobs = [parsed["config"], *parsed["layers"]] if "config" in parsed else []
            for each in blobs:
                replies.append(door.ask(blob(self.name, each["digest"])))
                assert replies[-1].body == self.registry.layout.read(each["digest"])
        return replies

    def asked(self, kind: str = "/v2/") -> list[str]:
        """Return the requests for what is of a kind, and forget them."""
        found = self.line.paths(kind)
        self.line.asked.clear()
        return found


@contextmanager
def scene(registry: Registry, directory: Path, *cuts: Cut) -> Iterator[Scene]:
    """Run a line to a registry, for the block."""
    with line_to(registry.address, *cuts) as line:
        yield Scene(registry, line, directory / "cache")


def all_at_once(count: int, work: Callable[[], object]) -> None:
    """Call `work` in so many threads at the same time; raise what one of them raises."""
    failures: list[BaseException] = []
    gate = threading.Barrier(count)

    def run() -> None:
        try:
            gate.wait()
            work()
        except BaseException as error:  # noqa: BLE001  (raised below)
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]

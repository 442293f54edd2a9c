"""Mutated archives by the thousand: each is an image, or is refused in order.

IMGPROXY_FUZZ_ARCHIVES=100000 makes a long campaign of it, IMGPROXY_FUZZ_SEED another one. What
fails is kept beside the test's other files.
"""

from __future__ import annotations

import bz2
import json
import lzma
import os
import random
import resource
from typing import TYPE_CHECKING

import trio
from support.archives import (
    COMPRESSIONS,
    DIALECTS,
    Member,
    control,
    hard_link,
    layer,
    of_directory,
    pack,
    plain,
    saved,
    symlink,
    zstd_compressed,
)
from support.effort import rounds
from support.images import Json, Layout, digest_of, on
from support.opened import Served, open_descriptors, place_of, served_from

from imgproxy.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARCHIVES = rounds("IMGPROXY_FUZZ_ARCHIVES", slow=400, quick=150)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

# What a file may be refused with. A 503 is for one that changes meanwhile, and none does.
STATUSES = {404, 409, 415, 422, 501}

ENDLESS = 20.0  # seconds
GROWTH = 200 << 10  # KiB

LAYERS = (layer("first", 2000), layer("second", 30_000))
IMAGE = saved(*LAYERS, tags=["example.com/os:1"])
CONTROL = ("manifest.json", "index.json", "oci-layout", "repositories")

# One of each library: mutations know nothing of framing.
COMPRESS: list[Callable[[bytes], bytes]] = [
    plain,
    plain,
    COMPRESSIONS["gzip"],
    COMPRESSIONS["gzip in members"],
    zstd_compressed,
    COMPRESSIONS["zstd with skippable frames"],
    bz2.compress,
    lambda content: lzma.compress(content, preset=0),
]

VALUES: list[object] = [
    *(None, True, 0, -1, 1.5, 2**63, 2**64, 10**400, "", "x", "..", "../../etc/passwd", [], {}),
    *("sha256:" + "0" * 64, "sha512:00", "blake3:" + "0" * 64, "SHA256:" + "A" * 64, "\ud800"),
    *("\0", "a" * 5000, [[[]]], {"": ""}, "application/vnd.oci.image.index.v1+json"),
    *("manifest.json", "/etc/passwd", "./", digest_of(LAYERS[0])),
]


class Mutator:
    """A source of archives that were images once; the same seed gives the same ones."""

    def __init__(self, seed: int, archives: list[list[Member]]) -> None:
        self.chance = random.Random(seed)
        self.archives = archives

    def next(self) -> bytes:
        members = list(self.chance.choice(self.archives))
        kind = self.chance.choice(("documents", "documents", "members", "tar", "file"))
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            if kind == "documents":
                self.change_document(members)
            elif kind == "members":
                self.change_members(members)
        tar = pack(members)
        file = self.chance.choice(COMPRESS)(self.damage(tar) if kind == "tar" else tar)
        return self.damage(file) if kind == "file" else file

    def change_document(self, members: list[Member]) -> None:
        """Change one of those members that are JSON, most often a control file."""
        documents = [n for n, each in enumerate(members) if each.content[:1] in (b"{", b"[")]
        decisive = [n for n in documents if members[n].name in CONTROL]
        if not documents:
            return
        at = self.chance.choice(self.chance.choice((documents, decisive)) or documents)
        if self.chance.random() < 0.3:
            members[at] = members[at]._replace(content=self.damage(members[at].content))
            return
        try:
            document = json.loads(members[at].content)
        except ValueError:
            return  # was damaged before
        members[at] = control(members[at].name, self.changed(document))

    def changed(self, document: object) -> object:
        """Give the document with another value in some place of it."""
        if self.chance.random() < 0.2 or not isinstance(document, dict | list) or not document:
            return self.chance.choice(VALUES)
        if isinstance(document, list):
            items = list(document)
            at = self.chance.randrange(len(items))
            how = self.chance.random()
            if how < 0.15:
                del items[at]
            elif how < 0.3:
                items *= self.chance.choice((2, 100))
            else:
                items[at] = self.changed(items[at])
            return items
        fields: Json = dict(document)
        key = self.chance.choice(list(fields))
        how = self.chance.random()
        if how < 0.15:
            del fields[key]
        elif how < 0.25:
            fields[key.swapcase()] = fields[key]
        else:
            fields[key] = self.changed(fields[key])
        return fields

    def change_members(self, members: list[Member]) -> None:
        """Change what is there: names, kinds, links, order."""
        at = self.chance.randrange(len(members))
        other = self.chance.choice(members).name.rstrip("/")
        name = members[at].name
        members[at : at + 1] = self.chance.choice(
            (
                [],
                [members[at]] * 2,
                [symlink(name, other)],
                [symlink(name, f"../{other}")],
                [symlink(name, f"/{other}")],
                [hard_link(name, other)],
                [Member(name, kind=self.chance.choice((b"3", b"5", b"6", b"S", b"Z")))],
                [members[at]._replace(name=f"./{other}")],
                [members[at]._replace(name=f"../{name}")],
                [members[at]._replace(name="")],
            )
        )
        if self.chance.random() < 0.2:
            self.chance.shuffle(members)
        if not members:
            members.append(Member("x"))

    def damage(self, content: bytes) -> bytes:
        """Change some bytes: near the beginning, at a header, or anywhere."""
        damaged = bytearray(content)
        for _ in range(self.chance.choice((1, 1, 2, 5))):
            near = self.chance.choice((20, 600, len(damaged)))
            at = self.chance.randrange(max(1, min(near, len(damaged))))
            if self.chance.random() < 0.3:
                at -= at % 512 - self.chance.choice((0, 124, 148, 156, 157, 257))
            how = self.chance.random()
            if how < 0.5:
                damaged[at : at + 1] = self.chance.choice(
                    (self.chance.randbytes(1), b"\0", b"\xff")
                )
            elif how < 0.7:
                del damaged[at : at + self.chance.choice((1, 512, 5000))]
            elif how < 0.9:
                damaged[at:at] = damaged[: self.chance.choice((1, 512, 2000))]
            else:
                del damaged[at:]
        return bytes(damaged)


async def outcome(path: Path) -> Served | Failure:
    """Give what comes of a file: an image with all its layers verified, or what is wrong."""
    with trio.fail_after(ENDLESS):
        try:
            source = await place_of(str(path))
            try:
                return await served_from(source)
            finally:
                source.close()
        except Failure as failure:
            return failure


def archives_of(layout: Layout) -> list[list[Member]]:
    layout.save(
        layout.index(
            on(layout.image(b"other", platform="linux/arm64"), "linux/arm64"),
            layout.index(on(layout.image(*LAYERS), "linux/amd64")),
        )
    )
    return [of_directory(layout.path), *(write(IMAGE) for write in DIALECTS.values())]


def test_mutated_archives_are_images_or_refused(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    seen: dict[int, int] = {}

    async def campaign() -> None:
        mutator = Mutator(SEED, archives_of(layout))
        for members in mutator.archives:
            path.write_bytes(pack(members))
            assert not isinstance(await outcome(path), Failure)
        descriptors = open_descriptors()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(ARCHIVES):
            path.write_bytes(mutator.next())
            result = await outcome(path)
            status = 200
            if isinstance(result, Served):
                wanted = [each["digest"] for each in result.described]
                assert wanted == [digest_of(each) for each in result.layers]
            else:
                status = result.status
                assert status in STATUSES, result
                assert result.message.isprintable()
                assert len(result.message) < 100_000
            seen[status] = seen.get(status, 0) + 1
            assert open_descriptors() == descriptors
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < GROWTH

    trio.run(campaign)
    assert {200, 404, 415, 422} <= set(seen), "the mutations reach everything"


def test_the_same_seed_gives_the_same_archives(layout: Layout) -> None:
    archives = archives_of(layout)
    one, same, other = (Mutator(seed, archives) for seed in (SEED, SEED, SEED + 1))
    for _ in range(10):
        assert one.next() == same.next()
    assert one.next() != other.next()

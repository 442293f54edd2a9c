"""Mutated layers, extracted: no escape, no hang, no defect, and the limits hold.

The layers that are mutated are those of `attacks`, so that most mutations are half an attack.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import forked, tars
from support.archives import COMPRESSIONS
from support.attacks import attacks
from support.canary import Canary
from support.effort import rounds
from support.parent import LIMIT

from imgproxy.errors import Failure
from imgproxy.store.files import DestinationError, using
from imgproxy.unpacking.destination import Destination
from imgproxy.unpacking.extraction import Extraction, Rules
from imgproxy.unpacking.layer_stream import LayerStream
from imgproxy.unpacking.limits import Limits
from imgproxy.unpacking.tree import Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_SIZE = 1 << 16
MAX_FILES = 200

# On a file system in memory, where there is one: each of them makes some files.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108

Source = random.Random


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that other users may write to."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        Path(name).chmod(0o777)
        yield Path(name)


def blocks(archive: bytes) -> list[bytes]:
    return [archive[at : at + tars.BLOCK] for at in range(0, len(archive), tars.BLOCK)]


def mutated(archive: bytes, others: Sequence[bytes], source: Source) -> bytes:
    """Return an archive with some blocks changed, lost, doubled, or taken from others."""
    found = blocks(archive)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(found))
        match source.randrange(5):
            case 0:
                found[at : at + 1] = []
            case 1:
                found.insert(at, source.choice(found))
            case 2:
                found[at:at] = blocks(source.choice(others))[: source.randint(1, 4)]
            case _:
                found[at] = changed(found[at], source)
        found = found or [bytes(tars.BLOCK)]
    archive = b"".join(found)
    return archive if source.random() < 0.9 else archive[: source.randrange(len(archive) + 1)]


def changed(block: bytes, source: Source) -> bytes:
    """Return a block with some bytes changed, mostly with the checksum that belongs to them."""
    raw = bytearray(block.ljust(tars.BLOCK, b"\0"))
    for _ in range(source.randint(1, 3)):
        raw[source.choice((0, 1, 2, 100, 105, 124, 134, 135, 156, 157, 158, 345))] = source.choice(
            b"\0./01234567x5LKgS\x80\xff"
        )
    return tars.summed(raw) if source.random() < 0.9 else bytes(raw)


def packed(archive: bytes, source: Source) -> bytes:
    """Return an archive as it is, or compressed, with a byte changed now and then."""
    raw = bytearray(COMPRESSIONS[source.choice(["plain", "plain", "gzip", "zstd", "xz"])](archive))
    if raw and source.random() < 0.1:
        raw[source.randrange(len(raw))] ^= 1 << source.randrange(8)
    return bytes(raw)


def extract(layers: Sequence[bytes], out: Path, source: Source) -> bool:
    """Extract layers; return whether they were."""
    limits = Limits(MAX_SIZE, MAX_FILES)
    include = source.choice(((), (), (b"*a*",), (b"d", b"l")))
    rules = Rules(source.choice((0, 0, 0, 1, 2)), include, source.random() < 0.5)
    with closing(Destination(str(out))) as destination:
        try:
            with using(str(out)), closing(Tree(destination.fd, Scope.BENEATH)) as tree:
                extraction = Extraction(tree, limits, rules)
                for n, content in enumerate(layers):
                    pieces = iter([content, b""])
                    stream = LayerStream(f"layer {n}", lambda it=pieces: next(it, b""), limits)  # type: ignore[misc]
                    extraction.add(stream, f"layer {n}")
                extraction.finish()
            destination.finish()
        except DestinationError:  # the archive's fault is not the disk's
            raise
        except Failure:
            return False
        finally:
            check_limits(destination.fd)
    return True


def check_limits(root: int) -> None:
    """Fail if more has been written than is allowed; holes count as well."""
    left, sizes, files = [f"/proc/self/fd/{root}"], {}, 0
    while left:
        path = left.pop()
        os.chmod(path, 0o700)
        with os.scandir(path) as found:
            for each in found:
                files += 1
                if each.is_dir(follow_symlinks=False):
                    left.append(each.path)
                elif each.is_file(follow_symlinks=False):
                    sizes[each.inode()] = each.stat(follow_symlinks=False).st_size
    assert files <= MAX_FILES
    assert sum(sizes.values()) <= MAX_SIZE


def campaign(place: Path, canary: Canary, seed: int, count: int) -> int:
    """Extract so many mutated layers; return how many of a hundred are extracted."""
    os.chdir(canary.path)  # what is relative must not be found there
    source = Source(seed)
    cases = [each.layers for each in attacks(os.fsencode(canary.path)).values()]
    others = [one for each in cases for one in each]
    done = 0
    for n in range(count):
        signal.alarm(int(12 * LIMIT))  # what hangs ends there
        layers = [packed(mutated(each, others, source), source) for each in source.choice(cases)]
        out = place / f"out-{n}"
        before = set(os.listdir(place))
        try:
            whole = extract(layers, out, source)
        except BaseException:
            print(f"seed {seed}, number {n}: {layers!r}", file=sys.stderr)  # noqa: T201
            raise
        done += whole
        assert out.exists() == whole
        if whole:
            with tempfile.TemporaryDirectory(dir=place) as bin_:
                os.rename(out, f"{bin_}/out")
                _open_all(f"{bin_}/out")
        assert set(os.listdir(place)) == before
        if n % 100 == 0:
            canary.check()
    canary.check()
    return 100 * done // count


def _open_all(path: str) -> None:
    """Let whoever owns a tree remove it."""
    os.chmod(path, 0o700)
    with os.scandir(path) as found:
        for each in found:
            if each.is_dir(follow_symlinks=False):
                _open_all(each.path)


@pytest.mark.parametrize(
    "uid",
    [
        None,
        pytest.param(
            forked.NOBODY,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="root can become anybody"),
        ),
    ],
)
def test_mutated_layers_do_no_harm(uid: int | None, place: Path) -> None:
    canary = Canary(place / "canary")
    seed = int(os.environ.get("IMGPROXY_TEST_SEED", "1"))
    count = rounds("IMGPROXY_TEST_MUTATED_LAYERS", slow=5000, quick=100)
    forked.load()
    done = forked.call(lambda: campaign(place, canary, seed, count), uid)
    # Many are extracted, and many are not: otherwise this would show nothing.
    assert 5 < done.status < 95, done.stderr

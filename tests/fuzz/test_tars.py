"""Broken tar archives by the thousand: one error and no other, and always an end.

IMGPROXY_FUZZ_TARS=1000000 makes a long campaign of it, IMGPROXY_FUZZ_SEED another one. What fails
is told by its seed, and tried alone by IMGPROXY_FUZZ_TARS=1 and that seed.
"""

from __future__ import annotations

import io
import os
import random
import tarfile

from support.effort import rounds
from support.tars import (
    BLOCK,
    END,
    Tape,
    base_256,
    extended,
    header,
    long_name,
    member,
    padded,
    record,
)

from imgproxy.specs.oci import tar
from imgproxy.specs.oci.tar import TarError

ARCHIVES = rounds("IMGPROXY_FUZZ_TARS", slow=3000, quick=1000)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))

KINDS = [bytes([kind]) for kind in b"\x000123456789xgLKXSDMV"]
RECORDS = [
    *((b"path", b"a"), (b"path", b""), (b"linkpath", b"../b"), (b"size", b"3"), (b"size", b"-1")),
    *(
        (b"size", b"9" * 18),
        (b"comment", b"x" * 600),
        (b"path", b"\0"),
        (b"", b""),
        (b"path", b"="),
    ),
    *((b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"s"), (b"hdrcharset", b"BINARY")),
]
SIZES = [b"", b"-1", b"8", b"\xff" * 12, base_256(2**80), base_256(3), b"77777777777\0", b"3 "]


def piece(chance: random.Random) -> bytes:
    """Give something that stands in archives, or comes close."""
    content = chance.randbytes(chance.choice([0, 1, 3, 511, 512, 513]))
    kind = chance.choice(KINDS)
    ways = [
        lambda: member(content, kind=kind),
        lambda: header(kind=kind, size=chance.choice(SIZES)) + content,
        lambda: extended(*(record(*each) for each in chance.choices(RECORDS, k=3)), kind=kind),
        lambda: long_name(content.replace(b"\0", b"x"), chance.choice([b"L", b"K"])),
        lambda: member(kind=kind, name=chance.choice([b"", b"/", b"..", b"a/", b"\xff"])),
        lambda: header(kind=b"S", size=1, more={482: b"\1"}) + padded(bytes(504) + b"\1"),
        lambda: written(chance),
        lambda: bytes(BLOCK),
        lambda: content,
    ]
    return chance.choice(ways)()


def written(chance: random.Random) -> bytes:
    """Give what tarfile writes for a member, without an end."""
    info = tarfile.TarInfo(chance.choice(["a", "b/c", "x" * 150, "ä" * 80]))
    info.size = chance.choice([0, 5, 600])
    file = io.BytesIO()
    archive = tarfile.open(fileobj=file, mode="w", format=chance.choice([1, 2]))  # noqa: SIM115  (it must not end)
    archive.addfile(info, io.BytesIO(chance.randbytes(info.size)))
    return file.getvalue()


def broken(chance: random.Random) -> bytes:
    archive = bytearray(b"".join(piece(chance) for _ in range(chance.randint(1, 8))) + END)
    for _ in range(chance.choice([0, 0, 1, 1, 3])):
        at, end = sorted(chance.choices(range(len(archive)), k=2))
        change = chance.choice(["byte", "cut", "drop", "repeat", "zero"])
        if change == "byte":
            archive[at] = chance.randrange(256)
        elif change == "cut":
            del archive[end + 1 :]
        elif change == "drop":
            del archive[at:end]
        elif change == "repeat":
            archive[at:at] = archive[at:end]
        else:
            archive[at:end] = bytes(end - at)
    return bytes(archive)


def test_a_broken_archive_is_refused_or_read_to_its_end() -> None:
    outcomes = {"refused": 0, "read": 0}
    for seed in range(SEED, SEED + ARCHIVES):
        archive = broken(random.Random(seed))
        tape = Tape([archive])
        position = 0
        try:
            for entry in tar.entries(tape):
                assert position + BLOCK <= entry.offset == tape.position, seed
                position = entry.offset + entry.size
            assert position <= len(archive), seed
        except TarError:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        else:
            outcomes["read"] += 1
    assert ARCHIVES < 1000 or min(outcomes.values()) > ARCHIVES / 50  # both are tried

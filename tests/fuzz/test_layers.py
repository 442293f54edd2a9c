"""Layers that were changed at random: refused or unpacked, and nothing outside is touched.

IMGPROXY_FUZZ_LAYERS=100000 makes a long campaign, IMGPROXY_FUZZ_SEED another one.
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

from support import forked
from support.canary import Canary
from support.effort import rounds
from support.unpack_attacks import unpackings
from support.unpacking import IS_ROOT, public_directory, unpack
from support.unpacking import layer as layer_of

from imgproxy.errors import InvalidError
from imgproxy.unpacking import destination, removal

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from imgproxy.unpacking.root_file_system import Layer

LAYERS = rounds("IMGPROXY_FUZZ_LAYERS", slow=2000, quick=100)
SEED = int(os.environ.get("IMGPROXY_FUZZ_SEED", "1"))
BLOCK = 512


def changed(raw: bytes, chance: random.Random) -> bytes:
    """Return an archive with some bytes changed, in headers with a checksum that fits."""
    archive = bytearray(raw)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(archive))
        archive[at] = chance.choice([0, 0x2E, 0x2F, 0x35, 0x80, 0xFF, chance.randrange(256)])
        start = at - at % BLOCK
        block = archive[start : start + BLOCK]
        if len(block) == BLOCK and any(block):
            block[148:156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    if chance.random() < 0.1:
        del archive[chance.randrange(len(archive)) :]
    return bytes(archive)


def as_layer(raw: bytes) -> Layer:
    made = layer_of(raw)
    whole = raw + bytes(2 * BLOCK)
    return made._replace(diff_id=made.diff_id._replace(encoded=hashlib.sha256(whole).hexdigest()))


def campaign(outside: bytes, work: Path) -> int:
    """Unpack changed layers; return 0 if both outcomes occur."""
    cases = [layers for layers, _ in unpackings(outside).values() if len(b"".join(layers)) < 10**5]
    outcomes = {"refused": 0, "unpacked": 0}
    parent = os.open(work, os.O_RDONLY)
    for seed in range(SEED, SEED + LAYERS):
        chance = random.Random(seed)
        layers = [as_layer(changed(raw, chance)) for raw in chance.choice(cases)]
        try:
            unpack(work / "tree", *layers, max_size=10**8)
        except InvalidError:
            assert not (work / "tree").exists(), seed
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        else:
            outcomes["unpacked"] += 1
            removal.remove(b"tree", parent)  # whatever modes are in it
    return int(min(outcomes.values()) < LAYERS / 20)


def test_changed_layers_are_refused_or_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "sync", lambda _: None)
    uid = forked.NOBODY if IS_ROOT else None
    with public_directory() as place:
        canary = Canary(place / "canary")
        work = place / "work"
        work.mkdir()
        if uid is not None:
            os.chown(work, uid, uid)
        monkeypatch.chdir(canary.path)
        outside = os.fsencode(canary.path)
        done = forked.call(lambda: campaign(outside, work), uid=uid)
        monkeypatch.undo()
        canary.check()
        assert done.status == 0, done.stderr

"""A slice of `python tests/load`: many clients, some of which hang up; nothing leaks or starves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from load import clients
from support import registry_doors
from support.parent import descriptors, eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

CLIENTS = 200


def test_many_clients_at_once(tmp_path: Path) -> None:
    layout = clients.write_images(tmp_path / "layout", 2 << 20)
    with registry_doors.running("--images", str(layout.path), "--quiet") as door:
        pid = door.child.pid
        clients.run(door, layout, clients=2, seconds=0.0, hang_ups=0.0)
        before = descriptors(pid)
        tally = clients.run(door, layout, clients=CLIENTS, seconds=0.0)
        assert tally.failures == []
        assert tally.counts["whole"] >= CLIENTS
        assert tally.counts["hung up"] > 0
        assert eventually(lambda: descriptors(pid) <= before)
        assert door.status("/healthz") == 200
        assert door.child.stop() != 0  # by the signal, and not earlier

"""What several tests of local formats have in common."""

from __future__ import annotations

import pytest

from imgproxy.transports.local import compressed_member, decompression


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let little content have many points to resume from, and be decompressed in many goes."""
    monkeypatch.setattr(decompression, "_SPACING", 100_000)
    monkeypatch.setattr(decompression, "_MAX_FEED", 4096)
    monkeypatch.setattr(compressed_member, "_AHEAD", 50_000)

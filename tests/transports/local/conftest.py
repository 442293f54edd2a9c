"""Fixtures for several tests of local formats."""

from __future__ import annotations

import pytest

from imgproxy.transports.local import compressed_member, decompression


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make little content have many resume points, and be decompressed in many steps."""
    monkeypatch.setattr(decompression, "_SPACING", 100_000)
    monkeypatch.setattr(decompression, "_MAX_FEED", 4096)
    monkeypatch.setattr(compressed_member, "_AHEAD", 50_000)

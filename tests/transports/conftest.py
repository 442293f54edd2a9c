"""What all tests of transports have in common."""

from __future__ import annotations

import random

import pytest


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses as long as they can be: 1, 2, 4, 8, … seconds."""
    monkeypatch.setattr(random, "random", lambda: 1.0)

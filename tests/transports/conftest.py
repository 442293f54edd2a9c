"""What all tests of transports have in common."""

from __future__ import annotations

import random

import pytest

from imgproxy.config.search_paths import Host
from imgproxy.host import environment


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses as long as they can be: 1, 2, 4, 8, … seconds."""
    monkeypatch.setattr(random, "random", lambda: 1.0)


@pytest.fixture
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this host have no configuration; options may bring some along."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    host = Host({}, 1000, "", lambda _: False, lambda _: [])
    monkeypatch.setattr(environment, "host", lambda: host)

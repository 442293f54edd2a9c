"""How much is tried: everything with IMGPROXY_TEST_SLOW=1, or what tells the most in little time.

Without it, tests that are marked `slow` are left out, a table whose rows each start the program is
tried by some of its rows, and mutations and examples are fewer. Continuous integration sets it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pytest

T = TypeVar("T")

SLOW = os.environ.get("IMGPROXY_TEST_SLOW") == "1"


def rounds(variable: str, *, slow: int, quick: int) -> int:
    """Return how often something is tried; the variable of the environment overrides both."""
    return int(os.environ.get(variable, slow if SLOW else quick))


def some(rows: Sequence[T]) -> list[T]:
    """Return all rows, or the first and the last of them where not everything is tried."""
    return list(rows) if SLOW or len(rows) <= 2 else [rows[0], rows[-1]]


def deselect(
    config: pytest.Config, items: list[pytest.Item], unwanted: Collection[pytest.Item]
) -> None:
    """Remove the unwanted from the items."""
    left_out = set(unwanted)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=unwanted)

"""How much may come out of what is written."""

from __future__ import annotations

import pytest

from imgproxy.errors import InvalidError
from imgproxy.unpacking.limits import Limits


def test_as_much_as_the_limit_and_no_more() -> None:
    limits = Limits(10, 2)
    for _ in range(2):
        limits.add_bytes(5, "layer")
        limits.add_file("layer")
    assert (limits.size, limits.files) == (10, 2)
    with pytest.raises(InvalidError, match=r"layer: with it, more than 10 bytes .* --max-size"):
        limits.add_bytes(1, "layer")
    with pytest.raises(InvalidError, match=r"layer: with it, more than 2 files .* --max-files"):
        limits.add_file("layer")

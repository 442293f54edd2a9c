"""Which requests came by way of a registry of ours."""

from __future__ import annotations

import pytest

from imgproxy.specs.http import via


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([via.VALUE], True),
        (["1.1 cache.example (squid)", "HTTP/1.1 imgproxy-registry (of ours)"], True),
        (["1.0 first, 1.1 imgproxy-registry,1.1 last:80"], True),
        ([], False),
        (["", ",", "imgproxy-registry", "1.1 imgproxy-registry.example", "1.1"], False),
        (["1.1 squid (not imgproxy-registry)"], False),
    ],
)
def test_a_registry_of_ours_is_told_by_its_name(values: list[str], *, expected: bool) -> None:
    assert via.names_registry(values) is expected

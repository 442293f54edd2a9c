"""What is counted, where a client could choose it."""

from __future__ import annotations

import pytest

from imgproxy.errors import DeniedError, NotFoundError, ShortageError
from imgproxy.frontends.registry_metrics import _MOST_CODES, Metrics, route_of


@pytest.mark.parametrize(
    ("target", "route"),
    [
        (b"/v2/a/manifests/1", "manifests"),
        (b"/v2/a/b/blobs/sha256:x?ns=y", "blobs"),
        (b"/v2/a/manifests/b/blobs/x", "blobs"),
        (b"/v2/a/tags/list", "tags"),
        (b"/v2/a/referrers/x", "referrers"),
        (b"/v2/_catalog?n=1", "catalog"),
        (b"/v2", "base"),
        (b"/metrics", "metrics"),
        (b"/v2/manifests/1", "other"),
        (b"/anything", "other"),
        (b"*", "other"),
    ],
)
def test_routes_are_few(target: bytes, route: str) -> None:
    assert route_of(target) == route


def test_codes_are_few() -> None:
    metrics = Metrics()
    for number in range(2 * _MOST_CODES):
        assert metrics.failed("blobs", NotFoundError("", code=f"OWN_{number}")) == 404
    assert metrics.failed("blobs", NotFoundError("", code="OWN_0")) == 404
    assert metrics.failures["OWN_0"] == 2
    assert len(metrics.failures) == _MOST_CODES + 1


def test_what_is_no_failure_is_a_defect_or_a_shortage() -> None:
    metrics = Metrics()
    assert metrics.failed("blobs", ValueError()) == 500
    assert metrics.failed("blobs", MemoryError()) == 503
    assert metrics.failures == {"INTERNAL": 1, "UNAVAILABLE": 1}


def test_verdicts_are_the_policy_s() -> None:
    metrics = Metrics()
    for failure in (None, DeniedError(""), ShortageError("")):
        metrics.judged(failure)
    assert metrics.verdicts == {"accepted": 1, "rejected": 1}

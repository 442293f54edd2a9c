"""Failures that only the HTTP server raises; `test_errors` has their statuses."""

from __future__ import annotations

from imgproxy.server.request_errors import MethodNotAllowedError


def test_a_refused_method_comes_with_the_ones_allowed() -> None:
    failure = MethodNotAllowedError("PUT /manifest", allow="GET, HEAD")
    assert failure.header_fields == (("Allow", "GET, HEAD"),)
    assert (failure.status, failure.detail) == (405, {})

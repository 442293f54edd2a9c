"""Failures that only the HTTP server raises; `test_errors` has their statuses."""

from __future__ import annotations

from imgproxy.server.request_errors import MethodNotAllowedError, RangeNotSatisfiableError


def test_a_refused_method_comes_with_the_ones_allowed() -> None:
    failure = MethodNotAllowedError("PUT /manifest", allow="GET, HEAD")
    assert failure.header_fields == (("Allow", "GET, HEAD"),)
    assert (failure.status, failure.detail) == (405, {})
    assert failure.code == "METHOD_NOT_ALLOWED"
    failure = MethodNotAllowedError("PUT /v2/", allow="GET, HEAD", code="UNSUPPORTED")
    assert (failure.code, failure.header_fields) == ("UNSUPPORTED", (("Allow", "GET, HEAD"),))


def test_a_range_beyond_the_end_is_told_how_long_the_content_is() -> None:
    failure = RangeNotSatisfiableError("bytes=7-", size=7)
    assert dict(failure.header_fields) == {"Content-Range": "bytes */7", "Accept-Ranges": "bytes"}

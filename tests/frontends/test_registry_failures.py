"""Failures as a registry answers them."""

from __future__ import annotations

import pytest

from imgproxy.errors import (
    AbsentError,
    AmbiguousError,
    BadUpstreamError,
    ConfigurationError,
    DefectError,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    NotImplementedByUsError,
    ReplacedError,
    ShortageError,
    UnaskedError,
    UnavailableError,
    UnreachableError,
    UnsupportedFormatError,
)
from imgproxy.frontends.registry_failures import as_mirror, as_registry
from imgproxy.server.request_errors import MethodNotAllowedError


@pytest.mark.parametrize(
    ("failure", "status", "code", "was"),
    [
        (NotFoundError("x"), 404, "NAME_UNKNOWN", "NOT_FOUND"),
        (NotFoundError("x", code="BLOB_UNKNOWN"), 404, "BLOB_UNKNOWN", None),
        (AbsentError("x", code="MANIFEST_UNKNOWN"), 404, "MANIFEST_UNKNOWN", None),
        (AmbiguousError("x", choices=[]), 404, "MANIFEST_UNKNOWN", "AMBIGUOUS"),
        (NotImplementedByUsError("x"), 404, "UNSUPPORTED", None),
        (DeniedError("x"), 403, "DENIED", None),
        (InvalidError("x"), 502, "MANIFEST_INVALID", None),
        (InvalidError("x", code="DIGEST_INVALID"), 502, "DIGEST_INVALID", None),
        (InvalidError("x", code="ARCHIVE_INVALID"), 502, "MANIFEST_INVALID", "ARCHIVE_INVALID"),
        (UnsupportedFormatError("x"), 502, "UNSUPPORTED", None),
        (BadUpstreamError("x"), 502, "MANIFEST_INVALID", "BAD_UPSTREAM"),
        (UnreachableError("x"), 504, "UNSUPPORTED", "UNREACHABLE"),
        (UnavailableError("x"), 503, "TOOMANYREQUESTS", "UNAVAILABLE"),
        (ShortageError("x"), 503, "TOOMANYREQUESTS", "UNAVAILABLE"),
        (ReplacedError("x"), 503, "TOOMANYREQUESTS", "UNAVAILABLE"),
        (ConfigurationError("x"), 500, "CONFIGURATION", None),
        (DefectError("x"), 500, "INTERNAL", None),
        (MethodNotAllowedError("x", allow="GET", code="UNSUPPORTED"), 405, "UNSUPPORTED", None),
    ],
)
def test_each_failure_has_the_status_that_clients_act_on(
    failure: Failure, status: int, code: str, was: str | None
) -> None:
    answer = as_registry(failure)
    assert (answer.status, answer.code, answer.detail.get("code")) == (status, code, was)
    assert (answer.message, answer.retryable) == (failure.message, failure.retryable)
    assert answer.detail.items() >= failure.detail.items()
    assert answer.is_miss is (status == 404)


@pytest.mark.parametrize(("wait", "field"), [(None, "2"), (0.2, "1"), (7.5, "8")])
def test_what_may_pass_says_when(wait: float | None, field: str) -> None:
    answer = as_registry(UnavailableError("x", retry_after=wait))
    assert answer.header_fields == (("Retry-After", field),)


def test_what_was_not_asked_for_is_absent_for_a_registry_that_can_ask() -> None:
    failure = UnaskedError("x", code="BLOB_UNKNOWN")
    assert as_registry(failure).status == 504
    answer = as_mirror(failure)
    assert (answer.status, answer.code, answer.retryable) == (404, "BLOB_UNKNOWN", False)
    assert as_mirror(UnreachableError("x")).status == 504

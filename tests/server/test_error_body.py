"""The body of an error reply: imgproxy(1), ERRORS."""

from __future__ import annotations

import json

import pytest

from imgproxy.errors import Failure, NotFoundError, UnavailableError
from imgproxy.server.error_body import error_body


@pytest.mark.parametrize(
    ("failure", "code", "detail"),
    [
        (NotFoundError("m"), "NOT_FOUND", {"retryable": False}),
        (NotFoundError("m", code="BLOB_UNKNOWN"), "BLOB_UNKNOWN", {"retryable": False}),
        (UnavailableError("m"), "UNAVAILABLE", {"retryable": True}),
        (
            NotFoundError("m", platforms=["linux/arm"]),
            "NOT_FOUND",
            {"retryable": False, "platforms": ["linux/arm"]},
        ),
    ],
    ids=["code-of-the-class", "code-of-its-own", "retryable", "detail"],
)
def test_an_error_has_the_shape_of_the_distribution_specification(
    failure: Failure, code: str, detail: dict[str, object]
) -> None:
    error = {"code": code, "message": "m", "detail": detail}
    assert json.loads(error_body(failure)) == {"errors": [error]}


def test_an_error_body_is_compact_ascii() -> None:
    assert error_body(NotFoundError('"ä"')) == (
        rb'{"errors":[{"code":"NOT_FOUND","message":"\"\u00e4\"","detail":{"retryable":false}}]}'
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        pytest.param("a\x1b[31m\nb\u202ec", "a [31m b c", id="controls"),
        pytest.param("a\udcffb", "a b", id="no-text"),
        pytest.param("x" * 40_000, "x" * 32_768 + "…", id="endless"),
    ],
)
def test_a_message_is_one_line_of_text_whatever_it_quotes(message: str, told: str) -> None:
    (error,) = json.loads(error_body(NotFoundError(message)))["errors"]
    assert error["message"] == told

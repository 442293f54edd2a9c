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
            UnavailableError("m", retry_after=6.1),
            "UNAVAILABLE",
            {"retryable": True, "retry_after": 7},
        ),
        (UnavailableError("m", retryable=False), "UNAVAILABLE", {"retryable": False}),
        (NotFoundError("m", retry_after=7), "NOT_FOUND", {"retryable": False}),
        (
            NotFoundError("m", platforms=["linux/arm"]),
            "NOT_FOUND",
            {"retryable": False, "platforms": ["linux/arm"]},
        ),
    ],
    ids=[
        "code-of-the-class",
        "code-of-its-own",
        "retryable",
        "when",
        "not-retryable",
        "not-at-any-time",
        "detail",
    ],
)
def test_an_error_has_the_shape_of_the_distribution_specification(
    failure: Failure, code: str, detail: dict[str, object]
) -> None:
    error = {"code": code, "message": "m", "detail": detail}
    assert json.loads(error_body(failure, str)) == {"errors": [error]}


def test_an_error_body_is_compact_ascii() -> None:
    assert error_body(NotFoundError('"ä"'), str) == (
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
    (error,) = json.loads(error_body(NotFoundError(message), str))["errors"]
    assert error["message"] == told


def test_secrets_are_masked_in_all_texts() -> None:
    failure = NotFoundError(
        "it said: hunter2",
        endpoints=[{"message": "so did it: hunter2", "retryable": False}],
        urls=("https://a/hunter2",),
    )
    (error,) = json.loads(error_body(failure, lambda text: text.replace("hunter2", "***")))[
        "errors"
    ]
    assert error == {
        "code": "NOT_FOUND",
        "message": "it said: ***",
        "detail": {
            "retryable": False,
            "endpoints": [{"message": "so did it: ***", "retryable": False}],
            "urls": ["https://a/***"],
        },
    }


def test_a_secret_is_masked_before_a_message_is_cut() -> None:
    """A part of it would be left of what is cut in the middle of it."""
    body = error_body(NotFoundError("hunter2" * 10_000), lambda text: text.replace("hunter2", ""))
    assert json.loads(body)["errors"][0]["message"] == ""

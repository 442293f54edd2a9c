"""The body of an error reply, in the shape of the distribution specification ("Error Codes")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imgproxy.errors import clean

if TYPE_CHECKING:
    from imgproxy.errors import Failure

ERROR_TYPE = "application/json"

# What a message lists has bounds of its own; no reader needs more than this.
_MAX_MESSAGE = 32 * 1024


def error_body(failure: Failure) -> bytes:
    """Return the body of the reply that answers a failure: compact JSON in ASCII."""
    detail = {"retryable": failure.retryable, **failure.detail}
    error = {
        "code": failure.code,
        "message": clean(failure.message, _MAX_MESSAGE),
        "detail": detail,
    }
    return json.dumps({"errors": [error]}, separators=(",", ":")).encode()

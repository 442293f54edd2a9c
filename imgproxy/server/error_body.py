"""The body of an error reply, in the shape of the distribution specification ("Error Codes")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from imgproxy.errors import Failure

ERROR_TYPE = "application/json"

# What a message lists has bounds of its own; no reader needs more than this.
_MAX_MESSAGE = 32 * 1024


def error_body(failure: Failure, masked: Callable[[str], str]) -> bytes:
    """Return the body of the reply that answers a failure: compact JSON in ASCII.

    `masked` returns a text without secrets.
    """
    detail = {**failure.outlook, **failure.detail}
    error = {
        "code": failure.code,
        "message": clean(masked(failure.message), _MAX_MESSAGE),
        "detail": _masked(detail, masked),
    }
    return json.dumps({"errors": [error]}, separators=(",", ":")).encode()


def _masked(value: Any, masked: Callable[[str], str]) -> Any:  # noqa: ANN401  (JSON)
    """Return a value with all texts in it masked; the keys of objects are this program's own."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _masked(item, masked) for key, item in value.items()}
    return [_masked(item, masked) for item in value] if isinstance(value, list | tuple) else value

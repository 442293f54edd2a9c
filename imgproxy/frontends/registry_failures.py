"""Failures as a registry answers them: contract of `/v2/`, by the status that clients act on.

A client goes on to its next mirror after a 404, takes a 401 for an invitation to log in, and
believes that an image does not exist only if it is told so. What the failure was called is kept in
the detail.
"""

from __future__ import annotations

from imgproxy.errors import (
    AmbiguousError,
    BadUpstreamError,
    ConfigurationError,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    NotImplementedByUsError,
    UnavailableError,
    UnreachableError,
    UnsupportedFormatError,
)

# The codes of the distribution specification, "Error Codes".
_CODES = frozenset(
    {
        *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID"),
        *("MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID"),
        *("NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED"),
        "TOOMANYREQUESTS",
    }
)

# In seconds: when a client that was told so may ask again.
_RETRY_AFTER = 2


class WrongContentError(Failure):
    """What lies here is not what it should be."""

    status = 502
    default_code = "MANIFEST_INVALID"


class BusyError(Failure):
    """It is being prepared, or this host is short of something."""

    status = 503
    default_code = "TOOMANYREQUESTS"
    retryable = True

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message, **facts)  # type: ignore[arg-type]
        wait = self.outlook.get("retry_after", _RETRY_AFTER)
        self.header_fields = (("Retry-After", str(wait)),)


def as_registry(failure: Failure) -> Failure:
    """Return a failure as it is answered below `/v2/`."""
    if isinstance(failure, AmbiguousError | NotImplementedByUsError):
        return _renamed(failure, NotFoundError, "MANIFEST_UNKNOWN")
    if isinstance(failure, InvalidError | UnsupportedFormatError | BadUpstreamError):
        return _renamed(failure, WrongContentError, "MANIFEST_INVALID")
    if isinstance(failure, UnavailableError):
        return _renamed(failure, BusyError, "TOOMANYREQUESTS")
    codes = {NotFoundError: "NAME_UNKNOWN", DeniedError: "DENIED", UnreachableError: "UNSUPPORTED"}
    for kind, code in codes.items():
        if isinstance(failure, kind):
            return _renamed(failure, kind, code)
    if isinstance(failure, ConfigurationError):
        return failure
    return failure


def _renamed(failure: Failure, kind: type[Failure], code: str) -> Failure:
    detail = dict(failure.detail)
    if failure.code in _CODES:
        code = failure.code
    else:
        detail["code"] = failure.code
    return kind(
        failure.message,
        code=code,
        retryable=failure.retryable,
        retry_after=failure.retry_after,
        **detail,
    )

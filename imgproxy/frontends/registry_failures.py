"""Failures as a registry answers them: contract of `/v2/`, by the status that clients act on.

A client goes on to its next mirror after a 404, takes a 401 for an invitation to log in, and
believes that an image does not exist only if it is told so. What the failure was called is kept in
the detail.
"""

from __future__ import annotations

from imgproxy.errors import (
    AmbiguousError,
    BadUpstreamError,
    DeniedError,
    Failure,
    InvalidError,
    NotFoundError,
    NotImplementedByUsError,
    UnaskedError,
    UnavailableError,
    UnreachableError,
    UnsupportedFormatError,
)

# The codes of the distribution specification, "Error Codes", but for UNAUTHORIZED: it is this
# program that a registry wants to log in, and not its clients.
_CODES = frozenset(
    {
        *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID"),
        *("MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID"),
        *("NAME_UNKNOWN", "SIZE_INVALID", "DENIED", "UNSUPPORTED"),
        "TOOMANYREQUESTS",
    }
)

# In seconds: when a client that was told so may ask again.
_RETRY_AFTER = 2


class AbsentHereError(NotFoundError):
    """It is not here. A mirror is asked for much that it does not have."""

    is_miss = True


class WrongContentError(Failure):
    """What lies here is not what it should be."""

    status = 502
    default_code = "MANIFEST_INVALID"


class BusyError(Failure):
    """It is being prepared, or this host is short of something."""

    status = 503
    default_code = "TOOMANYREQUESTS"
    retryable = True

    @property
    def header_fields(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        """See `Failure`."""
        return (("Retry-After", str(self.outlook.get("retry_after", _RETRY_AFTER))),)


# What failures become, the first that fits: the class, and the code where theirs is not one of the
# specification's. Others stay as they are.
_ANSWERS: list[tuple[tuple[type[Failure], ...], type[Failure], str]] = [
    ((NotFoundError,), AbsentHereError, "NAME_UNKNOWN"),
    ((AmbiguousError, NotImplementedByUsError), AbsentHereError, "MANIFEST_UNKNOWN"),
    (
        (InvalidError, UnsupportedFormatError, BadUpstreamError),
        WrongContentError,
        "MANIFEST_INVALID",
    ),
    ((UnavailableError,), BusyError, "TOOMANYREQUESTS"),
    ((UnreachableError,), UnreachableError, "UNSUPPORTED"),
    ((DeniedError,), DeniedError, "DENIED"),
]


def as_registry(failure: Failure) -> Failure:
    """Return a failure as it is answered below `/v2/`."""
    if isinstance(failure, UnaskedError):  # which is no word about whether it exists
        failure = UnreachableError(failure.message)
    for kinds, answer, code in _ANSWERS:
        if isinstance(failure, kinds):
            return _renamed(failure, answer, code)
    return failure


def as_mirror(failure: Failure) -> Failure:
    """Return a failure as it is answered to a registry, which asks elsewhere what is not here."""
    if isinstance(failure, UnaskedError):
        failure = NotFoundError(failure.message, code=failure.code)
    return as_registry(failure)


def _renamed(failure: Failure, answer: type[Failure], code: str) -> Failure:
    renamed = answer(
        failure.message,
        code=failure.code if failure.code in _CODES else code,
        retryable=failure.retryable,
        retry_after=failure.retry_after,
        **failure.detail,
    )
    if renamed.code != failure.code:
        renamed.detail["code"] = failure.code
    return renamed

"""Failures of requests that HTTP itself has, whatever is asked for: RFC 9110 and RFC 6585."""

from __future__ import annotations

from imgproxy.errors import Failure


class MethodNotAllowedError(Failure):
    """The path is known, and the method is not allowed for it.

    `allow` lists the methods that are, as the header field does.
    """

    status = 405
    default_code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, *, allow: str, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.header_fields = (("Allow", allow),)


class BodyTooLargeError(Failure):
    """A request body that is not needed is too long to be read and discarded."""

    status = 413
    default_code = "BODY_TOO_LARGE"


class RangeNotSatisfiableError(Failure):
    """The range begins beyond the end of what is there, which is `size` bytes long."""

    status = 416
    default_code = "UNSUPPORTED"

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.header_fields = (("Content-Range", f"bytes */{size}"), ("Accept-Ranges", "bytes"))


class HeadTooLargeError(Failure):
    """The head of a request exceeds its limit."""

    status = 431
    default_code = "HEAD_TOO_LARGE"


class HttpVersionError(Failure):
    """The request is in a version of HTTP that is not spoken here."""

    status = 505
    default_code = "UNSUPPORTED"

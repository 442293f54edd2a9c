"""The tree of failures. Each class has the HTTP status it is answered with.

A failure is raised where the facts are, with a message that says what was attempted, on what, what
came back and, where there is one, the way out; `server` answers it, and nothing in between rewrites
it. `code` is the distribution specification's where that has one, `detail` holds what a program
can act on. Text from outside goes through `clean` before it enters a message. Failures that only
the HTTP server raises are in `server.request_errors`.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar, Protocol

    class Closable(Protocol):
        """Something that holds a resource."""

        def close(self) -> None:
            """Give the resource back."""


# C0, DEL, C1, what terminals or log viewers may obey (line separators and bidirectional marks), and
# surrogates, which stand for the bytes of a path that are no text.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)

# Foreign text in a message is a quotation, not a document.
_MAX_QUOTATION = 256


def clean(text: str, limit: int = _MAX_QUOTATION) -> str:
    """Give text from outside as it may stand in a message: one line, no controls, bounded."""
    text = _CONTROLS.sub(" ", text).strip()
    return text if len(text) <= limit else text[:limit] + "…"


class closing_on_error:  # noqa: N801  (used like `contextlib.closing`, whose import is saved here)
    """Close something if the block fails, for whatever reason; otherwise leave it open."""

    __slots__ = ("_thing",)

    def __init__(self, thing: Closable) -> None:
        self._thing = thing

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the thing after an exception."""
        if kind is not None:
            self._thing.close()


class UsageError(Exception):
    """The command line or a descriptor is unusable: one line, exit status 2."""


class Failure(Exception):
    """Anything a client is told in an error reply.

    `message` is for a person, `detail` for a program; `code` replaces that of the class.
    `retry_after` is in seconds, where a server has said when it wants to be asked again.
    `is_transient` is false where this program need not try again by itself, though its client may
    do so later; by default it is `retryable`.
    """

    status: ClassVar[int]
    default_code: ClassVar[str]
    retryable: ClassVar[bool] = False
    # Header fields of the reply that answers the failure, besides those that every error has.
    header_fields: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        is_transient: bool | None = None,
        retry_after: float | None = None,
        **detail: Any,  # noqa: ANN401  (JSON)
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.detail = detail
        self.is_transient = self.retryable if is_transient is None else is_transient
        self.retry_after = retry_after

    def merged(self, failures: Iterable[Failure], message: str, **detail: Any) -> Failure:  # noqa: ANN401  (JSON)
        """Return a failure of this kind that stands for several, itself among them.

        It is transient if one of them is, and asks to be tried again as soon as the first of them
        does. `detail` is added to that of this failure.
        """
        every = list(failures)
        waits = [each.retry_after for each in every if each.retry_after is not None]
        return type(self)(
            message,
            code=self.code,
            is_transient=any(each.is_transient for each in every),
            retry_after=min(waits, default=None),
            **{**self.detail, **detail},
        )


class BadRequestError(Failure):
    """The request, a digest in it, or the name of the image is malformed."""

    status = 400
    default_code = "BAD_REQUEST"


class DeniedError(Failure):
    """Policy, refused credentials, file permission."""

    status = 403
    default_code = "DENIED"


class NotFoundError(Failure):
    """No such path, image, manifest or blob."""

    status = 404
    default_code = "NOT_FOUND"


class AmbiguousError(Failure):
    """The reference fits several images; `choices` lists them."""

    status = 409
    default_code = "AMBIGUOUS"


class UnsupportedFormatError(Failure):
    """A format that is not read."""

    status = 415
    default_code = "UNSUPPORTED"


class InvalidError(Failure):
    """Bytes that do not verify, do not parse, contradict themselves or exceed a limit."""

    status = 422
    default_code = "MANIFEST_INVALID"


class DefectError(Failure):
    """A defect of this program."""

    status = 500
    default_code = "INTERNAL"


class ConfigurationError(Failure):
    """A configuration file is broken; the message names it and the place in it."""

    status = 500
    default_code = "CONFIGURATION"


class NotImplementedByUsError(Failure):
    """A digest algorithm or a transfer coding that is not available here."""

    status = 501
    default_code = "UNSUPPORTED"


class BadUpstreamError(Failure):
    """The registry broke HTTP or answered something unusable."""

    status = 502
    default_code = "BAD_UPSTREAM"


class UnavailableError(Failure):
    """Temporary: worth another try."""

    status = 503
    default_code = "UNAVAILABLE"
    retryable = True


class ReplacedError(UnavailableError):
    """What was opened is not there any more, but something else: open it anew."""


class UnreachableError(Failure):
    """The registry stalled or cannot be reached: worth another try."""

    status = 504
    default_code = "UNREACHABLE"
    retryable = True

"""The failures that end in an error reply: one class for each kind, with its HTTP status.

A failure is raised where it is found, with a message that says what was attempted, on what, what
came back and, where there is one, the way out; `server` answers it, and nothing in between rewrites
it. `code` is the distribution specification's where that has one, `detail` holds what a program
can act on. Text from outside goes through `clean` before it enters a message. Failures that only
the HTTP server raises are in `server.request_errors`.
"""

from __future__ import annotations

import errno
import re

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar, Protocol

    class Closable(Protocol):
        """Something that holds a resource."""

        def close(self) -> None:
            """Release the resource."""


# C0, DEL, C1, characters that act on terminals and log viewers (line separators and bidirectional
# marks), and surrogates, which stand for the bytes of a path that are not UTF-8.
CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)

# The mark of text that is left out.
OMISSION = "…"

# Enough to recognise the text by; a message stays readable as one line.
_MAX_QUOTATION = 256


def clean(text: str, limit: int = _MAX_QUOTATION) -> str:
    """Return text from outside in a form fit for messages: one line, no controls, bounded.

    `limit` is in characters, without the ellipsis that marks omitted text.
    """
    text = CONTROLS.sub(" ", text).strip()
    return text if len(text) <= limit else text[:limit] + OMISSION


class closing_on_error:  # noqa: N801  (used like `contextlib.closing`, whose import is saved here)
    """Close a resource if the block raises any exception; otherwise leave it open."""

    __slots__ = ("_thing",)

    def __init__(self, thing: Closable) -> None:
        self._thing = thing

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the resource after an exception."""
        if kind is not None:
            self._thing.close()


class UsageError(Exception):
    """The command line or a descriptor is unusable; the program prints one line, exit status 2."""


class Failure(Exception):
    """A failure that a client receives as an error reply.

    `message` is for a person, `detail` for a program; `code` replaces that of the class.
    `retry_after` is the wait in seconds that a server has asked for, None where it has not.
    `retryable` replaces that of the class: whether another try may succeed. `is_transient` is false
    where this program need not try again by itself, though its client may do so later; by default
    it is `retryable`.
    """

    status: ClassVar[int]
    default_code: ClassVar[str]
    retryable: bool = False
    # Whether clients may ask for this in vain as a matter of course: `--debug` alone shows it then.
    is_miss: bool = False
    # Header fields of the reply that answers the failure, besides those that every error has.
    header_fields: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        is_transient: bool | None = None,
        retry_after: float | None = None,
        **detail: Any,  # noqa: ANN401  (JSON)
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.detail = detail
        self.retryable = type(self).retryable if retryable is None else retryable
        self.is_transient = self.retryable if is_transient is None else is_transient
        self.retry_after = retry_after

    @property
    def outlook(self) -> dict[str, Any]:
        """What a program is told of another try, as members of `detail`."""
        if not self.retryable or self.retry_after is None:
            return {"retryable": self.retryable}
        return {"retryable": True, "retry_after": -int(-self.retry_after // 1)}  # rounded up

    def copy(self) -> Failure:
        """Return another failure with the same facts.

        It is the copy that is kept or raised again: an exception that is raised twice keeps the
        traceback of both times, and with it whatever their frames held.
        """
        return self.merged([self], self.message)

    def merged(self, failures: Iterable[Failure], message: str, **detail: Any) -> Failure:  # noqa: ANN401  (JSON)
        """Return a failure of this class that stands for several, itself among them.

        It is transient if one of them is, and its `retry_after` is the shortest of those that are,
        or else of all. `detail` is added to that of this failure.
        """
        every = list(failures)
        transient = [each for each in every if each.is_transient]
        waits = [each.retry_after for each in transient or every if each.retry_after is not None]
        return type(self)(
            message,
            code=self.code,
            retryable=type(self).retryable and any(each.retryable for each in every),
            is_transient=bool(transient),
            retry_after=min(waits, default=None),
            **{**self.detail, **detail},
        )


class BadRequestError(Failure):
    """The request, a digest in it or the image name is malformed."""

    status = 400
    default_code = "BAD_REQUEST"


class DeniedError(Failure):
    """Access is denied by the policy, by a registry or by file permissions."""

    status = 403
    default_code = "DENIED"


class NotFoundError(Failure):
    """There is no such path, image, manifest or blob."""

    status = 404
    default_code = "NOT_FOUND"


class UnaskedError(NotFoundError):
    """It is not here, and whether it is where it belongs was not asked."""


class AbsentError(NotFoundError):
    """The image itself is known not to exist, and not only something of it."""


class AmbiguousError(Failure):
    """The reference matches several images; `detail["choices"]` lists them."""

    status = 409
    default_code = "AMBIGUOUS"


class UnsupportedFormatError(Failure):
    """The format is not supported."""

    status = 415
    default_code = "UNSUPPORTED"


class InvalidError(Failure):
    """The bytes do not verify, do not parse, contradict themselves or exceed a limit."""

    status = 422
    default_code = "MANIFEST_INVALID"


class DefectError(Failure):
    """A defect of this program."""

    status = 500
    default_code = "INTERNAL"


class ConfigurationError(Failure):
    """A configuration file is broken; the message names the file and the field."""

    status = 500
    default_code = "CONFIGURATION"


class NotImplementedByUsError(Failure):
    """The digest algorithm or transfer coding is not implemented by this program."""

    status = 501
    default_code = "UNSUPPORTED"


class BadUpstreamError(Failure):
    """The registry violated HTTP or sent an unusable reply."""

    status = 502
    default_code = "BAD_UPSTREAM"


class UnavailableError(Failure):
    """The failure is temporary, and another try may succeed."""

    status = 503
    default_code = "UNAVAILABLE"
    retryable = True


class NotReadyError(UnavailableError):
    """It is being prepared in the background; who asked has waited, and may ask again later."""


class ShortageError(UnavailableError):
    """Descriptors, memory, threads or room on a disk are short here; another try may succeed."""

    header_fields = (("Retry-After", "1"),)


class ReplacedError(UnavailableError):
    """The opened image has been replaced by another one, and must be opened again."""


class UnreachableError(Failure):
    """The registry stalled or cannot be reached, and another try may succeed."""

    status = 504
    default_code = "UNREACHABLE"
    retryable = True


# Failures of this host, which another source or location cannot help with.
HOST_FAILURES = (ConfigurationError, ShortageError)

# What system calls fail with where there are no more descriptors, processes or threads, where
# there is no more memory, and where a disk is full.
_SHORTAGES = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),
        *(errno.ENOMEM, errno.ENOBUFS),
        *(errno.ENOSPC, errno.EDQUOT),
    }
)
_NO_MEMORY = "Cannot allocate memory"
_NO_THREAD = "can't start new thread"

# What the interpreter raises where it has no memory for the exception that says so.
_LOST = ("without setting an exception", "without exception set")

# A library that cannot be loaded is an `ImportError`, with the words of dlopen(3) and no number.
_NOT_LOADED = (
    "Too many open files",
    *(_NO_MEMORY, _NO_MEMORY.lower(), "failed to map segment"),
)


def shortage(what: str, error: BaseException) -> ShortageError | None:
    """Return the failure where an exception means that this host is short of something, or None.

    `what` was attempted. Exceptions in a group, and those that caused another, count as well.
    """
    if isinstance(error, ShortageError):
        return error
    reason = _shortage(error)
    if reason:
        return ShortageError(f"{what}: {reason}")
    causes = error.exceptions if isinstance(error, BaseExceptionGroup) else [error.__cause__]
    return next(filter(None, (shortage(what, each) for each in causes if each is not None)), None)


def _shortage(error: BaseException) -> str:
    """Return what there is too little of, in the system's words; nothing for other exceptions."""
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, SystemError):
        return _NO_MEMORY if str(error).endswith(_LOST) else ""
    if isinstance(error, RuntimeError):
        return _NO_THREAD if str(error) == _NO_THREAD else ""
    if isinstance(error, ImportError):
        return clean(str(error)) if any(words in str(error) for words in _NOT_LOADED) else ""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return error.strerror or str(error)
    return ""

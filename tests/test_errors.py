"""The classes of failures, with the statuses of imgproxy(1), ERRORS; and text from outside."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from imgproxy import errors
from imgproxy.errors import Failure, NotFoundError, UsageError, clean
from imgproxy.server import request_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# class: status, code, whether another try may succeed
LEAVES = {
    errors.BadRequestError: (400, "BAD_REQUEST", False),
    errors.DeniedError: (403, "DENIED", False),
    errors.NotFoundError: (404, "NOT_FOUND", False),
    request_errors.MethodNotAllowedError: (405, "METHOD_NOT_ALLOWED", False),
    errors.AmbiguousError: (409, "AMBIGUOUS", False),
    request_errors.BodyTooLargeError: (413, "BODY_TOO_LARGE", False),
    errors.UnsupportedFormatError: (415, "UNSUPPORTED", False),
    request_errors.RangeNotSatisfiableError: (416, "UNSUPPORTED", False),
    errors.InvalidError: (422, "MANIFEST_INVALID", False),
    request_errors.HeadTooLargeError: (431, "HEAD_TOO_LARGE", False),
    errors.DefectError: (500, "INTERNAL", False),
    errors.ConfigurationError: (500, "CONFIGURATION", False),
    errors.NotImplementedByUsError: (501, "UNSUPPORTED", False),
    errors.BadUpstreamError: (502, "BAD_UPSTREAM", False),
    errors.UnavailableError: (503, "UNAVAILABLE", True),
    errors.UnreachableError: (504, "UNREACHABLE", True),
    request_errors.HttpVersionError: (505, "UNSUPPORTED", False),
}


def of_all(classes: Iterable[type[Failure]]) -> set[type[Failure]]:
    """Return the classes that are not those of one front-end or of the store."""
    modules = {errors.__name__, request_errors.__name__}
    return {each for each in classes if each.__module__ in modules}


def test_the_tree_has_no_other_leaves() -> None:
    assert of_all(Failure.__subclasses__()) == set(LEAVES)
    below = {each: leaf for leaf in LEAVES for each in of_all(leaf.__subclasses__())}
    unavailable = (errors.NotReadyError, errors.ReplacedError, errors.ShortageError)
    assert below == {
        errors.AbsentError: errors.NotFoundError,
        errors.UnaskedError: errors.NotFoundError,
        **dict.fromkeys(unavailable, errors.UnavailableError),
    }


def test_failures_of_requests_are_no_part_of_the_tree_of_all() -> None:
    of_requests = {each for each in LEAVES if each.__module__ == request_errors.__name__}
    assert {each.status for each in of_requests} == {405, 413, 416, 431, 505}
    assert not {each.__name__ for each in of_requests} & vars(errors).keys()


def test_what_was_replaced_is_unavailable_to_a_parent() -> None:
    """Only this program distinguishes it, and opens the image again."""
    replaced, unavailable = errors.ReplacedError("x"), errors.UnavailableError("x")
    assert (replaced.status, replaced.code) == (unavailable.status, unavailable.code)
    assert (replaced.retryable, replaced.detail) == (True, {})


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_a_class_knows_status_code_and_retryable(leaf: type[Failure]) -> None:
    assert (leaf.status, leaf.default_code, leaf.retryable) == LEAVES[leaf]


def test_a_failure_has_its_class_s_code_and_no_detail_of_its_own() -> None:
    failure = NotFoundError("no such thing")
    assert (failure.message, failure.code, failure.detail) == ("no such thing", "NOT_FOUND", {})
    assert failure.header_fields == ()
    assert str(failure) == "no such thing"


def test_a_failure_can_have_a_code_and_details_of_its_own() -> None:
    failure = NotFoundError("no such image", code="MANIFEST_UNKNOWN", choices=["a"])
    assert (failure.code, failure.detail) == ("MANIFEST_UNKNOWN", {"choices": ["a"]})


def test_a_failure_is_transient_as_its_class_unless_it_says_otherwise() -> None:
    assert errors.UnreachableError("x").is_transient
    assert not errors.UnreachableError("x", is_transient=False).is_transient
    assert not NotFoundError("x").is_transient
    permanent = errors.UnreachableError("x", retryable=False)
    assert (permanent.retryable, permanent.is_transient) == (False, False)
    assert NotFoundError("x").retry_after is None
    assert errors.UnavailableError("x", retry_after=3.0).retry_after == 3.0


def test_a_merged_failure_is_of_the_deciding_kind_and_keeps_what_programs_act_on() -> None:
    deciding = NotFoundError("a", code="MANIFEST_UNKNOWN", platforms=["b"])
    late = errors.UnavailableError("c", retry_after=9.0)
    soon = errors.UnreachableError("d", retry_after=2.0)
    merged = deciding.merged([deciding, late, soon], "a; c; d", endpoints=[1])
    assert (type(merged), merged.code, merged.message) == (
        NotFoundError,
        "MANIFEST_UNKNOWN",
        "a; c; d",
    )
    assert merged.detail == {"platforms": ["b"], "endpoints": [1]}
    assert (merged.is_transient, merged.retry_after) == (True, 2.0)
    assert not merged.retryable
    alone = deciding.merged([deciding], "a")
    assert (alone.is_transient, alone.retry_after) == (False, None)


def test_one_that_may_be_asked_soon_outweighs_one_that_may_be_asked_late() -> None:
    late = errors.UnavailableError("a", retry_after=3600.0, is_transient=False)
    soon = errors.UnreachableError("b")
    for merged in (late.merged([soon, late], "b; a"), soon.merged([soon, late], "b; a")):
        assert merged.outlook == {"retryable": True}
    assert late.copy().outlook == {"retryable": True, "retry_after": 3600}


def test_a_merged_failure_is_retryable_where_its_kind_is_and_one_of_them() -> None:
    never, maybe = errors.UnreachableError("a", retryable=False), errors.UnreachableError("b")
    gone = NotFoundError("c")
    assert never.merged([maybe, never], "").retryable
    assert not never.merged([never, gone], "").retryable
    assert not gone.merged([maybe, gone], "").retryable
    assert not never.copy().retryable


def test_a_copy_has_the_facts_and_not_the_traceback() -> None:
    failure = errors.ReplacedError("x", code="C", is_transient=False, retry_after=1.0, urls=["u"])
    try:
        raise failure
    except errors.ReplacedError:
        copy = failure.copy()
    assert copy is not failure
    assert type(copy) is errors.ReplacedError
    assert vars(copy) == vars(failure)
    assert (str(copy), copy.__traceback__) == ("x", None)


def raised(make: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011  (any)
        make()
    return info.value


def from_cause(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


SHORT = OSError(errno.EMFILE, "Too many open files")

SHORTAGES = {
    **{
        errno.errorcode[number]: (OSError(number, os.strerror(number)), os.strerror(number))
        for number in (
            *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS),
            *(errno.ENOSPC, errno.EDQUOT),
        )
    },
    "memory": (raised(lambda: bytearray(1 << 62)), "Cannot allocate memory"),
    "memory for an exception": (
        SystemError("<function f at 0x1> returned NULL without setting an exception"),
        "Cannot allocate memory",
    ),
    "a thread": (RuntimeError("can't start new thread"), "can't start new thread"),
    "a library": (
        ImportError("/x.so: cannot open shared object file: Too many open files"),
        "/x.so: cannot open shared object file: Too many open files",
    ),
    "memory for a library": (
        ImportError("/x.so: failed to map segment from shared object"),
        "/x.so: failed to map segment from shared object",
    ),
    "in a group": (
        ExceptionGroup("", [ValueError(), ExceptionGroup("", [SHORT])]),
        "Too many open files",
    ),
    "as a cause": (from_cause(OSError("all failed"), SHORT), "Too many open files"),
    "a group as a cause": (
        from_cause(OSError("all failed"), ExceptionGroup("", [OSError(101, "no route"), SHORT])),
        "Too many open files",
    ),
}


@pytest.mark.parametrize("kind", SHORTAGES)
def test_a_shortage_of_the_system_is_told_from_a_defect(kind: str) -> None:
    error, words = SHORTAGES[kind]
    failure = errors.shortage("opening x", error)
    assert failure is not None
    assert (failure.status, failure.code, failure.retryable) == (503, "UNAVAILABLE", True)
    assert failure.message == f"opening x: {words}"
    assert errors.shortage("more", failure) is failure


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Too many open files"),
        RuntimeError("cannot schedule new futures after shutdown"),
        SystemError("bad argument to internal function"),
        OSError(errno.ECONNREFUSED, "Connection refused"),
        OSError("odd"),
        ImportError("No module named 'x'"),
        ExceptionGroup("", [ValueError()]),
        from_cause(ValueError(), KeyError()),
        KeyboardInterrupt(),
    ],
)
def test_anything_else_is_none(error: BaseException) -> None:
    assert errors.shortage("opening x", error) is None


class Thing:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, NotFoundError])
def test_a_thing_is_closed_when_the_block_fails_and_only_then(kind: type[BaseException]) -> None:
    thing = Thing()
    with errors.closing_on_error(thing):
        pass
    assert not thing.closed
    with pytest.raises(kind), errors.closing_on_error(thing):
        raise kind("x")
    assert thing.closed


def test_a_usage_error_is_no_reply() -> None:
    assert not issubclass(UsageError, Failure)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param("plain text", "plain text", id="plain"),
        pytest.param("höher 漢字 🐳", "höher 漢字 🐳", id="other-scripts"),
        pytest.param("a\r\nb", "a b", id="line-ends-become-one-space"),
        pytest.param("  a\n", "a", id="edges"),
        pytest.param("a\0b", "a b", id="nul"),
        pytest.param("\x1b[31mred\x1b[0m", "[31mred [0m", id="terminal-escape"),
        pytest.param("a\x7fb", "a b", id="delete"),
        pytest.param("a\x85b\x9bc", "a b c", id="c1"),
        pytest.param("a\u2028b\u2029c", "a b c", id="line-separators"),
        pytest.param("a\u200eb\u200fc", "a b c", id="directional-marks"),
        pytest.param("a\u061cb", "a b", id="arabic-letter-mark"),
        pytest.param("a\u202eb\u202cc", "a b c", id="directional-overrides"),
        pytest.param("a\u2066b\u2069c", "a b c", id="directional-isolates"),
    ],
)
def test_text_from_outside_is_one_line_without_controls(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("length", "limit", "cleaned"),
    [
        pytest.param(5, 6, "aaaaa", id="below"),
        pytest.param(6, 6, "aaaaaa", id="at"),
        pytest.param(7, 6, "aaaaaa…", id="above"),
    ],
)
def test_text_from_outside_is_bounded(length: int, limit: int, cleaned: str) -> None:
    assert clean("a" * length, limit) == cleaned


def test_a_quotation_has_256_characters_at_most() -> None:
    assert clean("a" * 256) == "a" * 256
    assert clean("a" * 257) == "a" * 256 + "…"


def test_bytes_of_a_path_that_are_no_text_do_not_stay_in_a_message() -> None:
    """A lone surrogate has no UTF-8, and most parents' JSON parsers refuse its escape."""
    path = b"/images/\xff".decode(errors="surrogateescape")
    assert clean(path).encode().startswith(b"/images/")

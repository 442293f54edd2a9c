from __future__ import annotations

import errno
import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from imgproxy.specs.http import retry
from imgproxy.specs.http.retry import MAX_DELAY, PROGRESS, Budget

# Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 section 5.6.7.
THEN = 784111777.0
MIB = 1024 * 1024


# --- how long ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "least", "most"),
    [(1, 0.5, 1), (2, 1, 2), (3, 2, 4), (4, 4, 8), (5, 8, 16), (6, 16, 32), (7, 30, 60)],
)
def test_delays_double_and_are_spread(spent: int, least: float, most: float) -> None:
    assert retry.delay(spent, 0.0) == least
    assert retry.delay(spent, 1.0) == most
    assert least < retry.delay(spent, 0.5) < most


def test_no_number_of_retries_makes_the_delay_longer_than_the_limit() -> None:
    assert retry.delay(10**9, 1.0) == MAX_DELAY


@pytest.mark.parametrize(
    ("said", "chance", "delay"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (7.0, 0.5, 7.5), (60.0, 0.5, 60.0), (59.5, 1.0, 60.0)],
)
def test_what_the_server_says_is_the_least(said: float, chance: float, delay: float) -> None:
    assert retry.delay(9, chance, said) == delay


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("60", 60),
        ("61", 61),
        ("3600", 3600),
        ("9" * 5000, retry.MAX_REQUESTED),
        ("Sun, 06 Nov 1994 08:49:57 GMT", 20),
        ("Sunday, 06-Nov-94 08:49:57 GMT", 20),
        ("Sun Nov  6 08:49:57 1994", 20),
        ("Sun Nov 06 08:49:57 1994", 20),
        ("Sun, 06 Nov 1994 08:49:60 GMT", 22),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0),
        ("Sun, 06 Nov 1994 23:00:00 GMT", 51023),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", retry.MAX_REQUESTED),
        (
            "Tuesday, 06-Nov-44 08:49:37 GMT",
            retry.MAX_REQUESTED,
        ),  # 2044 is just within 50 years of 1994
        ("Monday, 06-Nov-45 08:49:37 GMT", 0),  # and this is 1945
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        (" 1", None),
        ("1 s", None),
        ("¹", None),
        ("1, 2", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 nov 1994 08:49:37 GMT", None),
        ("Sun, 31 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT\n", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(field: str, seconds: float | None) -> None:
    assert retry.retry_after(field, THEN) == seconds


@pytest.mark.parametrize(("requested", "is_too_long"), [(None, 0), (0, 0), (60, 0), (61, 1)])
def test_a_delay_of_more_than_a_minute_is_too_long(
    requested: float | None,
    is_too_long: bool,  # noqa: FBT001  (a parameter)
) -> None:
    assert retry.is_too_long(requested) == is_too_long


@pytest.mark.parametrize("ahead", [1, 30, 59])
@pytest.mark.parametrize("month", range(1, 13))
def test_every_month_is_known(month: int, ahead: int) -> None:
    now = datetime(2027, month, 28, 12, 0, 0, tzinfo=UTC)
    field = format_datetime(now.replace(second=ahead), usegmt=True)
    assert retry.retry_after(field, now.timestamp()) == ahead


# --- how often ---------------------------------------------------------------------------------


def failures(retries: int, offsets: list[int]) -> list[int | None]:
    """Return the number of the retry that follows each failure, None where there is none."""
    budget: Budget | None = Budget(retries)
    numbers: list[int | None] = []
    for offset in offsets:
        assert budget is not None
        budget = budget.after_failure(offset)
        numbers.append(budget.spent if budget else None)
    return numbers


@pytest.mark.parametrize(
    ("retries", "offsets", "numbers"),
    [
        (0, [0], [None]),
        (0, [MIB - 1], [None]),
        (0, [MIB], [None]),  # a budget without retries allows none, whatever the progress
        (1, [0, 0], [1, None]),
        (5, [0] * 6, [1, 2, 3, 4, 5, None]),
        (2, [0, MIB - 1, MIB, MIB], [1, 2, 1, 2]),
        (2, [MIB, MIB + 1, 2 * MIB - 1], [1, 2, None]),
        (2, [MIB, MIB + 1, 2 * MIB, 2 * MIB, 2 * MIB], [1, 2, 1, 2, None]),
        # Progress accumulates: five failures within each mebibyte are within the budget.
        (5, [n * MIB // 5 for n in range(26)], [1, *([2, 3, 4, 5, 1] * 5)]),
    ],
)
def test_the_count_starts_again_after_progress(
    retries: int, offsets: list[int], numbers: list[int | None]
) -> None:
    assert failures(retries, offsets) == numbers


def test_progress_is_a_mebibyte() -> None:
    assert PROGRESS == MIB


# --- whether -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "transient"),
    [
        *((status, True) for status in (408, 429, 500, 502, 503, 504, 507, 520, 529, 599)),
        *((status, False) for status in (200, 206, 301, 304, 400, 401, 403, 404, 410, 416, 451)),
        *((status, False) for status in (501, 505, 506, 508, 510, 511)),
    ],
)
def test_which_statuses_are_worth_another_try(status: int, transient: bool) -> None:  # noqa: FBT001
    assert retry.is_transient_status(status) is transient


def caused(error: OSError, cause: BaseException) -> OSError:
    error.__cause__ = cause
    return error


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
FORBIDDEN = PermissionError(errno.EACCES, "forbidden")
ALL = "all attempts to connect failed"


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (REFUSED, True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (BrokenPipeError(errno.EPIPE, "broken pipe"), True),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), True),
        (TimeoutError(), True),
        (ConnectionError("the connection ended early"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (OSError(errno.ENETUNREACH, "no network"), True),
        (OSError(errno.ENETDOWN, "no network"), True),
        (FORBIDDEN, False),
        (OSError(errno.EAFNOSUPPORT, "no such family"), False),
        (OSError(errno.EADDRNOTAVAIL, "no such address"), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (ValueError("no network at all"), False),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (socket.gaierror(socket.EAI_FAIL, "failed"), True),
        (socket.gaierror(socket.EAI_SYSTEM, "see errno"), True),
        (socket.gaierror(socket.EAI_NONAME, "no such host"), False),
        (socket.gaierror(socket.EAI_NODATA, "no address"), False),
        (ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF"), True),
        (ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed"), True),
        (ssl.SSLSyscallError(ssl.SSL_ERROR_SYSCALL, "the system"), True),
        (ssl.SSLError(ssl.SSL_ERROR_SSL, "wrong version number"), False),
        (ssl.SSLCertVerificationError(1, "unknown authority"), False),
        (ssl.SSLError("without a number"), False),
        (caused(OSError(ALL), REFUSED), True),
        (caused(OSError(ALL), FORBIDDEN), False),
        (caused(OSError(ALL), ExceptionGroup(ALL, [FORBIDDEN, REFUSED])), True),
        (caused(OSError(ALL), ExceptionGroup(ALL, [FORBIDDEN, FORBIDDEN])), False),
        (ExceptionGroup(ALL, [ExceptionGroup(ALL, [REFUSED])]), True),
    ],
    ids=repr,
)
def test_which_errors_are_worth_another_try(
    error: BaseException,
    transient: bool,  # noqa: FBT001
) -> None:
    assert retry.is_transient(error) is transient

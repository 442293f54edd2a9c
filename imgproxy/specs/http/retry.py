"""When to retry a request, and after which delay: RFC 9110 section 10.2.3 (`Retry-After`).

These are pure decisions: the callers pass a random number and the current time. Dates are those of
RFC 9110 section 5.6.7.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

# In seconds. Doubling from one second, five retries wait for half a minute in all: long enough for
# a registry's restart, short enough for a person. No single delay exceeds a minute, as in
# containers/image; a server that requests more is not asked again.
FIRST_DELAY = 1.0
MAX_DELAY = 60.0

# In seconds, a year: the most that a client is told of what `Retry-After` requests.
MAX_REQUESTED = 365 * 86400.0

# So many bytes received show that the network works: the count of retries starts again after them.
PROGRESS = 1024 * 1024

# Of the 5xx, those that describe a permanent property of the server: it does not support the
# method or the version of HTTP, is configured in a circle, or a person must log in to the network.
_PERMANENT = frozenset({501, 505, 506, 508, 510, 511})

# Errors that may not occur again a moment later; programs built on containers/image retry after
# most of them.
_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOBUFS,
        errno.ENOTCONN,  # of a socket that was reset before it was used
        errno.EPIPE,
        errno.ETIMEDOUT,
        # netdb.h numbers the failures of name resolution downwards from -1: EAI_AGAIN, EAI_FAIL
        # and EAI_SYSTEM. EAI_NONAME (-2) and EAI_NODATA (-5) are permanent: no such host exists.
        -3,
        -4,
        -11,
    }
)
# OpenSSL's numbers for a connection that ended under TLS: SSL_ERROR_SYSCALL, _ZERO_RETURN and
# Python's own SSL_ERROR_EOF. All other errors of TLS are permanent.
_TLS_ENDED = frozenset({5, 6, 8})

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# IMF-fixdate, and the forms that must be accepted as well: those of RFC 850 and asctime(3). They
# are not compiled here, since hardly any run receives a date.
_DATES = (
    f"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
    f"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
    f"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
)


class Budget(NamedTuple):
    """The retries of a transfer: at most `retries` without progress in between.

    `spent` of them have been used since the byte offset `mark`, where the count last started.
    """

    retries: int
    spent: int = 0
    mark: int = 0

    def after_failure(self, offset: int) -> Budget | None:
        """Return the budget after a failure at byte `offset`, None where no retry is left.

        Transfers without an offset, such as those of manifests, pass 0.
        """
        again = offset - self.mark >= PROGRESS
        budget = Budget(self.retries, 1, offset) if again else self._replace(spent=self.spent + 1)
        return budget if budget.spent <= self.retries else None


def delay(spent: int, chance: float, requested: float | None = None) -> float:
    """Return the seconds to wait before retry number `spent` (from 1).

    `chance` is a random number from 0 to 1: a thousand clients that failed together must not
    return together. `requested` is the delay that the server has requested, as returned by
    `retry_after`; it is the minimum, up to the limit.
    """
    if requested is not None:
        return min(requested + chance * FIRST_DELAY, MAX_DELAY)
    # The exponent is bounded because --retries is not.
    whole = min(FIRST_DELAY * 2.0 ** min(spent - 1, 16), MAX_DELAY)
    return whole * (1 + chance) / 2


def retry_after(field: str, now: float) -> float | None:
    """Return the seconds that a `Retry-After` requests, None if malformed.

    They are `MAX_REQUESTED` at most.

    `now` is the time in seconds since the epoch. A date in the past counts as 0 seconds.
    """
    if re.fullmatch("[0-9]+", field):
        seconds = float(field)  # unlike int(), of any length
    else:
        date = _date(field, now)
        if date is None:
            return None
        seconds = date - now
    return min(max(seconds, 0.0), MAX_REQUESTED)


def is_too_long(requested: float | None) -> bool:
    """Return whether a server requests a delay that is not waited for."""
    return requested is not None and requested > MAX_DELAY


def _date(text: str, now: float) -> float | None:
    """Return an HTTP-date as seconds since the epoch, None for other text."""
    match = next(filter(None, (re.fullmatch(form, text) for form in _DATES)), None)
    if match is None:
        return None
    from datetime import UTC, datetime

    year = int(match["year"])
    if len(match["year"]) == 2:
        # The latest such year that is not more than 50 years from now: section 5.6.7.
        latest = datetime.fromtimestamp(now, UTC).year + 50
        year += latest // 100 * 100
        year -= 100 if year > latest else 0
    try:
        return datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            min(int(match["second"]), 59),  # 60 is a leap second, which POSIX does not have
            tzinfo=UTC,
        ).timestamp()
    except ValueError:
        return None


def is_transient_status(status: int) -> bool:
    """Return whether a request that got this status may succeed when it is repeated."""
    return status in (408, 429) or (status >= 500 and status not in _PERMANENT)


def is_transient(error: BaseException) -> bool:
    """Return whether a failure of the network may not occur again at another try.

    For a connection tried at several addresses, one transient failure is enough: a host without
    IPv6 fails there permanently, whatever happens at the other address.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_transient, error.exceptions))
    if not isinstance(error, OSError):
        return False
    if type(error).__module__ == "ssl":  # SSLError and its subclasses have OpenSSL's numbers
        return error.errno in _TLS_ENDED
    if error.errno is not None:
        return error.errno in _TRANSIENT
    # Not from the system: a premature end, a timeout, or a summary of the failures that caused it.
    return error.__cause__ is None or is_transient(error.__cause__)

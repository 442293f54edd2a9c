"""When to try again, and for how long: decisions about time that look at no clock.

A random number and the current time are handed in. RFC 9110 section 10.2.3 (`Retry-After`) and
section 5.6.7 (dates).
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

# In seconds. Doubling from one second, five retries wait for half a minute in all: long enough for
# a registry's restart, short enough for a person. Nobody is waited for longer than a minute at a
# time, whatever `Retry-After` says; upstream has the same limit.
FIRST_DELAY = 1.0
MAX_DELAY = 60.0

# So much progress shows that the network works: the count of retries starts again after it.
PROGRESS = 1024 * 1024

# Of the 5xx, those that say what this server is rather than how it feels: it doesn't know the
# method or the version of HTTP, is set up in a circle, or wants a person to log in to the network.
_NEVER = frozenset({501, 505, 506, 508, 510, 511})

# What may be gone a moment later; programs built on containers/image try again after most of it.
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
        errno.EPIPE,
        errno.ETIMEDOUT,
        # netdb.h numbers the failures of name resolution downwards from -1: EAI_AGAIN, EAI_FAIL
        # and EAI_SYSTEM. EAI_NONAME (-2) and EAI_NODATA (-5) are answers: there is no such host.
        -3,
        -4,
        -11,
    }
)
# OpenSSL's numbers for a connection that ended under TLS: SSL_ERROR_SYSCALL, _ZERO_RETURN and
# Python's own SSL_ERROR_EOF. Anything else TLS complains of, it will complain of again.
_TLS_ENDED = frozenset({5, 6, 8})

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# IMF-fixdate, and what must be accepted beside it: RFC 850's form and that of asctime(3). Not
# compiled here, since hardly any run meets a date.
_DATES = (
    f"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
    f"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
    f"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
)


class Budget(NamedTuple):
    """How many more tries a transfer gets. `retries` is what it gets without any progress.

    `spent` of them are used since the byte `mark`, where the count last started.
    """

    retries: int
    spent: int = 0
    mark: int = 0

    def after_failure(self, offset: int) -> Budget | None:
        """Give what is left after a failure at byte `offset`, None where no try is left.

        For what has no offset, such as a manifest, it is always 0.
        """
        again = offset - self.mark >= PROGRESS
        budget = Budget(self.retries, 1, offset) if again else self._replace(spent=self.spent + 1)
        return budget if budget.spent <= self.retries else None


def delay(spent: int, chance: float, said: float | None = None) -> float:
    """Give the seconds to wait before retry number `spent` (from 1).

    `chance` is a random number from 0 to 1: a thousand clients that failed together must not come
    back together. `said` is what the server asked for, as `retry_after` gives it; what it said is
    the least, up to the limit.
    """
    if said is not None:
        return min(said + chance * FIRST_DELAY, MAX_DELAY)
    # The exponent is bounded because --retries isn't.
    whole = min(FIRST_DELAY * 2.0 ** min(spent - 1, 16), MAX_DELAY)
    return whole * (1 + chance) / 2


def retry_after(field: str, now: float) -> float | None:
    """Give the seconds that a `Retry-After` asks for, at most `MAX_DELAY`; None if malformed.

    `now` is the time in seconds since the epoch. A date that has passed is no wait.
    """
    if re.fullmatch("[0-9]+", field):
        seconds = float(field)  # unlike int(), of any length
    else:
        date = _date(field, now)
        if date is None:
            return None
        seconds = date - now
    return min(max(seconds, 0.0), MAX_DELAY)


def _date(text: str, now: float) -> float | None:
    """Give an HTTP-date as seconds since the epoch, None where it is none."""
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
            min(int(match["second"]), 59),  # 60 is a leap second, which UTC has and POSIX hasn't
            tzinfo=UTC,
        ).timestamp()
    except ValueError:
        return None


def is_transient_status(status: int) -> bool:
    """Whether the same request may be answered better at another try."""
    return status in (408, 429) or (status >= 500 and status not in _NEVER)


def is_transient(error: BaseException) -> bool:
    """Whether a failure of the network may be gone at another try.

    Of a connection tried at several addresses, one that may is enough: a host without IPv6 fails
    there for good, whatever happens at the other address.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_transient, error.exceptions))
    if not isinstance(error, OSError):
        return False
    if type(error).__module__ == "ssl":  # SSLError and its kin, whose numbers are OpenSSL's
        return error.errno in _TLS_ENDED
    if error.errno is not None:
        return error.errno in _TRANSIENT
    # Not the system's: an early end or a limit on time, or made of the failures it follows from.
    return error.__cause__ is None or is_transient(error.__cause__)

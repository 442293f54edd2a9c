"""Why a certificate is refused, by its fields."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from imgproxy.net import tls

BEGIN, END = "Jan  5 09:34:43 2018 GMT", "Jan  5 09:34:43 2020 GMT"
WITHIN = ssl.cert_time_to_seconds("Jan  5 09:34:43 2019 GMT")
TIMES = {"notBefore": BEGIN, "notAfter": END}
YEAR = 365 * 24 * 3600
EARLY, NOT_YET_VALID, EXPIRED, NAME, ADDRESS = WITHIN - 2 * YEAR, 9, 10, 62, 64


def named(*names: str) -> dict[str, Any]:
    return {"subjectAltName": tuple(("DNS", name) for name in names)}


@pytest.mark.parametrize(
    ("code", "certificate", "now", "wanted"),
    [
        (
            EXPIRED,
            TIMES,
            WITHIN + 2 * YEAR,
            ": it was valid until 2020-01-05T09:34:43Z, and the clock of this host says"
            " 2021-01-04T09:34:43Z",
        ),
        (
            NOT_YET_VALID,
            TIMES,
            EARLY,
            ": it is valid from 2018-01-05T09:34:43Z, and the clock of this host says"
            " 2017-01-05T09:34:43Z",
        ),
        (EXPIRED, TIMES, WITHIN, ": that of an authority, for the server's own is valid"),
        (NOT_YET_VALID, TIMES, WITHIN, ": that of an authority, for the server's own is valid"),
        (NAME, named("a.test", "*.b.test"), WITHIN, " It is for a.test, *.b.test."),
        (ADDRESS, {"subjectAltName": (("IP Address", "10.0.0.1"),)}, 0, " It is for 10.0.0.1."),
        (NAME, named(*"abcdefghij"), 0, " It is for a, b, c, d, e, f, g, h, 2 more."),
        (NAME, named("a\x1b[31m\nb"), 0, " It is for a [31m b."),
        (NAME, {}, 0, " It is for no name."),
    ],
)
def test_a_certificate_explains_why(
    code: int, certificate: dict[str, Any], now: float, wanted: str
) -> None:
    assert code in tls.EXPLICABLE
    assert tls.explanation(code, certificate, now) == wanted


def test_no_authority_helps_against_what_is_explained() -> None:
    assert not tls.EXPLICABLE & tls.NO_AUTHORITY

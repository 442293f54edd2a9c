"""Contexts that are made once, and why a certificate is refused, by its fields."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from imgproxy.config.certs import Certificates
from imgproxy.net import tls

if TYPE_CHECKING:
    from pathlib import Path

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


def test_a_context_is_made_once_for_the_same_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    contexts: tls.Contexts = {}
    first = tls.context(contexts, Certificates(), verify=True)
    others = [
        tls.context(contexts, Certificates((str(authority),)), verify=True),
        tls.context(contexts, Certificates(), verify=False),
    ]
    assert len({first, *others}) == 3
    assert tls.context(contexts, Certificates(), verify=True) is first
    assert tls.context(contexts, Certificates(), verify=False) is others[1]
    assert others[1].verify_mode is ssl.CERT_NONE


def test_a_context_without_authorities_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their file may be there again a moment later."""
    authority = tmp_path / "ca.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    contexts: tls.Contexts = {}
    tls.context(contexts, Certificates(), verify=True)
    trustme.CA().cert_pem.write_to_path(str(authority))
    found = tls.context(contexts, Certificates(), verify=True)
    assert found.cert_store_stats()["x509"] == 1

"""Bearer tokens: requests, replies and failures."""

from __future__ import annotations

import json

import pytest

from imgproxy.errors import BadUpstreamError, DeniedError, Failure, UnavailableError
from imgproxy.specs.http.challenge import Challenge
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.http.url import Url
from imgproxy.specs.http.url import parse as parse_url
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import token as tokens
from imgproxy.specs.oci.token import Request, Token

HERE = parse_url("https://quay.io/v2/os/blobs/x?signature=secret")
SHOWN = "GET https://quay.io/v2/os/blobs/x?…"
SCOPES = ["repository:library/busybox:pull"]
SCOPE = "scope=repository%3Alibrary%2Fbusybox%3Apull"

USER = Credentials("u s", "p:ä", "", "the test")
IDENTITY = Credentials("u", "p", "refresh&me", "the test")


def ask(
    parameters: dict[str, str],
    credentials: Credentials | None = None,
    scopes: list[str] = SCOPES,
    url: Url = HERE,
    *,
    allow_http: bool = False,
) -> Request:
    challenge = Challenge("bearer", parameters)
    return tokens.request(url, challenge, scopes, credentials, allow_http=allow_http)


# --- the question -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "target"),
    [
        (
            {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"},
            f"/token?service=registry.docker.io&{SCOPE}",
        ),
        ({"realm": "https://auth.docker.io/token?a=b"}, f"/token?a=b&{SCOPE}"),
        (
            {"realm": "https://auth.docker.io", "service": "", "scope": "ignored"},
            f"/?service=&{SCOPE}",
        ),
        (
            {"realm": "https://auth.docker.io/token?", "service": "a b&c=d\u00e4"},
            f"/token?service=a%20b%26c%3Dd%C3%A4&{SCOPE}",
        ),
    ],
    ids=["service", "realm-with-a-query", "empty-service", "quoting"],
)
def test_a_token_is_asked_for_at_the_realm(parameters: dict[str, str], target: str) -> None:
    asked = ask(parameters)
    assert asked == (Url("https", "auth.docker.io", 443, target), "", None)


def test_user_and_password_go_along() -> None:
    asked = ask({"realm": "https://a/t", "service": "s"}, USER)
    assert asked.url == Url("https", "a", 443, f"/t?account=u%20s&service=s&{SCOPE}")
    assert (asked.authorization, asked.form) == ("Basic dSBzOnA6w6Q=", None)


@pytest.mark.parametrize("service", [None, "s t"])
def test_an_identity_token_is_exchanged_by_a_form(service: str | None) -> None:
    given = {} if service is None else {"service": service}
    asked = ask({"realm": "https://a/t?b=c", **given}, IDENTITY, [*SCOPES, "two"])
    assert (asked.url, asked.authorization) == (Url("https", "a", 443, "/t?b=c"), "")
    assert asked.form == (
        b"grant_type=refresh_token&refresh_token=refresh%26me&client_id=imgproxy"
        + (b"" if service is None else b"&service=s+t")
        + b"&scope=repository%3Alibrary%2Fbusybox%3Apull+two"
    )


def test_several_scopes_are_asked_for_together() -> None:
    asked = ask({"realm": "https://a/t"}, scopes=["a:b:pull", "c"])
    assert asked.url.target == "/t?scope=a%3Ab%3Apull&scope=c"


@pytest.mark.parametrize(
    ("realm", "complaint"),
    [
        (None, 'from an unusable realm "(not shown)": neither http nor https'),
        ("token", 'from an unusable realm "(not shown)": neither http nor https'),
        (
            "https://user:secret@a/?secret",
            'from an unusable realm "https://a/…": it has user information (USER:PASSWORD@)',
        ),
        (
            "http://a/token?secret",
            "over plain http from http://a/token?…, which is refused"
            " (--tls-verify=false would allow it)",
        ),
    ],
    ids=["missing", "relative", "userinfo", "plain"],
)
def test_an_unusable_realm_is_the_registry_s_mistake(realm: str | None, complaint: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        ask({} if realm is None else {"realm": realm}, USER)
    assert caught.value.message == f"{SHOWN}: the registry asks for a token {complaint}"


@pytest.mark.parametrize(
    ("start", "allow_http"), [("https://a/", True), ("http://a/", True), ("http://a/", False)]
)
def test_a_token_is_asked_for_over_http_where_nothing_better_is_there_or_wanted(
    start: str, *, allow_http: bool
) -> None:
    asked = ask({"realm": "http://b/"}, url=parse_url(start), allow_http=allow_http)
    assert asked.url.origin == ("http", "b", 80)


# --- the answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        {"token": "a.b-c_d~e+f/9=="},
        {"access_token": "a.b-c_d~e+f/9=="},
        {"token": "a.b-c_d~e+f/9==", "access_token": "other", "expires_in": 60},
        {"token": None, "access_token": "a.b-c_d~e+f/9=="},
        {"token": "", "access_token": "a.b-c_d~e+f/9=="},
    ],
    ids=["token", "access-token", "both", "null", "empty"],
)
def test_a_token_has_two_names(reply: object) -> None:
    assert tokens.parse(json.dumps(reply).encode(), HERE) == ("a.b-c_d~e+f/9==", 60.0)


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (None, 60),
        (0, 60),
        (-1, 60),
        (59, 60),
        (60, 60),
        (61, 61),
        (86400, 86400),
        (10**30, 2**31),
        (-(10**30), 60),
        ("300", 300),
        (" 300 ", 300),
        (300.0, 300),
        (300.5, 60),
        ("soon", 60),
        ("9" * 5000, 60),
        ([300], 60),
        ({}, 60),
        (True, 60),
    ],
)
def test_no_token_lives_for_less_than_a_minute(expires_in: object, lifetime: float) -> None:
    body = json.dumps({"token": "t", "expires_in": expires_in}).encode()
    assert tokens.parse(body, HERE).lifetime == lifetime


def test_a_token_is_not_shown() -> None:
    for shown in str, repr, "{}".format, lambda token: str([token]):
        assert "secret" not in shown(Token("secret", 60.0))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"<html>", ": not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", " holds no usable token"),
        (b'{"token":["secret"]}', " holds no usable token"),
        (b'{"secret":1,"secret":2}', ': the key "(not shown)" occurs twice in one object'),
        (b"{}", " holds no usable token"),
        (b'{"token":"secret\\r\\nX: y"}', " holds no usable token"),
        (b'{"token":"se cret"}', " holds no usable token"),
        (b'{"token":"=secret"}', " holds no usable token"),
        ('{"token":"sécret"}'.encode(), " holds no usable token"),
        (b'{"token":1234567890}', " holds no usable token"),
        (b'{"token":["a"],"access_token":"secret"}', " holds no usable token"),
    ],
)
def test_a_reply_without_a_token_is_the_registry_s_mistake(body: bytes, complaint: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        tokens.parse(body, HERE)
    assert caught.value.message == f"{SHOWN}: the token server's reply{complaint}"


@pytest.mark.parametrize(
    ("text", "usable"),
    [("a.b-c_d~e+f/9==", True), ("", False), ("a b", False), ("a\n", False), ("=", False)],
)
def test_a_token_is_what_may_stand_in_a_header(text: str, *, usable: bool) -> None:
    assert tokens.is_usable(text) is usable


# --- the refusal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "leaf", "code"),
    [
        (401, DeniedError, "UNAUTHORIZED"),
        (403, DeniedError, "DENIED"),
        (429, UnavailableError, "TOOMANYREQUESTS"),
        (500, UnavailableError, "UNAVAILABLE"),
        (503, UnavailableError, "UNAVAILABLE"),
        (302, BadUpstreamError, "BAD_UPSTREAM"),
        (400, BadUpstreamError, "BAD_UPSTREAM"),
        (404, BadUpstreamError, "BAD_UPSTREAM"),
    ],
)
@pytest.mark.parametrize(
    ("source", "shown"), [("", ""), ("a.json (b)", " to the credentials from a.json (b)")]
)
def test_a_token_server_s_refusal_has_a_meaning(
    status: int, leaf: type[Failure], code: str, source: str, shown: str
) -> None:
    body = b'{"errors":[{"code":"X","message":"no"}]}'
    for said, words in ((b"", ""), (body, " (X: no)")):
        failure = tokens.failure(HERE, status, said, source)
        assert (type(failure), failure.code) == (leaf, code)
        way_out = f"; {distribution.WITHOUT_LOGIN}" if source and status in (401, 403) else ""
        told = f"asking for a token: {SHOWN[4:]}: {status}{shown}{words}{way_out}"
        assert failure.message == told

"""The distribution specification 1.1: what is asked, and what the answers mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from imgproxy.errors import (
    BadUpstreamError,
    DeniedError,
    Failure,
    NotFoundError,
    UnavailableError,
)
from imgproxy.spec.challenge import Challenge
from imgproxy.spec.distribution import (
    ACCEPT_MANIFESTS,
    Url,
    failure,
    parse_token,
    parse_url,
    redacted,
    redirect,
    registry_url,
    token_failure,
    token_url,
)
from imgproxy.spec.reference import parse_reference

if TYPE_CHECKING:
    from imgproxy.spec.reference import Reference

BUSYBOX = parse_reference("busybox")
HERE = parse_url("https://quay.io/v2/os/blobs/x?signature=secret")


def test_every_manifest_that_is_read_is_accepted_and_no_other() -> None:
    assert ACCEPT_MANIFESTS.split(", ") == [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]


# --- URLs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "authority"),
    [
        ("https://a", Url("https", "a", 443, "/"), "a"),
        ("http://a", Url("http", "a", 80, "/"), "a"),
        ("HTTPS://A.Example/B", Url("https", "a.example", 443, "/B"), "a.example"),
        ("https://a:443/", Url("https", "a", 443, "/"), "a"),
        ("https://a:80/", Url("https", "a", 80, "/"), "a:80"),
        ("http://a:5000/b/c", Url("http", "a", 5000, "/b/c"), "a:5000"),
        ("https://a:/b", Url("https", "a", 443, "/b"), "a"),
        ("https://a?b=c&d", Url("https", "a", 443, "/?b=c&d"), "a"),
        ("https://a/b?c#d", Url("https", "a", 443, "/b?c"), "a"),
        ("https://a/%2f%20?%00", Url("https", "a", 443, "/%2f%20?%00"), "a"),
        ("https://127.0.0.1:1/", Url("https", "127.0.0.1", 1, "/"), "127.0.0.1:1"),
        ("https://[::1]/b", Url("https", "::1", 443, "/b"), "[::1]"),
        ("https://[2001:DB8::1]:1/", Url("https", "2001:db8::1", 1, "/"), "[2001:db8::1]:1"),
        ("https://[::ffff:1.2.3.4]/", Url("https", "::ffff:1.2.3.4", 443, "/"), "[::ffff:1.2.3.4]"),
        ("https://a_b-c.d./", Url("https", "a_b-c.d.", 443, "/"), "a_b-c.d."),
    ],
)
def test_a_url_says_where_to_dial_and_what_to_ask(text: str, url: Url, authority: str) -> None:
    assert parse_url(text) == url
    assert url.authority == authority
    assert url.origin == (url.scheme, url.host, url.port)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither http nor https"),
        ("/v2/", "neither http nor https"),
        ("//a/b", "neither http nor https"),
        ("ftp://a/", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("https:/a", "its host is malformed"),
        ("https:///a", "its host is malformed"),
        ("https://:80/", "its host is malformed"),
        ("https://user@a/", "its host is malformed"),
        ("https://user:password@a/", "its host is malformed"),
        ("https://@a/", "its host is malformed"),
        ("https://a\\@b/", "its host is malformed"),
        ("https://a%00/", "its host is malformed"),
        ("https://a..b/", "its host is malformed"),
        ("https://.a/", "its host is malformed"),
        ("https://./", "its host is malformed"),
        ("https://a,b/", "its host is malformed"),
        pytest.param(f"https://{'a' * 64}/", "its host is malformed", id="label-too-long"),
        ("https://[v1.a]/", "its host is malformed"),
        ("https://[fe80::1%25eth0]/", "its host is malformed"),
        ("https://[::1/", "its host or port is malformed"),
        ("https://[::::]/", "its host or port is malformed"),
        ("https://a:65536/", "its host or port is malformed"),
        ("https://a:b/", "its host or port is malformed"),
        pytest.param(f"https://a:{'1' * 5000}/", "its host or port is malformed", id="port"),
        ("https://a/ b", "not a URL of printable ASCII"),
        ("https://a/\t", "not a URL of printable ASCII"),
        ("https://a/\r\nX: y", "not a URL of printable ASCII"),
        ("https://\u00e4/", "not a URL of printable ASCII"),
        ("https://a/\x7f", "not a URL of printable ASCII"),
    ],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a/b", "https://a/b"),
        ("http://a:80", "http://a/"),
        ("https://a/b?X-Amz-Signature=secret", "https://a/b?…"),
    ],
)
def test_a_url_in_a_message_has_no_query(text: str, shown: str) -> None:
    assert str(parse_url(text)) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a", "https://a/…"),
        ("https://a/secret", "https://a/…"),
        ("https://user:secret@a/b@c", "https://a/…"),
        ("https://us@er:secret@a", "https://a/…"),
        ("https://a:secret/", "https://a/…"),
        ("ftp://a/", "ftp://a/…"),
        ("https://a?secret", "(not shown)"),
        ("https://a#secret", "(not shown)"),
        ("https://user:secret\\@a/", "https://user/…"),
        ("//user:secret@a", "(not shown)"),
        ("https:/user:secret@a", "(not shown)"),
        ("/secret", "(not shown)"),
        ("", "(not shown)"),
        ("ftp://a\x1b[31m/", "(not shown)"),
    ],
)
def test_what_only_resembles_a_url_is_shown_without_secrets(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("reference", "kind", "name", "url"),
    [
        (
            "busybox",
            "manifest",
            "v1",
            "https://registry-1.docker.io/v2/library/busybox/manifests/v1",
        ),
        ("quay.io/a/b", "manifest", "sha256:x", "https://quay.io/v2/a/b/manifests/sha256:x"),
        ("localhost:5000/a", "blob", "sha256:x", "https://localhost:5000/v2/a/blobs/sha256:x"),
        ("[::1]:5000/a", "blob", "sha256:x", "https://[::1]:5000/v2/a/blobs/sha256:x"),
        ("Quay.IO/a", "blob", "sha256:x", "https://quay.io/v2/a/blobs/sha256:x"),
    ],
)
def test_manifests_and_blobs_have_their_paths(
    reference: str, kind: str, name: str, url: str
) -> None:
    assert str(registry_url("https", parse_reference(reference), kind, name)) == url


# --- redirects --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "location", "target"),
    [
        ("https://a/b/c", "https://d/e?f", "https://d/e?f"),
        ("https://a/b/c", "/e", "https://a/e"),
        ("https://a:1/b/c", "e", "https://a:1/b/e"),
        ("https://a/b/c", "../e", "https://a/e"),
        ("https://a/b/c", "?e", "https://a/b/c?e"),
        ("https://a/b/c", "//d/e", "https://d/e"),
        ("https://[::1]:1/b", "/e", "https://[::1]:1/e"),
        ("http://a/b", "https://a/b", "https://a/b"),
        ("http://a/b", "http://d/e", "http://d/e"),
    ],
)
@pytest.mark.parametrize("allow_http", [True, False])
def test_a_redirect_leads_where_it_says(
    start: str, location: str, target: str, *, allow_http: bool
) -> None:
    assert redirect(parse_url(start), location, allow_http=allow_http) == parse_url(target)


def test_a_step_down_to_http_must_be_allowed() -> None:
    assert redirect(HERE, "http://a/b", allow_http=True) == Url("http", "a", 80, "/b")
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE, "http://a/b?secret", allow_http=False)
    assert caught.value.message == (
        "GET https://quay.io/v2/os/blobs/x?…: redirected from https to http://a/b?…, which is"
        " refused (--tls-verify=false would allow it)"
    )


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("", "redirected without saying where"),
        (
            "ftp://a/b",
            "redirected to somewhere unusable (neither http nor https): ftp://a/…",
        ),
        (
            "https://user:secret@a/?secret",
            "redirected to somewhere unusable (its host is malformed): https://a/…",
        ),
        (
            "https://a/\u00e4",
            "redirected to somewhere unusable (not a URL of printable ASCII): https://a/…",
        ),
    ],
)
def test_a_redirect_to_nowhere_is_the_registry_s_mistake(location: str, complaint: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE, location, allow_http=True)
    assert caught.value.message == f"GET https://quay.io/v2/os/blobs/x?…: {complaint}"


@pytest.mark.parametrize(
    "location",
    [
        "https://user:secret@a/",
        "https://a:secret/",
        "https://[secret]/",
        "https://[::1/secret",
        "ftp://a/secret",
        "ftp://a?secret",
        "https://a/\u00e4#secret",
    ],
)
def test_what_may_be_secret_in_a_location_is_not_quoted(location: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        redirect(HERE, location, allow_http=True)
    assert "secret" not in caught.value.message


# --- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "reference", "target"),
    [
        (
            {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"},
            BUSYBOX,
            "/token?scope=repository%3Alibrary%2Fbusybox%3Apull&service=registry.docker.io",
        ),
        (
            {"realm": "https://auth.docker.io/token?a=b"},
            parse_reference("quay.io/a/b"),
            "/token?a=b&scope=repository%3Aa%2Fb%3Apull",
        ),
        (
            {"realm": "https://auth.docker.io", "service": "", "scope": "ignored"},
            BUSYBOX,
            "/?scope=repository%3Alibrary%2Fbusybox%3Apull&service=",
        ),
        (
            {"realm": "https://auth.docker.io/token?", "service": "a b&c=d\u00e4"},
            BUSYBOX,
            "/token?scope=repository%3Alibrary%2Fbusybox%3Apull&service=a%20b%26c%3Dd%C3%A4",
        ),
    ],
    ids=["service", "realm-with-a-query", "empty-service", "quoting"],
)
def test_a_token_is_asked_for_at_the_realm(
    parameters: dict[str, str], reference: Reference, target: str
) -> None:
    url = token_url(HERE, Challenge("bearer", parameters), reference, allow_http=False)
    assert url == Url("https", "auth.docker.io", 443, target)


@pytest.mark.parametrize(
    ("realm", "complaint"),
    [
        (None, 'from an unusable realm "(not shown)": neither http nor https'),
        ("token", 'from an unusable realm "(not shown)": neither http nor https'),
        (
            "https://user:secret@a/?secret",
            'from an unusable realm "https://a/…": its host is malformed',
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
    challenge = Challenge("bearer", {} if realm is None else {"realm": realm})
    with pytest.raises(BadUpstreamError) as caught:
        token_url(HERE, challenge, BUSYBOX, allow_http=False)
    assert caught.value.message == (
        f"GET https://quay.io/v2/os/blobs/x?…: the registry asks for a token {complaint}"
    )


@pytest.mark.parametrize(
    ("start", "allow_http"), [("https://a/", True), ("http://a/", True), ("http://a/", False)]
)
def test_a_token_is_asked_for_over_http_where_nothing_better_is_there_or_wanted(
    start: str, *, allow_http: bool
) -> None:
    challenge = Challenge("bearer", {"realm": "http://b/"})
    url = token_url(parse_url(start), challenge, BUSYBOX, allow_http=allow_http)
    assert url.origin == ("http", "b", 80)


@pytest.mark.parametrize(
    "reply",
    [
        {"token": "a.b-c_d~e+f/9=="},
        {"access_token": "a.b-c_d~e+f/9=="},
        {"token": "a.b-c_d~e+f/9==", "access_token": "other", "expires_in": 300},
        {"token": None, "access_token": "a.b-c_d~e+f/9=="},
        {"token": "", "access_token": "a.b-c_d~e+f/9=="},
    ],
    ids=["token", "access-token", "both", "null", "empty"],
)
def test_a_token_has_two_names(reply: object) -> None:
    assert parse_token(json.dumps(reply).encode(), HERE) == "a.b-c_d~e+f/9=="


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"<html>", ": not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", " holds no usable token"),
        (b'{"token":["secret"]}', " holds no usable token"),
        (b"{}", " holds no usable token"),
        (b'{"token":"secret\\r\\nX: y"}', " holds no usable token"),
        (b'{"token":"se cret"}', " holds no usable token"),
        (b'{"token":"=secret"}', " holds no usable token"),
        ('{"token":"sécret"}'.encode(), " holds no usable token"),
    ],
)
def test_a_reply_without_a_token_is_the_registry_s_mistake(body: bytes, complaint: str) -> None:
    with pytest.raises(BadUpstreamError) as caught:
        parse_token(body, HERE)
    assert caught.value.message == (
        f"GET https://quay.io/v2/os/blobs/x?…: the token server's reply{complaint}"
    )


def test_a_token_of_the_wrong_type_is_not_shown() -> None:
    with pytest.raises(BadUpstreamError) as caught:
        parse_token(b'{"token":1234567890}', HERE)
    assert "1234567890" not in caught.value.message


# --- what other replies mean ------------------------------------------------------------------


def said(*codes: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": "no"} for code in codes]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "leaf", "code"),
    [
        (404, b"", "manifest", NotFoundError, "MANIFEST_UNKNOWN"),
        (404, b"", "blob", NotFoundError, "BLOB_UNKNOWN"),
        (404, said("MANIFEST_UNKNOWN"), "manifest", NotFoundError, "MANIFEST_UNKNOWN"),
        (404, said("X", "NAME_UNKNOWN"), "manifest", NotFoundError, "NAME_UNKNOWN"),
        (404, said("NAME_UNKNOWN"), "blob", NotFoundError, "NAME_UNKNOWN"),
        (401, b"", "manifest", DeniedError, "UNAUTHORIZED"),
        (403, said("DENIED"), "manifest", DeniedError, "DENIED"),
        (429, b"", "blob", UnavailableError, "TOOMANYREQUESTS"),
        (500, b"", "blob", UnavailableError, "UNAVAILABLE"),
        (502, b"", "blob", UnavailableError, "UNAVAILABLE"),
        (503, b"", "blob", UnavailableError, "UNAVAILABLE"),
        (599, b"", "blob", UnavailableError, "UNAVAILABLE"),
        (201, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
        (204, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
        (206, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
        (304, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
        (400, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
        (416, b"", "blob", BadUpstreamError, "BAD_UPSTREAM"),
    ],
)
def test_a_registry_s_refusal_has_a_meaning(
    status: int, body: bytes, kind: str, leaf: type[Failure], code: str
) -> None:
    refusal = failure(HERE, status, body, kind, "x")
    assert type(refusal) is leaf
    assert refusal.code == code
    assert refusal.message.startswith(f"{kind} x: GET https://quay.io/v2/os/blobs/x?…: {status}")


def test_a_401_says_that_there_are_no_credentials() -> None:
    assert failure(HERE, 401, said("UNAUTHORIZED"), "manifest", "x").message == (
        "manifest x: GET https://quay.io/v2/os/blobs/x?…: 401 (UNAUTHORIZED: no): the registry"
        " wants credentials, and anonymous access is all there is"
    )


@pytest.mark.parametrize(
    ("status", "leaf", "code"),
    [
        (401, DeniedError, "UNAUTHORIZED"),
        (403, DeniedError, "UNAUTHORIZED"),
        (429, UnavailableError, "UNAVAILABLE"),
        (500, UnavailableError, "UNAVAILABLE"),
        (503, UnavailableError, "UNAVAILABLE"),
        (302, BadUpstreamError, "BAD_UPSTREAM"),
        (400, BadUpstreamError, "BAD_UPSTREAM"),
        (404, BadUpstreamError, "BAD_UPSTREAM"),
    ],
)
def test_a_token_server_s_refusal_has_a_meaning(
    status: int, leaf: type[Failure], code: str
) -> None:
    for body, words in ((b"", ""), (said("X"), " (X: no)")):
        refusal = token_failure(HERE, status, body)
        assert type(refusal) is leaf
        assert refusal.code == code
        assert refusal.message == (
            f"asking for a token: GET https://quay.io/v2/os/blobs/x?…: {status}{words}"
        )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (said("A", "B"), " (A: no; B: no)"),
        (b'{"errors":[{"code":"A","message":null},{"message":"b"}]}', " (A: ; : b)"),
        (b'{"errors":[{"code":"A","message":"\\u001b[31m\\n"}]}', " (A:  [31m)"),
        (b'{"errors":[]}', ""),
        (b'{"errors":null}', ""),
        (b"{}", ""),
        (b'{"errors":["no"]}', ""),
        (b'{"errors":[{"code":404}]}', ""),
        (b'{"errors":{}}', ""),
        (b"<html>no</html>", ""),
        (b"", ""),
    ],
)
def test_a_registry_s_own_words_are_quoted_where_it_speaks_as_specified(
    body: bytes, words: str
) -> None:
    assert failure(HERE, 400, body, "blob", "x").message == (
        f"blob x: GET https://quay.io/v2/os/blobs/x?…: 400{words}"
    )


def test_a_registry_s_own_words_are_bounded() -> None:
    body = json.dumps({"errors": [{"code": "A", "message": "a" * 10_000}]}).encode()
    assert len(failure(HERE, 400, body, "blob", "x").message) < 400

"""Authentication challenges: RFC 9110 section 11.6.1, as registries send them."""

from __future__ import annotations

import pytest

from imgproxy.specs.http.challenge import Challenge, parse

TOKEN = Challenge("bearer", {"realm": "https://a/token", "service": "a"})


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        # as sent by registries
        pytest.param(
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:library/busybox:pull",error="insufficient_scope"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/busybox:pull",
                        "error": "insufficient_scope",
                    },
                )
            ],
            id="docker-hub",
        ),
        pytest.param(
            'Basic realm="Registry Realm"',
            [Challenge("basic", {"realm": "Registry Realm"})],
            id="htpasswd",
        ),
        pytest.param(
            'Bearer realm="https://a/token",service="a", Basic realm="b"',
            [TOKEN, Challenge("basic", {"realm": "b"})],
            id="two",
        ),
        pytest.param(
            'Negotiate, Bearer realm="https://a/token",service="a"',
            [Challenge("negotiate", {}), TOKEN],
            id="a-scheme-alone-and-another",
        ),
        # the example of the RFC
        pytest.param(
            'Basic realm="simple", Newauth realm="apps", type=1, title="Login to \\"apps\\""',
            [
                Challenge("basic", {"realm": "simple"}),
                Challenge("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
            ],
            id="rfc",
        ),
        # white space, case, quoting
        pytest.param(
            ' BEARER\tRealm = "https://a/token" ,,\t SERVICE\t=\ta , ', [TOKEN], id="white-space"
        ),
        pytest.param("A b=c,d=e", [Challenge("a", {"b": "c", "d": "e"})], id="without-quotes"),
        pytest.param('A b="c,d=e, F g"', [Challenge("a", {"b": "c,d=e, F g"})], id="quoted-comma"),
        pytest.param(
            'A b="c\\\\d\\"e\\f\n"', [Challenge("a", {"b": 'c\\d"ef\n'})], id="quoted-pairs"
        ),
        pytest.param('A b=""', [Challenge("a", {"b": ""})], id="empty-value"),
        pytest.param("A b=c, B=d", [Challenge("a", {"b": "c"})], id="the-first-of-two-counts"),
        # token68
        pytest.param("Negotiate YII=", [Challenge("negotiate", {})], id="token68"),
        pytest.param(
            "Negotiate YII==, Basic realm=a",
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "a"})],
            id="token68-and-another",
        ),
        pytest.param("A b=", [Challenge("a", {})], id="token68-like-a-parameter"),
        # empty or malformed
        pytest.param("", [], id="nothing"),
        pytest.param(" ,\t, ", [], id="only-commas"),
        pytest.param("=", [], id="no-scheme"),
        pytest.param("a=b", [], id="parameter-without-a-scheme"),
        pytest.param('"a"', [], id="only-quotes"),
        pytest.param("\u00e4", [], id="no-token"),
        pytest.param("Bearer", [Challenge("bearer", {})], id="scheme-alone"),
        # the challenges before the mistake are kept
        pytest.param('Basic realm="a', [Challenge("basic", {})], id="unterminated"),
        pytest.param("A b=c d=e", [Challenge("a", {})], id="comma-missing"),
        pytest.param('A b=c, d="e"f, G h=i', [Challenge("a", {"b": "c"})], id="after-the-quotes"),
        pytest.param("A b=c, =d", [Challenge("a", {"b": "c"})], id="name-missing"),
        pytest.param("A b=c; d=e", [Challenge("a", {"b": "c", "d": "e"})], id="semicolon"),
        pytest.param('A b="c";d="e";', [Challenge("a", {"b": "c", "d": "e"})], id="semicolons"),
        pytest.param(
            'A b="c;d"; E f=g',
            [Challenge("a", {"b": "c;d"}), Challenge("e", {"f": "g"})],
            id="semicolon-and-scheme",
        ),
    ],
)
def test_a_header_holds_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse(header) == challenges

"""What servers say when they refuse something: each says it in another form."""

from __future__ import annotations

import pytest

from imgproxy.specs.http.refusal_body import parse


@pytest.mark.parametrize(
    ("body", "codes", "summary"),
    [
        # the distribution specification
        (
            b'{"errors":[{"code":"DENIED","message":"pull access denied","detail":[{"a":"b"}]}]}',
            ["DENIED"],
            "DENIED: pull access denied",
        ),
        (
            b'{"errors":[{"code":"A","message":"b"},{"code":"C","message":"d"}]}',
            ["A", "C"],
            "A: b; C: d",
        ),
        (b'{"errors":[{"code":"A","message":null},{"message":"b"}]}', ["A"], "A; b"),
        (b'{"errors":[{"code":"A","detail":"why"}]}', ["A"], "A: why"),
        (b'{"errors":[{"code":404,"message":"not here"}]}', [], "not here"),
        # those who nearly follow it
        (b'{"errors":{"code":"A","message":"b"}}', ["A"], "A: b"),
        (b'{"errors":["no"]}', [], "no"),
        (b'{"errors":"no"}', [], "no"),
        (b'[{"code":"A","message":"b"}]', ["A"], "A: b"),
        # token servers, GitLab, Google, Quay, Docker Hub
        (b'{"details":"incorrect username or password"}', [], "incorrect username or password"),
        (
            b'{"error":"invalid_grant","error_description":"it has expired"}',
            ["invalid_grant"],
            "invalid_grant: it has expired",
        ),
        (b'{"message":"rate limit"}', [], "rate limit"),
        (b'{"detail":"rate limit","title":"other"}', [], "rate limit"),
        (
            b'{"error":{"code":403,"message":"denied","status":"PERMISSION_DENIED"}}',
            [],
            "denied",
        ),
        (b'"no"', [], "no"),
        # object stores
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired'
            b"</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>GET</StringToSign></Error>",
            [],
            "AccessDenied: Request has expired",
        ),
        (b"<Error><Message>gone</Message></Error>", [], "gone"),
        # proxies and web servers
        (
            b"<html>\r\n<head><title>403 Forbidden</title></head><p>x</p></html>",
            [],
            "403 Forbidden",
        ),
        (
            b"<html><script>if (a < b) {}</script><h1>No&nbsp;way</h1><!-- <b> --> out</body>",
            [],
            "No way out",
        ),
        (b"  <p>Use a &lt;token&gt;</p>", [], "Use a <token>"),
        (b"upstream connect error\nor disconnect", [], "upstream connect error or disconnect"),
        (b"no", [], "no"),
        ("gesperrt für immer".encode(), [], "gesperrt für immer"),
        # nothing that says anything
        (b"", [], ""),
        (b"  \n", [], ""),
        (b"{}", [], ""),
        (b"[]", [], ""),
        (b"null", [], ""),
        (b"5", [], ""),
        (b'{"errors":[]}', [], ""),
        (b'{"errors":null}', [], ""),
        (b'{"errors":[{"code":404}]}', [], ""),
        (b'{"errors":[null,5,[]]}', [], ""),
        (b'{"message":{"a":"b"}}', [], ""),
        (b"\x1f\x8b\x08\x00\xff\xfe", [], ""),
        (b"a\x00b", [], ""),
        (b"<!DOCTYPE html><html></html>", [], ""),
    ],
)
def test_what_a_server_says_is_found(body: bytes, codes: list[str], summary: str) -> None:
    assert parse(body) == (codes, summary)


def test_what_it_says_is_one_short_line() -> None:
    for body in (
        b'{"message":"\\u001b[31m\\r\\n\\u202e' + b"a" * 10_000 + b'"}',
        b"\x1b[31m\r\n" + b"a b " * 10_000,
        b"<p>" + b"a<br>" * 10_000,
    ):
        summary = parse(body).summary
        assert summary.isprintable()
        assert 200 < len(summary) < 300


@pytest.mark.parametrize(
    "body", [b"<" * 64_000, b"<a " * 20_000, b"<!--" * 16_000, b"<script>" * 8_000]
)
def test_markup_without_end_takes_no_time(body: bytes) -> None:
    parse(body)

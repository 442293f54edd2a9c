"""One place to ask: tokens, redirects, schemes, and what answers mean. Requests are counted."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.images import digest_of
from support.registries import (
    BASE,
    BLOB,
    FOUND,
    FOUND_BLOB,
    LAYER,
    MANIFEST,
    WHERE,
    Ring,
    described,
    moved,
    place,
    read_blob,
    registry,
    token,
    unauthorized,
)
from support.streams import (
    SILENCE,
    Notes,
    Step,
    answer,
    asked,
    elapsing,
    head,
    refused,
    virtual_time,
)

from imgproxy.errors import ConfigurationError, Failure
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci import distribution

if TYPE_CHECKING:
    from support.streams import Exchange

REALM = "https://tokens.test/get"
SCOPE = "scope=repository%3Aacme%2Fos%3Apull"
TOKENS = f"{REALM}?service=registry.test&{SCOPE}"
CHALLENGE = f'Bearer realm="{REALM}",service="registry.test",scope="repository:other:pull"'
BASIC = 'Basic realm="x"'
INSECURE = [place(insecure=True)]

USER = Credentials("u", "hunter2", "", "auth.json (auths.registry.test)")
AUTHORIZED = f"{REALM}?account=u&service=registry.test&{SCOPE}"
IDENTITY = Credentials("", "", "hunter2", "a helper")

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
UNAUTHORIZED = (403, "UNAUTHORIZED", False)
DENIED = (403, "DENIED", False)
UNAVAILABLE = (503, "UNAVAILABLE", True)
TOO_MANY = (503, "TOOMANYREQUESTS", True)


async def failure_of(*exchanges: Exchange, **options: Any) -> Failure:  # noqa: ANN401  (see registry)
    """Give how asking for the manifest fails."""
    async with registry(*exchanges, **options) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
    return raised.value


# --- tokens -------------------------------------------------------------------------------------


@virtual_time
async def test_a_token_takes_two_requests_more_and_serves_all_that_follow() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE), authorization=None),
        asked(TOKENS, token("t1"), authorization=None),
        asked(WHERE, FOUND, authorization="Bearer t1"),
        asked(BLOB, FOUND_BLOB, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert await read_blob(source) == LAYER
        assert script.dialled == ["https://registry.test", "https://tokens.test"]


@virtual_time
async def test_requests_at_the_same_time_share_a_token() -> None:
    exchanges = [
        *[asked(BLOB, unauthorized(CHALLENGE), authorization=None)] * 3,
        asked(TOKENS, 5.0, token("t1")),
        *[asked(BLOB, FOUND_BLOB, authorization="Bearer t1")] * 3,
    ]
    async with registry(*exchanges) as (source, _), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read_blob, source)


@virtual_time
async def test_a_token_that_is_refused_later_is_replaced_once() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
        asked(BLOB, unauthorized(CHALLENGE), authorization="Bearer t1"),
        asked(TOKENS, token("t2")),
        asked(BLOB, FOUND_BLOB, authorization="Bearer t2"),
        asked(BLOB, FOUND_BLOB, authorization="Bearer t2"),
    ]
    async with registry(*exchanges) as (source, _):
        await source.root()
        assert await read_blob(source) == LAYER
        assert await read_blob(source) == LAYER


@virtual_time
async def test_a_fresh_token_that_is_refused_is_the_end() -> None:
    body = b'{"errors":[{"code":"DENIED","message":"not yours"}]}'
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(CHALLENGE, body=body)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED
    assert failure.message == (
        f"manifest 1: GET {WHERE}: 401 (DENIED: not yours): there are no credentials for"
        " registry.test/acme/os"
    )


@pytest.mark.parametrize(
    "challenge", [None, 'Basic realm="x"', "Negotiate", ",;=", 'Basic realm="Bearer realm=x"']
)
@virtual_time
async def test_a_registry_that_offers_no_bearer_is_not_asked_again(challenge: str | None) -> None:
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}'
    failure = await failure_of(asked(WHERE, unauthorized(challenge, body)))
    assert refused(failure) == UNAUTHORIZED
    assert "(UNAUTHORIZED: who are you?)" in failure.message


@pytest.mark.parametrize(
    "challenges",
    [f"Basic realm=x, {CHALLENGE}", f"Basic realm=x\r\nWWW-Authenticate: {CHALLENGE}"],
    ids=["in one field", "in two"],
)
@virtual_time
async def test_a_bearer_is_found_among_other_challenges(challenges: str) -> None:
    reply = answer(401).replace(b"\r\n\r\n", f"\r\nWWW-Authenticate: {challenges}\r\n\r\n".encode())
    exchanges = [asked(WHERE, reply), asked(TOKENS, token("t1")), asked(WHERE, FOUND)]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_a_challenge_without_a_service_is_answered_without_one() -> None:
    exchanges = [
        asked(WHERE, unauthorized(f'Bearer realm="{REALM}?a=b"')),
        asked(f"{REALM}?a=b&{SCOPE}", token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


REALMS = {
    "missing": ("Bearer service=x", "unusable realm"),
    "no URL": ('Bearer realm="tokens.test"', "unusable realm"),
    "another scheme": ('Bearer realm="ftp://tokens.test/"', "unusable realm"),
    "userinfo": ('Bearer realm="https://u:hunter2@tokens.test/"', "unusable realm"),
    "plain http": ('Bearer realm="http://tokens.test/?k=hunter2"', "over plain http"),
}


@pytest.mark.parametrize("realm", REALMS)
@virtual_time
async def test_a_realm_that_is_unusable_is_refused_without_its_secrets(realm: str) -> None:
    challenge, words = REALMS[realm]
    failure = await failure_of(asked(WHERE, unauthorized(challenge)))
    assert refused(failure) == BAD_UPSTREAM
    assert words in failure.message
    assert "hunter2" not in failure.message


@virtual_time
async def test_of_an_insecure_registry_a_token_may_come_over_http() -> None:
    where = TOKENS.replace("https:", "http:")
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE.replace("https:", "http:"))),
        asked(where, token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges, places=INSECURE) as (source, _):
        assert (await source.root()).raw == MANIFEST


TOKEN_REPLIES = {
    "not JSON": (answer(body=b"<html>"), BAD_UPSTREAM, "the token server's reply: "),
    "none": (answer(body=b"{}"), BAD_UPSTREAM, "no usable token"),
    "no string": (answer(body=b'{"token":5}'), BAD_UPSTREAM, "no usable token"),
    "two lines": (token("a\r\nX-Injected: 1"), BAD_UPSTREAM, "no usable token"),
    "too large": (answer(body=b" " * (1 << 20) + b"{}"), (422, "SIZE_INVALID", False), "1048576"),
    "not there": (answer(404), BAD_UPSTREAM, "404"),
    "refused": (answer(403), DENIED, "403"),
    "unauthorized": (
        answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}'),
        UNAUTHORIZED,
        "401 (UNAUTHORIZED: no)",
    ),
    "too many": (answer(429), TOO_MANY, "429"),
    "unwell": (answer(503), UNAVAILABLE, "503"),
}


@pytest.mark.parametrize("reply", TOKEN_REPLIES)
@virtual_time
async def test_a_token_that_is_not_given_is_a_failure(reply: str) -> None:
    bytes_, wanted, words = TOKEN_REPLIES[reply]
    async with registry(asked(WHERE, unauthorized(CHALLENGE)), asked(TOKENS, bytes_)) as (
        source,
        _,
    ):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == wanted
        assert words in raised.value.message
        assert f"{REALM}?…" in raised.value.message


@virtual_time
async def test_access_token_is_another_name_of_a_token() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, answer(body=b'{"access_token":"t1","expires_in":60}')),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_a_token_server_that_stalls_is_waited_for_once_by_all_together() -> None:
    """Otherwise the last of many waits as many times as long."""
    exchanges = [*[asked(BLOB, unauthorized(CHALLENGE))] * 3, asked(TOKENS, SILENCE)]
    failures: list[int] = []
    async with registry(*exchanges) as (source, _):

        async def pull() -> None:
            with pytest.raises(Failure) as raised:
                await source.blob(described(LAYER))
            failures.append(raised.value.status)

        with elapsing(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pull)
    assert failures == [504] * 3


# --- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@virtual_time
async def test_redirects_are_followed_and_the_token_stays_at_home(status: int) -> None:
    signed = "https://cdn.test/y?X-Signature=hunter2"
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, moved("../elsewhere", status), authorization="Bearer t1"),
        asked(f"{BASE}/elsewhere", moved(signed, status), authorization="Bearer t1"),
        asked(signed, moved("//eu.cdn.test/z", status), authorization=None),
        asked("https://eu.cdn.test/z", moved(f"{BASE}/back", status), authorization=None),
        asked(f"{BASE}/back", FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert len(script.wires) == 4


@pytest.mark.parametrize("location", ["https://registry.test:444/x", "https://sub.registry.test/x"])
@virtual_time
async def test_a_neighbour_is_not_at_home(location: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, moved(location)),
        asked(location, FOUND, authorization=None),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_nobody_but_the_registry_may_say_where_tokens_are_had() -> None:
    exchanges = [
        asked(WHERE, moved("https://cdn.test/x")),
        asked("https://cdn.test/x", unauthorized(CHALLENGE)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED


@virtual_time
async def test_a_circle_of_redirects_ends() -> None:
    count = distribution.MAX_REDIRECTS + 1
    failure = await failure_of(*[asked(WHERE, moved(WHERE))] * count)
    assert refused(failure) == BAD_UPSTREAM
    assert failure.message == f"GET {WHERE}: redirected more than 10 times"


@virtual_time
async def test_as_many_redirects_as_allowed_are_followed() -> None:
    count = distribution.MAX_REDIRECTS
    exchanges = [*[asked(WHERE, moved(WHERE))] * count, asked(WHERE, FOUND)]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


LOCATIONS = {
    "missing": (None, "redirected without a Location"),
    "down to http": ("http://cdn.test/?X-Signature=hunter2", "refused (--tls-verify=false"),
    "another scheme": ("file:///etc/passwd", "neither http nor https"),
    "userinfo": ("https://u:hunter2@cdn.test/x", "its host is malformed"),
    "userinfo with a slash": ("https://u:hunter2/y@cdn.test/x", "unusable"),
    "userinfo without a path": ("https://u:hunter2@cdn.test", "its host is malformed"),
    "a fragment": ("ftp://cdn.test/x#hunter2", "neither http nor https"),
    "no ASCII": ("https://cdn.test/\xe9?X-Signature=hunter2", "printable ASCII"),
    "a port out of range": ("https://cdn.test:99999/?X-Signature=hunter2", "unusable"),
    "a port that is no number": ("https://u:hunter2", "unusable"),
    "no brackets": ("https://[::1/?X-Signature=hunter2", "unusable"),
    "a label too long": (f"https://{'a' * 64}.test/", "its host is malformed"),
    "an empty label": ("https://a..test/", "its host is malformed"),
}


@pytest.mark.parametrize("case", LOCATIONS)
@virtual_time
async def test_a_redirect_to_somewhere_unusable_is_refused_without_its_secrets(case: str) -> None:
    location, words = LOCATIONS[case]
    failure = await failure_of(asked(WHERE, moved(location)))
    assert refused(failure) == BAD_UPSTREAM
    assert words in failure.message
    assert "hunter2" not in failure.message
    assert failure.message.isprintable()


@virtual_time
async def test_of_an_insecure_registry_a_redirect_may_lead_to_http() -> None:
    exchanges = [asked(WHERE, moved("http://cdn.test/x")), asked("http://cdn.test/x", FOUND)]
    async with registry(*exchanges, places=INSECURE) as (source, _):
        assert (await source.root()).raw == MANIFEST


# --- statuses and encodings --------------------------------------------------------------------

WORDS = b'{"errors":[{"code":"CODE","message":"the\\u0007words","detail":{}}]}'
UNKNOWN = b'{"errors":[{"code":"NAME_UNKNOWN","message":"no repository"}]}'

STATUSES = {
    "404": (answer(404), "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", (404, False), "404"),
    "404 with words": (
        answer(404, WORDS),
        "MANIFEST_UNKNOWN",
        "BLOB_UNKNOWN",
        (404, False),
        "404 (CODE: the words)",
    ),
    "404 of the name": (answer(404, UNKNOWN), "NAME_UNKNOWN", "NAME_UNKNOWN", (404, False), "404"),
    "404 with a page": (
        answer(404, b"<html>"),
        "MANIFEST_UNKNOWN",
        "BLOB_UNKNOWN",
        (404, False),
        "404",
    ),
    "403": (answer(403, WORDS), "DENIED", "DENIED", (403, False), "403 (CODE: the words)"),
    "429": (answer(429, WORDS), "TOOMANYREQUESTS", "TOOMANYREQUESTS", (503, True), "429 (CODE"),
    "500": (answer(500, b"\0"), "UNAVAILABLE", "UNAVAILABLE", (503, True), "500"),
    "503 of no length": (
        head(503, connection="close"),
        "UNAVAILABLE",
        "UNAVAILABLE",
        (503, True),
        "503",
    ),
    "418": (answer(418, WORDS), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "418 (CODE"),
    "400": (answer(400), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "400"),
    "204": (head(204), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "204"),
    "206": (answer(206, MANIFEST), "BAD_UPSTREAM", "BAD_UPSTREAM", (502, False), "206"),
}


@pytest.mark.parametrize("case", STATUSES)
@virtual_time
async def test_a_status_says_what_went_wrong(case: str) -> None:
    reply, manifest_code, blob_code, (status, retryable), words = STATUSES[case]
    steps: tuple[Step, ...] = (reply, b"")
    for url, kind, name, code in (
        (WHERE, "manifest", "1", manifest_code),
        (BLOB, "blob", digest_of(LAYER), blob_code),
    ):
        async with registry(asked(url, *steps)) as (source, _):
            with pytest.raises(Failure) as raised:
                await (source.root() if kind == "manifest" else source.blob(described(LAYER)))
            assert refused(raised.value) == (status, code, retryable)
            assert raised.value.message.startswith(f"{kind} {name}: GET {url}: {words}")
            assert raised.value.message.isprintable()


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "gzip, identity", "zstd"])
@virtual_time
async def test_encoded_replies_are_not_the_bytes_that_were_asked_for(encoding: str) -> None:
    reply = answer(body=MANIFEST, content_encoding=encoding)
    async with registry(asked(WHERE, reply)) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert f"the reply is encoded ({encoding.lower()})" in raised.value.message
        assert script.wires[0].closed


@virtual_time
async def test_identity_is_no_encoding() -> None:
    reply = answer(body=MANIFEST, content_encoding="identity")
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_an_error_body_that_stalls_or_swells_is_given_up() -> None:
    for steps in ((head(404, content_length="9"), SILENCE), (answer(404, bytes(1 << 17)),)):
        async with registry(asked(WHERE, *steps)) as (source, script):
            with pytest.raises(Failure) as raised:
                await source.root()
            assert raised.value.status == 404
            assert script.wires[0].closed


# --- https or http ------------------------------------------------------------------------------

NO_TLS = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
NO_TLS.reason = "WRONG_VERSION_NUMBER"
NOBODY = ConnectionRefusedError(111, "Connection refused")
PLAIN = WHERE.replace("https:", "http:")


@virtual_time
async def test_of_an_insecure_registry_https_is_tried_first_and_its_connection_used() -> None:
    async with registry(asked(WHERE, FOUND), places=INSECURE) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize("fault", [NO_TLS, NOBODY, SILENCE])
@virtual_time
async def test_of_an_insecure_registry_http_is_tried_where_https_fails(
    fault: float | Exception,
) -> None:
    plain_blob = BLOB.replace("https:", "http:")
    exchanges = [asked(PLAIN, FOUND), asked(plain_blob, FOUND_BLOB)]
    async with registry(*exchanges, places=INSECURE, unreachable={"https:": fault}) as (
        source,
        script,
    ):
        assert (await source.root()).raw == MANIFEST
        assert await read_blob(source) == LAYER
        assert script.dialled == ["https://registry.test", "http://registry.test"]


@virtual_time
async def test_requests_at_the_same_time_probe_once() -> None:
    plain_blob = BLOB.replace("https:", "http:")
    exchanges = [asked(plain_blob, FOUND_BLOB)] * 3
    async with registry(*exchanges, places=INSECURE, unreachable={"https:": NO_TLS}) as (
        source,
        script,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_blob, source)
        assert script.dialled.count("https://registry.test") == 1


@virtual_time
async def test_a_registry_that_speaks_neither_is_unreachable() -> None:
    unreachable: dict[str, float | Exception] = {"https:": NO_TLS, "http:": NOBODY}
    async with registry(places=INSECURE, unreachable=unreachable) as (source, script):
        for _ in range(2):
            with pytest.raises(Failure) as raised:
                await source.root()
            assert refused(raised.value) == (504, "UNREACHABLE", True)
            assert "TLS failed" in raised.value.message
            assert "Connection refused" in raised.value.message
        assert len(script.dialled) == 4


@virtual_time
async def test_with_verification_http_is_never_tried() -> None:
    async with registry(unreachable={"https:": NO_TLS}) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == (502, "TLS", False)
        assert script.dialled == ["https://registry.test"]


# --- credentials --------------------------------------------------------------------------------


def fresh() -> Ring:
    return Ring(registry_test=USER)


@virtual_time
async def test_basic_takes_one_request_more_and_serves_all_that_follow() -> None:
    exchanges = [
        asked(WHERE, unauthorized(BASIC), authorization=None),
        asked(WHERE, FOUND, authorization=USER.basic),
        asked(BLOB, FOUND_BLOB, authorization=USER.basic),
    ]
    ring = fresh()
    async with registry(*exchanges, ring=ring) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert await read_blob(source) == LAYER
        assert len(script.wires) == 1
    assert ring.asked == [("registry.test", "acme/os", True)]


@virtual_time
async def test_without_a_challenge_nobody_is_asked_for_credentials() -> None:
    ring = fresh()
    async with registry(asked(WHERE, FOUND, authorization=None), ring=ring) as (source, _):
        await source.root()
    assert ring.asked == []


REFUSED = "the credentials from auth.json (auths.registry.test) were refused"


@virtual_time
async def test_credentials_that_are_refused_are_told_by_their_source() -> None:
    exchanges = [asked(WHERE, unauthorized(BASIC))] * 2
    failure = await failure_of(*exchanges, ring=fresh())
    assert refused(failure) == UNAUTHORIZED
    assert failure.message == f"manifest 1: GET {WHERE}: 401: {REFUSED}"


@virtual_time
async def test_credentials_that_have_changed_are_shown_once_they_are_refused() -> None:
    """A helper's may be good for some hours only."""
    rotated = USER._replace(password="rotated")
    exchanges = [
        asked(WHERE, unauthorized(BASIC)),
        asked(WHERE, FOUND, authorization=USER.basic),
        asked(BLOB, unauthorized(BASIC), authorization=USER.basic),
        asked(BLOB, FOUND_BLOB, authorization=rotated.basic),
    ]
    ring = fresh()
    async with registry(*exchanges, ring=ring) as (source, _):
        await source.root()
        ring.credentials["registry.test"] = rotated
        assert await read_blob(source) == LAYER


@virtual_time
async def test_user_and_password_are_shown_to_the_token_server() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE), authorization=None),
        asked(AUTHORIZED, token("t1"), authorization=USER.basic),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges, ring=fresh()) as (source, _):
        assert (await source.root()).raw == MANIFEST


FORM = (
    b"grant_type=refresh_token&refresh_token=hunter2&client_id=imgproxy&service=registry.test"
    b"&scope=repository%3Aacme%2Fos%3Apull"
)


@virtual_time
async def test_an_identity_token_is_exchanged_by_a_form() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(REALM, answer(body=b'{"access_token":"t1"}'), form=FORM, authorization=None),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges, ring=Ring(registry_test=IDENTITY)) as (source, _):
        assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize("status", sorted(distribution.REDIRECTS))
@virtual_time
async def test_a_form_is_not_sent_on(status: int) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(REALM, moved("https://elsewhere.test/", status), form=FORM),
    ]
    failure = await failure_of(*exchanges, ring=Ring(registry_test=IDENTITY))
    assert refused(failure) == BAD_UPSTREAM


@virtual_time
async def test_credentials_stay_with_the_token_server_that_the_registry_named() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(AUTHORIZED, moved("https://elsewhere.test/t"), authorization=USER.basic),
        asked("https://elsewhere.test/t", token("t1"), authorization=None),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges, ring=fresh()) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_a_token_server_s_redirect_does_not_step_down() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(AUTHORIZED, moved("http://tokens.test/t?hunter2")),
    ]
    failure = await failure_of(*exchanges, ring=fresh())
    assert refused(failure) == BAD_UPSTREAM
    assert "hunter2" not in failure.message


@virtual_time
async def test_a_given_token_is_shown_at_once_and_never_replaced() -> None:
    ring = fresh()
    exchanges = [
        asked(WHERE, FOUND, authorization="Bearer given"),
        asked(BLOB, unauthorized(CHALLENGE), authorization="Bearer given"),
    ]
    async with registry(*exchanges, ring=ring, registry_token="given") as (source, _):
        await source.root()
        with pytest.raises(Failure) as raised:
            await read_blob(source)
    assert refused(raised.value) == UNAUTHORIZED
    assert raised.value.message.endswith("401: the credentials from --registry-token were refused")
    assert ring.asked == []


@virtual_time
async def test_broken_credentials_are_no_anonymous_access() -> None:
    class Broken(Ring):
        async def find(self, *_: object, **__: object) -> Credentials | None:
            raise ConfigurationError("auth.json is broken")

    ring = Broken()
    async with registry(asked(WHERE, unauthorized(CHALLENGE)), ring=ring, retries=5) as (source, _):
        with elapsing(0), pytest.raises(ConfigurationError):
            await source.root()


@virtual_time
async def test_the_source_of_credentials_is_told_and_they_are_not() -> None:
    notes = Notes()
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(AUTHORIZED, token("hunter2-token")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges, ring=fresh(), notes=notes) as (source, _):
        await source.root()
    where = "registry registry.test/acme/os"
    assert notes.details == [
        f"GET {WHERE}: 401, 0 bytes, 0 ms ({where})",
        f"GET {REALM}?…: 200, 26 bytes, 0 ms ({where}, credentials from {USER.source})",
        f"GET {WHERE}: 200, {len(MANIFEST)} bytes, 0 ms ({where}, credentials from {USER.source})",
    ]
    assert "hunter2" not in "".join(notes.details)


# --- tokens that end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "idle", "is_renewed"),
    [
        (token("t1", expires_in=300), 294, False),
        (token("t1", expires_in=300), 296, True),
        (token("t1"), 54, False),
        (token("t1"), 56, True),
        (token("t1", expires_in=1), 54, False),
        (token("t1", expires_in=10**9), 10**5, False),
    ],
)
@virtual_time
async def test_a_token_is_renewed_before_it_ends_and_without_a_refusal(
    reply: bytes,
    idle: float,
    is_renewed: bool,  # noqa: FBT001  (a parameter)
) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, reply),
        asked(WHERE, FOUND, authorization="Bearer t1"),
        *([asked(TOKENS, token("t2"))] if is_renewed else []),
        asked(BLOB, FOUND_BLOB, authorization=f"Bearer t{1 + is_renewed}"),
    ]
    async with registry(*exchanges) as (source, _):
        await source.root()
        await trio.sleep(idle)
        assert await read_blob(source) == LAYER


@pytest.mark.parametrize("value", ["t1", "t2"])
@virtual_time
async def test_a_token_that_ends_is_renewed_once_for_all(value: str) -> None:
    """Some servers give everybody the same one, whenever they are asked (GHCR's)."""
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
        asked(TOKENS, 3.0, token(value)),
        *[asked(BLOB, FOUND_BLOB, authorization=f"Bearer {value}")] * 4,
    ]
    async with registry(*exchanges) as (source, _):
        await source.root()
        await trio.sleep(100)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read_blob, source)


@virtual_time
async def test_the_same_token_once_more_is_no_answer_to_a_refusal() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
        asked(BLOB, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
    ]
    async with registry(*exchanges) as (source, _):
        await source.root()
        with pytest.raises(Failure) as raised:
            await read_blob(source)
    assert refused(raised.value) == UNAUTHORIZED


@virtual_time
async def test_tokens_refused_at_the_same_time_are_replaced_by_one() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
        *[asked(BLOB, unauthorized(CHALLENGE), authorization="Bearer t1")] * 3,
        asked(TOKENS, 5.0, token("t2")),
        *[asked(BLOB, FOUND_BLOB, authorization="Bearer t2")] * 3,
    ]
    async with registry(*exchanges) as (source, _):
        await source.root()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_blob, source)


@virtual_time
async def test_who_gives_up_waiting_for_a_token_leaves_it_to_the_next() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, SILENCE),
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges) as (source, _):
        with trio.move_on_after(5):
            await source.root()
        assert (await source.root()).raw == MANIFEST


# --- one scope more -----------------------------------------------------------------------------

MORE = 'error="insufficient_scope",scope="repository:acme/base:pull"'
INSUFFICIENT = f'Bearer realm="{REALM}",service="registry.test",{MORE}'
BOTH = f"{TOKENS}&scope=repository%3Aacme%2Fbase%3Apull"


@virtual_time
async def test_one_scope_more_is_asked_for_where_the_registry_wants_it() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(INSUFFICIENT), authorization="Bearer t1"),
        asked(BOTH, token("t2")),
        asked(WHERE, FOUND, authorization="Bearer t2"),
        asked(BLOB, FOUND_BLOB, authorization="Bearer t2"),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST
        assert await read_blob(source) == LAYER


@pytest.mark.parametrize(
    "third",
    [
        INSUFFICIENT,
        INSUFFICIENT.replace("acme/base", "acme/third"),
        CHALLENGE,
    ],
    ids=["the same", "a third", "none"],
)
@virtual_time
async def test_a_second_scope_is_the_last(third: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(INSUFFICIENT)),
        asked(BOTH, token("t2")),
        asked(WHERE, unauthorized(third)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED


@pytest.mark.parametrize("scope", ["", ',scope=""', ',scope="repository:acme/os:pull"'])
@virtual_time
async def test_insufficient_without_another_scope_is_a_refusal(scope: str) -> None:
    challenge = f'Bearer realm="{REALM}",service="registry.test",error="insufficient_scope"{scope}'
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(challenge)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED


# --- when to come back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [(None, None), ("7", 7), ("600", 60), ("soon", None), ("Sun, 06 Nov 1994 08:49:37 GMT", 0)],
)
@pytest.mark.parametrize("status", [429, 503])
@virtual_time
async def test_when_to_come_back_is_kept(status: int, said: str | None, wanted: float) -> None:
    late = answer(status, retry_after=said)
    for exchanges in (
        [asked(WHERE, late)],
        [asked(WHERE, unauthorized(CHALLENGE)), asked(TOKENS, late)],
    ):
        async with registry(*exchanges) as (source, _):
            with pytest.raises(Failure) as raised:
                await source.root()
        assert (raised.value.retryable, raised.value.retry_after) == (True, wanted)

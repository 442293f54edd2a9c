"""Tokens and Basic: which requests it takes, and what is shown to whom. Requests are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.registries import (
    BLOB,
    CHALLENGE,
    FOUND,
    FOUND_BLOB,
    LAYER,
    MANIFEST,
    REALM,
    SCOPE,
    TOKENS,
    WHERE,
    Ring,
    described,
    failure_of,
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
    answer,
    asked,
    elapsing,
    refused,
    scripted,
    virtual_time,
)

from imgproxy.errors import ConfigurationError, Failure
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry.authorization import Authorization

if TYPE_CHECKING:
    from support.streams import Script

    from imgproxy.net.response import Response
    from imgproxy.specs.http.url import Url

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


# --- realms with internal addresses ---------------------------------------------------------------
#
# Whatever a realm answers in `token` is sent to the registry that named it, and its refusals are
# quoted. A registry on the Internet could have it read from a server that it cannot reach itself.

PUBLIC, INTERNAL = "198.51.100.7", "10.0.0.5"
VAULT = "https://vault.test/secret"
REGISTRY_AT, TOKENS_AT = "https://registry.test", "https://tokens.test"


def addressed(script: Script, registry: str, tokens: str) -> None:
    script.peers |= {REGISTRY_AT: registry, TOKENS_AT: tokens, "https://vault.test": INTERNAL}


@pytest.mark.parametrize("registry_at", [PUBLIC, "2001:db8::1", "64:ff9b:1::a00:5", ""])
@virtual_time
async def test_a_public_registry_may_not_name_an_internal_realm(registry_at: str) -> None:
    """One behind a proxy is taken for public."""
    async with registry(asked(WHERE, unauthorized(CHALLENGE))) as (source, script):
        addressed(script, registry_at, INTERNAL)
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert "GET https://tokens.test/get?…: leads to the internal address 10.0.0.5" in (
            raised.value.message
        )
        assert "--registry-token" in raised.value.message
        assert script.dialled[0] == REGISTRY_AT
        assert set(script.dialled[1:]) == {TOKENS_AT}


@virtual_time
async def test_nor_one_that_redirects_to_an_internal_address() -> None:
    exchanges = [asked(WHERE, unauthorized(CHALLENGE)), asked(TOKENS, moved(VAULT))]
    async with registry(*exchanges) as (source, script):
        addressed(script, PUBLIC, PUBLIC)
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert f"GET {VAULT}: leads to the internal address" in raised.value.message


@virtual_time
async def test_nor_on_a_connection_that_a_redirect_has_opened() -> None:
    """A redirect may lead to an internal address, since its bytes are verified and not shown."""
    exchanges = [
        asked(BLOB, moved(VAULT)),
        asked(VAULT, FOUND_BLOB),
        asked(WHERE, unauthorized(f'Bearer realm="{VAULT}"')),
    ]
    async with registry(*exchanges) as (source, script):
        addressed(script, PUBLIC, PUBLIC)
        assert await read_blob(source) == LAYER
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM


@virtual_time
async def test_nor_when_its_token_has_expired_and_the_realm_has_moved() -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges) as (source, script):
        addressed(script, PUBLIC, PUBLIC)
        await source.root()
        script.peers[TOKENS_AT] = INTERNAL
        next(each for each in script.streams if each.origin == TOKENS_AT).inbox.add(b"x")
        await trio.sleep(60)
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM


@pytest.mark.parametrize(
    ("registry_at", "tokens_at"),
    [(INTERNAL, INTERNAL), ("127.0.0.1", "::1"), (INTERNAL, PUBLIC), (PUBLIC, PUBLIC), ("", "")],
)
@virtual_time
async def test_an_internal_registry_may_name_any_realm(registry_at: str, tokens_at: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, script):
        addressed(script, registry_at, tokens_at)
        assert (await source.root()).raw == MANIFEST


# --- more of tokens -----------------------------------------------------------------------------


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
        assert len(script.streams) == 1
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


# --- by itself ----------------------------------------------------------------------------------


@virtual_time
async def test_whatever_sends_requests_may_be_authorized() -> None:
    """It takes a function that sends, one that finds credentials, and the name of a repository."""
    sent: list[tuple[str, dict[str, str], str, bytes | None]] = []
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(AUTHORIZED, token("t1"), authorization=USER.basic),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]

    async def find() -> Credentials:
        await trio.lowlevel.checkpoint()
        return USER

    async with scripted(*exchanges) as (client, _):

        async def send(
            url: Url,
            fields: dict[str, str],
            value: str,
            *,
            form: bytes | None = None,
            internal: bool = True,
        ) -> Response:
            sent.append((url.host, fields, value, form))
            authorized = {**fields, "Authorization": value} if value else fields
            return await client.get(url, authorized, internal=internal)

        authorization = Authorization("acme/os", find, send, allow_http=False)
        assert authorization.source == ""
        response, refusal = await authorization.request(urls.parse(WHERE), {"Accept": "x"})
        assert (await response.read(1000), refusal) == (MANIFEST, b"")
    assert authorization.source == USER.source
    assert sent == [
        ("registry.test", {"Accept": "x"}, "", None),
        ("tokens.test", {}, USER.basic, None),
        ("registry.test", {"Accept": "x"}, "Bearer t1", None),
    ]

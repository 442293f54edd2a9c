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
from imgproxy.net.request import GET
from imgproxy.specs.http import url as urls
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.oci import distribution
from imgproxy.transports.registry.authorization import Authorization

if TYPE_CHECKING:
    from support.streams import Exchange, Script

    from imgproxy.net.request import Method
    from imgproxy.net.response import Response
    from imgproxy.specs.http.url import Url
    from imgproxy.transports.registry.registry_image import RegistryImage

BASIC = 'Basic realm="x"'
WITHOUT_SCOPE = f'Bearer realm="{REALM}",service="registry.test"'
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
        asked(WHERE, unauthorized(WITHOUT_SCOPE, body=body)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == UNAUTHORIZED
    assert failure.message == (
        f"manifest 1: GET {WHERE}: 401 (DENIED: not yours): there are no credentials for"
        " registry.test/acme/os (looked for in: /a/auth.json, /b/config.json), or it does not exist"
    )


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("Negotiate", "no credentials were sent, as it offers negotiate alone"),
        ("NTLM, Digest realm=x", "no credentials were sent, as it offers ntlm, digest alone"),
        (None, "no credentials were sent, as it offers no scheme, and Basic and Bearer are"),
        ('Basic realm="x"', "(looked for in: /a/auth.json, /b/config.json)"),
    ],
)
@virtual_time
async def test_why_no_credentials_were_sent_is_told(challenge: str | None, words: str) -> None:
    failure = await failure_of(asked(WHERE, unauthorized(challenge)))
    assert refused(failure) == UNAUTHORIZED
    assert words in failure.message
    assert ("there are no credentials" in failure.message) == words.startswith("(")


@virtual_time
async def test_who_named_a_server_that_cannot_be_reached_is_told() -> None:
    dead: dict[str, float | Exception] = {"https://tokens.test": OSError(113, "No route to host")}
    failure = await failure_of(asked(WHERE, unauthorized(CHALLENGE)), unreachable=dead)
    assert refused(failure) == (504, "UNREACHABLE", True)
    assert failure.message.endswith(f"(the token server of {WHERE})")


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


WITHOUT_LOGIN = "; --no-creds asks without a login, which is enough for a public image"
REFUSED = f"the credentials from auth.json (auths.registry.test) were refused{WITHOUT_LOGIN}"


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
    assert raised.value.message.endswith(
        f"401: the credentials from --registry-token were refused{WITHOUT_LOGIN}"
    )
    assert ring.asked == []


@pytest.mark.parametrize("challenge", [CHALLENGE, BASIC, f"{CHALLENGE}, {BASIC}"])
@virtual_time
async def test_a_token_for_the_registry_is_shown_as_it_is(challenge: str) -> None:
    """No realm receives it, nor the login beside it."""
    exchanges = [
        asked(WHERE, unauthorized(challenge), authorization=None),
        asked(WHERE, FOUND, authorization="Bearer hunter2"),
        asked(BLOB, unauthorized(challenge), authorization="Bearer hunter2"),
    ]
    ring = Ring(registry_test=USER._replace(registry_token="hunter2"))
    async with registry(*exchanges, ring=ring) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_both(source)
    assert refused(raised.value) == UNAUTHORIZED
    assert REFUSED in raised.value.message


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

MORE = 'scope="repository:acme/base:pull"'
INSUFFICIENT = f'{WITHOUT_SCOPE},error="insufficient_scope",{MORE}'
BOTH = f"{TOKENS}&scope=repository%3Aacme%2Fbase%3Apull"


@pytest.mark.parametrize(
    "second",
    [
        INSUFFICIENT,
        f"{WITHOUT_SCOPE},{MORE}",
        f'{WITHOUT_SCOPE},error="invalid_token",{MORE}',
        f"{WITHOUT_SCOPE},{MORE}, {BASIC}",
    ],
)
@virtual_time
async def test_one_scope_more_is_asked_for_where_the_registry_wants_it(second: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(second), authorization="Bearer t1"),
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
        WITHOUT_SCOPE,
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


# --- tokens that end without a 401 --------------------------------------------------------------

FIRST = (
    asked(WHERE, unauthorized(CHALLENGE), authorization=None),
    asked(TOKENS, token("t1")),
    asked(WHERE, FOUND, authorization="Bearer t1"),
)


async def read_both(source: RegistryImage) -> bytes:
    await source.root()
    return await read_blob(source)


@pytest.mark.parametrize("status", [400, 403])
@virtual_time
async def test_a_token_that_worked_and_is_refused_as_a_verdict_is_replaced_once(
    status: int,
) -> None:
    exchanges = [
        *FIRST,
        asked(BLOB, answer(status), authorization="Bearer t1"),
        asked(TOKENS, token("t2")),
        asked(BLOB, FOUND_BLOB, authorization="Bearer t2"),
    ]
    async with registry(*exchanges) as (source, _):
        assert await read_both(source) == LAYER


@virtual_time
async def test_so_is_one_that_had_led_to_a_store() -> None:
    exchanges = [
        asked(BLOB, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(BLOB, moved(STORE), authorization="Bearer t1"),
        asked(STORE, FOUND_BLOB, authorization=None),
        asked(WHERE, answer(403), authorization="Bearer t1"),
        asked(TOKENS, token("t2")),
        asked(WHERE, FOUND, authorization="Bearer t2"),
    ]
    async with registry(*exchanges) as (source, _):
        assert await read_blob(source) == LAYER
        assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize("value", ["t1", "t2"])
@virtual_time
async def test_a_verdict_that_stays_is_one(value: str) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"quarantined"}]}'
    again = asked(BLOB, answer(403, body), authorization=f"Bearer {value}")
    exchanges = [
        *FIRST,
        asked(BLOB, answer(403, body)),
        asked(TOKENS, token(value)),
        *([again] if value != "t1" else []),
    ]
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_both(source)
    assert refused(raised.value) == DENIED
    assert "403 (DENIED: quarantined)" in raised.value.message


@pytest.mark.parametrize("status", [400, 403])
@virtual_time
async def test_a_verdict_on_a_token_that_never_worked_is_one(status: int) -> None:
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE)),
        asked(TOKENS, token("t1")),
        asked(WHERE, answer(status)),
    ]
    failure = await failure_of(*exchanges)
    assert refused(failure) == (DENIED if status == 403 else BAD_UPSTREAM)


@pytest.mark.parametrize("challenge", ["", BASIC])
@virtual_time
async def test_without_a_token_that_is_kept_a_verdict_is_one(challenge: str) -> None:
    first = [asked(WHERE, unauthorized(challenge))] if challenge else []
    exchanges = [*first, asked(WHERE, FOUND), asked(BLOB, answer(403))]
    async with registry(*exchanges, ring=fresh()) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_both(source)
    assert refused(raised.value) == DENIED


@virtual_time
async def test_nor_is_a_given_token_replaced() -> None:
    exchanges = [asked(WHERE, FOUND), asked(BLOB, answer(403), authorization="Bearer given")]
    async with registry(*exchanges, registry_token="given") as (source, _):
        with pytest.raises(Failure) as raised:
            await read_both(source)
    assert refused(raised.value) == DENIED


# --- Basic beside Bearer ------------------------------------------------------------------------

EITHER = f"{CHALLENGE}, {BASIC}"
NO_TOKENS = {
    "refused": answer(401),
    "forbidden": answer(403),
    "not there": answer(404),
    "busy": answer(503),
    "a page": answer(body=b"<html>"),
    "none": answer(body=b"{}"),
    "a redirect without TLS": moved("http://tokens.test/"),
}


@pytest.mark.parametrize("reply", NO_TOKENS)
@pytest.mark.parametrize("either", [EITHER, f"{BASIC}, {CHALLENGE}"])
@virtual_time
async def test_basic_is_tried_where_no_token_can_be_had(either: str, reply: str) -> None:
    exchanges = [
        asked(WHERE, unauthorized(either)),
        asked(AUTHORIZED, NO_TOKENS[reply]),
        asked(WHERE, FOUND, authorization=USER.basic),
        asked(BLOB, FOUND_BLOB, authorization=USER.basic),
    ]
    async with registry(*exchanges, ring=fresh()) as (source, _):
        assert await read_both(source) == LAYER


@pytest.mark.parametrize("either", [EITHER, f"Bearer service=x, {BASIC}"])
@virtual_time
async def test_basic_is_tried_where_the_realm_is_internal_or_unusable(either: str) -> None:
    """Nothing is sent there, and the login only to the registry that it is for."""
    exchanges = [
        asked(WHERE, unauthorized(either)),
        asked(WHERE, FOUND, authorization=USER.basic),
    ]
    async with registry(*exchanges, ring=fresh()) as (source, script):
        addressed(script, PUBLIC, INTERNAL)
        assert (await source.root()).raw == MANIFEST


@pytest.mark.parametrize(("reply", "wanted"), [(401, UNAUTHORIZED), (503, UNAVAILABLE)])
@virtual_time
async def test_where_basic_is_refused_too_the_token_server_s_answer_decides(
    reply: int, wanted: tuple[int, str, bool]
) -> None:
    exchanges = [
        asked(WHERE, unauthorized(EITHER)),
        asked(AUTHORIZED, answer(reply)),
        asked(WHERE, unauthorized(WITHOUT_SCOPE), authorization=USER.basic),
    ]
    failure = await failure_of(*exchanges, ring=fresh())
    assert refused(failure) == wanted
    assert failure.message.startswith(f"asking for a token: {REALM}?…: {reply}")


@pytest.mark.parametrize("credentials", [None, IDENTITY])
@virtual_time
async def test_without_a_user_there_is_no_basic_to_try(credentials: Credentials | None) -> None:
    ring = Ring(registry_test=credentials) if credentials else Ring()
    where, form = (REALM, FORM) if credentials else (TOKENS, b"")
    exchanges = [asked(WHERE, unauthorized(EITHER)), asked(where, answer(503), form=form)]
    failure = await failure_of(*exchanges, ring=ring)
    assert refused(failure) == UNAVAILABLE


# --- where redirects lead -----------------------------------------------------------------------

STORE = "https://store.test/blob?X-Amz-Signature=abc"


@pytest.mark.parametrize(
    ("target", "is_authorized"),
    [
        ("https://registry.test/v2/acme/other/blobs/x", True),
        ("https://registry.test/v2/acme/other/blobs/x?ns=acme&design=1", True),
        ("https://registry.test/storage/x", False),
        ("https://registry.test/v2/../storage/x", False),
        ("https://registry.test/v2/acme/blobs/x?X-Amz-Date=1&X-Amz-Signature=abc", False),
        ("https://registry.test/v2/acme/blobs/x?X-Goog-Signature=abc", False),
        ("https://registry.test/v2/acme/blobs/x?Expires=1&Signature=abc", False),
        ("https://registry.test/v2/acme/blobs/x?sv=1&sig=abc", False),
        ("https://registry.test:444/v2/acme/blobs/x", False),
        ("https://other.test/v2/acme/blobs/x", False),
    ],
)
@virtual_time
async def test_the_token_goes_along_within_the_registry_s_api_alone(
    target: str,
    is_authorized: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """A store at the same origin is not the registry, and refuses what is authorized twice."""
    exchanges = [
        *FIRST,
        asked(BLOB, moved(target), authorization="Bearer t1"),
        asked(target, FOUND_BLOB, authorization="Bearer t1" if is_authorized else None),
    ]
    async with registry(*exchanges) as (source, _):
        assert await read_both(source) == LAYER


@pytest.mark.parametrize("realm", [REALM, "https://registry.test/v2/token"])
@virtual_time
async def test_credentials_go_along_at_the_token_server(realm: str) -> None:
    where = f"{realm}?account=u&{SCOPE}"
    exchanges = [
        asked(WHERE, unauthorized(f'Bearer realm="{realm}"')),
        asked(where, moved(f"{realm}/new"), authorization=USER.basic),
        asked(f"{realm}/new", token("t1"), authorization=USER.basic),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges, ring=fresh()) as (source, _):
        assert (await source.root()).raw == MANIFEST


ELSEWHERE = "https://other.test/v2/copies/os/blobs/x"
OTHER_REALM = "https://other-tokens.test/get"
OTHER_CHALLENGE = f'Bearer realm="{OTHER_REALM}",service="other.test"'
OTHER_TOKENS = f"{OTHER_REALM}?service=other.test&scope=repository%3Acopies%2Fos%3Apull"


@virtual_time
async def test_another_registry_gets_a_token_without_credentials() -> None:
    """The login is for the registry that redirects, and never for where it leads."""
    exchanges = [
        asked(BLOB, unauthorized(CHALLENGE)),
        asked(AUTHORIZED, token("t1"), authorization=USER.basic),
        asked(BLOB, moved(ELSEWHERE), authorization="Bearer t1"),
        asked(ELSEWHERE, unauthorized(f"{OTHER_CHALLENGE}, {BASIC}"), authorization=None),
        asked(OTHER_TOKENS, token("t2"), authorization=None),
        asked(ELSEWHERE, FOUND_BLOB, authorization="Bearer t2"),
        asked(BLOB, moved(ELSEWHERE), authorization="Bearer t1"),
        asked(ELSEWHERE, unauthorized(OTHER_CHALLENGE), authorization=None),
        asked(ELSEWHERE, moved(STORE), authorization="Bearer t2"),
        asked(STORE, FOUND_BLOB, authorization=None),
    ]
    ring = Ring(registry_test=USER, other_test=USER)
    async with registry(*exchanges, ring=ring) as (source, _):
        assert await read_blob(source) == LAYER
        assert await read_blob(source) == LAYER
    assert {name for name, *_ in ring.asked} == {"registry.test"}


@virtual_time
async def test_its_token_is_replaced_when_it_ends() -> None:
    def through(value: str, *first: Exchange) -> list[Exchange]:
        return [
            asked(BLOB, moved(ELSEWHERE)),
            asked(ELSEWHERE, unauthorized(OTHER_CHALLENGE), authorization=None),
            *first,
            asked(ELSEWHERE, FOUND_BLOB, authorization=f"Bearer {value}"),
        ]

    exchanges = [
        *through("t1", asked(OTHER_TOKENS, token("t1"))),
        *through("t2", asked(OTHER_TOKENS, token("t2"))),
    ]
    async with registry(*exchanges) as (source, _):
        assert await read_blob(source) == LAYER
        await trio.sleep(60)
        assert await read_blob(source) == LAYER


@pytest.mark.parametrize(
    ("target", "challenge"),
    [
        (ELSEWHERE, BASIC),
        (ELSEWHERE, None),
        ("https://other.test/a/page", OTHER_CHALLENGE),
        (f"{ELSEWHERE}?X-Amz-Signature=abc", OTHER_CHALLENGE),
        ("https://registry.test/storage/x", CHALLENGE),
    ],
)
@virtual_time
async def test_a_401_from_where_no_token_can_help_is_final(
    target: str, challenge: str | None
) -> None:
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}'
    exchanges = [
        *FIRST,
        asked(BLOB, moved(target)),
        asked(target, unauthorized(challenge, body), authorization=None),
    ]
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_both(source)
    assert refused(raised.value) == UNAUTHORIZED
    assert f"{urls.parse(target)}: 401 (UNAUTHORIZED: who?)" in raised.value.message
    assert "registry.test/acme/os redirects there" in raised.value.message


@virtual_time
async def test_the_tokens_of_many_other_registries_are_not_all_kept() -> None:
    """Each blob could lead to another one, in a program that runs for months."""

    def through(count: int) -> list[Exchange]:
        target = f"https://other.test/v2/copies/{count}/blobs/x"
        return [
            asked(BLOB, moved(target)),
            asked(target, unauthorized(OTHER_CHALLENGE)),
            asked(f"{OTHER_TOKENS.removesuffix('os%3Apull')}{count}%3Apull", token(f"t{count}")),
            asked(target, FOUND_BLOB, authorization=f"Bearer t{count}"),
        ]

    exchanges = [each for count in [*range(17), 0] for each in through(count)]
    async with registry(*exchanges) as (source, _):
        for _ in range(18):
            assert await read_blob(source) == LAYER


@virtual_time
async def test_a_third_registry_gets_no_token() -> None:
    """Each could name the next one, for ever."""
    third = "https://third.test/v2/copies/os/blobs/x"
    exchanges = [
        asked(BLOB, moved(ELSEWHERE)),
        asked(ELSEWHERE, unauthorized(OTHER_CHALLENGE)),
        asked(OTHER_TOKENS, token("t2")),
        asked(ELSEWHERE, moved(third)),
        asked(third, unauthorized(OTHER_CHALLENGE), authorization=None),
    ]
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_blob(source)
    assert refused(raised.value) == UNAUTHORIZED


@pytest.mark.parametrize(
    ("first", "second", "is_allowed"),
    [
        (PUBLIC, PUBLIC, False),
        (PUBLIC, INTERNAL, False),
        (INTERNAL, PUBLIC, False),
        (INTERNAL, INTERNAL, True),
    ],
)
@virtual_time
async def test_another_registry_names_an_internal_realm_only_if_all_on_the_way_are_internal(
    first: str,
    second: str,
    is_allowed: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """A public registry that redirects to an internal one would choose that realm."""
    exchanges = [asked(BLOB, moved(ELSEWHERE)), asked(ELSEWHERE, unauthorized(OTHER_CHALLENGE))]
    allowed = [asked(OTHER_TOKENS, token("t2")), asked(ELSEWHERE, FOUND_BLOB)]
    async with registry(*exchanges, *(allowed if is_allowed else [])) as (source, script):
        script.peers |= {
            REGISTRY_AT: first,
            "https://other.test": second,
            "https://other-tokens.test": INTERNAL,
        }
        if is_allowed:
            assert await read_blob(source) == LAYER
            return
        with pytest.raises(Failure) as raised:
            await read_blob(source)
        assert refused(raised.value) == BAD_UPSTREAM
        assert "leads to the internal address" in raised.value.message


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("store", [STORE, "https://registry.test/storage/x?sig=abc"])
@virtual_time
async def test_a_signed_url_that_has_expired_is_replaced_once(status: int, store: str) -> None:
    expired, renewed = f"{store}&n=1", f"{store}&n=2"
    exchanges = [
        *FIRST,
        asked(BLOB, moved(expired), authorization="Bearer t1"),
        asked(expired, answer(status), authorization=None),
        asked(BLOB, moved(renewed), authorization="Bearer t1"),
        asked(renewed, FOUND_BLOB, authorization=None),
    ]
    async with registry(*exchanges) as (source, _):
        assert await read_both(source) == LAYER


@virtual_time
async def test_a_store_that_refuses_the_second_url_has_decided() -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    exchanges = [asked(BLOB, moved(STORE)), asked(STORE, answer(403, body))] * 2
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await read_blob(source)
    assert refused(raised.value) == DENIED
    assert "Access Denied" in raised.value.message


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
            method: Method = GET,
            internal: bool = True,
        ) -> Response:
            sent.append((url.host, fields, value, method.form))
            authorized = {**fields, "Authorization": value} if value else fields
            return await client.get(url, authorized, method=method, internal=internal)

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

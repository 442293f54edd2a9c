"""`docker://` against scripted registries, token servers and object stores."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from images import OCI_MANIFEST, digest_of
from wires import (
    SILENCE,
    Exchange,
    Notes,
    Script,
    Step,
    answer,
    asked,
    elapsing,
    head,
    refused,
    scripted,
    virtual_time,
)

from imgproxy import verify
from imgproxy.errors import Failure
from imgproxy.spec import digest as digests
from imgproxy.spec import distribution
from imgproxy.spec.manifest import MAX_DOCUMENT_SIZE, Descriptor
from imgproxy.spec.reference import parse_reference
from imgproxy.transports import Network
from imgproxy.transports.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REFERENCE = "registry.test/acme/os:1"
BASE = "https://registry.test/v2/acme/os"
WHERE = f"{BASE}/manifests/1"
MANIFEST = b'{"schemaVersion":2,"a":"manifest"}'
DIGEST = digest_of(MANIFEST)
LAYER = bytes(range(256))
BLOB = f"{BASE}/blobs/{digest_of(LAYER)}"

REALM = "https://tokens.test/get"
TOKENS = f"{REALM}?scope=repository%3Aacme%2Fos%3Apull&service=registry.test"
CHALLENGE = f'Bearer realm="{REALM}",service="registry.test",scope="repository:other:pull"'

BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
UNAUTHORIZED = (403, "UNAUTHORIZED", False)
UNAVAILABLE = (503, "UNAVAILABLE", True)

FOUND = answer(body=MANIFEST, content_type=OCI_MANIFEST)
FOUND_BLOB = answer(body=LAYER, content_type="application/octet-stream")


def described(content: bytes, media_type: str = OCI_MANIFEST) -> Descriptor:
    return Descriptor(media_type, digests.parse(digest_of(content)), len(content))


def unauthorized(challenge: str | None = CHALLENGE, body: bytes = b"") -> bytes:
    return answer(401, body, www_authenticate=challenge)


def token(value: str) -> bytes:
    return answer(body=json.dumps({"token": value}).encode())


def moved(location: str | None, status: int = 307) -> bytes:
    return answer(status, b"<a>Moved</a>", location=location)


@asynccontextmanager
async def registry(
    *exchanges: Exchange,
    reference: str = REFERENCE,
    tls_verify: bool = True,
    unreachable: dict[str, float | Exception] | None = None,
) -> AsyncIterator[tuple[Registry, Script]]:
    async with scripted(*exchanges, unreachable=unreachable) as (client, script):
        yield Registry(parse_reference(reference), client, tls_verify=tls_verify), script


async def read_blob(source: Registry) -> bytes:
    reader = await source.blob(described(LAYER))
    assert reader.size == len(LAYER)
    buffer = memoryview(bytearray(1 << 16))
    content = bytes(buffer[: await reader.receive_into(buffer)])
    reader.close()
    return content


# --- what is asked for --------------------------------------------------------------------------


@virtual_time
async def test_the_first_manifest_takes_one_request() -> None:
    wanted = asked(
        WHERE, FOUND, accept=distribution.ACCEPT_MANIFESTS, authorization=None, user_agent="test/1"
    )
    async with registry(wanted) as (source, script):
        document = await source.root()
        assert (document.raw, document.media_type) == (MANIFEST, OCI_MANIFEST)
        assert (document.digests, document.size) == ((), None)
        assert document.name == "docker://registry.test/acme/os:1: manifest 1"
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("registry.test/acme/os", f"{BASE}/manifests/latest"),
        (f"registry.test/acme/os@{DIGEST}", f"{BASE}/manifests/{DIGEST}"),
        (f"registry.test/acme/os:1@{DIGEST}", f"{BASE}/manifests/{DIGEST}"),
        ("localhost:5000/x:1", "https://localhost:5000/v2/x/manifests/1"),
        ("[::1]:5000/x:1", "https://[::1]:5000/v2/x/manifests/1"),
        ("busybox:1", "https://registry-1.docker.io/v2/library/busybox/manifests/1"),
    ],
)
@virtual_time
async def test_a_reference_says_what_is_asked(reference: str, url: str) -> None:
    async with registry(asked(url, FOUND), reference=reference) as (source, _):
        document = await source.root()
        wanted = (digests.parse(DIGEST),) if "@" in reference else ()
        assert document.digests == wanted


@pytest.mark.parametrize(
    ("tail", "scope"),
    [(":1", ":1"), ("", ":latest"), (f"@{DIGEST}", f"@{DIGEST}"), (f":1@{DIGEST}", f"@{DIGEST}")],
)
@virtual_time
async def test_policies_know_the_image_by_its_scopes(tail: str, scope: str) -> None:
    name = "registry.test/acme/os"
    async with registry(reference=name + tail) as (source, _):
        assert source.name == f"docker://{name}{tail or ':latest'}"
        assert source.identity.transport == "docker"
        assert source.identity.scopes[:3] == [name + scope, name, "registry.test/acme"]


@pytest.mark.parametrize(
    ("described_as", "content_type", "wanted"),
    [
        (OCI_MANIFEST, "text/plain", OCI_MANIFEST),
        (OCI_MANIFEST, None, OCI_MANIFEST),
        ("", OCI_MANIFEST, OCI_MANIFEST),
        ("", None, ""),
    ],
)
@virtual_time
async def test_an_index_says_what_its_entries_are(
    described_as: str, content_type: str | None, wanted: str
) -> None:
    reply = answer(body=MANIFEST, content_type=content_type)
    async with registry(asked(f"{BASE}/manifests/{DIGEST}", reply)) as (source, _):
        document = await source.document(described(MANIFEST, described_as))
        assert document.media_type == wanted
        assert document.digests == (digests.parse(DIGEST),)
        assert document.size == len(MANIFEST)


@virtual_time
async def test_a_pull_uses_one_connection() -> None:
    async with registry(asked(WHERE, FOUND), asked(BLOB, FOUND_BLOB)) as (source, script):
        await source.root()
        assert await read_blob(source) == LAYER
        assert len(script.wires) == 1
        source.close()
        assert script.wires[0].closed


@virtual_time
async def test_a_manifest_beyond_the_limit_is_not_read() -> None:
    size = str(MAX_DOCUMENT_SIZE + 1)
    async with registry(asked(WHERE, head(200, content_length=size))) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == (422, "SIZE_INVALID", False)


@virtual_time
async def test_whoever_stops_waiting_leaves_no_connection_behind() -> None:
    cut = FOUND[:-1]
    for steps in ((SILENCE,), (cut, SILENCE), (unauthorized(body=b"xx")[:-1], SILENCE)):
        async with registry(asked(WHERE, *steps)) as (source, script):
            with trio.move_on_after(1) as scope:
                await source.root()
            assert scope.cancelled_caught
            assert script.wires[0].closed


@virtual_time
async def test_over_the_network_it_is_the_same() -> None:
    reference = parse_reference(REFERENCE)
    source = Registry.over_network(reference, Network(tls_verify=False), Notes())
    assert source.name == f"docker://{REFERENCE}"
    source.close()


# --- tokens -------------------------------------------------------------------------------------


@virtual_time
async def test_a_token_takes_two_requests_more_and_serves_all_that_follow() -> None:
    exchanges = [
        asked(WHERE, unauthorized(), authorization=None),
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
        *[asked(BLOB, unauthorized(), authorization=None)] * 3,
        asked(TOKENS, 5.0, token("t1")),
        *[asked(BLOB, FOUND_BLOB, authorization="Bearer t1")] * 3,
    ]
    async with registry(*exchanges) as (source, _), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read_blob, source)


@virtual_time
async def test_a_token_that_is_refused_later_is_replaced_once() -> None:
    exchanges = [
        asked(WHERE, unauthorized()),
        asked(TOKENS, token("t1")),
        asked(WHERE, FOUND),
        asked(BLOB, unauthorized(), authorization="Bearer t1"),
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
        asked(WHERE, unauthorized()),
        asked(TOKENS, token("t1")),
        asked(WHERE, unauthorized(body=body)),
    ]
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == UNAUTHORIZED
        assert raised.value.message == (
            f"manifest 1: GET {WHERE}: 401 (DENIED: not yours): the registry wants credentials,"
            " and anonymous access is all there is"
        )


@pytest.mark.parametrize(
    "challenge", [None, 'Basic realm="x"', "Negotiate", ",;=", 'Basic realm="Bearer realm=x"']
)
@virtual_time
async def test_a_registry_that_offers_no_bearer_is_not_asked_again(challenge: str | None) -> None:
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}'
    async with registry(asked(WHERE, unauthorized(challenge, body))) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == UNAUTHORIZED
        assert "(UNAUTHORIZED: who are you?)" in raised.value.message


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
    scope = "scope=repository%3Aacme%2Fos%3Apull"
    exchanges = [
        asked(WHERE, unauthorized(f'Bearer realm="{REALM}?a=b"')),
        asked(f"{REALM}?a=b&{scope}", token("t1")),
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
    async with registry(asked(WHERE, unauthorized(challenge))) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert words in raised.value.message
        assert "hunter2" not in raised.value.message


@virtual_time
async def test_without_verification_a_token_may_come_over_http() -> None:
    where = TOKENS.replace("https:", "http:")
    exchanges = [
        asked(WHERE, unauthorized(CHALLENGE.replace("https:", "http:"))),
        asked(where, token("t1")),
        asked(WHERE, FOUND),
    ]
    async with registry(*exchanges, tls_verify=False) as (source, _):
        assert (await source.root()).raw == MANIFEST


TOKEN_REPLIES = {
    "not JSON": (answer(body=b"<html>"), BAD_UPSTREAM, "the token server's reply: "),
    "none": (answer(body=b"{}"), BAD_UPSTREAM, "no usable token"),
    "no string": (answer(body=b'{"token":5}'), BAD_UPSTREAM, "no usable token"),
    "two lines": (token("a\r\nX-Injected: 1"), BAD_UPSTREAM, "no usable token"),
    "too large": (answer(body=b" " * (1 << 20) + b"{}"), (422, "SIZE_INVALID", False), "1048576"),
    "a redirect": (moved("/there"), BAD_UPSTREAM, "307"),
    "not there": (answer(404), BAD_UPSTREAM, "404"),
    "refused": (answer(403), UNAUTHORIZED, "403"),
    "unauthorized": (
        answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}'),
        UNAUTHORIZED,
        "401 (UNAUTHORIZED: no)",
    ),
    "too many": (answer(429), UNAVAILABLE, "429"),
    "unwell": (answer(503), UNAVAILABLE, "503"),
}


@pytest.mark.parametrize("reply", TOKEN_REPLIES)
@virtual_time
async def test_a_token_that_is_not_given_is_a_failure(reply: str) -> None:
    bytes_, wanted, words = TOKEN_REPLIES[reply]
    async with registry(asked(WHERE, unauthorized()), asked(TOKENS, bytes_)) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == wanted
        assert words in raised.value.message
        assert f"GET {REALM}?…" in raised.value.message


@virtual_time
async def test_access_token_is_another_name_of_a_token() -> None:
    exchanges = [
        asked(WHERE, unauthorized()),
        asked(TOKENS, answer(body=b'{"access_token":"t1","expires_in":60}')),
        asked(WHERE, FOUND, authorization="Bearer t1"),
    ]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


@virtual_time
async def test_a_token_server_that_stalls_is_waited_for_once_by_all_together() -> None:
    """Otherwise the last of many waits as many times as long."""
    exchanges = [*[asked(BLOB, unauthorized())] * 3, asked(TOKENS, SILENCE)]
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
        asked(WHERE, unauthorized()),
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
        asked(WHERE, unauthorized()),
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
        asked("https://cdn.test/x", unauthorized()),
    ]
    async with registry(*exchanges) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == UNAUTHORIZED


@virtual_time
async def test_a_circle_of_redirects_ends() -> None:
    count = distribution.MAX_REDIRECTS + 1
    async with registry(*[asked(WHERE, moved(WHERE))] * count) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert raised.value.message == f"GET {WHERE}: redirected more than 10 times"


@virtual_time
async def test_as_many_redirects_as_allowed_are_followed() -> None:
    count = distribution.MAX_REDIRECTS
    exchanges = [*[asked(WHERE, moved(WHERE))] * count, asked(WHERE, FOUND)]
    async with registry(*exchanges) as (source, _):
        assert (await source.root()).raw == MANIFEST


LOCATIONS = {
    "missing": (None, "redirected without saying where"),
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
    async with registry(asked(WHERE, moved(location))) as (source, _):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert words in raised.value.message
        assert "hunter2" not in raised.value.message
        assert raised.value.message.isprintable()


@virtual_time
async def test_without_verification_a_redirect_may_lead_to_http() -> None:
    exchanges = [asked(WHERE, moved("http://cdn.test/x")), asked("http://cdn.test/x", FOUND)]
    async with registry(*exchanges, tls_verify=False) as (source, _):
        assert (await source.root()).raw == MANIFEST


# --- what comes back ----------------------------------------------------------------------------


@virtual_time
async def test_the_digest_that_the_registry_says_is_one_that_must_agree() -> None:
    wrong = digest_of(b"something else")
    reply = answer(body=MANIFEST, content_type=OCI_MANIFEST, docker_content_digest=wrong)
    where = f"{BASE}/manifests/{DIGEST}"
    async with registry(asked(WHERE, reply), asked(where, reply)) as (source, _):
        by_tag = await source.root()
        by_digest = await source.document(described(MANIFEST))
    assert by_tag.digests == (digests.parse(wrong),)
    assert by_digest.digests == (digests.parse(DIGEST), digests.parse(wrong))
    for document in (by_tag, by_digest):
        with pytest.raises(Failure) as raised:
            verify.document(document)
        assert refused(raised.value) == (422, "DIGEST_INVALID", False)


@pytest.mark.parametrize(
    "said", ["sha256:abc", "nonsense", f"{DIGEST}, {DIGEST}", "sha256:" + "A" * 64]
)
@virtual_time
async def test_a_digest_that_is_none_is_unusable(said: str) -> None:
    reply = answer(body=MANIFEST, docker_content_digest=said)
    async with registry(asked(WHERE, reply)) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == BAD_UPSTREAM
        assert "Docker-Content-Digest" in raised.value.message
        assert script.wires[0].closed


@pytest.mark.parametrize("said", ["blake3:" + "0" * 64, "md7:abc", None, ""])
@virtual_time
async def test_a_digest_that_cannot_be_computed_is_no_obstacle(said: str | None) -> None:
    reply = answer(body=MANIFEST, docker_content_digest=said)
    async with registry(asked(WHERE, reply)) as (source, _):
        assert (await source.root()).digests == ()


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
async def test_without_verification_https_is_tried_first_and_its_connection_used() -> None:
    async with registry(asked(WHERE, FOUND), tls_verify=False) as (source, script):
        assert (await source.root()).raw == MANIFEST
        assert script.dialled == ["https://registry.test"]


@pytest.mark.parametrize("fault", [NO_TLS, NOBODY, SILENCE])
@virtual_time
async def test_without_verification_http_is_tried_where_https_fails(
    fault: float | Exception,
) -> None:
    plain_blob = BLOB.replace("https:", "http:")
    exchanges = [asked(PLAIN, FOUND), asked(plain_blob, FOUND_BLOB)]
    async with registry(*exchanges, tls_verify=False, unreachable={"https:": fault}) as (
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
    async with registry(*exchanges, tls_verify=False, unreachable={"https:": NO_TLS}) as (
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
    async with registry(tls_verify=False, unreachable=unreachable) as (source, script):
        for _ in range(2):
            with pytest.raises(Failure) as raised:
                await source.root()
            assert refused(raised.value) == (504, "UNREACHABLE", True)
            assert "wrong version number" in raised.value.message
            assert "Connection refused" in raised.value.message
        assert len(script.dialled) == 4


@virtual_time
async def test_with_verification_http_is_never_tried() -> None:
    async with registry(unreachable={"https:": NO_TLS}) as (source, script):
        with pytest.raises(Failure) as raised:
            await source.root()
        assert refused(raised.value) == (502, "TLS", False)
        assert script.dialled == ["https://registry.test"]

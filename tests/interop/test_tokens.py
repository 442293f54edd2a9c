"""Tokens from a service that signs real ones, for a registry that believes in nothing else."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.networks import Cut, line_to
from support.parent import LIMIT
from support.servers import (
    PASSWORD,
    READER,
    TokenService,
    basic,
    docker_registry,
    http_server,
    nginx,
    token_service,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child, Reply
    from support.servers import Answering

PLAIN = "--tls-verify=false"
USER = ".config/containers/auth.json"
SCOPE = "repository:images/all:pull"
IDENTITY = "an-identity-token-5151"


@pytest.fixture(scope="module")
def running(
    registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TokenService, str]]:
    directory = tmp_path_factory.mktemp("tokens")
    with (
        token_service(directory) as tokens,
        docker_registry(registry.directory, auth=tokens) as guarded,
    ):
        yield tokens, guarded


@pytest.fixture
def tokens(running: tuple[TokenService, str]) -> TokenService:
    """Return the token service as it was at first."""
    service, _ = running
    fresh = TokenService(service.realm, service.certificates)
    service.__dict__.update(fresh.__dict__)
    return service


@pytest.fixture
def guarded(running: tuple[TokenService, str]) -> str:
    """Return the address of the registry that wants tokens."""
    return running[1]


def auth_file(home: Home, address: str, password: str = PASSWORD, **fields: str) -> None:
    auth = base64.b64encode(f"{READER}:{password}".encode()).decode()
    home.write(USER, {"auths": {address: {"auth": auth, **fields}}})


def assert_blobs(child: Child, registry: Registry, tag: str = "latest") -> None:
    for layer in registry.layers(tag):
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.status == 200, reply.body
        assert reply.body == registry.layout.read(layer["digest"])


def assert_failed(reply: Reply, status: int, code: str, *, retryable: bool) -> None:
    assert (reply.status, reply.code) == (status, code), reply.body
    assert reply.error["detail"]["retryable"] is retryable
    for secret in (PASSWORD, IDENTITY, basic(READER, PASSWORD).partition(" ")[2]):
        assert secret not in reply.message


# --- who asks --------------------------------------------------------------------------------


@pytest.mark.slow
def test_user_and_password_are_shown_to_the_realm_alone(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull, home: Home
) -> None:
    """And a token to the registry alone."""
    tokens.users = {READER: PASSWORD}
    with line_to(guarded) as line:
        auth_file(home, line.address)
        child = pull(registry.name(":latest", line.address), PLAIN, "--debug")
        assert child.client.get("/manifest").status == 200
        assert_blobs(child, registry)
        assert child.finish() == 0
    assert tokens.authorizations == [basic(READER, PASSWORD)]
    assert tokens.scopes == [SCOPE]
    shown = [each.fields.get("authorization", "none").partition(" ")[0] for each in line.asked]
    assert shown == ["none", "Bearer", "Bearer", "Bearer"]
    bearer = line.asked[-1].fields["authorization"].partition(" ")[2]
    assert bearer not in child.stderr
    assert basic(READER, PASSWORD).partition(" ")[2] not in child.stderr


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_an_identity_token_is_exchanged_by_post(
    works: bool,  # noqa: FBT001
    tokens: TokenService,
    guarded: str,
    registry: Registry,
    pull: Pull,
    home: Home,
) -> None:
    tokens.users = {READER: PASSWORD}
    tokens.identity_tokens = {IDENTITY} if works else {"another"}
    auth_file(home, guarded, "", identitytoken=IDENTITY)
    child = pull(registry.name(":latest", guarded), PLAIN, "--debug")
    reply = child.client.get("/manifest")
    if works:
        assert reply.status == 200
        assert_blobs(child, registry)
    else:
        assert_failed(reply, 403, "UNAUTHORIZED", retryable=False)
        assert USER in reply.message
    assert child.finish() == 0
    assert tokens.authorizations == []
    (form,) = tokens.forms
    client = form.pop("client_id")
    assert client == ["imgproxy"]
    assert form == {
        "grant_type": ["refresh_token"],
        "refresh_token": [IDENTITY],
        "service": [tokens.service],
        "scope": [SCOPE],
    }
    assert IDENTITY not in child.stderr


def test_an_identity_token_may_come_from_a_helper(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull, home: Home
) -> None:
    tokens.users = {READER: PASSWORD}
    tokens.identity_tokens = {IDENTITY}
    answer = json.dumps({"ServerURL": "", "Username": "<token>", "Secret": IDENTITY})
    home.program("docker-credential-test", f"echo '{answer}'")
    home.write(USER, {"credHelpers": {guarded: "test"}})
    child = pull(registry.name(":latest", guarded), PLAIN)
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert len(tokens.forms) == 1


def test_a_refused_password_is_a_403_that_names_its_source(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull, home: Home
) -> None:
    tokens.users = {READER: "another"}
    auth_file(home, guarded)
    child = pull(registry.name(":latest", guarded), PLAIN)
    reply = child.client.get("/manifest")
    assert_failed(reply, 403, "UNAUTHORIZED", retryable=False)
    assert "nobody we know" in reply.message, "the service's own words"
    assert USER in reply.message
    assert f"auths.{guarded}" in reply.message
    assert child.finish() == 0
    assert len(tokens.authorizations) == 1, "what is refused is not tried again"


def test_broken_credentials_are_no_anonymous_access(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull, home: Home
) -> None:
    """The service would give a token to anybody."""
    home.write(USER, '{"auths": ')
    child = pull(registry.name(":latest", guarded), PLAIN)
    reply = child.client.get("/manifest")
    assert_failed(reply, 500, "CONFIGURATION", retryable=False)
    assert USER in reply.message
    assert child.finish() == 0
    assert tokens.authorizations == []


@pytest.mark.slow
def test_a_token_that_is_given_is_used_and_nothing_else(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    given = tokens.issue([SCOPE])
    child = pull(registry.name(":latest", guarded), PLAIN, f"--registry-token={given}", "--debug")
    assert child.client.get("/manifest").status == 200
    assert_blobs(child, registry)
    assert child.finish() == 0
    assert tokens.scopes == []
    assert given not in child.stderr


# --- when tokens end -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_token_that_ends_in_mid_pull_is_renewed_once_for_all(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    """The service says that it lives longer; the registry knows better."""
    tokens.lifetime = 1.5
    child = pull(registry.name(":index", guarded), PLAIN, sockets=6)
    layers = child.client.get("/manifest").json()["layers"]
    assert len(tokens.scopes) == 1
    tokens.lifetime = 300
    time.sleep(2.6)
    others = registry.layout.document(registry.images["index"])["manifests"][1:]
    paths = [f"/blobs/{layers[0]['digest']}", "/config"] * 2 + [
        f"/manifests/{other['digest']}" for other in others
    ]
    for client, path in zip(child.clients, paths, strict=True):
        client.ask("GET", path)
    assert [client.reply().status for client in child.clients] == [200] * 6
    assert child.finish() == 0
    assert len(tokens.scopes) == 2, "one request for all who need one"


def test_a_token_that_ends_while_a_blob_is_cut_off_is_renewed(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    tokens.lifetime = 1.5
    (layer,) = registry.layers("large")
    with line_to(guarded, Cut(3 << 20, "stall")) as line:
        child = pull(registry.name(":large", line.address), PLAIN, "--stall-timeout=2")
        child.client.get("/manifest")
        tokens.lifetime = 300
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.body == registry.layout.read(layer["digest"])
        assert child.finish() == 0
    assert len(tokens.scopes) == 2
    assert [bool(each.range) for each in line.asked][-2:] == [True, True], "refused, and again"


def slowly(_: Answering) -> bool:
    time.sleep(0.3)
    return False


@pytest.mark.slow
def test_concurrent_conversations_share_one_token_request(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    tokens.answer = slowly
    child = pull(registry.name(":latest", guarded), PLAIN, sockets=6)
    for client in child.clients:
        client.ask("GET", "/manifest")
    assert [client.reply().status for client in child.clients] == [200] * 6
    assert child.finish() == 0
    assert tokens.scopes == [SCOPE]


# --- scopes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_scope_that_the_registry_wants_besides_is_asked_for_once(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    """In front of it is one that calls the repository by another name."""
    rename = f"""
        rewrite ^/v2/other/name/(.*)$ /v2/images/all/$1 break;
        proxy_pass http://{guarded}; proxy_set_header Host $http_host;
    """
    with nginx(tmp_path / "nginx", f"location / {{ {rename} }}") as front:
        child = pull(f"docker://{front}/other/name:latest", PLAIN)
        reply = child.client.get("/manifest")
        assert reply.status == 200, reply.body
        assert_blobs(child, registry)
        assert child.finish() == 0
    assert tokens.scopes == ["repository:other/name:pull", "repository:other/name:pull", SCOPE]


def test_a_token_without_the_right_is_a_403_and_not_a_loop(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    tokens.granted = "push"
    with line_to(guarded) as line:
        child = pull(registry.name(":latest", line.address), PLAIN)
        reply = child.client.get("/manifest")
        assert reply.status == 403
        assert reply.error["detail"]["retryable"] is False
        assert child.finish() == 0
    assert len(line.asked) <= 3
    assert len(tokens.scopes) <= 2


# --- other ways in ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_registry_that_a_redirect_leads_to_gives_a_token_without_credentials(
    tokens: TokenService,
    guarded: str,
    registry: Registry,
    pull: Pull,
    home: Home,
    tmp_path: Path,
) -> None:
    """As vanity domains do; the login for the first one is not for the second."""
    move = f"""location / {{
        rewrite ^/v2/acme/os/(.*)$ http://{guarded}/v2/images/all/$1 redirect;
    }}"""
    with nginx(tmp_path / "nginx", move) as front:
        auth_file(home, front)
        child = pull(f"docker://{front}/acme/os:latest", PLAIN)
        reply = child.client.get("/manifest")
        assert reply.status == 200, reply.body
        assert_blobs(child, registry)
        assert child.finish() == 0
    assert tokens.authorizations == [None]
    assert tokens.scopes == [SCOPE]


@pytest.mark.slow
def test_a_registry_whose_token_service_is_gone_is_shown_basic_where_it_offers_that(
    registry: Registry, pull: Pull, home: Home, tmp_path: Path
) -> None:
    with (
        docker_registry(registry.directory, auth="htpasswd") as inner,
        nginx(
            tmp_path / "nginx",
            f"""location / {{
                proxy_pass http://{inner}; proxy_set_header Host $http_host;
                add_header WWW-Authenticate 'Bearer realm="http://127.0.0.1:9/token"' always;
            }}""",
        ) as front,
    ):
        auth_file(home, front)
        child = pull(registry.name(":latest", front), PLAIN)
        reply = child.client.get("/manifest")
        assert reply.status == 200, reply.body
        assert_blobs(child, registry)
        assert child.finish() == 0


# --- a token service that fails --------------------------------------------------------------


def said(status: int, content: bytes, **fields: str) -> Callable[[Answering], bool]:
    def answer(request: Answering) -> bool:
        request.answer(status, content, **fields)
        return True

    return answer


@contextmanager
def registry_with(realm: str, answer: Callable[[Answering], bool]) -> Iterator[str]:
    """Run a registry that wants a token from a realm, HOST/token being its own."""

    def get(request: Answering) -> None:
        where = realm.replace("HOST", str(request.headers["Host"]))
        if request.path.startswith("/token?"):
            answer(request)
        else:
            request.answer(401, b"", WWW_Authenticate=f'Bearer realm="{where}",service="x"')

    with http_server(get) as address:
        yield address


BROKEN: dict[str, tuple[Callable[[Answering], bool], int, str]] = {
    "no JSON": (said(200, b"<html>welcome"), 502, "BAD_UPSTREAM"),
    "empty": (said(200, b""), 502, "BAD_UPSTREAM"),
    "no token": (said(200, b"{}"), 502, "BAD_UPSTREAM"),
    "a number": (said(200, b'{"token": 5}'), 502, "BAD_UPSTREAM"),
    "a line end": (said(200, b'{"token": "a\\r\\nX: y"}'), 502, "BAD_UPSTREAM"),
    "endless": (said(200, b'{"token": "' + b"a" * 2_000_000 + b'"}'), 422, "SIZE_INVALID"),
    "denied": (said(403, b"{}"), 403, "DENIED"),
    "not there": (said(404, b"{}"), 502, "BAD_UPSTREAM"),
    "down": (said(503, b"{}"), 503, "UNAVAILABLE"),
    "too many": (said(429, b"{}"), 503, "TOOMANYREQUESTS"),
}


@pytest.mark.slow
def test_an_unusable_answer_of_the_token_service_has_its_status(together: Together) -> None:
    def check(case: tuple[Callable[[Answering], bool], int, str], pull: Pull, _: Home) -> None:
        answer, status, code = case
        with registry_with("http://HOST/token", answer) as address:
            child = pull(f"docker://{address}/some/image", PLAIN, "--retries=0")
            reply = child.client.get("/manifest")
            assert_failed(reply, status, code, retryable=status == 503)
            assert f"http://{address}/token" in reply.message
            assert child.finish() == 0

    together(BROKEN, check)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [said(503, b"{}"), said(429, b"{}", Retry_After="1")])
def test_a_token_service_that_recovers_is_asked_again(
    answer: Callable[[Answering], bool],
    tokens: TokenService,
    guarded: str,
    registry: Registry,
    pull: Pull,
) -> None:
    left = [answer]
    tokens.answer = lambda request: bool(left) and left.pop()(request)
    child = pull(registry.name(":latest", guarded), PLAIN, "--retries=1")
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    assert len(tokens.scopes) == 2


@pytest.mark.slow
def test_a_token_service_that_is_silent_is_a_504(
    tokens: TokenService, guarded: str, registry: Registry, pull: Pull
) -> None:
    ended = threading.Event()

    def answer(request: Answering) -> bool:
        request.close_connection = True
        return ended.wait(LIMIT)

    tokens.answer = answer
    child = pull(registry.name(":latest", guarded), PLAIN, "--retries=0", "--stall-timeout=1")
    assert_failed(child.client.get("/manifest"), 504, "UNREACHABLE", retryable=True)
    assert child.finish() == 0
    ended.set()


# What a registry may say of its realm, and the status of that.
REALMS: dict[str, tuple[str, int, str]] = {
    "nobody there": ("http://127.0.0.1:9/token", 504, "127.0.0.1"),
    "no URL": ("file:///etc/passwd", 502, "realm"),
    "empty": ("", 502, "realm"),
    "link-local": ("http://169.254.169.254/latest/meta-data", 502, "link-local"),
}


@pytest.mark.slow
def test_an_unusable_realm_has_its_status(together: Together) -> None:
    def check(case: tuple[str, int, str], pull: Pull, _: Home) -> None:
        realm, status, words = case
        with registry_with(realm, said(200, b"{}")) as address:
            child = pull(f"docker://{address}/some/image", PLAIN, "--retries=0")
            reply = child.client.get("/manifest")
            assert reply.status == status, reply.body
            assert words in reply.message
            assert child.finish() == 0

    together(REALMS, check)

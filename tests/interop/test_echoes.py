"""Servers that quote what they were sent: in their errors, in heads, in redirects.

A reply goes to a parent and standard error into a log, and both to more people than may have the
password. So nothing of it may come through, however it is spelled, also with --debug.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from support.servers import Answering, basic, http_server
from support.spellings import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.conftest import Pull, Together
    from support.home import Home

USER, PASSWORD = "reader", 's3cr3t w/+"\\%25'
BASIC = basic(USER, PASSWORD)
IDENTITY = "0123-identity+token/of-a_login=="
TOKEN = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyZWFkZXIifQ.c2ln-_"
SIGNATURE = "0a1b2c3d4e5f/+=="
SECRETS = (PASSWORD, BASIC.partition(" ")[2], IDENTITY, TOKEN, SIGNATURE)

STORE = f"/store?X-Amz-Signature={quote(SIGNATURE)}&X-Amz-Date=20240101T000000Z"

Spell = Callable[[str], str]
Say = Callable[[Answering, Spell], None]


def error(status: int, *secrets: str) -> Say:
    def say(request: Answering, spell: Spell) -> None:
        words = [{"code": "DENIED", "message": f"not {spell(each)} here"} for each in secrets]
        request.answer(status, json.dumps({"errors": words}).encode())

    return say


def field(name: str, value: str, status: int = 200) -> Say:
    """Return a field with a secret in it, which is what its value ends in."""
    before, _, secret = value.partition(" ")

    def say(request: Answering, spell: Spell) -> None:
        words = " ".join(spell(secret).split())
        request.answer(status, b"no object", **{name: f"{before}{words}"})

    return say


def status_line(begin: str, secret: str) -> Say:
    def say(request: Answering, spell: Spell) -> None:
        words = " ".join(spell(secret).split())
        request.wfile.write(f"{begin} {words}\r\nContent-Length: 0\r\n\r\n".encode())
        request.close_connection = True

    return say


def twice(secret: str) -> Say:
    """Return an object that has a secret as a key, twice."""

    def say(request: Answering, spell: Spell) -> None:
        key = json.dumps(spell(secret))
        request.answer(200, f'{{"token":"a",{key}:1,{key}:2}}'.encode())

    return say


def stored(then: Say) -> Say:
    """Return a redirect to a store, with a signature, which says something then."""

    def say(request: Answering, spell: Spell) -> None:
        if request.path == STORE:
            then(request, spell)
        else:
            request.answer(307, b"", Location=STORE)

    return say


class Echo(NamedTuple):
    """What a server says to a request with credentials.

    `wants` is the scheme that it wants them in. `is_service`: only requests for a token are
    answered so. `proxy` is the variable that names the server as a proxy, if it is one.
    """

    say: Say
    wants: str = "Basic"
    identity: str = ""
    is_service: bool = False
    proxy: str = ""


ECHOES = {
    "an error": Echo(error(403, PASSWORD, BASIC)),
    "a refusal": Echo(error(401, PASSWORD, BASIC)),
    "a long error": Echo(error(403, *[PASSWORD] * 20)),
    "an error about a token": Echo(error(403, TOKEN), "Bearer"),
    "a token service's error": Echo(error(401, PASSWORD, BASIC), "Bearer", is_service=True),
    "a token service's error about a login": Echo(
        error(401, IDENTITY), "Bearer", identity=IDENTITY, is_service=True
    ),
    "a token service's key": Echo(twice(TOKEN), "Bearer", is_service=True),
    "a token service's status line": Echo(
        status_line("HTTP/1.1 what", PASSWORD), "Bearer", is_service=True
    ),
    "a store's error": Echo(stored(error(403, SIGNATURE))),
    "a store's status line": Echo(stored(status_line("HTTP/1.1 what", SIGNATURE))),
    "a status line": Echo(status_line("HTTP/1.1 what", BASIC)),
    "an encoding": Echo(field("Content_Encoding", f"br, {PASSWORD}")),
    "a path that is redirected to": Echo(field("Location", f"/v2/x/ {PASSWORD}", 307)),
    "a user that is redirected to": Echo(field("Location", f"http:u: {PASSWORD}@h/", 307)),
    "a proxy's error": Echo(error(403, PASSWORD, BASIC), proxy="HTTP_PROXY"),
    "a proxy's status line": Echo(status_line("HTTP/1.1 what", BASIC), proxy="HTTP_PROXY"),
    "a tunnel's refusal": Echo(status_line("HTTP/1.1 403", PASSWORD), proxy="HTTPS_PROXY"),
    "a tunnel's status line": Echo(status_line("HTTP/1.1 what", BASIC), proxy="HTTPS_PROXY"),
}


@contextmanager
def echoing(echo: Echo, spelling: list[Spell]) -> Iterator[str]:
    """Run a server that is registry, token service, store and proxy, and spells as it is told."""

    def answer(request: Answering) -> None:
        request.rfile.read(int(request.headers["Content-Length"] or 0))
        given = request.headers["Authorization"] or request.headers["Proxy-Authorization"]
        is_service = request.path.startswith("/token")
        if is_service and not echo.is_service:
            request.answer(200, json.dumps({"token": TOKEN}).encode())
        elif given or is_service or request.path == STORE:
            echo.say(request, spelling[0])
        else:
            realm = f"http://{request.headers['Host']}/token"
            request.answer(401, b"", WWW_Authenticate=f'{echo.wants} realm="{realm}",service="x"')

    with http_server(answer) as address:
        yield address


def test_no_secret_is_told_to_anybody(together: Together) -> None:
    def check(echo: Echo, pull: Pull, home: Home) -> None:
        spelling: list[Spell] = [str]
        with echoing(echo, spelling) as address:
            host, env, options = address, {}, ["--retries=0", "--debug"]
            if echo.proxy:
                host = "registry.test"
                env = {echo.proxy: f"http://{USER}:{quote(PASSWORD, safe='')}@{address}"}
            if echo.proxy != "HTTPS_PROXY":
                options.append("--tls-verify=false")
            login = {"auth": BASIC.partition(" ")[2]}
            if echo.identity:
                login["identitytoken"] = echo.identity
            home.write(".config/containers/auth.json", {"auths": {host: login}})
            child = pull(f"docker://{host}/acme/os:1", *options, env=env)
            told = []
            for spelling[0] in SPELLINGS.values():
                reply = child.client.get("/manifest")
                assert reply.status >= 400
                assert "***" in reply.message or "(not shown)" in reply.message, reply.message
                told += [reply.body.decode(), reply.message]
            assert child.finish() == 0
        everything = "".join([*told, child.stderr])
        assert child.stderr.count("GET /manifest: ") == len(SPELLINGS)
        for secret in SECRETS:
            for spell in SPELLINGS.values():
                assert spell(secret) not in everything
            for least in (secret[:6], secret[-6:]):
                assert least not in everything

    together(ECHOES, check)

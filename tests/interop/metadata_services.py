"""What answers never lead to: the program in a network of its own, where every address is local.

Servers listen at the addresses of metadata services, of an internal service, and of a registry on
the Internet. They count connections, so that even one without a request is seen.
`test_metadata_services.py` makes the network and runs these tests there; nothing leaves it.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import socketserver
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from support.servers import Answering, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop.conftest import Pull

REGISTRY, INTERNAL = "198.51.100.7", "10.9.9.9"
SERVICES = ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"]
SERVICES_6 = ["fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"]
PLAIN = ("--tls-verify=false", "--retries=0")
# As they are, by other spellings, and by name.
_NUMBER = int(ipaddress.IPv4Address(SERVICES[0]))
NAMES = {f"name{at}.test": each for at, each in enumerate([*SERVICES, *SERVICES_6])}
HOSTS = [
    *SERVICES,
    *(f"[{each}]" for each in SERVICES_6),
    *(str(_NUMBER), hex(_NUMBER), "0251.0376.0251.0376", "169.254.43518", "[::ffff:a9fe:a9fe]"),
    *NAMES,
]
SECRET = "the-secret-of-an-internal-service"


@contextmanager
def counted(*hosts: str) -> Iterator[list[str]]:
    """Listen on port 80 of these addresses; yield the list of those that were connected to."""
    connected: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connected.append(self.request.getsockname()[0])

    class Server4(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    class Server6(Server4):
        address_family = socket.AF_INET6

    servers = [(Server6 if ":" in each else Server4)((each, 80), Handler) for each in hosts]
    for each in servers:
        threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
    yield connected
    for each in servers:
        each.shutdown()
        each.server_close()


@contextmanager
def serving(host: str, answer: Callable[[Answering], object]) -> Iterator[str]:
    """Run a server whose replies are sent by the function; yield its address."""

    class Handler(Answering):
        def do_GET(self) -> None:  # noqa: N802  (its name)
            answer(self)

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    with in_thread(server):
        yield f"{host}:{server.server_port}"


REDIRECT = "a redirect"
REALM = "a realm"


@pytest.mark.parametrize("how", [REDIRECT, REALM])
@pytest.mark.parametrize("host", HOSTS)
def test_no_answer_leads_to_a_metadata_service(host: str, how: str, pull: Pull) -> None:
    url = f"http://{host}/latest/meta-data"

    def answer(request: Answering) -> None:
        if how == REDIRECT:
            request.answer(307, b"", Location=url)
        else:
            request.answer(401, b"", WWW_Authenticate=f'Bearer realm="{url}"')

    with counted(*SERVICES, *SERVICES_6) as connected, serving(REGISTRY, answer) as address:
        child = pull(f"docker://{address}/acme/os", *PLAIN)
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (502, "BAD_UPSTREAM"), reply.body
        assert f"{url}" in reply.message
        assert "serve the credentials of their machines: refused" in reply.message
        assert child.finish() == 0
    assert connected == []


def test_a_registry_that_the_user_names_may_have_any_address(pull: Pull) -> None:
    with serving(SERVICES[0], lambda request: request.answer(404, b"")) as address:
        child = pull(f"docker://{address}/acme/os", *PLAIN)
        assert child.client.get("/manifest").status == 404
        assert child.finish() == 0


def secret(request: Answering) -> None:
    """Answer as an internal service whose reply happens to hold a token, or a message."""
    body = {"token": SECRET, "errors": [{"code": SECRET, "message": SECRET}]}
    request.answer(200 if "good" in request.path else 403, json.dumps(body).encode())


@pytest.mark.parametrize("registry", [REGISTRY, INTERNAL])
@pytest.mark.parametrize("path", ["good", "bad"])
def test_an_internal_realm_is_shown_to_an_internal_registry_alone(
    registry: str, path: str, pull: Pull
) -> None:
    """Neither in a request to the registry that named it, nor in a message."""
    shown: list[str] = []
    asked: list[str] = []

    def count(request: Answering) -> None:
        asked.append(request.path)
        secret(request)

    with serving(INTERNAL, count) as realm:

        def answer(request: Answering) -> None:
            shown.append(str(request.headers))
            request.answer(401, b"", WWW_Authenticate=f'Bearer realm="http://{realm}/{path}"')

        with serving(registry, answer) as address:
            child = pull(f"docker://{address}/acme/os", *PLAIN, "--debug")
            reply = child.client.get("/manifest")
            assert child.finish() == 0
    seen = SECRET in "".join(shown) + reply.message + child.stderr
    assert (seen, bool(asked)) == ((True, True) if registry == INTERNAL else (False, False))
    if registry == REGISTRY:
        assert (reply.status, reply.code) == (502, "BAD_UPSTREAM"), reply.body
        assert f"internal address {INTERNAL}" in reply.message

"""Connections to registries over real sockets: TCP, proxies, TLS, and where none is made."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support.streams import Notes, answer, elapsing, real_time, refused, virtual_time

from imgproxy.config.certs import Certificates
from imgproxy.errors import ConfigurationError, Failure
from imgproxy.net import dialer as dialling
from imgproxy.net import tcp
from imgproxy.net.client import Client
from imgproxy.net.dialer import Dialer
from imgproxy.net.tls import make_context
from imgproxy.specs.http import proxy as proxies
from imgproxy.specs.http import url as urls
from imgproxy.transports.registry.redirects import follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgproxy.net.tcp import Target
    from imgproxy.specs.http.proxy import Proxy

BODY = bytes(range(100))
REPLY = answer(body=BODY)

TLS = (502, "TLS", False)
UNREACHABLE = (504, "UNREACHABLE", True)
BAD_UPSTREAM = (502, "BAD_UPSTREAM", False)
CONFIGURATION = (500, "CONFIGURATION", False)

Serve = Callable[[trio.SocketStream], Awaitable[None]]


# --- servers ------------------------------------------------------------------------------------


async def answer_once(stream: trio.abc.Stream) -> None:
    """Answer each request; ignore that a client disconnects."""
    with suppress(trio.BrokenResourceError):
        while not (await stream.receive_some()).endswith(b"\r\n\r\n"):
            pass
        await stream.send_all(REPLY)
        await stream.receive_some()


async def speak_first(stream: trio.abc.Stream) -> None:
    """Answer as a server without TLS does."""
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await stream.receive_some()


async def keep_silent(_: trio.abc.Stream) -> None:
    await trio.sleep_forever()


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def over_tls(context: ssl.SSLContext) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await answer_once(trio.SSLStream(stream, context, server_side=True))

    return serve


@asynccontextmanager
async def listening(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=host))
        try:
            yield listener.socket.getsockname()[1]
        except Failure as error:
            failure = error  # by itself, and not in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def certificates_of(
    *, crt: tuple[str, ...] = (), clients: tuple[tuple[str, str], ...] = ()
) -> Callable[[str], Certificates]:
    return lambda _: Certificates(crt, clients)


def dialer(
    home: str = "https://localhost",
    registry: str = "localhost",
    *,
    certificates: Callable[[str], Certificates] = lambda _: Certificates(),
    proxy: Proxy | None = None,
    verify: bool = True,
) -> Dialer:
    return Dialer(urls.parse(home), registry, certificates, lambda _: proxy, verify=verify)


async def fetch(dial: Dialer, url: str) -> bytes:
    """Return a whole body; a socket that is left open causes a warning, which is an error."""
    client = Client(dial, Notes(), stall_timeout=20, user_agent="test/1", proxy_for=dial.forwarder)
    try:
        return await (await client.get(urls.parse(url), {})).read(1 << 20)
    finally:
        client.close()


async def visit(serve: Serve, scheme: str, dial: Dialer | None = None) -> bytes:
    """Fetch once from a server on loopback, by name."""
    async with listening(serve) as port:
        return await fetch(dial or dialer(), f"{scheme}://localhost:{port}/")


async def failure_of(serve: Serve, scheme: str, dial: Dialer | None = None) -> Failure:
    with pytest.raises(Failure) as raised:
        await visit(serve, scheme, dial)
    assert raised.value.message.isprintable()
    assert "hunter2" not in raised.value.message
    return raised.value


@pytest.fixture(scope="module")
def strange() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def own() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority(own: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """Return an authority, the only one that this process trusts."""
    own.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
    return own


# --- plain, and over TLS ------------------------------------------------------------------------


@real_time
async def test_http_to_a_real_server() -> None:
    assert await visit(answer_once, "http") == BODY


@pytest.mark.parametrize("verify", [True, False])
@real_time
async def test_https_to_a_real_server(
    authority: trustme.CA,
    verify: bool,  # noqa: FBT001  (a parameter)
) -> None:
    serve = over_tls(server_context(authority.issue_cert("localhost")))
    assert await visit(serve, "https", dialer(verify=verify)) == BODY


@pytest.mark.parametrize("case", ["by a stranger", "for another"])
@real_time
async def test_a_certificate_that_is_not_valid_is_refused(
    authority: trustme.CA, strange: trustme.CA, case: str
) -> None:
    issued, message = {
        "by a stranger": (strange.issue_cert("localhost"), "local issuer certificate"),
        "for another": (authority.issue_cert("other.test"), "'localhost'. It is for other.test."),
    }[case]
    serve = over_tls(server_context(issued))
    failure = await failure_of(serve, "https")
    assert refused(failure) == TLS
    assert message in failure.message
    assert "--tls-verify=false" in failure.message
    # Where no authority is missing, adding one would not help.
    assert ("certs.d" in failure.message) is (case == "by a stranger")
    assert await visit(serve, "https", dialer(verify=False)) == BODY


NOW = datetime.now(UTC)
YEAR = timedelta(days=365)
# From when until when, and what of it is told.
TIMES = {
    "certificate has expired: it was valid until ": (NOW - 2 * YEAR, NOW - YEAR),
    "certificate is not yet valid: it is valid from ": (NOW + YEAR, NOW + 2 * YEAR),
}


@pytest.mark.parametrize("said", TIMES)
@real_time
async def test_a_certificate_of_another_time_is_refused_with_both_times(
    authority: trustme.CA, said: str
) -> None:
    begin, end = TIMES[said]
    issued = authority.issue_cert("localhost", not_before=begin, not_after=end)
    failure = await failure_of(over_tls(server_context(issued)), "https")
    assert refused(failure) == TLS
    told = f"{end if 'until' in said else begin:%Y-%m-%dT%H:%M:%SZ}"
    assert f"{said}{told}, and the clock of this host says {NOW:%Y-%m-%dT}" in failure.message
    assert "certs.d" not in failure.message
    assert "--tls-verify=false" in failure.message


@pytest.mark.parametrize("trusted", [True, False])
@real_time
async def test_names_are_told_of_a_certificate_that_is_verified_alone(
    authority: trustme.CA,
    strange: trustme.CA,
    trusted: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """The text of one that anybody may have made stays out of messages."""
    names = [f"n{number}.test" for number in range(12)]
    issued = (authority if trusted else strange).issue_cert(*names)
    failure = await failure_of(over_tls(server_context(issued)), "https")
    assert refused(failure) == TLS
    assert ("n0.test, n1.test" in failure.message) is trusted
    assert ("n7.test, 4 more" in failure.message) is trusted
    assert "n8.test" not in failure.message


@pytest.mark.parametrize("case", ["hangs up", "is silent", "has another certificate"])
@real_time
async def test_a_second_look_that_fails_leaves_the_first_failure(
    authority: trustme.CA, strange: trustme.CA, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shows no certificate of a client, nor sends a request."""
    monkeypatch.setattr(dialling, "LOOK_TIMEOUT", 0.2)
    begin, end = NOW - 2 * YEAR, NOW - YEAR
    issued = authority.issue_cert("localhost", not_before=begin, not_after=end)
    looks = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal looks
        looks += 1
        with suppress(trio.BrokenResourceError):
            if looks == 1:
                await over_tls(server_context(issued))(stream)
            elif case == "is silent":
                await keep_silent(stream)
            elif case == "has another certificate":
                await over_tls(server_context(strange.issue_cert("localhost")))(stream)

    failure = await failure_of(serve, "https")
    assert refused(failure) == TLS
    assert "TLS failed: certificate has expired (--tls-verify=false" in failure.message
    assert looks == 2


@real_time
async def test_a_second_look_sends_nothing_and_shows_no_client_s_certificate(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """The name of the server is wrong: it is not who may learn who asks."""
    context = server_context(authority.issue_cert("other.test"))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # it would be shown within the handshake
    authority.configure_trust(context)
    client = authority.issue_cert("client")
    pem = b"".join(pem.bytes() for pem in client.cert_chain_pems)
    certificate = written(tmp_path, "me.cert", pem)
    key = written(tmp_path, "me.key", client.private_key_pem.bytes())
    shown: list[object] = []

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        with suppress(trio.BrokenResourceError):
            await secure.do_handshake()
            shown.append(secure.getpeercert())
            shown.append(await secure.receive_some())

    dial = dialer(certificates=certificates_of(clients=((certificate, key),)))
    failure = await failure_of(serve, "https", dial)
    assert "It is for other.test." in failure.message
    assert not any(shown)


@real_time
async def test_a_server_without_tls_is_distinguished_from_an_unreachable_one() -> None:
    assert refused(await failure_of(speak_first, "https", dialer(verify=False))) == TLS


@real_time
async def test_a_port_without_a_server_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Failure) as raised:
        await fetch(dialer(), f"http://127.0.0.1:{port}/")
    assert refused(raised.value) == UNREACHABLE
    assert ": Connection refused" in raised.value.message


@virtual_time
async def test_a_server_that_never_answers_the_handshake_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with elapsing(20), pytest.raises(Failure) as raised:
            await fetch(dialer(verify=False), f"https://127.0.0.1:{port}/")
    assert refused(raised.value) == UNREACHABLE


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (None, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@real_time
async def test_tls_before_1_2_is_refused(
    authority: trustme.CA,
    version: ssl.TLSVersion | None,
    accepted: bool,  # noqa: FBT001  (a parameter)
) -> None:
    context = server_context(authority.issue_cert("localhost"))
    if version is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    if accepted:
        assert await visit(over_tls(context), "https") == BODY
        return
    serve = over_tls(context)

    async def forgive(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    failure = await failure_of(forgive, "https", dialer(verify=False))
    assert refused(failure) in (TLS, UNREACHABLE)  # trio's servers hang up without an alert


@real_time
async def test_authorities_are_read_once(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[ssl.SSLContext] = []
    real = ssl.SSLContext.load_default_certs

    def counted(context: ssl.SSLContext) -> None:
        read.append(context)
        real(context)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", counted)
    serve = over_tls(server_context(authority.issue_cert("localhost")))
    dial = dialer()
    for _ in range(2):
        assert await visit(serve, "https", dial) == BODY
    assert len(read) == 1


@real_time
async def test_authorities_that_cannot_be_read_are_a_failure_of_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: ssl.SSLContext) -> None:
        raise ssl.SSLError(1, "no authorities")

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", broken)
    assert refused(await failure_of(keep_silent, "https")) == TLS


# --- certs.d ------------------------------------------------------------------------------------


def written(directory: Path, name: str, content: bytes) -> str:
    path = directory / name
    path.write_bytes(content)
    return str(path)


@real_time
async def test_an_authority_of_the_registry_s_own_is_trusted_beside_the_system_s(
    authority: trustme.CA, strange: trustme.CA, tmp_path: Path
) -> None:
    path = written(tmp_path, "own.crt", strange.cert_pem.bytes())
    gone = str(tmp_path / "dangling.crt")
    dial = dialer(certificates=certificates_of(crt=(gone, path)))
    for each in (authority, strange):
        serve = over_tls(server_context(each.issue_cert("localhost")))
        assert await visit(serve, "https", dial) == BODY


@pytest.mark.parametrize("shown", [True, False])
@real_time
async def test_a_client_s_certificate_is_shown_where_it_is_wanted(
    authority: trustme.CA,
    tmp_path: Path,
    shown: bool,  # noqa: FBT001  (a parameter)
) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    client = authority.issue_cert("client")
    certificate = written(
        tmp_path, "me.cert", b"".join(pem.bytes() for pem in client.cert_chain_pems)
    )
    key = written(tmp_path, "me.key", client.private_key_pem.bytes())
    serve = over_tls(context)

    async def forgive(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    if shown:
        dial = dialer(certificates=certificates_of(clients=((certificate, key),)))
        assert await visit(forgive, "https", dial) == BODY
    else:
        failure = await failure_of(forgive, "https")
        assert refused(failure) in (TLS, UNREACHABLE)  # trio's servers hang up without an alert


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://home.test/x", "registry.test"),
        ("https://home.test:5000/x", "registry.test"),
        ("https://cdn.test/x", "cdn.test"),
        ("https://cdn.test:444/x", "cdn.test:444"),
        ("https://[::1]:444/x", "[::1]:444"),
    ],
)
@real_time
async def test_certificates_are_looked_up_as_references_call_the_registry(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def look_up(host: str) -> Certificates:
        asked.append(host)
        raise ConfigurationError("that will do")

    async def resolve(*_: object) -> list[Target]:
        await trio.lowlevel.checkpoint()
        return []

    async def connect(_: Sequence[Target]) -> tuple[socket.socket, str]:
        await trio.lowlevel.checkpoint()
        sock, other = socket.socketpair()
        other.close()
        return sock, "192.0.2.1"

    monkeypatch.setattr(tcp, "look_up", resolve)
    monkeypatch.setattr(tcp, "connect", connect)
    with pytest.raises(ConfigurationError):
        await fetch(dialer("https://home.test", "registry.test", certificates=look_up), url)
    assert asked == [name]


def locked(certificate: trustme.LeafCert) -> bytes:
    """Return the key of a certificate, encrypted; OpenSSL would ask a terminal for the password."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    form = Encoding.PEM, PrivateFormat.PKCS8
    return key.private_bytes(*form, BestAvailableEncryption(b"hunter2"))


@pytest.mark.parametrize("case", ["garbage", "empty", "a directory", "no certificate"])
def test_a_broken_authority_is_reported_with_its_path(
    case: str, tmp_path: Path, own: trustme.CA
) -> None:
    path = tmp_path / "bad.crt"
    if case == "a directory":
        path.mkdir()
    else:
        key = own.private_key_pem.bytes()
        path.write_bytes({"garbage": b"\0\xff", "empty": b"", "no certificate": key}[case])
    for verify in (True, False):
        with pytest.raises(ConfigurationError) as raised:
            make_context(Certificates((str(path),)), verify=verify)
        assert raised.value.message.startswith(f"the certificate {path}: ")
        assert raised.value.detail == {"file": str(path)}


@pytest.mark.parametrize("case", ["missing", "garbage", "another's key", "a locked key"])
def test_an_unusable_client_certificate_is_reported_with_its_path(
    case: str, tmp_path: Path, own: trustme.CA
) -> None:
    certificate, key = tmp_path / "me.cert", tmp_path / "me.key"
    issued = own.issue_cert("client")
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    if case == "garbage":
        certificate.write_bytes(b"garbage")
    if case != "missing":
        other = own.issue_cert("other").private_key_pem.bytes()
        key.write_bytes({"another's key": other, "a locked key": locked(issued)}.get(case, b"x"))
    with pytest.raises(ConfigurationError) as raised:
        make_context(Certificates((), ((str(certificate), str(key)),)), verify=True)
    named = f"the key {key}: " if case == "missing" else f"the certificate {certificate}: "
    assert raised.value.message.startswith(named)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("unreadable", ["certificate", "key"])
def test_of_a_client_s_pair_the_one_that_may_not_be_read_is_named(
    unreadable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception names neither of the two."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", denied)
    monkeypatch.setattr(os, "access", lambda path, _: path != f"/me.{unreadable}")
    pair = ("/me.certificate", "/me.key")
    with pytest.raises(ConfigurationError) as raised:
        make_context(Certificates((), (pair,)), verify=True)
    assert raised.value.message == f"the {unreadable} /me.{unreadable}: Permission denied"
    assert raised.value.detail["file"] == f"/me.{unreadable}"


@real_time
async def test_a_broken_certificate_leaves_no_connection_open(tmp_path: Path) -> None:
    path = written(tmp_path, "bad.crt", b"garbage")
    dial = dialer(certificates=certificates_of(crt=(path,)))
    assert refused(await failure_of(keep_silent, "https", dial)) == CONFIGURATION


# --- metadata services --------------------------------------------------------------------------
#
# Whoever writes a redirect, a realm or the URL of a layer chooses where it leads. Clouds give the
# credentials of a machine to whatever asks from it: not even a connection may be made there.


class Resolver(trio.abc.HostnameResolver):
    """A resolver that has these addresses for each name, or another failure."""

    def __init__(self, *found: tuple[str, int] | Exception) -> None:
        self._found = found

    async def getaddrinfo(self, *_: Any, **__: Any) -> list[Any]:  # noqa: ANN401  (as trio has it)
        await trio.lowlevel.checkpoint()
        targets = []
        for each in self._found:
            if isinstance(each, Exception):
                raise each
            family = socket.AF_INET6 if ":" in each[0] else socket.AF_INET
            address = (*each, 0, 0) if ":" in each[0] else each
            targets.append((family, socket.SOCK_STREAM, 6, "", address))
        return targets

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what would have been connected to, while nothing is."""
    found: list[Any] = []

    async def connect(targets: Sequence[Target]) -> socket.socket:
        await trio.lowlevel.checkpoint()
        found.extend(address[0] for _, address in targets)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(tcp, "connect", connect)
    return found


THROUGH = {
    "directly": None,
    "forwarded": proxies.parse("http://127.0.0.1:1", "HTTP_PROXY"),
    "by a tunnel": proxies.parse("http://127.0.0.1:1", "HTTPS_PROXY"),
}


@pytest.mark.parametrize("how", THROUGH)
@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.0.1:8080", "[fe80::1]", "[::ffff:169.254.169.254]:80"),
        *("2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "169.254.43518", "169.254.169.254."),
        *("100.100.100.200", "192.0.0.192", "168.63.129.16", "[fd00:ec2::254]", "[fd20:ce::254]"),
        *("[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[2002:a9fe:a9fe::1]"),
        *("[::169.254.169.254]", "[2001:0:4136:e378:8000:63bf:5601:5601]"),
    ],
)
@real_time
async def test_a_foreign_host_may_not_be_a_metadata_service(
    host: str, how: str, connected: list[Any]
) -> None:
    scheme = "https" if how == "by a tunnel" else "http"
    with pytest.raises(Failure) as raised:
        await fetch(
            dialer("https://registry.test", proxy=THROUGH[how]), f"{scheme}://{host}/latest"
        )
    assert refused(raised.value) == BAD_UPSTREAM
    assert "serve the credentials of their machines: refused" in raised.value.message
    assert f"{scheme}://" in raised.value.message
    assert connected == []


@pytest.mark.parametrize(
    "found",
    [
        ["169.254.169.254"],
        ["fe80::1%eth0"],
        ["::ffff:169.254.1.1"],
        ["fd00:ec2::254"],
        ["64:ff9b::6464:64c8"],
        # Not even where another address would do.
        ["127.0.0.1", "100.100.100.200"],
        ["192.0.0.192", "127.0.0.1"],
    ],
)
@real_time
async def test_a_foreign_name_is_judged_by_its_addresses_before_a_connection(
    found: list[str], connected: list[Any]
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(*((each, 80) for each in found)))
    with pytest.raises(Failure) as raised:
        await fetch(dialer("https://registry.test"), "http://rebound.test/latest")
    assert refused(raised.value) == BAD_UPSTREAM
    assert "http://rebound.test/latest: leads to the " in raised.value.message
    assert connected == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "fd12::1"])
@real_time
async def test_a_foreign_name_may_have_another_internal_address(
    address: str, connected: list[Any]
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver((address, 80)))
    with pytest.raises(Failure) as raised:
        await fetch(dialer("https://registry.test"), "http://store.test/x")
    assert refused(raised.value) == UNREACHABLE
    assert connected == [address]


@pytest.mark.parametrize("url", ["http://registry.test/x", "http://169.254.169.254/x"])
@real_time
async def test_the_configured_host_may_have_any_address(url: str, connected: list[Any]) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(("169.254.169.254", 80)))
    with pytest.raises(Failure) as raised:
        await fetch(dialer(url), url)
    assert refused(raised.value) == UNREACHABLE
    assert connected == ["169.254.169.254"]


@real_time
async def test_the_proxy_may_have_any_address(connected: list[Any]) -> None:
    proxy = proxies.parse("http://169.254.1.1:3128", "HTTPS_PROXY")
    with pytest.raises(Failure) as raised:
        await fetch(dialer(proxy=proxy), "https://elsewhere.test/")
    assert refused(raised.value) == (504, "PROXY", True)
    assert connected == ["169.254.1.1"]


@real_time
async def test_without_a_configured_host_each_is_foreign(connected: list[Any]) -> None:
    """As those of layers outside of their registry."""
    dial = Dialer(None, "", lambda _: Certificates(), lambda _: None, verify=True)
    with pytest.raises(Failure) as raised:
        await fetch(dial, "http://169.254.169.254/")
    assert refused(raised.value) == BAD_UPSTREAM
    assert connected == []


@pytest.mark.parametrize("hop", [1, 2, 9])
@real_time
async def test_every_hop_of_a_redirect_is_judged(hop: int) -> None:
    asked = 0

    async def redirect(stream: trio.SocketStream) -> None:
        nonlocal asked
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                asked += 1
                to = "/again" if asked < hop else "http://2852039166/latest"
                await stream.send_all(answer(307, location=to))

    async with listening(redirect) as port:
        url = urls.parse(f"http://localhost:{port}/x")
        dial = dialer("http://localhost")
        client = Client(dial, Notes(), stall_timeout=20, user_agent="test/1")
        try:
            with pytest.raises(Failure) as raised:
                await follow(client.get, url, lambda _: {}, allow_http=True)
        finally:
            client.close()
    assert refused(raised.value) == BAD_UPSTREAM
    assert "http://2852039166/latest: leads to the link-local address 169.254.169.254" in (
        raised.value.message
    )
    assert asked == hop


@pytest.mark.parametrize("host", ["[fe80::1%25lo]", "[fe80::1%lo]", "[fe80::1%2525lo]"])
def test_a_zone_in_a_host_is_no_url(host: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        urls.parse(f"http://{host}/latest")


# --- internal addresses -------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@real_time
async def test_a_stream_has_the_address_of_its_server(scheme: str, authority: trustme.CA) -> None:
    serve = over_tls(server_context(authority.issue_cert("localhost")))
    async with listening(serve) as port:
        stream = await dialer()(urls.parse(f"{scheme}://localhost:{port}/"), tcp.Route())
        assert stream.peer == "127.0.0.1"
        stream.close()


@real_time
async def test_a_stream_through_a_proxy_has_none() -> None:
    """The proxy's own address, which is often internal, would say nothing about the server."""
    async with listening(keep_silent) as port:
        stream = await dialer(proxy=through(port))(urls.parse("http://registry.test/"), tcp.Route())
        assert stream.peer == ""
        stream.close()


# --- proxies ------------------------------------------------------------------------------------


def through(port: int, scheme: str = "http") -> Proxy:
    return proxies.parse(f"{scheme}://user:hunter2@127.0.0.1:{port}", "HTTPS_PROXY")


class Tunnel:
    """A proxy that answers CONNECT like this, and after a 200 acts as the server behind it."""

    def __init__(self, reply: bytes, behind: Serve | None = None) -> None:
        self.head = b""
        self._reply = reply
        self._behind = behind

    async def serve(self, stream: trio.SocketStream) -> None:
        self.head = b""
        with suppress(trio.BrokenResourceError):
            while not self.head.endswith(b"\r\n\r\n"):
                # Read single bytes, so that nothing of the handshake is taken.
                self.head += await stream.receive_some(1)
            await stream.send_all(self._reply)
            if self._behind is not None:
                await self._behind(stream)
            await stream.receive_some()


async def through_tunnel(tunnel: Tunnel, url: str = "https://registry.test/x") -> bytes:
    async with listening(tunnel.serve) as port:
        return await fetch(dialer("https://registry.test", proxy=through(port)), url)


CONNECTED = {
    "plain": b"HTTP/1.1 200 Connection established\r\n\r\n",
    "with a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    "by another 2xx": b"HTTP/1.0 204 No\r\nX: y\r\n\r\n",
    "with a malformed line": b"HTTP/1.1 200 OK\r\nVia : y\r\n\r\n",
    "after a 1xx": b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("how", CONNECTED)
@real_time
async def test_a_tunnel_leads_to_the_registry_and_keeps_the_credentials_to_itself(
    how: str, authority: trustme.CA
) -> None:
    heads: list[bytes] = []

    async def behind(stream: trio.SocketStream) -> None:
        context = server_context(authority.issue_cert("registry.test"))
        secure = trio.SSLStream(stream, context, server_side=True)
        heads.append(bytes(await secure.receive_some()))
        await secure.send_all(REPLY)
        await secure.receive_some()

    tunnel = Tunnel(CONNECTED[how], behind)
    assert await through_tunnel(tunnel) == BODY
    assert tunnel.head.startswith(
        b"CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test:443\r\n"
    )
    assert f"\r\nProxy-Authorization: {through(1).authorization}\r\n".encode() in tunnel.head
    assert b"authorization" not in heads[0].lower()


PROXY = "PROXY"
ANSWERS: dict[str, tuple[bytes, tuple[int, str, bool], str]] = {
    "407": (
        b"HTTP/1.1 407 Who are you?\r\nContent-Length: 2\r\n\r\nno",
        (403, PROXY, False),
        "answered 407 Who are you?",
    ),
    "403": (b"HTTP/1.1 403 \x1b[31mNo\r\n\r\n", (502, PROXY, False), "answered 403"),
    "404": (b"HTTP/1.1 404 No\r\n\r\n", (502, PROXY, False), "answered 404 No"),
    "502": (b"HTTP/1.1 502 Bad\r\n\r\n", (503, PROXY, True), "answered 502 Bad"),
    "503": (b"HTTP/1.1 503 Busy\r\n\r\n", (503, PROXY, True), "answered 503 Busy"),
    "301": (b"HTTP/1.1 301 X\r\nLocation: x\r\n\r\n", (502, PROXY, False), "answered 301"),
    "garbage": (b"SSH-2.0-OpenSSH\r\n\r\n", (502, PROXY, False), "broke HTTP"),
    "a switch": (b"HTTP/1.1 101 S\r\n\r\n", (502, PROXY, False), "broke HTTP"),
    "too large": (
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        (502, PROXY, False),
        "broke HTTP",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
@real_time
async def test_a_proxy_that_makes_no_tunnel_is_reported_without_its_password(case: str) -> None:
    reply, wanted, message = ANSWERS[case]
    with pytest.raises(Failure) as raised:
        await through_tunnel(Tunnel(reply))
    assert refused(raised.value) == wanted
    assert message in raised.value.message
    assert "CONNECT registry.test:443: the proxy http://127.0.0.1:" in raised.value.message
    assert "hunter2" not in raised.value.message
    assert "bytearray" not in raised.value.message
    assert raised.value.message.isprintable()


@real_time
async def test_a_proxy_that_hangs_up_is_unreachable() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async with listening(hang_up) as port:
        with pytest.raises(Failure) as raised:
            await fetch(dialer(proxy=through(port)), "https://registry.test/")
    assert refused(raised.value) == UNREACHABLE
    assert "(HTTPS_PROXY) closed the connection" in raised.value.message


@pytest.mark.parametrize("scheme", ["http", "https"])
@real_time
async def test_an_unreachable_proxy_is_distinguished_from_the_registry(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Failure) as raised:
        await fetch(dialer(proxy=through(port)), f"{scheme}://registry.test/")
    assert refused(raised.value) == (504, "PROXY", True)
    assert f"through the proxy http://127.0.0.1:{port} (HTTPS_PROXY)" in raised.value.message
    assert "hunter2" not in raised.value.message


@virtual_time
async def test_a_proxy_that_is_silent_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with elapsing(20), pytest.raises(Failure) as raised:
            await fetch(dialer(proxy=through(port)), "https://registry.test/")
    assert refused(raised.value) == UNREACHABLE


@pytest.mark.parametrize("scheme", ["http", "https"])
@real_time
async def test_plain_http_is_forwarded(scheme: str, authority: trustme.CA) -> None:
    heads: list[bytes] = []

    async def forward(stream: trio.abc.Stream) -> None:
        heads.append(bytes(await stream.receive_some()))
        await stream.send_all(REPLY)
        await stream.receive_some()

    async def serve(stream: trio.SocketStream) -> None:
        if scheme == "http":
            await forward(stream)
            return
        context = server_context(authority.issue_cert("127.0.0.1"))
        await forward(trio.SSLStream(stream, context, server_side=True))

    async with listening(serve) as port:
        dial = dialer("http://registry.test", proxy=through(port, scheme))
        assert await fetch(dial, "http://registry.test/x?y") == BODY
    assert heads[0].startswith(b"GET http://registry.test/x?y HTTP/1.1\r\nHost: registry.test\r\n")


# --- proxies over TLS ---------------------------------------------------------------------------


@asynccontextmanager
async def secure_tunnel(
    authority: trustme.CA, behind: Serve, name: str = "127.0.0.1"
) -> AsyncIterator[tuple[Tunnel, int]]:
    """Yield a proxy that is reached over TLS, and its port."""
    tunnel = Tunnel(CONNECTED["plain"], behind)
    context = server_context(authority.issue_cert(name))

    async def serve(stream: trio.SocketStream) -> None:
        await tunnel.serve(trio.SSLStream(stream, context, server_side=True))  # type: ignore[arg-type]

    async with listening(serve) as port:
        yield tunnel, port


LARGE = bytes(range(256)) * 4096


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@real_time
async def test_tls_goes_inside_of_the_tls_of_a_proxy(
    authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    """Two requests on one connection: what the first leaves behind is no surplus."""
    context = server_context(authority.issue_cert("registry.test"))
    context.maximum_version = version
    heads: list[bytes] = []

    async def behind(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        with suppress(trio.BrokenResourceError):
            while received := await secure.receive_some():
                heads.append(bytes(received))
                await secure.send_all(answer(body=LARGE))

    async with secure_tunnel(authority, behind) as (tunnel, port):
        dial = dialer("https://registry.test", proxy=through(port, "https"))
        client = Client(dial, Notes(), stall_timeout=20, user_agent="test/1")
        for _ in range(2):
            response = await client.get(urls.parse("https://registry.test/x"), {})
            assert await response.read(1 << 21) == LARGE
        client.close()
    assert tunnel.head.startswith(b"CONNECT registry.test:443 HTTP/1.1\r\n")
    assert tunnel.head.count(b"CONNECT") == 1
    assert len(heads) == 2
    assert b"authorization" not in heads[0].lower()


@real_time
async def test_a_body_within_two_layers_of_tls_that_is_cut_off_is_noticed(
    authority: trustme.CA,
) -> None:
    context = server_context(authority.issue_cert("registry.test"))

    async def behind(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.receive_some()
        await secure.send_all(answer(body=LARGE)[:-1])
        await stream.aclose()

    async with secure_tunnel(authority, behind) as (_, port):
        with pytest.raises(Failure) as raised:
            await fetch(
                dialer("https://registry.test", proxy=through(port, "https")),
                "https://registry.test/x",
            )
    assert refused(raised.value) == (503, "UNAVAILABLE", True)


@pytest.mark.parametrize("whose", ["the registry's", "the proxy's"])
@real_time
async def test_both_certificates_are_verified_and_the_message_says_whose_it_is(
    whose: str, authority: trustme.CA
) -> None:
    """A proxy with another certificate gets no credentials, as it may be anybody."""
    inner = "other.test" if whose == "the registry's" else "registry.test"
    outer = "127.0.0.1" if whose == "the registry's" else "proxy.test"
    behind = over_tls(server_context(authority.issue_cert(inner)))

    async def forgive(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await behind(stream)

    async with secure_tunnel(authority, forgive, outer) as (tunnel, port):
        dial = dialer("https://registry.test", proxy=through(port, "https"))
        with pytest.raises(Failure) as raised:
            await fetch(dial, "https://registry.test/x")
    assert refused(raised.value) == TLS
    assert ("through the proxy https://127.0.0.1" in raised.value.message) is (
        whose == "the proxy's"
    )
    wrong = inner if whose == "the registry's" else outer
    assert f"It is for {wrong}." in raised.value.message
    assert (tunnel.head == b"") is (whose == "the proxy's")


# --- SOCKS --------------------------------------------------------------------------------------

GREETING, WITH_LOGIN = b"\x05\x01\x00", b"\x05\x02\x00\x02"
LOGIN = b"\x01\x04user\x07hunter2"
ACCEPTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"
BY_IPV6 = b"\x05\x00\x00\x04" + bytes(18)
BY_NAME = b"\x05\x00\x00\x03\x04name\x00\x50"


class Socks:
    """A proxy that answers each message with the next of these, and then acts as the server."""

    def __init__(self, *replies: bytes, behind: Serve = answer_once) -> None:
        self.received: list[bytes] = []
        self._replies = replies
        self._behind = behind

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            for reply in self._replies:
                self.received.append(bytes(await stream.receive_some()))
                for byte in reply:  # one at a time
                    await stream.send_all(bytes([byte]))
            if self._replies[-1] in (ACCEPTED, BY_IPV6, BY_NAME):
                await self._behind(stream)


async def by_socks(
    proxy: Socks, url: str, value: str = "socks5h://127.0.0.1", home: str = "https://registry.test"
) -> bytes:
    async with listening(proxy.serve) as port:
        return await fetch(dialer(home, proxy=proxies.parse(f"{value}:{port}", "ALL_PROXY")), url)


@pytest.mark.parametrize("reply", [ACCEPTED, BY_IPV6, BY_NAME])
@pytest.mark.parametrize("scheme", ["http", "https"])
@real_time
async def test_a_socks_proxy_connects_to_a_name(
    scheme: str, reply: bytes, authority: trustme.CA
) -> None:
    secure = over_tls(server_context(authority.issue_cert("registry.test")))
    proxy = Socks(b"\x05\x00", reply, behind=secure if scheme == "https" else answer_once)
    assert await by_socks(proxy, f"{scheme}://registry.test/x") == BODY
    port = b"\x01\xbb" if scheme == "https" else b"\x00\x50"
    assert proxy.received == [GREETING, b"\x05\x01\x00\x03\x0dregistry.test" + port]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("[2001:db8::1]", b"\x04 \x01\r\xb8" + bytes(11) + b"\x01"),
    ],
)
@pytest.mark.parametrize("value", ["socks5://127.0.0.1", "socks5h://127.0.0.1"])
@real_time
async def test_an_address_is_sent_as_one(value: str, host: str, address: bytes) -> None:
    proxy = Socks(b"\x05\x00", ACCEPTED)
    assert await by_socks(proxy, f"http://{host}:80/x", value) == BODY
    assert proxy.received[1] == b"\x05\x01\x00" + address + b"\x00\x50"


@real_time
async def test_a_login_is_sent_where_it_is_wanted() -> None:
    value = "socks5h://user:hunter2@127.0.0.1"
    proxy = Socks(b"\x05\x02", b"\x01\x00", ACCEPTED)
    assert await by_socks(proxy, "http://registry.test/x", value) == BODY
    assert proxy.received[:2] == [WITH_LOGIN, LOGIN]
    proxy = Socks(b"\x05\x00", ACCEPTED)
    assert await by_socks(proxy, "http://registry.test/x", value) == BODY
    assert len(proxy.received) == 2


@pytest.mark.parametrize("value", ["socks5://127.0.0.1", "socks5h://127.0.0.1"])
@real_time
async def test_who_resolves_a_name_judges_its_addresses(value: str) -> None:
    """The credentials of a machine are as near through a proxy on it."""
    proxy = Socks(b"\x05\x00", ACCEPTED)
    resolver = Resolver(("169.254.169.254", 80))
    async with listening(proxy.serve) as port:
        dial = dialer(proxy=proxies.parse(f"{value}:{port}", "ALL_PROXY"))
        connect = tcp.look_up

        async def look_up(host: str, number: int) -> list[Target]:
            if host != "127.0.0.1":
                trio.socket.set_custom_hostname_resolver(resolver)
            try:
                return await connect(host, number)
            finally:
                trio.socket.set_custom_hostname_resolver(None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tcp, "look_up", look_up)
            if "socks5h" in value:  # only the proxy knows
                assert await fetch(dial, "http://rebound.test/x") == BODY
                return
            with pytest.raises(Failure) as raised:
                await fetch(dial, "http://rebound.test/x")
    assert refused(raised.value) == BAD_UPSTREAM
    assert "leads to the link-local address 169.254.169.254" in raised.value.message
    assert proxy.received == []


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]"])
@real_time
async def test_no_socks_proxy_is_asked_for_a_metadata_service(host: str) -> None:
    for value in ("socks5://127.0.0.1", "socks5h://127.0.0.1"):
        proxy = Socks(b"\x05\x00", ACCEPTED)
        with pytest.raises(Failure) as raised:
            await by_socks(proxy, f"http://{host}/x", value)
        assert refused(raised.value) == BAD_UPSTREAM
        assert proxy.received == []


DENIED, REFUSED, LATER = (403, PROXY, False), (502, PROXY, False), (503, PROXY, True)
SOCKS_ANSWERS = {
    "no method": ((b"\x05\xff",), DENIED, "wants another login than by a user"),
    "a wrong login": ((b"\x05\x02", b"\x01\x01"), DENIED, "refused the user or the password"),
    "an unknown method": ((b"\x05\x01",), REFUSED, "does not answer as SOCKS 5"),
    "SOCKS 4": ((b"\x00\x5b",), REFUSED, "does not answer as SOCKS 5"),
    "HTTP": ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), REFUSED, "does not answer as SOCKS 5"),
    "another version": ((b"\x05\x00", b"\x04\x00\x00\x01"), REFUSED, "does not answer as SOCKS"),
    "an unknown address": ((b"\x05\x00", b"\x05\x00\x00\x02"), REFUSED, "does not answer as"),
    "a failure": ((b"\x05\x00", b"\x05\x01\x00\x01"), LATER, "answered 1: a failure"),
    "a rule": ((b"\x05\x00", b"\x05\x02\x00\x01"), REFUSED, "answered 2: its rules"),
    "no network": ((b"\x05\x00", b"\x05\x03\x00\x01"), LATER, "answered 3: the network"),
    "no host": ((b"\x05\x00", b"\x05\x04\x00\x01"), LATER, "answered 4: the host"),
    "no server": ((b"\x05\x00", b"\x05\x05\x00\x01"), LATER, "5: the connection was refused"),
    "no time": ((b"\x05\x00", b"\x05\x06\x00\x01"), LATER, "answered 6"),
    "no command": ((b"\x05\x00", b"\x05\x07\x00\x01"), REFUSED, "answered 7"),
    "no address": ((b"\x05\x00", b"\x05\x08\x00\x01"), REFUSED, "answered 8"),
    "another": ((b"\x05\x00", b"\x05\x63\x00\x01"), REFUSED, "answered 99: an unknown reason"),
    "nothing": ((b"",), UNREACHABLE, "closed the connection"),
    "a part": ((b"\x05",), UNREACHABLE, "closed the connection"),
    "half": ((b"\x05\x00", ACCEPTED[:6]), UNREACHABLE, "closed the connection"),
}


@pytest.mark.parametrize("case", SOCKS_ANSWERS)
@real_time
async def test_a_socks_proxy_that_does_not_connect_is_reported_without_its_password(
    case: str,
) -> None:
    replies, wanted, message = SOCKS_ANSWERS[case]
    with pytest.raises(Failure) as raised:
        await by_socks(
            Socks(*replies), "https://registry.test/x", "socks5h://user:hunter2@127.0.0.1"
        )
    assert refused(raised.value) == wanted
    assert message in raised.value.message
    assert "the proxy socks5h://127.0.0.1:" in raised.value.message
    assert "hunter2" not in raised.value.message


@real_time
async def test_a_socks_proxy_is_told_a_name_of_some_length() -> None:
    host = ".".join(["a" * 60] * 5)
    with pytest.raises(Failure) as raised:
        await by_socks(Socks(b"\x05\x00", b""), f"http://{host}/x")
    assert refused(raised.value) == REFUSED
    assert "a name of 304 bytes" in raised.value.message


@real_time
async def test_the_next_address_is_told_where_the_first_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = tcp.look_up

    async def look_up(host: str, port: int) -> list[Target]:
        if host == "127.0.0.1":
            return await real(host, port)
        addresses = [("2001:db8::1", port, 0, 0), ("192.0.2.1", port)]
        return [(socket.AF_INET6, addresses[0]), (socket.AF_INET, addresses[1])]

    monkeypatch.setattr(tcp, "look_up", look_up)
    told: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(b"\x05\x00")
            told.append(bytes(await stream.receive_some())[3:4])
            await stream.send_all(b"\x05\x04\x00\x01" if len(told) == 1 else ACCEPTED)
            if len(told) > 1:
                await answer_once(stream)

    async with listening(serve) as port:
        proxy = proxies.parse(f"socks5://127.0.0.1:{port}", "ALL_PROXY")
        dial = dialer("http://registry.test", proxy=proxy)
        assert await fetch(dial, "http://registry.test/x") == BODY
        stream = await dial(urls.parse("http://registry.test/x"), tcp.Route())
        assert stream.peer == "2001:db8::1"
        stream.close()
    assert told[:2] == [b"\x04", b"\x01"]


# --- addresses ----------------------------------------------------------------------------------


@real_time
async def test_the_address_that_answers_is_used() -> None:
    """Happy eyeballs: an address that refuses or is silent does not decide."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = unused.getsockname()[1]
    async with listening(answer_once) as port:
        resolver = Resolver(("127.0.0.1", dead), ("127.0.0.1", port))
        trio.socket.set_custom_hostname_resolver(resolver)
        dial = dialer("http://registry.test")
        assert await fetch(dial, f"http://registry.test:{port}/") == BODY


async def hang_up(stream: trio.SocketStream) -> None:
    """Reset the connection in place of an answer."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.receive_some(1)


async def reset(stream: trio.SocketStream) -> None:
    """Reset the connection at once."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("fault", [hang_up, reset, keep_silent])
@real_time
async def test_another_try_begins_at_another_address(
    fault: Serve, scheme: str, authority: trustme.CA
) -> None:
    """Also where the first one accepts connections, and fails only then."""
    serve = over_tls(server_context(authority.issue_cert("localhost")))
    serve = serve if scheme == "https" else answer_once
    async with listening(fault, "127.0.0.2") as bad, listening(serve) as good:
        resolver = Resolver(("127.0.0.2", bad), ("127.0.0.1", good))
        trio.socket.set_custom_hostname_resolver(resolver)
        client = Client(dialer(), Notes(), stall_timeout=0.5, user_agent="test/1")
        url = urls.parse(f"{scheme}://localhost/")
        with pytest.raises(Failure) as raised:
            await client.get(url, {})
        assert raised.value.is_transient
        assert " at 127.0.0.2: " in raised.value.message
        assert await (await client.get(url, {})).read(100) == BODY
        client.close()


@real_time
async def test_addresses_that_all_fail_are_named() -> None:
    resolver = Resolver(("127.0.0.2", 9), ("127.0.0.1", 9))
    trio.socket.set_custom_hostname_resolver(resolver)
    with pytest.raises(Failure) as raised:
        await fetch(dialer(), "https://localhost:9/")
    assert raised.value.message == (
        "connecting to https://localhost:9 at 127.0.0.2, 127.0.0.1: Connection refused"
    )


@real_time
async def test_a_name_that_does_not_exist_is_reported_in_the_system_s_words() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    trio.socket.set_custom_hostname_resolver(Resolver(unknown))
    with pytest.raises(Failure) as raised:
        await fetch(dialer(), "http://nowhere.test/")
    assert raised.value.status == 504
    assert "connecting to http://nowhere.test:80: Name or service not known" in raised.value.message


@real_time
async def test_nothing_of_a_connection_is_left_when_the_tunnel_cannot_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(dialling, "_request_tunnel", broken)
    async with listening(keep_silent) as port:
        with pytest.raises(Failure) as raised:
            await fetch(dialer(proxy=through(port)), "https://registry.test/")
    assert refused(raised.value) == UNREACHABLE

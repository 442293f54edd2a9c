"""Proxies that the environment names: one that tunnels and forwards, and knows users.

It leads hosts that nobody else knows to servers on loopback, so that whatever arrives came by it.
"""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.networks import Proxy, forward_proxy, line_to
from support.servers import (
    Certificates,
    basic,
    certificates,
    free_port,
    nginx,
    require,
    running,
    skip,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child

# RFC 2606: these names are nobody's.
SECURE, PLAIN, HUB = "secure.example", "plain.example:5000", "registry-1.docker.io"
OPTION = "--tls-verify=false"
USER, PASSWORD = "us er", "p@ss/word:1"
USERINFO = "us%20er:p%40ss%2Fword:1"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"), SECURE, HUB)


@pytest.fixture(scope="module")
def places(
    registry: Registry, tls: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    config = f"""
        location / {{
            rewrite ^/v2/library/all/(.*)$ /v2/images/all/$1 break;
            proxy_pass http://{registry.address};
        }}
    """
    with nginx(tmp_path_factory.mktemp("nginx"), config, tls=tls) as front:
        yield {
            f"{SECURE}:443": front,
            f"{HUB}:443": front,
            PLAIN: registry.address,
        }


@pytest.fixture
def proxy(places: dict[str, str]) -> Iterator[Proxy]:
    with forward_proxy(places) as proxy:
        yield proxy


@pytest.fixture
def guarded(places: dict[str, str]) -> Iterator[Proxy]:
    """Return a proxy that knows one user."""
    with forward_proxy(places, basic(USER, PASSWORD)) as proxy:
        yield proxy


def assert_pulled(child: Child, registry: Registry) -> None:
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert reply.body == registry.layout.read(registry.images["latest"]["digest"])
    for layer in registry.layers("latest"):
        blob = child.client.get(f"/blobs/{layer['digest']}")
        assert blob.body == registry.layout.read(layer["digest"])
    assert child.finish() == 0


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_goes_through_a_tunnel(
    variable: str, proxy: Proxy, registry: Registry, tls: Certificates, pull: Pull
) -> None:
    """One tunnel for everything, and the registry's certificate is verified inside."""
    env = {variable: f"http://{proxy.address}", "SSL_CERT_FILE": str(tls.authority)}
    assert_pulled(pull(registry.name(":latest", SECURE), env=env), registry)
    assert [str(each) for each in proxy.asked] == [f"CONNECT {SECURE}:443"]


def test_a_tunnel_is_no_reason_to_trust(proxy: Proxy, registry: Registry, pull: Pull) -> None:
    child = pull(registry.name(":latest", SECURE), env={"HTTPS_PROXY": f"http://{proxy.address}"})
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (502, "TLS")
    assert child.finish() == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_plain_http_is_forwarded_in_absolute_form(
    variable: str, proxy: Proxy, registry: Registry, pull: Pull
) -> None:
    env = {variable: f"http://{proxy.address}"}
    assert_pulled(pull(registry.name(":latest", PLAIN), OPTION, "--retries=0", env=env), registry)
    gets = [each for each in proxy.asked if each.method == "GET"]
    assert len(gets) == 3
    assert all(each.target.startswith(f"http://{PLAIN}/v2/images/all/") for each in gets)
    assert all(each.fields["host"] == PLAIN for each in gets)


def test_user_and_password_are_for_the_proxy_alone(
    guarded: Proxy, registry: Registry, tls: Certificates, pull: Pull
) -> None:
    env = {"HTTPS_PROXY": f"http://{USERINFO}@{guarded.address}"}
    env["SSL_CERT_FILE"] = str(tls.authority)
    child = pull(registry.name(":latest", SECURE), "--debug", env=env)
    assert_pulled(child, registry)
    assert len(guarded.asked) == 1
    assert PASSWORD not in child.stderr
    assert USERINFO not in child.stderr


def test_user_and_password_go_along_with_what_is_forwarded(
    guarded: Proxy, registry: Registry, pull: Pull
) -> None:
    env = {"HTTP_PROXY": f"http://{USERINFO}@{guarded.address}"}
    child = pull(registry.name(":latest", PLAIN), OPTION, "--retries=0", env=env)
    assert_pulled(child, registry)


@pytest.mark.parametrize("userinfo", ["", f"{USER.replace(' ', '%20')}:wrong-secret@"])
@pytest.mark.parametrize(("host", "options"), [(SECURE, []), (PLAIN, [OPTION])])
def test_refused_credentials_are_told_as_the_proxys(
    host: str, options: list[str], userinfo: str, guarded: Proxy, registry: Registry, pull: Pull
) -> None:
    child = pull(
        registry.name(":latest", host),
        "--retries=0",
        "--debug",
        *options,
        env={"ALL_PROXY": f"http://{userinfo}{guarded.address}"},
    )
    reply = child.client.get("/manifest")
    assert reply.status in {403, 502}, reply.body
    assert "407" in reply.message
    assert guarded.address in reply.message
    assert "ALL_PROXY" in reply.message
    assert reply.error["detail"]["retryable"] is False
    assert child.finish() == 0
    assert "wrong-secret" not in reply.message + child.stderr


def test_a_proxy_that_does_not_know_the_host_says_so(
    proxy: Proxy, registry: Registry, pull: Pull
) -> None:
    env = {"HTTPS_PROXY": f"http://{proxy.address}"}
    child = pull(registry.name(":latest", "unknown.example"), "--retries=0", env=env)
    reply = child.client.get("/manifest")
    assert reply.status in {502, 503, 504}, reply.body
    assert "unknown.example:443" in reply.message
    assert proxy.address in reply.message
    assert child.finish() == 0


def test_a_dead_proxy_is_a_504_that_names_it(registry: Registry, pull: Pull) -> None:
    child = pull(
        registry.name(":latest", SECURE), "--retries=0", env={"HTTPS_PROXY": "http://127.0.0.1:9"}
    )
    reply = child.client.get("/manifest")
    assert reply.status == 504, reply.body
    assert reply.error["detail"]["retryable"] is True
    assert SECURE in reply.message
    assert "127.0.0.1:9" in reply.message, "or nobody knows who did not answer"
    assert child.finish() == 0


UNUSABLE = ["socks4://127.0.0.1:1080", "ftp://x:1", "http://u:hidden@:x"]


def test_an_unusable_proxy_is_a_500_that_names_the_variable(
    together: Together, registry: Registry
) -> None:
    def check(value: str, pull: Pull, _: Home) -> None:
        child = pull(registry.name(":latest", SECURE), env={"HTTPS_PROXY": value})
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (500, "CONFIGURATION"), reply.body
        assert "HTTPS_PROXY" in reply.message
        assert "hidden" not in reply.message
        assert child.finish() == 0

    together({value: value for value in UNUSABLE}, check)


def own_address() -> str:
    """Return an address of this host that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            skip("this host has no address but loopback")
        address: str = sock.getsockname()[0]
    return skip("loopback is never proxied") if address.startswith("127.") else address


EXEMPTIONS = {"": True, "OWN": False, "OWN/30": False, "x.io, *": False}


def test_no_proxy_exempts_hosts(
    together: Together, registry: Registry, places: dict[str, str]
) -> None:
    host = own_address()

    def check(case: tuple[str, bool], pull: Pull, _: Home) -> None:
        exempt, proxied = case
        with line_to(registry.address, host=host) as line:
            with forward_proxy({**places, line.address: line.address}) as proxy:
                env = {"ALL_PROXY": proxy.address, "NO_PROXY": exempt.replace("OWN", host)}
                image = registry.name(":latest", line.address)
                assert_pulled(pull(image, OPTION, "--retries=0", env=env), registry)
            assert len(line.asked) == 3
            assert bool(proxy.asked) is proxied

    together({exempt: (exempt, proxied) for exempt, proxied in EXEMPTIONS.items()}, check)


def test_loopback_is_never_proxied(proxy: Proxy, registry: Registry, pull: Pull) -> None:
    env = {"ALL_PROXY": f"http://{proxy.address}"}
    assert_pulled(pull(registry.name(":latest"), OPTION, env=env), registry)
    assert proxy.asked == []


# --- SOCKS, and proxies over TLS: microsocks and stunnel ----------------------------------------


@contextmanager
def microsocks(directory: Path, *options: str) -> Iterator[str]:
    port = free_port()
    arguments = [require("microsocks"), "-i", "127.0.0.1", "-p", str(port), *options]
    with running(arguments, port, directory / "microsocks.log"):
        yield f"127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("is_secure", [True, False])
def test_everything_goes_through_a_socks_proxy(
    is_secure: bool,  # noqa: FBT001  (a parameter)
    scheme: str,
    registry: Registry,
    pull: Pull,
    tmp_path: Path,
) -> None:
    host = own_address()
    tls = certificates(tmp_path / "tls", host)
    with (
        nginx(
            tmp_path / "nginx", f"location / {{ proxy_pass http://{registry.address}; }}", tls=tls
        ) as front,
        line_to(front if is_secure else registry.address, host=host) as line,
        microsocks(tmp_path, "-u", USER, "-P", PASSWORD) as socks,
    ):
        env = {"ALL_PROXY": f"{scheme}://{USERINFO}@{socks}", "SSL_CERT_FILE": str(tls.authority)}
        options = ["--retries=0", "--debug", *([] if is_secure else [OPTION])]
        child = pull(registry.name(":latest", line.address), *options, env=env)
        assert_pulled(child, registry)
        assert PASSWORD not in child.stderr
        for wrong in ("", "nobody:wrong-secret@"):
            env["ALL_PROXY"] = f"{scheme}://{wrong}{socks}"
            child = pull(registry.name(":latest", line.address), *options, env=env)
            reply = child.client.get("/manifest")
            assert reply.status == 403, reply.body
            assert reply.code == "PROXY"
            assert f"{scheme}://{socks} (ALL_PROXY)" in reply.message
            assert child.finish() == 0
            assert "wrong-secret" not in reply.message + child.stderr


def test_a_socks_proxy_that_cannot_connect_says_so(
    registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    host = own_address()
    with microsocks(tmp_path) as socks:
        child = pull(
            registry.name(":latest", f"{host}:9"),
            "--retries=0",
            env={"HTTPS_PROXY": f"socks5h://{socks}"},
        )
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (503, "PROXY"), reply.body
        assert "the connection was refused" in reply.message
        assert child.finish() == 0


@contextmanager
def over_tls(directory: Path, address: str, tls: Certificates) -> Iterator[str]:
    """Yield the address at which a server is reached over TLS."""
    port = free_port()
    config = directory / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\n[proxy]\naccept = 127.0.0.1:{port}\nconnect = {address}\n"
        f"cert = {tls.certificate}\nkey = {tls.key}\n"
    )
    with running([require("stunnel"), str(config)], port, directory / "stunnel.log"):
        yield f"127.0.0.1:{port}"


@pytest.mark.slow
def test_tls_goes_inside_of_the_tls_of_a_proxy(
    guarded: Proxy, registry: Registry, tls: Certificates, pull: Pull, tmp_path: Path
) -> None:
    outer = certificates(tmp_path / "outer")
    both = tmp_path / "both.pem"
    both.write_bytes(tls.authority.read_bytes() + outer.authority.read_bytes())
    with over_tls(tmp_path, guarded.address, outer) as secure:
        env = {"HTTPS_PROXY": f"https://{USERINFO}@{secure}", "SSL_CERT_FILE": str(both)}
        child = pull(registry.name(":latest", SECURE), "--debug", env=env)
        assert_pulled(child, registry)
        assert [str(each) for each in guarded.asked] == [f"CONNECT {SECURE}:443"]
        assert PASSWORD not in child.stderr
        for trusted, words in (
            (tls, "through the proxy https://"),
            (outer, f"connecting to https://{SECURE}:443: TLS failed"),
        ):
            env["SSL_CERT_FILE"] = str(trusted.authority)
            child = pull(registry.name(":latest", SECURE), env=env)
            reply = child.client.get("/manifest")
            assert (reply.status, reply.code) == (502, "TLS"), reply.body
            assert words in reply.message
            assert child.finish() == 0


@pytest.mark.slow
def test_docker_hub_has_several_names(
    proxy: Proxy, registry: Registry, tls: Certificates, pull: Pull
) -> None:
    """Its images are at another host than its name says, and its logins under a third."""
    env = {"HTTPS_PROXY": f"http://{proxy.address}", "SSL_CERT_FILE": str(tls.authority)}
    for image in ("docker://all", "docker://docker.io/library/all", "docker://index.docker.io/all"):
        assert_pulled(pull(image, env=env), registry)
    assert {str(each) for each in proxy.asked} == {f"CONNECT {HUB}:443"}


def test_a_store_is_asked_for_docker_hub_by_the_name_that_docker_uses(
    registry: Registry,
    tls: Certificates,
    pull: Pull,
    home: Home,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wanted = basic("reader", "s3cret")
    config = f"""
        if ($http_authorization != "{wanted}") {{ return 401; }}
        add_header WWW-Authenticate 'Basic realm="hub"' always;
        location / {{
            rewrite ^/v2/library/all/(.*)$ /v2/images/all/$1 break;
            proxy_pass http://{registry.address};
        }}
    """
    answer = json.dumps({"ServerURL": "", "Username": "reader", "Secret": "s3cret"})
    home.program(
        "docker-credential-test",
        f"""server=$(cat); echo "$server" >> {home.path}/asked
        [ "$server" = https://index.docker.io/v1/ ] && echo '{answer}' && exit
        echo credentials not found in native keychain; exit 1""",
    )
    home.write(".docker/config.json", {"credsStore": "test"})
    with (
        nginx(tmp_path_factory.mktemp("hub"), config, tls=tls) as hub,
        forward_proxy({f"{HUB}:443": hub}) as proxy,
    ):
        env = {"HTTPS_PROXY": f"http://{proxy.address}", "SSL_CERT_FILE": str(tls.authority)}
        assert_pulled(pull("docker://all", env=env), registry)
    assert "https://index.docker.io/v1/" in (home.path / "asked").read_text().split()

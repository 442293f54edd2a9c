"""TLS as administrators set it up: nginx with certificates of an authority that nobody knows."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from support.home import REGISTRIES_CONF, table
from support.servers import Certificates, certificates, http_server, nginx, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child
    from support.servers import Answering

CLASSIC, NEW = ".config/containers/certs.d", "xdg/containers/certs.d"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


def proxied(registry: Registry, *directives: str) -> str:
    location = f"location / {{ proxy_pass http://{registry.address}; }}"
    return "\n".join([*directives, location])


@pytest.fixture(scope="module")
def front(
    registry: Registry, tls: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the address of the registry behind TLS."""
    with nginx(tmp_path_factory.mktemp("front"), proxied(registry), tls=tls) as address:
        yield address


@pytest.fixture(scope="module")
def strict(
    registry: Registry, tls: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the address of the registry behind TLS that wants a client's certificate."""
    config = proxied(registry, f"ssl_verify_client on; ssl_client_certificate {tls.authority};")
    with nginx(tmp_path_factory.mktemp("strict"), config, tls=tls) as address:
        yield address


def assert_pulled(child: Child, registry: Registry) -> None:
    assert_manifest(child, registry)
    (layer,) = registry.layers("large")
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.body == registry.layout.read(layer["digest"])
    assert child.finish() == 0


def assert_manifest(child: Child, registry: Registry) -> None:
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert reply.body == registry.layout.read(registry.images["large"]["digest"])


def assert_refused(child: Child, status: int, code: str, *words: str) -> None:
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (status, code), reply.body
    assert reply.error["detail"]["retryable"] is False
    assert all(word in reply.message for word in words), reply.message
    assert child.finish() == 0


# --- authorities -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_directory_of_a_registry_names_its_authorities(
    host: str, front: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    """By the name that the reference has."""
    address = front.replace("127.0.0.1", host)
    home.write(f"{CLASSIC}/{address}/any.crt", tls.authority.read_bytes())
    assert_pulled(pull(registry.name(":large", address)), registry)


def test_the_directory_of_another_registry_does_not_count(
    front: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(f"{CLASSIC}/localhost:{front.partition(':')[2]}/ca.crt", tls.authority.read_bytes())
    home.write(f"{CLASSIC}/127.0.0.1/ca.crt", tls.authority.read_bytes())
    child = pull(registry.name(":large", front))
    assert_refused(child, 502, "TLS", "certificate", "--tls-verify=false", front)


@pytest.mark.slow
def test_the_new_order_begins_with_xdg_config_home(
    front: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    """And the first directory there is is the only one."""
    xdg = str(home.path / "xdg")
    image = registry.name(":large", front)
    home.write(f"{NEW}/{front}/ca.crt", tls.authority.read_bytes())
    home.write(f"{CLASSIC}/{front}/no-authority", "")
    assert_pulled(pull(image, env={"XDG_CONFIG_HOME": xdg}), registry)
    assert_refused(pull(image), 502, "TLS")


def test_an_option_names_the_directory_for_every_host(
    front: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    directory = home.write("certs/ca.crt", tls.authority.read_bytes()).parent
    home.write(f"{CLASSIC}/{front}/broken.crt", "no certificate")
    assert_pulled(pull(registry.name(":large", front), f"--cert-dir={directory}"), registry)


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Path]:
    """Return what a server behind an intermediate authority has, and that authority alone."""
    import trustme

    directory = tmp_path_factory.mktemp("issued")
    root = trustme.CA()
    intermediate = root.create_child_ca()
    leaf = intermediate.issue_cert("127.0.0.1", "localhost")
    files = Certificates(directory / "root.pem", directory / "chain.pem", directory / "key.pem")
    root.cert_pem.write_to_path(str(files.authority))
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(files.key))
    intermediate.cert_pem.write_to_path(str(directory / "intermediate.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(directory / "leaf.pem"))
    return files, directory


@pytest.mark.slow
@pytest.mark.parametrize("trusted", ["root", "intermediate", "leaf"])
def test_any_certificate_of_the_chain_is_an_anchor(
    trusted: str,
    issued: tuple[Certificates, Path],
    registry: Registry,
    pull: Pull,
    home: Home,
    tmp_path: Path,
) -> None:
    """As for skopeo and curl: who installs one trusts it, whoever has signed it."""
    files, directory = issued
    with nginx(tmp_path / "nginx", proxied(registry), tls=files) as address:
        certs = home.write(
            f"{CLASSIC}/{address}/ca.crt", (directory / f"{trusted}.pem").read_bytes()
        )
        assert_pulled(pull(registry.name(":large", address)), registry)
        by_skopeo = [require("skopeo"), "inspect", "--raw", f"--cert-dir={certs.parent}"]
        subprocess.run(
            [*by_skopeo, registry.name(":large", address)],
            check=True,
            timeout=30,
            capture_output=True,
        )


def test_the_certificate_of_another_server_is_no_anchor(
    issued: tuple[Certificates, Path], front: str, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(f"{CLASSIC}/{front}/ca.crt", (issued[1] / "leaf.pem").read_bytes())
    assert_refused(pull(registry.name(":large", front)), 502, "TLS", "issuer")


BROKEN = {
    "no certificate": {"ca.crt": "nothing of the kind"},
    "half of a pair": {"me.cert": "TLS"},
    "the other half": {"me.key": "TLS"},
    "no key": {"me.cert": "TLS", "me.key": "nothing of the kind"},
}


@pytest.mark.slow
def test_a_broken_certificate_is_a_500_that_names_the_file(
    together: Together, front: str, tls: Certificates, registry: Registry
) -> None:
    def check(files: dict[str, str], pull: Pull, home: Home) -> None:
        for name, content in files.items():
            text = tls.certificate.read_text() if content == "TLS" else content
            home.write(f"{CLASSIC}/{front}/{name}", text)
        child = pull(registry.name(":large", front))
        assert_refused(child, 500, "CONFIGURATION", f"{CLASSIC}/{front}", next(iter(files)))

    together(BROKEN, check)


# --- client certificates ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_certificate_is_shown(
    strict: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(f"{CLASSIC}/{strict}/ca.crt", tls.authority.read_bytes())
    home.write(f"{CLASSIC}/{strict}/me.cert", tls.certificate.read_bytes())
    home.write(f"{CLASSIC}/{strict}/me.key", tls.key.read_bytes())
    assert_pulled(pull(registry.name(":large", strict)), registry)


@pytest.mark.slow
@pytest.mark.parametrize("shown", [True, False])
def test_a_client_certificate_may_be_asked_for_after_the_request(
    shown: bool,  # noqa: FBT001  (a parameter)
    tls: Certificates,
    registry: Registry,
    pull: Pull,
    home: Home,
) -> None:
    """TLS 1.3, RFC 8446 section 4.6.2: what Apache does where a path alone requires one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(tls.certificate, tls.key)
    context.post_handshake_auth = True
    context.verify_mode = ssl.CERT_REQUIRED

    def get(request: Answering) -> None:
        connection = request.connection
        assert isinstance(connection, ssl.SSLSocket)
        if not connection.getpeercert():
            try:
                connection.verify_client_post_handshake()
                connection.settimeout(0.1)
                for _ in range(50):  # the answer is read by reading what else there may be
                    with suppress(TimeoutError):
                        connection.recv(1)
                    if connection.getpeercert():
                        break
                connection.settimeout(None)
            except ssl.SSLError:
                request.answer(403, b"no certificate")
                return
        request.answer(307, b"", Location=f"http://{registry.address}{request.path}")

    with http_server(get, tls=context) as address:
        home.write(f"{CLASSIC}/{address}/ca.crt", tls.authority.read_bytes())
        if shown:
            home.write(f"{CLASSIC}/{address}/me.cert", tls.certificate.read_bytes())
            home.write(f"{CLASSIC}/{address}/me.key", tls.key.read_bytes())
        child = pull(registry.name(":large", address), "--tls-verify=false")
        if shown:
            assert_pulled(child, registry)
        else:
            assert_refused(child, 403, "DENIED", "no certificate")


def test_without_a_client_certificate_the_server_has_its_say(
    strict: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(f"{CLASSIC}/{strict}/ca.crt", tls.authority.read_bytes())
    child = pull(registry.name(":large", strict))
    assert_refused(child, 502, "BAD_UPSTREAM", "400", strict)


def test_a_key_with_a_password_is_an_error_and_no_question(
    strict: str, tls: Certificates, registry: Registry, pull: Pull, home: Home
) -> None:
    home.write(f"{CLASSIC}/{strict}/ca.crt", tls.authority.read_bytes())
    home.write(f"{CLASSIC}/{strict}/me.cert", tls.certificate.read_bytes())
    key = home.path / CLASSIC / strict / "me.key"
    openssl = [require("openssl"), "rsa", "-in", str(tls.key), "-aes256", "-passout", "pass:abc"]
    subprocess.run([*openssl, "-out", str(key)], check=True, capture_output=True, timeout=30)
    child = pull(registry.name(":large", strict))
    assert_refused(child, 500, "CONFIGURATION", "me.cert")


# --- versions, dates, names ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_tls_1_2_and_1_3_are_spoken(
    version: str, tls: Certificates, registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    config = proxied(registry, f"ssl_protocols {version};")
    with nginx(tmp_path / "nginx", config, tls=tls) as address:
        child = pull(registry.name(":large", address), env={"SSL_CERT_FILE": str(tls.authority)})
        assert_pulled(child, registry)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--tls-verify=false",)])
def test_what_is_older_than_tls_1_2_is_refused(
    options: tuple[str, ...],
    tls: Certificates,
    registry: Registry,
    pull: Pull,
    tmp_path: Path,
) -> None:
    config = proxied(registry, "ssl_protocols TLSv1 TLSv1.1; ssl_ciphers DEFAULT@SECLEVEL=0;")
    with nginx(tmp_path / "nginx", config, tls=tls) as address:
        assert_speaks_tls_1_1(address)
        image = registry.name(":large", address)
        child = pull(image, *options, "--retries=0", env={"SSL_CERT_FILE": str(tls.authority)})
        reply = child.client.get("/manifest")
        assert 500 < reply.status <= 504, reply.body
        assert address in reply.message
        assert child.finish() == 0


def assert_speaks_tls_1_1(address: str) -> None:
    """Make sure that it is not the server that refuses."""
    command = [require("openssl"), "s_client", "-connect", address, "-tls1_1"]
    command += ["-cipher", "DEFAULT@SECLEVEL=0"]
    result = subprocess.run(command, input=b"", capture_output=True, timeout=30, check=False)
    assert b"Protocol  : TLSv1.1" in result.stdout or b"TLSv1.1" in result.stdout


@pytest.mark.parametrize("what", ["expired", "another name"])
def test_a_certificate_that_does_not_fit_is_refused(
    what: str, registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    import trustme

    authority = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    issued = (
        authority.issue_cert("127.0.0.1", not_before=yesterday, not_after=yesterday)
        if what == "expired"
        else authority.issue_cert("other.example")
    )
    files = Certificates(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    authority.cert_pem.write_to_path(str(files.authority))
    issued.cert_chain_pems[0].write_to_path(str(files.certificate))
    issued.private_key_pem.write_to_path(str(files.key))
    with nginx(tmp_path / "nginx", proxied(registry), tls=files) as address:
        child = pull(registry.name(":large", address), env={"SSL_CERT_FILE": str(files.authority)})
        facts = (
            [f"until {yesterday:%Y-%m-%dT%H:%M:%SZ}", f"{datetime.now(UTC):%Y-%m-%dT}"]
            if what == "expired"
            else ["'127.0.0.1'", "It is for other.example."]
        )
        assert_refused(child, 502, "TLS", "--tls-verify=false", address, *facts)


# A setting, the option, and whether a certificate of nobody's is accepted.
ACCEPTANCE = [
    ("insecure = true", "", True),
    ("insecure = true", "--tls-verify=true", False),
    ("insecure = true", "--tls-verify=false", True),
    ("insecure = false", "", False),
    ("", "--tls-verify=false", True),
]


def test_insecure_accepts_any_certificate_and_the_option_decides(
    together: Together, front: str, registry: Registry
) -> None:
    def check(case: tuple[str, str, bool], pull: Pull, home: Home) -> None:
        setting, option, accepted = case
        home.write(REGISTRIES_CONF, table("", front, setting))
        child = pull(registry.name(":large", front), *filter(None, [option]))
        if accepted:
            assert_manifest(child, registry)
            assert child.finish() == 0
        else:
            assert_refused(child, 502, "TLS")

    together(
        {f"{setting} {option}": (setting, option, yes) for setting, option, yes in ACCEPTANCE},
        check,
    )


@pytest.mark.slow
def test_a_redirect_has_the_certificates_of_its_own_host(
    front: str, tls: Certificates, registry: Registry, pull: Pull, home: Home, tmp_path: Path
) -> None:
    """The directory of the registry says nothing of whom it redirects to."""
    port = front.partition(":")[2]
    redirect = f"return 307 https://localhost:{port}$request_uri;"
    other = certificates(tmp_path / "other")
    with nginx(tmp_path / "nginx", f"location / {{ {redirect} }}", tls=other) as address:
        home.write(f"{CLASSIC}/{address}/ca.crt", other.authority.read_bytes())
        image = registry.name(":large", address)
        assert_refused(pull(image), 502, "TLS", f"localhost:{port}")
        home.write(f"{CLASSIC}/localhost:{port}/ca.crt", tls.authority.read_bytes())
        assert_pulled(pull(image), registry)

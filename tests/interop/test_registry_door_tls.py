"""`imgproxy registry` over TLS, asked by curl, skopeo and openssl."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import registry_doors
from support.parent import LIMIT, Client, eventually
from support.protected_doors import curl, https, tls_options, usage_error
from support.registry_clients import run
from support.registry_doors import NAME, blob
from support.servers import Certificates, certificates, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.home import Home
    from support.registry_doors import Door, Stock

BROKEN = b"-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(stock: Stock, files: Certificates) -> Iterator[Door]:
    """Return a registry that speaks TLS."""
    options = ("--images", str(stock.layout.path), *tls_options(files), "--debug")
    with registry_doors.running(*options) as door:
        yield door


def handshake(door: Door, *options: str | Path) -> str:
    """Return what openssl says about a handshake."""
    result = subprocess.run(
        [require("openssl"), "s_client", "-connect", door.address, *options],
        input="",
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return result.stdout + result.stderr


def test_blobs_come_over_tls_and_nothing_without(
    secure: Door, files: Certificates, stock: Stock, tmp_path: Path
) -> None:
    target = blob(NAME, stock.layer["digest"])
    reply = https(secure, target, files, "-o", tmp_path / "blob")
    assert reply.status == 200, reply
    assert (tmp_path / "blob").read_bytes() == stock.read(stock.layer)
    plain = curl(f"http://127.0.0.1:{secure.port}{target}")
    assert (plain.status, "use https" in plain.body) == (400, True), plain


@pytest.mark.slow
def test_http_1_1_is_negotiated_and_the_end_is_said(secure: Door, files: Certificates) -> None:
    said = handshake(secure, "-alpn", "h2,http/1.1", "-CAfile", files.authority)
    assert "ALPN protocol: http/1.1" in said
    assert "Verify return code: 0 (ok)" in said
    assert "unexpected eof" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("version", "speaks"), [("1_1", False), ("1_2", True), ("1_3", True)])
def test_old_versions_are_refused(secure: Door, version: str, *, speaks: bool) -> None:
    said = handshake(secure, f"-tls{version}", "-cipher", "ALL:@SECLEVEL=0")
    assert ("alert protocol version" not in said) == speaks, said


@pytest.mark.slow
def test_a_client_that_trusts_another_authority_is_no_failure(
    secure: Door, files: Certificates, tmp_path: Path
) -> None:
    before = secure.child.stderr
    other = certificates(tmp_path / "other")
    assert "certificate" in https(secure, "/v2/", other).trouble
    assert https(secure, "/v2/", files).status == 200
    assert all("the parent is gone" in line or " 200, " in line for line in new(secure, before))


def new(door: Door, before: str) -> list[str]:
    return door.child.stderr.removeprefix(before).splitlines()


@pytest.mark.slow
def test_skopeo_pulls_with_certs_d(
    secure: Door, files: Certificates, stock: Stock, home: Home
) -> None:
    host = f"localhost:{secure.port}"
    certs = home.write(f"certs/{host}/ca.crt", files.authority.read_bytes()).parent
    options = ("--insecure-policy", "copy", "--preserve-digests", f"--src-cert-dir={certs}")
    pulled = run([require("skopeo"), *options, f"docker://{host}/{NAME}:1", "dir:to"], home)
    assert pulled.status == 0, pulled.output
    assert (home.path / "to/manifest.json").read_bytes() == stock.read(stock.app)


@pytest.mark.slow
def test_certificates_are_rotated_while_it_runs(stock: Stock, tmp_path: Path) -> None:
    used, other = certificates(tmp_path / "used"), certificates(tmp_path / "other")
    first = Certificates(
        *(Path(shutil.copy(each, f"{each}.first")) for each in vars(used).values())
    )
    with registry_doors.running("--images", str(stock.layout.path), *tls_options(used)) as door:
        assert https(door, "/v2/", first).status == 200
        with socket.create_connection(("localhost", door.port)):  # a client that says nothing
            for name in ("certificate", "key"):  # for a moment they do not belong together
                getattr(used, name).write_bytes(getattr(other, name).read_bytes())
            assert eventually(lambda: https(door, "/v2/", other).status == 200)
            assert https(door, "/v2/", first).status == 0
        used.certificate.write_bytes(BROKEN)
        words = "TLS goes on with what was read before"
        asked = eventually(
            lambda: https(door, "/v2/", other).status == 200 and words in door.child.stderr
        )
        assert asked, door.child.stderr
        assert f"the certificate {used.certificate}" in door.child.stderr
        used.certificate.unlink()
        assert https(door, "/v2/", other).status == 200
        for file, old in ((used.certificate, first.certificate), (used.key, first.key)):
            file.write_bytes(old.read_bytes())
        assert eventually(lambda: https(door, "/v2/", first).status == 200)


@pytest.mark.slow
def test_clients_show_certificates(stock: Stock, files: Certificates, tmp_path: Path) -> None:
    mine, other = certificates(tmp_path / "mine", "me"), certificates(tmp_path / "other", "me")
    authority = shutil.copy(mine.authority, tmp_path / "clients.pem")
    options = ("--images", str(stock.layout.path), *tls_options(files), f"--client-ca={authority}")
    with registry_doors.running(*options) as door:

        def status(shown: Certificates) -> int:
            pair = ("--cert", shown.certificate, "--key", shown.key)
            return https(door, "/v2/", files, *pair).status

        assert status(mine) == 200
        assert status(other) == 0
        kept = connected(door, files, mine)
        begun = connected(door, files, mine)
        begun.ask("GET", blob(NAME, stock.layer["digest"]))
        assert begun.head().status == 200
        refused = https(door, "/healthz", files)
        assert refused.status == 0
        assert "certificate required" in refused.trouble, "and not just a lost connection"
        authority.write_bytes(other.authority.read_bytes())
        assert eventually(lambda: status(other) == 200)
        assert status(mine) == 0
        for client in (kept, begun):
            client.ask("GET", "/v2/")
        assert begun.read(stock.layer["size"]) == stock.read(stock.layer)
        for client in (kept, begun):
            assert client.ending() in {"end", "reset"}, (
                "it was let in by what does not count any more"
            )
            client.close()


@pytest.mark.slow
def test_a_new_certificate_ends_no_connection(stock: Stock, tmp_path: Path) -> None:
    """What its handshake found of the client still holds."""
    used, other = certificates(tmp_path / "used"), certificates(tmp_path / "other")
    mine = certificates(tmp_path / "mine", "me")
    options = ("--images", str(stock.layout.path), *tls_options(used))
    with registry_doors.running(*options, f"--client-ca={mine.authority}") as door:
        pair = ("--cert", mine.certificate, "--key", mine.key)
        client = connected(door, used, mine)
        for name in ("certificate", "key"):
            getattr(used, name).write_bytes(getattr(other, name).read_bytes())
        assert eventually(lambda: https(door, "/v2/", other, *pair).status == 200)
        assert client.get("/v2/").status == 200
        client.close()


def connected(door: Door, files: Certificates, shown: Certificates) -> Client:
    """Return a connection over which a client has shown its certificate and had an answer."""
    context = files.trusting()
    context.load_cert_chain(shown.certificate, shown.key)
    plain = socket.create_connection(("127.0.0.1", door.port))
    client = Client(context.wrap_socket(plain, server_hostname="localhost"))
    assert client.get("/v2/").status == 200
    return client


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert={certificate}"], "given together"),
        (["--tls-key={key}"], "given together"),
        (["--client-ca={authority}"], "--client-ca is for TLS"),
        (["--tls-cert={authority}", "--tls-key={key}"], "authority.pem: "),
        (["--tls-cert=absent.pem", "--tls-key={key}"], "the certificate absent.pem: No such file"),
        (["--tls-cert={certificate}", "--tls-key=absent.pem"], "the key absent.pem: No such file"),
        (
            ["--tls-cert={certificate}", "--tls-key={key}", "--client-ca={key}"],
            "NO_CERTIFICATE_OR_CRL_FOUND",
        ),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_is_a_usage_error(
    options: list[str], words: str, stock: Stock, files: Certificates
) -> None:
    given = [each.format(**vars(files)) for each in options]
    assert words in usage_error("--images", str(stock.layout.path), *given)

"""`imgproxy registry --htpasswd`, asked by curl and skopeo, with passwords that change."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import bcrypt
import pytest
from support import registry_doors
from support.parent import ROOT, environment, eventually
from support.protected_doors import curl, https, tls_options, usage_error
from support.registry_clients import run
from support.registry_doors import NAME, Stock, blob, manifest, targets
from support.servers import certificates, require

if TYPE_CHECKING:
    from pathlib import Path

    from support.home import Home

PASSWORD = "correct horse"


def write(file: Path, **passwords: str) -> str:
    lines = [
        f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
        for user, password in passwords.items()
    ]
    file.write_text("".join(lines))
    return f"--htpasswd={file}"


def authorization(password: str = PASSWORD, user: str = "ann") -> str:
    return f"Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def test_everything_but_health_wants_a_password(stock: Stock, tmp_path: Path) -> None:
    options = ("--images", str(stock.layout.path), write(tmp_path / "users", ann=PASSWORD))
    with registry_doors.running(*options, "--debug") as door:
        client = door.connect()
        for target in (*targets(stock), "/metrics", "/v2", "/"):
            expected = 200 if target == "/healthz" else 401
            for method in ("GET", "HEAD", "POST"):
                reply = client.request(method, target)
                if (method, target) != ("POST", "/healthz"):
                    assert reply.status == expected, (method, target)
        reply = client.request("GET", "/v2/", authorization("wrong"))
        assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
        assert reply.get("WWW-Authenticate") == 'Basic realm="imgproxy", charset="UTF-8"'
        for target in (manifest(NAME, "1"), blob(NAME, stock.layer["digest"])):
            assert client.request("GET", target, authorization()).status == 200
        assert client.request("GET", "/nothing", authorization()).status == 404
        fetched = curl(f"http://{door.address}/v2/", "--user", f"ann:{PASSWORD}")
        assert fetched.status == 200
        said = door.child.stderr
        assert PASSWORD not in said
        assert b64encode(f"ann:{PASSWORD}".encode()).decode() not in said
        assert "the user or the password is wrong" in said


@pytest.mark.slow
def test_skopeo_logs_in(stock: Stock, home: Home, tmp_path: Path) -> None:
    options = ("--images", str(stock.layout.path), write(tmp_path / "users", ann=PASSWORD))
    home.path.mkdir()
    with registry_doors.running(*options) as door:
        image = f"docker://{door.address}/{NAME}:1"
        copy = [require("skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false"]
        assert "wants a user and a password" in run([*copy, image, "dir:none"], home).output
        login = ["login", "--tls-verify=false", "--authfile=auth.json", "-u", "ann"]
        bad = run([require("skopeo"), *login, "-p", "wrong", door.address], home)
        assert "invalid username/password" in bad.output
        good = run([require("skopeo"), *login, "-p", PASSWORD, door.address], home)
        assert good.status == 0, good.output
        pulled = run([*copy, "--src-authfile=auth.json", image, "dir:to"], home)
        assert pulled.status == 0, pulled.output
        assert (home.path / "to/manifest.json").read_bytes() == stock.read(stock.app)


@pytest.mark.slow
def test_passwords_change_while_it_runs(stock: Stock, tmp_path: Path) -> None:
    file = tmp_path / "users"
    option = write(file, ann="old", bob="his")
    with registry_doors.running("--images", str(stock.layout.path), option) as door:

        def status(user: str, password: str) -> int:
            return door.status("/v2/", authorization(password, user))

        assert (status("ann", "old"), status("bob", "his")) == (200, 200)
        write(file, ann="new")
        assert eventually(lambda: status("ann", "new") == 200)
        assert (status("ann", "old"), status("bob", "his")) == (401, 401)
        file.write_text("ann:{SHA}none\n")
        assert eventually(lambda: status("ann", "new") == 500)
        reply = door.ask("/v2/", authorization("new"))
        assert reply.code == "CONFIGURATION"
        assert door.status("/healthz") == 200
        assert f"imgproxy: {file}, line 1: expected a bcrypt hash" in door.child.stderr
        file.unlink()
        assert eventually(lambda: b"reading passwords" in door.ask("/v2/").body)
        assert door.status("/v2/", authorization("new")) == 500, "never open"
        write(file, ann="old")
        assert eventually(lambda: status("ann", "old") == 200)


@pytest.mark.slow
def test_passwords_over_tls(stock: Stock, tmp_path: Path) -> None:
    files = certificates(tmp_path / "tls")
    options = ("--images", str(stock.layout.path), write(tmp_path / "users", ann=PASSWORD))
    with registry_doors.running(*options, *tls_options(files), "--allow-remote") as door:
        assert https(door, "/v2/", files).status == 401
        assert https(door, "/v2/", files, "--user", f"ann:{PASSWORD}").status == 200


@pytest.mark.slow
def test_what_cannot_be_is_a_usage_error(stock: Stock, tmp_path: Path) -> None:
    images = ("--images", str(stock.layout.path))
    option = write(tmp_path / "users", ann=PASSWORD)
    (tmp_path / "bad").write_text("ann:secret\n")
    line = usage_error(*images, f"--htpasswd={tmp_path}/bad")
    assert "line 1" in line
    assert "secret" not in line
    assert "No such file" in usage_error(*images, f"--htpasswd={tmp_path}/absent")
    remote = ("--allow-remote", "--listen=0.0.0.0:0")
    assert "give --tls-cert and --tls-key" in usage_error(*images, option, *remote)


@pytest.mark.slow
def test_without_bcrypt_the_extra_is_named(stock: Stock, tmp_path: Path) -> None:
    (tmp_path / "bcrypt.py").write_text("raise ImportError('none')\n")
    option = write(tmp_path / "users", ann=PASSWORD)
    env = environment(PYTHONPATH=f"{tmp_path}:{ROOT}")
    line = usage_error("--images", str(stock.layout.path), option, env=env)
    assert "oci-imgproxy[registry]" in line

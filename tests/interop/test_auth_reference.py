"""The same file of credentials, read by skopeo and by us, is to give the same credentials.

The registry is a recorder that wants Basic authentication; skopeo's answer is the header that
arrives there. What we do better on purpose is in a table of its own, with what skopeo does.
Docker Hub and legacy files are compared by the user that `skopeo login --get-login` finds, which
takes no network.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.servers import Answering, http_server, require

from imgproxy.config import auth_file, credential_helpers
from imgproxy.errors import ConfigurationError
from imgproxy.specs.http import credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 30

# What is sent where a file has no credentials, and where reading it failed.
NONE = "Basic Og=="
FAILED = "failed"


@dataclass
class Recorder:
    """A registry that knows nothing and writes down what it is shown."""

    address: str = ""
    shown: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()

    def get(request: Answering) -> None:
        authorization = request.headers["Authorization"]
        if authorization is None:
            request.answer(401, b"", WWW_Authenticate='Basic realm="recorder"')
            return
        recorder.shown.append(authorization)
        request.answer(404, b"{}", Content_Type="application/json")

    with http_server(get) as address:
        recorder.address = address
        yield recorder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home with helpers: one whose password is the server's name, and four that fail."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def write(name: str, script: str) -> None:
        program = directory / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n[ $1 = get ] || exit 9\nread -r server\n{script}\n")
        program.chmod(0o755)

    write(
        "login", """printf '{"ServerURL":"%s","Username":"h","Secret":"%s"}' "$server" "$server" """
    )
    write("nothing", "echo credentials not found in native keychain; exit 1")
    write("empty", """echo '{"ServerURL":"","Username":"","Secret":""}' """)
    write("broken", "echo cannot reach the keychain; exit 1")
    write("garbage", "echo this is no JSON")
    return tmp_path


def environment_of(home: Path) -> dict[str, str]:
    """Return an environment in which nothing but the test's own helpers and files is found."""
    return {
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_CONFIG_HOME": str(home),
    }


def skopeo_shows(recorder: Recorder, image: str, file: Path, environment: dict[str, str]) -> str:
    configuration = file.with_suffix(".conf")
    configuration.write_text("")
    recorder.shown.clear()
    command = [
        require("skopeo"),
        f"--registries-conf={configuration}",
        "inspect",
        "--raw",
        "--tls-verify=false",
        f"--authfile={file}",
        f"docker://{image}",
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert result.returncode != 0  # there is no image
    if not recorder.shown:
        return FAILED
    assert len(set(recorder.shown)) == 1
    return recorder.shown[0]


def we_show(image: str, file: Path, environment: dict[str, str]) -> str:
    registry, _, repository = image.partition("/")
    try:
        found = auth_file.parse(file.read_bytes(), str(file)).find(registry, repository)
        if isinstance(found, credential_helpers.Helper):
            found = ask(found, environment)
    except ConfigurationError:
        return FAILED
    return NONE if found is None else found.basic


def ask(
    helper: credential_helpers.Helper, environment: dict[str, str]
) -> credentials.Credentials | None:
    for server in helper.servers:
        command, question = credential_helpers.make_request(helper, server)
        try:
            result = subprocess.run(
                command, input=question, env=environment, stdout=-1, check=False, timeout=LIMIT
            )
        except FileNotFoundError:
            raise credential_helpers.helper_error(helper, "is not installed") from None
        found = credential_helpers.parse_reply(helper, server, result.returncode, result.stdout)
        if found is not None:
            return found
    return None


def entry(text: str, **fields: object) -> dict[str, Any]:
    return {"auth": base64.b64encode(text.encode()).decode(), **fields}


# `HOST` stands for the recorder's address.
SAME: list[tuple[str, object, str]] = [
    ("empty", {}, ""),
    ("no entry", {"auths": {"other": entry("u:p")}}, ""),
    ("null", {"auths": {"HOST": None}}, ""),
    ("null auths", {"auths": None, "credHelpers": None}, ""),
    ("registry", {"auths": {"HOST": entry("u:p")}}, "u:p"),
    ("repository", {"auths": {"HOST": entry("1:p"), "HOST/a/b/img": entry("2:p")}}, "2:p"),
    ("namespace", {"auths": {"HOST": entry("1:p"), "HOST/a/b": entry("2:p")}}, "2:p"),
    ("outer namespace", {"auths": {"HOST": entry("1:p"), "HOST/a": entry("2:p")}}, "2:p"),
    ("other namespace", {"auths": {"HOST": entry("1:p"), "HOST/b": entry("2:p")}}, "1:p"),
    ("half a name", {"auths": {"HOST": entry("1:p"), "HOST/a/b/im": entry("2:p")}}, "1:p"),
    ("longer name", {"auths": {"HOST": entry("1:p"), "HOST/a/b/img/x": entry("2:p")}}, "1:p"),
    ("tag", {"auths": {"HOST": entry("1:p"), "HOST/a/b/img:latest": entry("2:p")}}, "1:p"),
    ("slash", {"auths": {"HOST/": entry("1:p")}}, ""),
    ("empty parent", {"auths": {"HOST/a": {}, "HOST": entry("1:p")}}, ""),
    ("https", {"auths": {"https://HOST": entry("1:p")}}, "1:p"),
    ("https, path", {"auths": {"https://HOST/v1/": entry("1:p")}}, "1:p"),
    ("http, path", {"auths": {"http://HOST/a/b/img": entry("1:p")}}, "1:p"),
    ("both", {"auths": {"http://https://HOST/x": entry("1:p")}}, "1:p"),
    ("other scheme", {"auths": {"ftp://HOST": entry("1:p")}}, ""),
    ("exact first", {"auths": {"https://HOST": entry("1:p"), "HOST": entry("2:p")}}, "2:p"),
    ("namespace first", {"auths": {"https://HOST": entry("1:p"), "HOST/a": entry("2:p")}}, "2:p"),
    ("no scheme, path", {"auths": {"HOST/v1/": entry("1:p")}}, ""),
    ("colons", {"auths": {"HOST": entry("u:p:q")}}, "u:p:q"),
    ("no password", {"auths": {"HOST": entry("u:")}}, "u:"),
    ("no user", {"auths": {"HOST": entry(":p")}}, ":p"),
    ("nothing", {"auths": {"HOST": entry(":")}}, ""),
    ("no colon", {"auths": {"HOST": entry("up")}}, ""),
    ("no colon, token", {"auths": {"HOST": entry("up", identitytoken="t")}}, ""),
    ("empty auth", {"auths": {"HOST": {"auth": ""}}}, ""),
    ("newline", {"auths": {"HOST": entry("u:p\n")}}, "u:p\n"),
    ("NULs", {"auths": {"HOST": entry("u:p\0\0")}}, "u:p"),
    ("leading NULs", {"auths": {"HOST": entry("u:\0p\0q")}}, "u:p\0q"),
    ("UTF-8", {"auths": {"HOST": entry("ü:é")}}, "ü:é"),
    ("broken lines", {"auths": {"HOST": {"auth": "dTpw\r\ncQ=\n="}}}, "u:pq"),
    ("ignored too", {"auths": {"HOST": entry("u:p", password=[1], email=2)}}, "u:p"),
    ("unknown keys", {"auths": {"HOST": entry("u:p")}, "HttpHeaders": 1, "x": []}, "u:p"),
    ("other is broken", {"auths": {"HOST": entry("u:p"), "x": {"auth": "?"}}}, "u:p"),
    ("helper", {"credHelpers": {"HOST": "login"}}, "h:HOST"),
    ("helper first", {"credHelpers": {"HOST": "login"}, "auths": {"HOST": entry("u:p")}}, "h:HOST"),
    ("helper of another", {"credHelpers": {"x": "broken"}, "auths": {"HOST": entry("u:p")}}, "u:p"),
    ("helper of a namespace", {"credHelpers": {"HOST/a": "login"}}, ""),
    ("helper of a URL", {"credHelpers": {"https://HOST": "login"}}, ""),
    ("no login", {"credHelpers": {"HOST": "nothing"}, "auths": {"HOST": entry("u:p")}}, ""),
    ("empty login", {"credHelpers": {"HOST": "empty"}}, ""),
    ("broken helper", {"credHelpers": {"HOST": "broken"}}, FAILED),
    ("garbage", {"credHelpers": {"HOST": "garbage"}}, FAILED),
    ("no such helper", {"credHelpers": {"HOST": "no-such-helper"}}, FAILED),
    ("not base64", {"auths": {"HOST": {"auth": "?"}}}, FAILED),
    ("no padding", {"auths": {"HOST": {"auth": "dTpwcQ"}}}, FAILED),
    ("surplus padding", {"auths": {"HOST": {"auth": "dTpw="}}}, FAILED),
    ("URL's base64", {"auths": {"HOST": {"auth": "dTpw-_=="}}}, FAILED),
    ("auth is no text", {"auths": {"HOST": {"auth": 1}}}, FAILED),
    ("token is no text", {"auths": {"HOST": entry("u:p", identitytoken=1)}}, FAILED),
    ("entry is no object", {"auths": {"HOST": "dTpw"}}, FAILED),
    ("another is no object", {"auths": {"HOST": entry("u:p"), "x": "dTpw"}}, FAILED),
    ("auths is no object", {"auths": []}, FAILED),
    ("helpers are no object", {"auths": {"HOST": entry("u:p")}, "credHelpers": []}, FAILED),
    ("helper is no text", {"auths": {"HOST": entry("u:p")}, "credHelpers": {"x": 1}}, FAILED),
    ("no object", [], FAILED),
]

# Name, document, what we show, and what skopeo 1.9 does.
BETTER: list[tuple[str, object, str, str]] = [
    ("store", {"credsStore": "login"}, "h:HOST", ""),
    ("store, marker", {"credsStore": "login", "auths": {"HOST": {}}}, "h:HOST", ""),
    ("store is broken", {"credsStore": "broken"}, FAILED, ""),
    (
        "no helper for this one",
        {"credsStore": "login", "credHelpers": {"HOST": ""}, "auths": {"HOST": entry("u:p")}},
        "u:p",
        FAILED,
    ),
    ("user and password", {"auths": {"HOST": {"username": "u", "password": "p"}}}, "u:p", ""),
    ("wildcard", {"auths": {"127.0.*.1:PORT": entry("u:p")}}, "u:p", ""),
    ("helper with a wildcard", {"credHelpers": {"*.0.0.1:PORT": "login"}}, "h:HOST", ""),
    ("null", None, FAILED, ""),
    ("twice", '{"auths": {"HOST": {"auth": "eA=="}, "HOST": {"auth": "dTpw"}}}', FAILED, "u:p"),
    ("not UTF-8", {"auths": {"HOST": {"auth": "dTr/"}}}, FAILED, "Basic dTr/"),
]


def header(text: str, host: str) -> str:
    if text == FAILED or text.startswith("Basic "):
        return text
    text = text.replace("HOST", host)
    return f"Basic {base64.b64encode((text or ':').encode()).decode()}"


def shown_by_both(document: object, recorder: Recorder, home: Path) -> tuple[str, str]:
    file = home / "auth.json"
    text = document if isinstance(document, str) else json.dumps(document)
    port = recorder.address.partition(":")[2]
    file.write_text(text.replace("HOST", recorder.address).replace("PORT", port))
    image = f"{recorder.address}/a/b/img"
    environment = environment_of(home)
    return we_show(image, file, environment), skopeo_shows(recorder, image, file, environment)


@pytest.mark.parametrize(
    ("document", "shown"), [row[1:] for row in SAME], ids=[row[0] for row in SAME]
)
def test_skopeo_sends_what_we_send(
    document: object, shown: str, recorder: Recorder, home: Path
) -> None:
    wanted = header(shown, recorder.address)
    assert shown_by_both(document, recorder, home) == (wanted, wanted)


@pytest.mark.parametrize("content", ["", " \n", "{", '{"auths": {}}}', "{'auths': {}}"])
def test_what_skopeo_cannot_read_we_cannot(content: str, recorder: Recorder, home: Path) -> None:
    assert shown_by_both(content, recorder, home) == (FAILED, FAILED)


@pytest.mark.parametrize(
    ("document", "ours", "theirs"), [row[1:] for row in BETTER], ids=[row[0] for row in BETTER]
)
def test_where_we_differ_it_is_on_purpose(
    document: object, ours: str, theirs: str, recorder: Recorder, home: Path
) -> None:
    wanted = header(ours, recorder.address), header(theirs, recorder.address)
    assert shown_by_both(document, recorder, home) == wanted


def we_find(name: str, file: Path, *, legacy: bool) -> str:
    registry, _, repository = name.partition("/")
    found = auth_file.parse(file.read_bytes(), str(file), legacy=legacy).find(registry, repository)
    return found.username if isinstance(found, credentials.Credentials) else ""


def skopeo_finds(name: str, home: Path, *options: str) -> str:
    command = [require("skopeo"), "login", "--get-login", *options, name]
    result = subprocess.run(
        command,
        env=environment_of(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert result.returncode == 0 or "not logged into" in result.stderr, result.stderr
    return result.stdout.strip()


HUB = "https://index.docker.io/v1/"


@pytest.mark.parametrize(
    ("name", "keys", "user"),
    [
        ("docker.io", ["docker.io"], "0"),
        ("docker.io", ["index.docker.io"], "0"),
        ("docker.io", ["registry-1.docker.io"], "0"),
        ("docker.io", ["https://docker.io"], "0"),
        ("docker.io", [HUB], "0"),
        ("docker.io", [HUB, "docker.io"], "1"),
        ("docker.io", ["https://index.docker.io/v2/x"], "0"),
        ("docker.io", ["hub.docker.com", "docker.com"], ""),
        ("index.docker.io", ["docker.io"], "0"),
        ("registry-1.docker.io", [HUB], "0"),
        ("quay.io/a/b", ["quay.io/a", "quay.io"], "0"),
        ("quay.io/a/b", ["https://quay.io/a/b", "quay.io"], "1"),
    ],
)
def test_skopeo_finds_the_keys_that_we_find(
    name: str, keys: list[str], user: str, home: Path
) -> None:
    file = home / "auth.json"
    file.write_text(json.dumps({"auths": {key: entry(f"{n}:p") for n, key in enumerate(keys)}}))
    assert skopeo_finds(name, home, f"--authfile={file}") == user
    assert we_find(name, file, legacy=False) == user


@pytest.mark.parametrize(
    ("name", "keys", "user"),
    [
        ("quay.io", ["quay.io"], "0"),
        ("quay.io", ["https://quay.io/v1/"], "0"),
        ("quay.io", ["quay.io/v1/"], "0"),
        ("quay.io", ["quay.io/a", "quay.io"], "1"),
        ("quay.io", ["auths"], ""),
        ("docker.io", [HUB], "0"),
        ("docker.io", ["docker.io/x"], "0"),
    ],
)
def test_skopeo_finds_the_hosts_of_legacy_files_that_we_find(
    name: str, keys: list[str], user: str, home: Path
) -> None:
    file = home / ".dockercfg"
    file.write_text(json.dumps({key: entry(f"{n}:p") for n, key in enumerate(keys)}))
    assert skopeo_finds(name, home) == user
    assert we_find(name, file, legacy=True) == user

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from imgproxy.config import auth_file
from imgproxy.config.credential_helpers import Helper
from imgproxy.errors import ConfigurationError
from imgproxy.specs.http.credentials import Credentials

PATH = "/run/user/1000/containers/auth.json"
HUB = "https://index.docker.io/v1/"
SECRET = "s3cr3t-p4ss"


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def entry(text: str | bytes, **fields: object) -> dict[str, Any]:
    return {"auth": encoded(text), **fields}


def read(document: object, *, legacy: bool = False) -> auth_file.AuthFile:
    return auth_file.parse(json.dumps(document).encode(), PATH, legacy=legacy)


def found(name: str, document: object, *, legacy: bool = False) -> Credentials | Helper | None:
    registry, _, repository = name.partition("/")
    return read(document, legacy=legacy).find(registry, repository)


def key_found(name: str, keys: list[str], *, legacy: bool = False) -> str | None:
    """Return the key whose entry applies; each entry's user is its key."""
    entries = {key: entry(f"{key.replace(':', ';')}:p") for key in keys}
    credentials = found(name, entries if legacy else {"auths": entries}, legacy=legacy)
    if credentials is None:
        return None
    assert isinstance(credentials, Credentials)
    key = credentials.username.replace(";", ":")
    assert credentials.source == (f"{PATH} ({key})" if legacy else f"{PATH} (auths.{key})")
    return key


# --- which key ---------------------------------------------------------------------------------

IMAGE = "quay.io/a/b/img"
NAMESPACES = ["quay.io/a/b/img", "quay.io/a/b", "quay.io/a", "quay.io"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("longest", range(4))
def test_the_longest_namespace_wins(longest: int, order: int) -> None:
    assert key_found(IMAGE, NAMESPACES[longest:][::order]) == NAMESPACES[longest]


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        (IMAGE, [], None),
        (IMAGE, ["quay.io:80", "io", "uay.io", "quay.io.", "docker.io", ""], None),
        (IMAGE, ["quay.io/a/b/im", "quay.io/a/b/img/x", "quay.io/b"], None),
        (IMAGE, ["quay.io/a/b/img:latest", "quay.io/a/", "quay.io/"], None),
        ("h:5000/a", ["h", "h:5000"], "h:5000"),
        ("h/a", ["h:5000"], None),
        ("[::1]:5000/a", ["[::1]:5000"], "[::1]:5000"),
        # The second pass: the hosts of keys that are URLs.
        (IMAGE, ["https://quay.io"], "https://quay.io"),
        (IMAGE, ["http://quay.io/v1/"], "http://quay.io/v1/"),
        (IMAGE, ["https://quay.io/a/b/img"], "https://quay.io/a/b/img"),
        (IMAGE, ["https://quay.io/other"], "https://quay.io/other"),
        (IMAGE, ["https://quay.io", "quay.io"], "quay.io"),
        (IMAGE, ["https://quay.io", "quay.io/a"], "quay.io/a"),
        (IMAGE, ["https://quay.io/2", "https://quay.io/1"], "https://quay.io/2"),
        (IMAGE, ["http://https://quay.io/x"], "http://https://quay.io/x"),
        (IMAGE, ["https://http://quay.io/x"], None),
        (IMAGE, ["ftp://quay.io"], None),
        # The spellings of a host; the image's own is preferred, and the longest namespace to it.
        (IMAGE, ["QUAY.io"], "QUAY.io"),
        (IMAGE, ["quay.io:443"], "quay.io:443"),
        (IMAGE, ["QUAY.io", "quay.io:443", "quay.io"], "quay.io"),
        (IMAGE, ["quay.io", "Quay.IO:0443/a"], "Quay.IO:0443/a"),
        (IMAGE, ["https://quay.io:443"], "https://quay.io:443"),
        (IMAGE, ["https://Quay.IO:443/v1/", "quay.io:443"], "quay.io:443"),
        ("quay.io:443/a", ["quay.io"], "quay.io"),
        ("quay.io:443/a", ["quay.io", "quay.io:443"], "quay.io:443"),
        ("localhost:5000/a", ["LocalHost:5000"], "LocalHost:5000"),
        ("[::1]:5000/a", ["[0:0:0:0:0:0:0:1]:5000"], "[0:0:0:0:0:0:0:1]:5000"),
        # Docker Hub by all its names
        ("docker.io/library/a", ["docker.io"], "docker.io"),
        ("docker.io/library/a", ["docker.io/library", "docker.io"], "docker.io/library"),
        ("docker.io/library/a", [HUB], HUB),
        ("docker.io/library/a", [HUB, "docker.io"], "docker.io"),
        ("docker.io/library/a", ["index.docker.io"], "index.docker.io"),
        ("docker.io/library/a", ["registry-1.docker.io"], "registry-1.docker.io"),
        ("docker.io/library/a", ["https://docker.io"], "https://docker.io"),
        ("docker.io/library/a", ["index.docker.io/library"], "index.docker.io/library"),
        ("docker.io/library/a", ["hub.docker.com", "https://docker.com"], None),
        ("index.docker.io/a", ["docker.io"], "docker.io"),
        ("registry-1.docker.io/a", [HUB], HUB),
        # Docker Desktop keeps two keys of its own beside the one for pulls.
        ("docker.io/library/a", [HUB, f"{HUB}access-token", f"{HUB}refresh-token"], HUB),
    ],
)
def test_which_key_speaks_of_an_image(name: str, keys: list[str], key: str | None) -> None:
    assert key_found(name, keys) == key


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        (IMAGE, ["quay.io"], "quay.io"),
        (IMAGE, ["https://quay.io/v1/"], "https://quay.io/v1/"),
        (IMAGE, ["quay.io/v1/"], "quay.io/v1/"),
        (IMAGE, ["quay.io/a", "quay.io"], "quay.io"),
        (IMAGE, ["quay.io/a/b/img"], "quay.io/a/b/img"),
        ("docker.io/library/a", [HUB], HUB),
        ("docker.io/library/a", ["docker.io/x"], "docker.io/x"),
        (IMAGE, ["quay.io:443"], "quay.io:443"),
        (IMAGE, ["quay.io:5000"], None),
    ],
)
def test_a_legacy_file_knows_hosts_alone(name: str, keys: list[str], key: str | None) -> None:
    assert key_found(name, keys, legacy=True) == key


@pytest.mark.parametrize(
    ("name", "key", "is_found"),
    [
        # By plain http these are two ports, and who serves one need not serve the other.
        ("quay.io/a", "quay.io:443", False),
        ("quay.io:443/a", "quay.io", False),
        ("quay.io:443/a", "quay.io:443", True),
        ("quay.io/a", "Quay.IO", True),
        ("docker.io/library/a", "registry-1.docker.io", True),
        ("docker.io/library/a", "docker.io:443", True),
    ],
)
@pytest.mark.parametrize("kind", ["auths", "credHelpers"])
def test_credentials_for_443_are_not_for_80(
    name: str, key: str, kind: str, *, is_found: bool
) -> None:
    file = read({kind: {key: entry("u:p") if kind == "auths" else "x"}})
    registry, _, repository = name.partition("/")
    assert (file.find(registry, repository, insecure=True) is not None) is is_found
    assert file.find(registry, repository) is not None


# --- what an entry holds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (entry("u:p"), ("u", "p", "")),
        (entry("u:p:q"), ("u", "p:q", "")),
        (entry("u:"), ("u", "", "")),
        (entry(":p"), ("", "p", "")),
        (entry("ü:é"), ("ü", "é", "")),
        (entry("u:p\n"), ("u", "p\n", "")),
        (entry("u:p\0\0"), ("u", "p", "")),
        (entry("u:\0p\0q\0"), ("u", "p\0q", "")),
        (entry("u:p", identitytoken="t"), ("u", "p", "t")),
        (entry(":", identitytoken="t"), ("", "", "t")),
        (entry("", identitytoken="t"), ("", "", "t")),
        ({"identitytoken": "t"}, ("", "", "t")),
        ({"auth": None, "identitytoken": "t"}, ("", "", "t")),
        (entry("u:p", identitytoken=None, email=1, password=[]), ("u", "p", "")),
        ({"auth": encoded("user:" + "p" * 80)[:76] + "\r\n" + encoded("user:" + "p" * 80)[76:]},
         ("user", "p" * 80, "")),
        # nothing
        ({}, None),
        (None, None),
        ({"auth": ""}, None),
        (entry(":"), None),
        (entry(":\0"), None),
        (entry("no colon"), None),
        (entry("no colon", identitytoken="t"), None),
        (entry(b"\xff\xfe"), None),
        # Secrets of Kubernetes, in which kubectl writes both forms, and tokens for registries
        ({"username": "u", "password": "p", "email": "e"}, ("u", "p", "")),
        ({"auth": "", "username": "u", "password": ":p"}, ("u", ":p", "")),
        ({"auth": None, "username": "ü", "password": None}, ("ü", "", "")),
        ({"password": "p"}, ("", "p", "")),
        ({"username": "", "password": ""}, None),
        (entry("u:p", username="v", password="q"), ("u", "p", "")),
        (entry("no colon", username="v", password="q", registrytoken="r"), None),
        ({"username": "u", "password": "p", "identitytoken": "t"}, ("u", "p", "t")),
        ({"registrytoken": "a.b-c=="}, ("", "", "", "a.b-c==")),
        (entry("u:p", registrytoken="r"), ("u", "p", "", "r")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_what_an_entry_holds(
    fields: dict[str, Any] | None,
    parts: tuple[str, ...] | None,
    legacy: bool,  # noqa: FBT001
) -> None:
    entries = {"quay.io": fields}
    credentials = found(IMAGE, entries if legacy else {"auths": entries}, legacy=legacy)
    source = f"{PATH} (quay.io)" if legacy else f"{PATH} (auths.quay.io)"
    if parts is None:
        assert credentials is None
        return
    username, password, identity_token, *others = parts
    assert credentials == Credentials(username, password, identity_token, source, *others)


def test_an_empty_entry_ends_the_search_in_its_file() -> None:
    document = {
        "auths": {"quay.io/a": {}, "quay.io": entry("u:p"), "https://quay.io": entry("u:p")}
    }
    assert found(IMAGE, document) is None
    assert found("quay.io/b", document) is not None


@pytest.mark.parametrize(
    "text",
    ["x", "dTpw=", "dTpwcQ", "dTpwcQ=", "dTpwcQ===", "dTp wcQ==", "dT=wcQ==", "dTpw-_==", "é"],
)
def test_what_is_not_base64_is_an_error_where_it_is_needed(text: str) -> None:
    file = read({"auths": {"quay.io/a": {"auth": text}, "quay.io": entry("u:p")}})
    with pytest.raises(ConfigurationError) as broken:
        file.find("quay.io", "a/b")
    assert broken.value.message == f"the credentials in {PATH}: auths.quay.io/a.auth: not base64"
    assert broken.value.detail == {"file": PATH}
    assert file.find("quay.io", "b") is not None


@pytest.mark.parametrize("raw", [b"\xff:p", b"u:\xff", b"u:" + SECRET.encode() + b"\xe9"])
def test_what_is_not_utf8_is_an_error(raw: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"quay\.io\.auth: user or password") as broken:
        found(IMAGE, {"quay.io": entry(raw)}, legacy=True)
    assert SECRET not in str(broken.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"username": f"u:{SECRET}", "password": "p"}, "auths.quay.io.username: has a colon"),
        ({"registrytoken": f"{SECRET} x"}, "auths.quay.io.registrytoken: not a bearer token"),
        ({"registrytoken": f"{SECRET}\r\nX: y"}, "auths.quay.io.registrytoken: not a bearer token"),
    ],
)
def test_what_cannot_be_sent_is_an_error_where_it_is_needed(
    fields: dict[str, Any], words: str
) -> None:
    file = read({"auths": {"quay.io": fields, "other.io": entry("u:p")}})
    with pytest.raises(ConfigurationError) as broken:
        file.find("quay.io", "a/b")
    assert broken.value.message == f"the credentials in {PATH}: {words}"
    assert file.find("other.io", "a") is not None


# --- wildcards ---------------------------------------------------------------------------------

ECR = "123456.dkr.ecr.eu-west-1.amazonaws.com"
ANY_ECR = "*.dkr.ecr.*.amazonaws.com"


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        (f"{ECR}/a", [ANY_ECR], ANY_ECR),
        (f"{ECR}/a", ["*.DKR.ecr.*.AmazonAWS.com"], "*.DKR.ecr.*.AmazonAWS.com"),
        (f"{ECR}/a", ["123*.dkr.ecr.eu-*-1.amazonaws.com"], "123*.dkr.ecr.eu-*-1.amazonaws.com"),
        (f"{ECR}/a", [f"{ANY_ECR}:443"], f"{ANY_ECR}:443"),
        (f"{ECR}:443/a", [ANY_ECR], ANY_ECR),
        (f"{ECR}/a", [f"https://{ANY_ECR}"], f"https://{ANY_ECR}"),
        (f"{ECR}/a", [f"https://{ANY_ECR}/v1/"], f"https://{ANY_ECR}/v1/"),
        # A wildcard never crosses a dot, and stands for a part of the host alone.
        (f"{ECR}/a", ["*.amazonaws.com", "*", "*.com", "*.dkr.ecr.*", "*.*"], None),
        (f"{ECR}.evil.test/a", [ANY_ECR, f"{ANY_ECR}*"], None),
        ("dkr.ecr.eu.amazonaws.com/a", [ANY_ECR], None),
        ("quay.io/a/b", ["quay.*:5000", "*.io/*", "quay.io/*", "quay.io/a*"], None),
        ("quay.io:5000/a", ["quay.*", "*.io", "quay.io:*", "quay.io*"], None),
        ("quay.io:5000/a", ["*.io:5000"], "*.io:5000"),
        ("localhost/a", ["*"], "*"),
        ("127.0.0.1:5000/a", ["127.0.0.*:5000"], "127.0.0.*:5000"),
        ("[::1]:5000/a", ["*", "*:5000", "[*]:5000", "[::*]:5000"], None),
        ("registry-1.docker.io/a", ["*.docker.io"], "*.docker.io"),
        ("docker.io/library/a", ["*.docker.io"], None),
        # Keys without one come first, then the longest namespace, then what says most.
        (f"{ECR}/a", [ANY_ECR, ECR], ECR),
        (f"{ECR}/a", [f"{ANY_ECR}/a", f"https://{ECR}/v1/"], f"https://{ECR}/v1/"),
        (f"{ECR}/a/b", [ANY_ECR, f"{ANY_ECR}/a"], f"{ANY_ECR}/a"),
        (f"{ECR}/b", [ANY_ECR, f"{ANY_ECR}/a"], ANY_ECR),
        (f"{ECR}/a", ["*.dkr.*.*.amazonaws.com", ANY_ECR], ANY_ECR),
    ],
)
def test_a_wildcard_stands_for_a_part_of_a_label(
    name: str, keys: list[str], key: str | None
) -> None:
    """A login must not be shown to whoever can register a name that looks similar."""
    assert key_found(name, keys) == key


@pytest.mark.parametrize(("tls", "is_found"), [(True, True), (False, False)])
def test_a_wildcard_for_443_is_not_for_80(
    tls: bool,  # noqa: FBT001
    is_found: bool,  # noqa: FBT001
) -> None:
    file = read({"auths": {"*.io:443": entry("u:p")}})
    assert (file.find("quay.io", "a", insecure=not tls) is not None) is is_found


def test_many_wildcards_are_compared_without_delay() -> None:
    assert key_found(f"{'a' * 63}.io/x", [f"{'a*' * 30}b.io"]) is None


def test_a_legacy_file_may_have_wildcards() -> None:
    assert key_found("quay.io/a", ["*.io/v1/"], legacy=True) == "*.io/v1/"


# --- helpers -----------------------------------------------------------------------------------


def helper(name: str, servers: list[str], place: str, *, is_required: bool = True) -> Helper:
    return Helper(name, tuple(servers), f"{place} in {PATH}", is_required)


USER = Credentials("u", "p", "", f"{PATH} (auths.quay.io)")
LOGIN = {"quay.io": entry("u:p")}
MARK: dict[str, Any] = {"quay.io": {}}


@pytest.mark.parametrize(
    ("name", "document", "result"),
    [
        # A registry's own helper comes before everything else in the file.
        (
            IMAGE,
            {"credHelpers": {"quay.io": "x"}, "auths": LOGIN, "credsStore": "y"},
            helper("x", ["quay.io"], "credHelpers.quay.io"),
        ),
        (IMAGE, {"credHelpers": {"quay.io/a": "x", "https://quay.io": "x"}}, None),
        (IMAGE, {"credHelpers": {"other": "x"}, "auths": LOGIN}, USER),
        # It is asked for the name under which the file has it, and for the image's own.
        (
            IMAGE,
            {"credHelpers": {"Quay.IO:443": "x"}},
            helper("x", ["Quay.IO:443", "quay.io"], "credHelpers.Quay.IO:443"),
        ),
        (
            "docker.io/library/a",
            {"credHelpers": {"docker.io": "x"}},
            helper("x", ["docker.io", HUB], "credHelpers.docker.io"),
        ),
        (
            "docker.io/library/a",
            {"credHelpers": {HUB: "x"}},
            helper("x", [HUB, "docker.io"], f"credHelpers.{HUB}"),
        ),
        (
            "docker.io/library/a",
            {"credHelpers": {HUB: "y", "docker.io": "x"}},
            helper("x", ["docker.io", HUB], "credHelpers.docker.io"),
        ),
        # A wildcard is not what a helper knows the registry by.
        (
            f"{ECR}/a",
            {"credHelpers": {ANY_ECR: "ecr-login"}, "auths": {ECR: entry("u:p")}},
            helper("ecr-login", [ECR], f"credHelpers.{ANY_ECR}"),
        ),
        (
            f"{ECR}/a",
            {"credHelpers": {ANY_ECR: "x", ECR: "y"}},
            helper("y", [ECR], f"credHelpers.{ECR}"),
        ),
        (f"{ECR}/a", {"credHelpers": {"*.amazonaws.com": "x"}}, None),
        (f"{ECR}/a", {"credHelpers": {ANY_ECR: ""}, "credsStore": "y"}, None),
        # The store comes last; an empty entry means that the store has the login.
        (
            IMAGE,
            {"credsStore": "y"},
            helper("y", ["quay.io"], "credsStore", is_required=False),
        ),
        (
            IMAGE,
            {"credsStore": "y", "auths": {"other": entry("u:p")}},
            helper("y", ["quay.io"], "credsStore", is_required=False),
        ),
        (IMAGE, {"credsStore": "y", "auths": MARK}, helper("y", ["quay.io"], "credsStore")),
        (
            IMAGE,
            {"credsStore": "y", "auths": {"https://quay.io/v1/": {}}},
            helper("y", ["quay.io"], "credsStore"),
        ),
        (IMAGE, {"credsStore": "y", "auths": LOGIN}, USER),
        (
            "docker.io/library/a",
            {"credsStore": "y", "auths": {HUB: {}}},
            helper("y", [HUB, "docker.io"], "credsStore"),
        ),
        (
            "registry-1.docker.io/library/a",
            {"credsStore": "y"},
            helper("y", [HUB, "registry-1.docker.io"], "credsStore", is_required=False),
        ),
        (
            "quay.io:443/a",
            {"credsStore": "y"},
            helper("y", ["quay.io", "quay.io:443"], "credsStore", is_required=False),
        ),
        (IMAGE, {"credsStore": "", "auths": LOGIN}, USER),
        (IMAGE, {"credsStore": None, "credHelpers": None, "auths": None}, None),
        # A helper without a name excludes a registry from the store.
        (IMAGE, {"credsStore": "y", "credHelpers": {"quay.io": ""}, "auths": LOGIN}, USER),
        (IMAGE, {"credsStore": "y", "credHelpers": {"quay.io": ""}, "auths": MARK}, None),
        (IMAGE, {"credsStore": "y", "credHelpers": {"quay.io": ""}}, None),
    ],
)
def test_when_a_helper_is_asked_and_for_what(
    name: str, document: dict[str, Any], result: Credentials | Helper | None
) -> None:
    assert found(name, document) == result


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"credsStore": "../x"}, "credsStore"),
        ({"credHelpers": {"quay.io": "-x"}}, "credHelpers.quay.io"),
    ],
)
def test_a_helper_without_a_usable_name_is_an_error(document: object, place: str) -> None:
    with pytest.raises(ConfigurationError) as broken:
        found(IMAGE, document)
    assert broken.value.message.startswith(f"{place} in {PATH}: ")


# --- broken files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", [SECRET, "hunter", "dTpzM2NyM3QtcDRzcw==", f"u:{SECRET}@quay.io", f"x.{SECRET}!"]
)
@pytest.mark.parametrize(
    "document",
    [
        '{"auths": {"SECRET": {}, "SECRET": {}}}',
        '{"auths": {"quay.io": {"SECRET": 1, "SECRET": 2}}}',
        '{"SECRET": 1, "SECRET": 2}',
        '{"auths": {"SECRET": "SECRET"}}',
        '{"auths": {"SECRET": {"auth": ["SECRET"]}}}',
        '{"credHelpers": {"SECRET": 1}}',
        '{"credHelpers": {"quay.io": "/SECRET"}}',
        '{"credsStore": "/SECRET"}',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(document: str, secret: str) -> None:
    """Somebody who edits the file by hand may put it where a name belongs."""
    with pytest.raises(ConfigurationError) as broken:
        auth_file.parse(document.replace("SECRET", secret).encode(), PATH).find("quay.io", "os")
    assert secret not in broken.value.message
    assert PATH in broken.value.message


def test_a_registry_that_occurs_twice_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r'the key "quay\.io/acme" occurs twice'):
        auth_file.parse(b'{"auths": {"quay.io/acme": {}, "quay.io/acme": {}}}', PATH)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"{", "not JSON: "),
        (b"{}x", "not JSON: "),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON: "),
        (b"null", "the document: expected an object, got null"),
        (b"[]", "the document: expected an object, got an array"),
        (b'"s3cr3t-p4ss"', "the document: expected an object, got a string"),
        (b'{"auths": "s3cr3t-p4ss"}', "auths: expected an object, got a string"),
        (b'{"auths": []}', "auths: expected an object, got an array"),
        (b'{"auths": {"q.io": "s3cr3t-p4ss"}}', "auths.q.io: expected an object, got a string"),
        (b'{"auths": {"q.io": {"auth": 1}}}', "auths.q.io.auth: expected a string, got a number"),
        (b'{"auths": {"q.io": {"auth": 1.5}}}', "auths.q.io.auth: expected a string, got a number"),
        (b'{"auths": {"q.io": {"auth": true}}}', "auths.q.io.auth: expected a string, got true"),
        (b'{"auths": {"q.io": {"auth": ["s3cr3t-p4ss"]}}}', "auth: expected a string, got an"),
        (b'{"auths": {"q.io": {"identitytoken": {"s3cr3t-p4ss": 1}}}}', ".identitytoken: expected"),
        (b'{"auths": {"q.io": {"registrytoken": 1}}}', ".registrytoken: expected a string, got a"),
        (b'{"auths": {"q.io": {"username": ["s3cr3t-p4ss"]}}}', ".username: expected a string"),
        (b'{"auths": {"q.io": {"password": {"s3cr3t-p4ss": 1}}}}', ".password: expected a string"),
        (b'{"auths": {"q.io": {"auth": "x", "auth": "y"}}}', 'the key "auth" occurs twice'),
        (b'{"auths": {}, "auths": {}}', 'the key "auths" occurs twice'),
        (b'{"auths": {"a\\u001b[1m\\n": 1}}', "auths.(not shown): expected"),
        (b'{"credHelpers": "x"}', "credHelpers: expected an object, got a string"),
        (b'{"credHelpers": {"q.io": 1}}', "credHelpers.q.io: expected a string, got a number"),
        (b'{"credHelpers": {"q.io": null}}', "credHelpers.q.io: missing"),
        (b'{"credsStore": {}}', "credsStore: expected a string, got an object"),
        (b'{"auths": ' + b"[" * 9999, "nested deeper than 64"),
        (b'{"auths": {"' + b"q" * 9999 + b'.io": 1}}', "auths.qqq"),
    ],
)  # fmt: skip
def test_a_broken_file_is_an_error_that_names_the_file_and_the_place(
    raw: bytes, words: str
) -> None:
    with pytest.raises(ConfigurationError) as broken:
        auth_file.parse(raw, PATH)
    message = broken.value.message
    assert message.startswith(f"the credentials in {PATH}: ")
    assert words in message
    assert SECRET not in message
    assert len(message) < 400
    assert message.isprintable()
    assert broken.value.detail == {"file": PATH}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the file is empty"),
        (b'{"quay.io": "s3cr3t-p4ss"}', "quay.io: expected an object, got a string"),
        (b'{"quay.io": {"auth": 1}}', "quay.io.auth: expected a string, got a number"),
    ],
)
def test_a_broken_legacy_file_too(raw: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError) as broken:
        auth_file.parse(raw, PATH, legacy=True)
    assert words in broken.value.message
    assert SECRET not in broken.value.message


def test_what_else_stands_in_docker_files_is_passed_over() -> None:
    document = {
        "auths": LOGIN,
        "HttpHeaders": {"User-Agent": "Docker-Client/19.03 (linux)"},
        "psFormat": "table",
        "detachKeys": "ctrl-e",
        "plugins": {"x": {"y": "z"}},
        "currentContext": "default",
        "proxies": [],
    }
    assert found(IMAGE, document) == USER


def test_nothing_that_was_read_is_shown() -> None:
    secrets = {"identitytoken": SECRET, "registrytoken": SECRET}
    fields = {"username": "u", "password": SECRET, **secrets}
    file = read({"auths": {"quay.io": entry(f"u:{SECRET}", **secrets), "q.io": fields}})
    for value in file, file.auths, file.find("q.io", "a"), file.find("quay.io", "a"):
        for shown in str(value), repr(value), f"{[value]}":
            assert SECRET not in shown
            assert encoded(f"u:{SECRET}") not in shown
    assert PATH in str(file)


def test_mutated_files_never_raise_anything_else_nor_show_a_secret() -> None:
    chance = random.Random(3)
    login = encoded(f"user:{SECRET}")
    whole = json.dumps(
        {
            "auths": {"quay.io/a": {"auth": login, "identitytoken": SECRET}, "quay.io": {}},
            "credHelpers": {"gcr.io": "gcloud"},
            "credsStore": "pass",
        }
    ).encode()
    pieces = [b"", b'"', b"{", b"}", b":", b",", b"\\", b"\0", b"\xff", b"1", b"[", b"null", b"-/"]
    outcomes = set()
    for _ in range(10000):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(raw))
            raw[at : at + chance.choice([0, 1, 2, 20])] = chance.choice(pieces)
        legacy = chance.random() < 0.2
        registry = chance.choice(["quay.io", "gcr.io"])
        try:
            outcome: object = auth_file.parse(bytes(raw), PATH, legacy=legacy).find(registry, "a/b")
        except ConfigurationError as error:
            outcome = error
        outcomes.add(type(outcome))
        for secret in SECRET, login:
            assert secret not in str(outcome)
        assert outcome is None or PATH in str(outcome)
    assert outcomes == {type(None), Credentials, Helper, ConfigurationError}

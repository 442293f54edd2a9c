from __future__ import annotations

import json
import random

import pytest

from imgproxy.config import credential_helpers
from imgproxy.config.credential_helpers import MAX_HELPER_OUTPUT, Helper
from imgproxy.errors import ConfigurationError, UsageError
from imgproxy.specs.http.credentials import Credentials

SECRET = "s3cr3t-p4ss"
SERVER = "registry.example:5000"
HELPER = credential_helpers.make_helper("pass", (SERVER,), "credsStore in /etc/auth.json")
SOURCE = "docker-credential-pass for registry.example:5000 (credsStore in /etc/auth.json)"


def test_credentials_are_shown_by_their_source_alone() -> None:
    found = Credentials("user", SECRET, SECRET, "/etc/auth.json (auths.quay.io)")
    for shown in str(found), repr(found), f"{found}", f"{[found]}":
        assert "<Credentials from /etc/auth.json (auths.quay.io)>" in shown
        assert SECRET not in shown
        assert "user" not in shown


def test_basic_is_user_and_password() -> None:
    assert (
        Credentials("Aladdin", "open sesame", "", "").basic == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    )


# --- --creds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "username", "password"),
    [
        ("u:p", "u", "p"),
        ("u:p:q", "u", "p:q"),
        ("u", "u", ""),
        ("u:", "u", ""),
        ("ü:é", "ü", "é"),
        (" u: p ", " u", " p "),
    ],
)
def test_creds_are_user_and_password(text: str, username: str, password: str) -> None:
    assert credential_helpers.parse_creds(text) == Credentials(username, password, "", "--creds")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the user is missing"),
        (f":{SECRET}", "the user is missing"),
        (f"u:{SECRET}\udcff", "not UTF-8"),
        (f"u\udcff:{SECRET}", "not UTF-8"),
    ],
)
def test_creds_that_are_malformed_are_not_shown(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        credential_helpers.parse_creds(text)
    assert SECRET not in str(refused.value)


# --- helpers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pass", "ecr-login", "acr-env", "wincred.exe", "gcr_2", "0"])
def test_a_helper_is_a_program_asked_for_a_server(name: str) -> None:
    helper = credential_helpers.make_helper(name, (SERVER,), "x", is_required=False)
    assert helper == Helper(name, (SERVER,), "x", is_required=False)
    assert credential_helpers.make_request(helper, SERVER) == (
        [f"docker-credential-{name}", "get"],
        b"registry.example:5000",
    )


@pytest.mark.parametrize(
    "name",
    ["", "-pass", "../pass", "a/b", "a b", "a\n", "a\0", "a;b", "$a", ".pass", "é", "a\udcff"],
)
def test_what_is_no_name_of_a_helper_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of a credential helper") as refused:
        credential_helpers.make_helper(name, (SERVER,), "credsStore in /etc/auth.json")
    assert refused.value.message.startswith("credsStore in /etc/auth.json: ")


def reply(**fields: object) -> bytes:
    return json.dumps({"ServerURL": SERVER, **fields}).encode()


@pytest.mark.parametrize(
    ("status", "output", "found"),
    [
        (0, reply(Username="u", Secret="p"), Credentials("u", "p", "", SOURCE)),
        (0, reply(Username="u", Secret="p") + b"\n", Credentials("u", "p", "", SOURCE)),
        (0, b'{"Username":"u","Secret":"p"}', Credentials("u", "p", "", SOURCE)),
        (0, reply(Username="u", Secret=""), Credentials("u", "", "", SOURCE)),
        (0, reply(Username="", Secret="p"), Credentials("", "p", "", SOURCE)),
        (0, reply(Username="<token>", Secret="t"), Credentials("", "", "t", SOURCE)),
        (0, reply(Username="<token>", Secret=""), None),
        (0, reply(Username="", Secret=""), None),
        (1, b"credentials not found in native keychain", None),
        (1, b"  credentials not found in native keychain\n", None),
        (77, b"credentials not found in native keychain", None),
    ],
)
def test_what_a_helper_answers(status: int, output: bytes, found: Credentials | None) -> None:
    assert credential_helpers.parse_reply(HELPER, SERVER, status, output) == found


GOOD = reply(Username="u", Secret=SECRET)


@pytest.mark.parametrize(
    ("status", "output", "words"),
    [
        (1, b"", "failed for registry.example:5000 with status 1"),
        (-9, b"", "failed for registry.example:5000 with signal 9"),
        (1, b"no credentials server URL\n", "with status 1: no credentials server URL"),
        (1, b"Cannot\x1b[31m\nautolaunch \xff D-Bus", "1: Cannot [31m autolaunch \ufffd D-Bus"),
        (1, b"open /run/user/keyring/control/of/docker", "/run/user/keyring/control/of/docker"),
        (1, b"token " + b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ0ZXN0cyJ9c2ln.x", "token ….….x"),
        (1, b"x " * 1000, "x x x"),
        (1, GOOD, "with status 1"),
        (1, f'secret is "{SECRET}"'.encode(), "with status 1"),
        (0, b"", "no usable answer for registry.example:5000: not JSON"),
        (0, b"credentials not found in native keychain", "not JSON"),
        (0, GOOD[:-1], "not JSON"),
        (0, GOOD + b"x", "not JSON"),
        (0, b"warning: old\n" + GOOD, "not JSON"),
        (0, b"\xff" + GOOD, "not UTF-8"),
        (0, json.dumps(SECRET).encode(), "expected an object, got a string"),
        (0, json.dumps([SECRET]).encode(), "expected an object, got an array"),
        (0, f'{{"{SECRET}":1,"{SECRET}":2}}'.encode(), 'the key "(not shown)" occurs twice'),
        (0, b'{"Secret":"","Secret":""}', 'the key "Secret" occurs twice'),
        (0, reply(Username="u"), "Secret: missing"),
        (0, reply(Secret=SECRET), "Username: missing"),
        (0, reply(username="u", secret=SECRET), "Username: missing"),
        (0, reply(Username="u", Secret=[SECRET]), "Secret: expected a string, got an array"),
        (0, reply(Username=1, Secret=SECRET), "Username: expected a string, got a number"),
        (0, GOOD.ljust(MAX_HELPER_OUTPUT + 1), "answered more than 65536 bytes"),
    ],
)
def test_what_is_no_answer_is_an_error_without_the_secret(
    status: int, output: bytes, words: str
) -> None:
    with pytest.raises(ConfigurationError) as broken:
        credential_helpers.parse_reply(HELPER, SERVER, status, output)
    message = broken.value.message
    assert message.startswith("credsStore in /etc/auth.json: docker-credential-pass ")
    assert words in message
    assert SECRET not in message
    assert len(message) < 500


def test_an_answer_may_fill_the_limit() -> None:
    assert (
        credential_helpers.parse_reply(HELPER, SERVER, 0, GOOD.ljust(MAX_HELPER_OUTPUT)) is not None
    )


def test_mutated_answers_never_raise_anything_else_nor_show_the_secret() -> None:
    chance = random.Random(11)
    for _ in range(5000):
        output = bytearray(GOOD)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(output))
            output[at : at + chance.randrange(3)] = chance.choice(
                [b"", b'"', b"{", b"}", b":", b",", b"\\", b"\0", b"\xff", b"1", b"[", b"null"]
            )
        status = chance.choice([0, 0, 1])
        try:
            outcome: object = credential_helpers.parse_reply(HELPER, SERVER, status, bytes(output))
        except ConfigurationError as error:
            outcome = error
        assert SECRET not in str(outcome)

"""Credentials wherever users have them, shown to a registry that knows one user.

The registry wants Basic authentication, so that what is found is what is shown. Whatever goes
wrong is answered with the place it came from, and never with a secret.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support import parent
from support.home import REGISTRIES_CONF, mirror, table
from support.networks import line_to
from support.parent import eventually
from support.servers import PASSWORD, READER, Answering, basic, docker_registry, http_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Keep
    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child, Reply

PLAIN = "--tls-verify=false"
WRONG = "not-the-password-31"

RUNTIME, USER = "run/containers/auth.json", ".config/containers/auth.json"
XDG, DOCKER = "xdg/containers/auth.json", ".docker/config.json"
DOCKER_CONFIG, LEGACY = "docker/config.json", ".dockercfg"

NOT_FOUND = "credentials not found in native keychain"


@pytest.fixture(scope="module")
def guarded(registry: Registry) -> Iterator[str]:
    """Return the address of the same registry, for whoever has the password."""
    with docker_registry(registry.directory, auth="htpasswd") as address:
        yield address


def entry(password: str = PASSWORD, **fields: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{READER}:{password}".encode()).decode(), **fields}


def auths(key: str = "HOST", password: str = PASSWORD) -> dict[str, Any]:
    return {"auths": {key: entry(password)}}


def place(document: Any, address: str) -> Any:  # noqa: ANN401  (JSON is any)
    """Put the registry's address where HOST stands, and its port where PORT does."""
    if isinstance(document, dict):
        return {place(key, address): place(item, address) for key, item in document.items()}
    if isinstance(document, str):
        return document.replace("HOST", address).replace("PORT", address.partition(":")[2])
    return document


def assert_nothing_is_told(child: Child, reply: Reply) -> None:
    """Make sure that no secret is in what the program says, however it is spelled."""
    told = reply.body.decode("latin-1") + child.stderr + child.stdout
    for password in (PASSWORD, WRONG):
        for secret in (password, basic(READER, password).partition(" ")[2]):
            assert secret not in told


def assert_pulled(child: Child, registry: Registry) -> None:
    reply = child.client.get("/manifest")
    assert reply.status == 200, reply.body
    assert reply.body == registry.layout.read(registry.images["latest"]["digest"])
    for layer in registry.layers("latest"):
        blob = child.client.get(f"/blobs/{layer['digest']}")
        assert blob.body == registry.layout.read(layer["digest"])
    assert_nothing_is_told(child, reply)
    assert child.finish() == 0


def assert_refused(child: Child, *words: str) -> None:
    assert_error(child, 403, "UNAUTHORIZED", *words)


def assert_misconfigured(child: Child, *words: str) -> None:
    assert_error(child, 500, "CONFIGURATION", *words)


def assert_error(child: Child, status: int, code: str, *words: str) -> None:
    """Expect an error that says these words, and no secret."""
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (status, code), reply.body
    assert reply.error["detail"]["retryable"] is False
    assert all(word in reply.message for word in words), reply.message
    assert_nothing_is_told(child, reply)
    assert child.finish() == 0


# --- files -----------------------------------------------------------------------------------


class Case(NamedTuple):
    """Files with what is in them, options, and changes of the environment; HOME stands in them."""

    files: dict[str, Any]
    options: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012  (never changed)


def earlier(first: str, second: str, **env: str) -> Case:
    """Return the case of two files, of which the second would not do."""
    documents = {name: auths(password=p) for name, p in ((first, PASSWORD), (second, WRONG))}
    if LEGACY in documents:
        documents[LEGACY] = documents[LEGACY]["auths"]
    return Case(documents, env=env)


FOUND = {
    "runtime directory": earlier(RUNTIME, USER),
    "user's": earlier(USER, DOCKER),
    "XDG_CONFIG_HOME": earlier(XDG, USER, XDG_CONFIG_HOME="HOME/xdg"),
    "DOCKER_CONFIG": earlier(DOCKER_CONFIG, DOCKER, DOCKER_CONFIG="HOME/docker"),
    "Docker's": earlier(DOCKER, LEGACY),
    "legacy": Case({LEGACY: {"https://HOST/v1/": entry()}}),
    "last of all": Case(
        {RUNTIME: {}, USER: auths("other.io"), DOCKER: {}, LEGACY: auths()["auths"]}
    ),
    "an empty entry is passed over": Case({USER: {"auths": {"HOST": {}}}, DOCKER: auths()}),
    "REGISTRY_AUTH_FILE": Case(
        {RUNTIME: auths(password=WRONG), "a.json": auths()},
        (),
        {"REGISTRY_AUTH_FILE": "HOME/a.json"},
    ),
    "--authfile first": Case(
        {"a.json": auths(), "b.json": auths(password=WRONG)},
        ("--authfile=HOME/a.json",),
        {"REGISTRY_AUTH_FILE": "HOME/b.json"},
    ),
    "--creds first": Case({USER: auths(password=WRONG)}, (f"--creds={READER}:{PASSWORD}",)),
    "--creds before --authfile": Case(
        {"a.json": auths(password=WRONG)},
        ("--authfile=HOME/a.json", f"--creds={READER}:{PASSWORD}"),
    ),
    "the repository's key": Case(
        {
            USER: {
                "auths": {
                    "HOST": entry(WRONG),
                    "HOST/images": entry(WRONG),
                    "HOST/images/all": entry(),
                }
            }
        }
    ),
    "a namespace's key": Case({USER: {"auths": {"HOST": entry(WRONG), "HOST/images": entry()}}}),
    "no namespace": Case({USER: {"auths": {"HOST/image": entry(WRONG), "HOST": entry()}}}),
    "user and password": Case(
        {USER: {"auths": {"HOST": {"username": READER, "password": PASSWORD}}}}
    ),
    "a key with a wildcard": Case({USER: auths("127.*.0.1:PORT")}),
    "a URL as key": Case({USER: auths("https://HOST/v2/")}),
}


def start(case: Case, pull: Pull, home: Home, registry: Registry, address: str) -> Child:
    for name, document in case.files.items():
        home.write(name, place(document, address))
    home.path.mkdir(exist_ok=True)
    options = [option.replace("HOME", str(home.path)) for option in case.options]
    env = {key: value.replace("HOME", str(home.path)) for key, value in case.env.items()}
    return pull(registry.name(":latest", address), PLAIN, "--debug", *options, env=env)


def test_credentials_are_found(together: Together, registry: Registry, guarded: str) -> None:
    def check(case: Case, pull: Pull, home: Home) -> None:
        assert_pulled(start(case, pull, home, registry, guarded), registry)

    together(FOUND, check)


# What is refused, and the words that say why.
REFUSED = {
    "none at all": (Case({}), ["no credentials"]),
    "--no-creds": (Case({USER: auths()}, ("--no-creds",)), []),
    "in no file that counts": (
        Case({USER: auths(), "a.json": {}}, ("--authfile=HOME/a.json",)),
        ["no credentials"],
    ),
    "the first file counts": (earlier(USER, RUNTIME), [RUNTIME, "auths.HOST"]),
    "the longest key counts": (
        Case({USER: {"auths": {"HOST": entry(), "HOST/images": entry(WRONG)}}}),
        [USER, "auths.HOST/images"],
    ),
    "an empty key hides its parent": (
        Case({USER: {"auths": {"HOST": entry(), "HOST/images": {}}}}),
        ["no credentials"],
    ),
    "legacy files know hosts": (Case({LEGACY: {"HOST/images": entry(WRONG)}}), [LEGACY]),
    "wrong --creds": (Case({USER: auths()}, (f"--creds={READER}:{WRONG}",)), ["--creds"]),
    "wrong in --authfile": (
        Case({"a.json": auths(password=WRONG)}, ("--authfile=HOME/a.json",)),
        ["a.json", "auths.HOST"],
    ),
    "a token for no token registry": (Case({}, ("--registry-token=abc",)), ["--registry-token"]),
    "--registry-token before --authfile": (
        Case({"a.json": auths()}, ("--authfile=HOME/a.json", "--registry-token=abc")),
        ["--registry-token"],
    ),
    "--no-creds before --authfile": (
        Case({"a.json": auths()}, ("--authfile=HOME/a.json", "--no-creds")),
        ["no credentials"],
    ),
}


def test_wrong_credentials_are_a_403_that_names_their_source(
    together: Together, registry: Registry, guarded: str
) -> None:
    def check(row: tuple[Case, list[str]], pull: Pull, home: Home) -> None:
        case, words = row
        child = start(case, pull, home, registry, guarded)
        assert_refused(child, *(word.replace("HOST", guarded) for word in words))

    together(REFUSED, check)


BROKEN: dict[str, tuple[Any, list[str]]] = {
    "empty": ("", []),
    "no JSON": ('{"auths"', []),
    "auths is a list": ({"auths": []}, ["auths"]),
    "an entry is text": ({"auths": {"HOST": "cmVhZGVyOm9wZW4tc2VzYW1lLTc3"}}, ["auths.HOST"]),
    "no base64": ({"auths": {"HOST": {"auth": f"?{PASSWORD}"}}}, ["auths.HOST.auth"]),
    "a helper is a number": ({"credHelpers": {"HOST": 5}}, ["credHelpers.HOST"]),
    "a helper is a path": ({"credHelpers": {"HOST": "../sh"}}, ["credHelpers.HOST"]),
    "a store that fails": (
        {"credsStore": "failing"},
        ["credsStore", "docker-credential-failing", "locked"],
    ),
}


def test_a_broken_file_is_a_500_that_names_it_and_the_key(
    together: Together, registry: Registry, guarded: str
) -> None:
    """And what later files have is not asked for: they were not meant."""

    def check(row: tuple[Any, list[str]], pull: Pull, home: Home) -> None:
        document, words = row
        home.program("docker-credential-failing", "echo the keychain is locked; exit 3")
        child = start(Case({USER: document, DOCKER: auths()}), pull, home, registry, guarded)
        assert_misconfigured(child, USER, *(word.replace("HOST", guarded) for word in words))

    together(BROKEN, check)


def test_a_file_that_a_variable_names_must_be_there(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    missing = str(home.path / "no-such-file.json")
    child = pull(registry.name(":latest", guarded), PLAIN, env={"REGISTRY_AUTH_FILE": missing})
    assert_misconfigured(child, missing)


def test_a_file_that_an_option_names_must_be_there(pull: Pull, guarded: str) -> None:
    child = pull(f"docker://{guarded}/images/all", "--authfile=/no/such/file.json")
    assert child.wait() == 2
    assert "/no/such/file.json" in child.stderr


@pytest.mark.parametrize("kind", ["pipe", "deleted"])
def test_the_file_may_be_a_descriptor(
    kind: str, pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    content = home.write("auth.json", place(auths(), guarded))
    if kind == "pipe":
        fd, write = os.pipe()
        os.write(write, content.read_bytes())
        os.close(write)
    else:
        fd = os.open(content, os.O_RDONLY)
    content.unlink()
    try:
        option = f"--authfile=/proc/self/fd/{fd}"
        child = pull(registry.name(":latest", guarded), PLAIN, option, files=[fd])
    finally:
        os.close(fd)
    assert_pulled(child, registry)


def test_debug_tells_the_file_of_the_credentials(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    home.write(USER, place(auths("HOST/images"), guarded))
    child = pull(registry.name(":latest", guarded), PLAIN, "--debug")
    reply = child.client.get("/manifest")
    assert child.finish() == 0
    lines = [line for line in child.stderr.splitlines() if "/manifests/latest: 200" in line]
    assert len(lines) == 1, child.stderr
    assert USER in lines[0]
    assert f"auths.{guarded}/images" in lines[0]
    assert f"{len(reply.body)} bytes" in lines[0]


# --- helpers ---------------------------------------------------------------------------------

# Answers for the registry that is asked about on standard input, and only for `get`.
ANSWERING = """
[ $# = 1 ] && [ "$1" = get ] || exit 9
server=$(cat)
[ "$server" = HOST ] || { echo NOT_FOUND; exit 1; }
printf '{"ServerURL": "%s", "Username": "USER", "Secret": "SECRET"}' "$server"
"""


def script(address: str, secret: str = PASSWORD) -> str:
    words = {"HOST": address, "USER": READER, "SECRET": secret, "NOT_FOUND": NOT_FOUND}
    text = ANSWERING
    for word, value in words.items():
        text = text.replace(word, value)
    return text


GOOD = {
    "credHelpers": {USER: {"credHelpers": {"HOST": "test"}}},
    "credHelpers before auths": {USER: {"credHelpers": {"HOST": "test"}, **auths(password=WRONG)}},
    "credsStore": {DOCKER: {"credsStore": "test"}},
    "credsStore, with Docker's marker": {DOCKER: {"credsStore": "test", "auths": {"HOST": {}}}},
    "credsStore after auths": {DOCKER: {"credsStore": "none", **auths()}},
    "credsStore that has none": {USER: {"credsStore": "none"}, DOCKER: auths()},
    "credsStore that is missing": {USER: {"credsStore": "no-such"}, DOCKER: auths()},
    "a helper of another registry": {USER: {"credHelpers": {"x.io": "failing"}, **auths()}},
    "an empty helper keeps out of the store": {
        USER: {"credsStore": "failing", "credHelpers": {"HOST": ""}, **auths()}
    },
}


def test_helpers_are_asked(together: Together, registry: Registry, guarded: str) -> None:
    def check(files: dict[str, Any], pull: Pull, home: Home) -> None:
        home.program("docker-credential-test", script(guarded))
        home.program("docker-credential-none", f"cat >/dev/null; echo {NOT_FOUND}; exit 1")
        home.program("docker-credential-failing", "exit 3")
        assert_pulled(start(Case(files), pull, home, registry, guarded), registry)

    together(GOOD, check)


LISTS = [
    ('["test"]', True),
    ('["containers-auth.json", "test"]', True),
    ('["containers-auth.json"]', False),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", LISTS)
def test_helpers_of_registries_conf_are_asked(
    case: tuple[str, bool], pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    helpers, works = case
    home.program("docker-credential-test", script(guarded))
    home.write(REGISTRIES_CONF, f"credential-helpers = {helpers}")
    child = pull(registry.name(":latest", guarded), PLAIN)
    if works:
        assert_pulled(child, registry)
    else:
        assert_refused(child, "no credentials")


BAD_HELPERS = {
    "fails": ("echo cannot open the keychain; exit 7", ["status 7", "cannot open the keychain"]),
    "is killed": ("kill -9 $$", ["signal 9"]),
    "floods": ("exec cat /dev/zero", ["65536"]),
    "says nothing": ("exit 0", []),
    "says garbage": (f"echo {PASSWORD}", []),
    "says something else": (f'echo \'{{"Secret": "{PASSWORD}"}}\'', ["Username"]),
    "fails with its answer": (f'echo \'{{"Secret": "{PASSWORD}"}}\'; exit 1', ["status 1"]),
}


def test_a_helper_that_fails_is_a_500_that_names_it(
    together: Together, registry: Registry, guarded: str
) -> None:
    def check(row: tuple[str, list[str]], pull: Pull, home: Home) -> None:
        text, words = row
        home.program("docker-credential-bad", text)
        home.write(USER, {"credHelpers": {guarded: "bad"}})
        child = pull(registry.name(":latest", guarded), PLAIN, "--debug")
        key = f"credHelpers.{guarded}"
        assert_misconfigured(child, "docker-credential-bad", USER, key, *words)

    together(BAD_HELPERS, check)


def test_a_helper_that_is_missing_is_a_500_that_names_it(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    home.write(USER, {"credHelpers": {guarded: "no-such"}})
    child = pull(registry.name(":latest", guarded), PLAIN)
    assert_misconfigured(child, "docker-credential-no-such", USER, f"credHelpers.{guarded}")


def test_a_wrong_password_from_a_helper_names_the_helper(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    home.program("docker-credential-test", script(guarded, WRONG))
    home.write(USER, {"credHelpers": {guarded: "test"}})
    child = pull(registry.name(":latest", guarded), PLAIN, "--debug")
    assert_refused(child, "docker-credential-test", USER)


def test_a_helper_gets_no_descriptor_but_its_own(
    keep: Keep, home: Home, registry: Registry, guarded: str
) -> None:
    """Not even those that the program itself inherited."""
    home.program(
        "docker-credential-test", f"ls /proc/self/fd > {home.path}/open\n{script(guarded)}"
    )
    home.write(USER, {"credHelpers": {guarded: "test"}})
    child = keep(
        parent.start(registry.name(":latest", guarded), PLAIN, sockets=5, env=home.environment())
    )
    assert child.client.get("/manifest").status == 200
    listed = set((home.path / "open").read_text().split())
    assert listed <= {"0", "1", "2", "3"}, "3 is the directory that ls reads"
    assert child.finish() == 0


def test_a_helper_that_hangs_ends_with_the_parent(
    pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    pid = home.path / "pid"
    home.program(
        "docker-credential-test", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60"
    )
    home.write(USER, {"credHelpers": {guarded: "test"}})
    child = pull(registry.name(":latest", guarded), PLAIN)
    child.client.ask("GET", "/manifest")
    assert eventually(pid.exists)
    child.hang_up()
    assert child.wait(5) == 0
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_credentials_are_for_one_registry_and_not_for_its_redirects(
    pull: Pull, registry: Registry
) -> None:
    """--creds go to whom the name says; a redirect to another port is another origin."""
    with line_to(registry.address) as line:
        redirected: list[str | None] = []

        def get(request: Answering) -> None:
            authorization = request.headers["Authorization"]
            redirected.append(authorization)
            if authorization is None:
                request.answer(401, b"", WWW_Authenticate='Basic realm="test"')
            else:
                request.answer(307, b"", Location=f"http://{line.address}{request.path}")

        with http_server(get) as front:
            image = registry.name(":latest", front)
            child = pull(image, PLAIN, f"--creds={READER}:{PASSWORD}")
            assert_pulled(child, registry)
    assert redirected[:2] == [None, basic(READER, PASSWORD)]
    assert line.asked
    assert not any("authorization" in each.fields for each in line.asked)


@pytest.mark.slow
@pytest.mark.parametrize("option", [f"--creds={READER}:{WRONG}", "--registry-token=abc"])
def test_what_is_for_the_own_registry_is_not_for_a_mirror_which_a_file_serves(
    option: str, pull: Pull, home: Home, registry: Registry, guarded: str
) -> None:
    with line_to(guarded) as line:
        insecure = "insecure = true"
        home.write(
            REGISTRIES_CONF, table("", "own.test:5000", insecure) + mirror(line.address, insecure)
        )
        file = home.write("a.json", place(auths(), line.address))
        image = registry.name(":latest", "own.test:5000")
        child = pull(image, f"--authfile={file}", option)
        assert_pulled(child, registry)
        shown = {each.fields.get("authorization") for each in line.asked}
    assert shown == {None, basic(READER, PASSWORD)}

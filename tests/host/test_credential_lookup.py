"""Credentials from options, files and helpers; the helpers are real programs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import trio
from support.parent import eventually
from support.streams import Notes, real_time, refused

from imgproxy.config.credential_helpers import MAX_HELPER_OUTPUT
from imgproxy.errors import ConfigurationError
from imgproxy.host import credential_lookup as keyrings
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.host.credential_lookup import CredentialLookup
from imgproxy.specs.http.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BROKEN = (500, "CONFIGURATION", False)
HUB = "https://index.docker.io/v1/"
SECRET = "hunter2hunter2hunter2"


class Install(Protocol):
    def __call__(self, name: str, *lines: str, interpreter: str = "/bin/sh") -> Path: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a helper in $PATH, which writes its input to `asked`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def put(name: str, *lines: str, interpreter: str = "/bin/sh") -> Path:
        program = programs / f"docker-credential-{name}"
        program.write_text("\n".join([f"#!{interpreter}", *lines, ""]))
        program.chmod(0o755)
        return program

    return put


def say(username: str = "u", secret: str = SECRET) -> str:
    answer = json.dumps({"ServerURL": "x", "Username": username, "Secret": secret})
    return f"printf %s '{answer}'"


NOTHING = "echo credentials not found in native keychain; exit 1"


def credential_lookup(
    auth: object = None,
    registries: str = "",
    *,
    explicit: Credentials | None = None,
    anonymous: bool = False,
    insecure: bool = False,
) -> CredentialLookup:
    chosen = Overrides(
        registries=(registries.encode(), "registries.conf"),
        auth=(json.dumps(auth or {}).encode(), "auth.json"),
    )
    notes = Notes()
    configuration = Configuration(chosen, notes)
    return CredentialLookup(
        configuration, notes.hide, explicit=explicit, anonymous=anonymous, insecure=insecure
    )


async def find(
    ring: CredentialLookup, registry: str = "a.test", *, is_own: bool = True
) -> str | None:
    """Return user, password and identity token with their source, in one line."""
    found = await ring.find(registry, "acme/os", is_own=is_own)
    if found is None:
        return None
    return f"{found.username}:{found.password}:{found.identity_token} from {found.source}"


async def failure_of(ring: CredentialLookup, registry: str = "a.test") -> str:
    with pytest.raises(ConfigurationError) as raised:
        await find(ring, registry)
    assert refused(raised.value) == BROKEN
    assert SECRET not in raised.value.message
    assert raised.value.message.isprintable()
    return raised.value.message


# --- options ------------------------------------------------------------------------------------

FILE = {"auths": {"a.test": {"auth": "dTpw"}, "a.test/acme": {"auth": "djpx"}}}
EXPLICIT = Credentials("me", "p", "", "--creds")


@pytest.mark.parametrize(
    ("options", "is_own", "wanted"),
    [
        ({}, True, "v:q: from auth.json (auths.a.test/acme)"),
        ({}, False, "v:q: from auth.json (auths.a.test/acme)"),
        ({"explicit": EXPLICIT}, True, "me:p: from --creds"),
        ({"explicit": EXPLICIT}, False, "v:q: from auth.json (auths.a.test/acme)"),
        ({"anonymous": True}, True, None),
        ({"anonymous": True}, False, None),
    ],
)
@real_time
async def test_explicit_credentials_are_for_the_image_s_own_registry_alone(
    options: dict[str, object],
    is_own: bool,  # noqa: FBT001  (a parameter)
    wanted: str | None,
) -> None:
    ring = credential_lookup(FILE, **options)  # type: ignore[arg-type]
    assert await find(ring, is_own=is_own) == wanted


@pytest.mark.parametrize("options", [{"explicit": EXPLICIT}, {"anonymous": True}])
@real_time
async def test_with_an_option_no_file_is_read_and_no_helper_run(options: dict[str, object]) -> None:
    chosen = Overrides(registries=(b"= broken", "r"), auth=(b"broken", "a"))
    ring = CredentialLookup(Configuration(chosen, Notes()), list, **options)  # type: ignore[arg-type]
    await ring.find("a.test", "x", is_own=True)


@real_time
async def test_a_broken_file_is_no_anonymous_access() -> None:
    ring = CredentialLookup(Configuration(Overrides(auth=(b"{", "auth.json")), Notes()), list)
    assert "auth.json" in await failure_of(ring)


@real_time
async def test_files_are_asked_until_one_has_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in {
        "run/containers/auth.json": {"auths": {"a.test": {}, "b.test": {"auth": "dTpw"}}},
        "docker/config.json": FILE,
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    for variable in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    ring = CredentialLookup(Configuration(Overrides(registries=(b"", "r")), Notes()), list)
    source = f"{tmp_path}/docker/config.json (auths.a.test/acme)"
    assert await find(ring) == f"v:q: from {source}"
    assert (await find(ring, "b.test") or "").startswith("u:p: from ")
    assert await find(ring, "c.test") is None


# --- helpers ------------------------------------------------------------------------------------

STORE = {"credsStore": "test"}
OWN = {"credHelpers": {"a.test": "test"}}


@real_time
async def test_a_helper_is_asked_by_its_standard_input_and_no_shell(
    install: Install, tmp_path: Path
) -> None:
    install("test", f'echo "$# $1 $(cat)" > {tmp_path}/asked', say())
    found = await find(credential_lookup(OWN))
    assert found == (
        f"u:{SECRET}: from docker-credential-test for a.test (credHelpers.a.test in auth.json)"
    )
    assert (tmp_path / "asked").read_text() == "1 get a.test\n"


@real_time
async def test_an_identity_token_has_a_user_of_its_own(install: Install) -> None:
    install("test", say("<token>"))
    assert (await find(credential_lookup(OWN)) or "").startswith(f"::{SECRET} from ")


@real_time
async def test_a_store_is_asked_for_the_hub_by_the_name_that_docker_gave_it(
    install: Install, tmp_path: Path
) -> None:
    log = tmp_path / "asked"
    install("test", f"read -r server; echo $server >> {log}", NOTHING)
    assert await find(credential_lookup(STORE), "docker.io") is None
    assert log.read_text() == f"{HUB}\ndocker.io\n"


@real_time
async def test_a_helper_that_answers_without_reading_is_heard(install: Install) -> None:
    install("test", "exec 0<&-", say())
    registry = "a" * 60 + ".test"
    for _ in range(20):
        assert await find(credential_lookup({"credHelpers": {registry: "test"}}), registry)


@real_time
async def test_what_a_helper_has_is_asked_for_each_time(install: Install, tmp_path: Path) -> None:
    """It may be valid for some hours only, as that of ECR is."""
    count = tmp_path / "count"
    install("test", f"echo x >> {count}", say())
    ring = credential_lookup(OWN)
    for _ in range(2):
        assert await find(ring)
    assert count.read_text() == "x\nx\n"


FAILING: dict[str, tuple[list[str], str]] = {
    "status": (["echo no; exit 3"], "failed for a.test with status 3: no"),
    "status without words": (["exit 3"], "failed for a.test with status 3"),
    "a secret with the status": ([say(), "exit 1"], "failed for a.test with status 1"),
    "a token with the status": ([f"echo {SECRET}; exit 1"], "failed for a.test with status 1: …"),
    "signal": (["kill -9 $$"], "failed for a.test with signal 9"),
    "nothing": ([":"], "gave no usable answer for a.test"),
    "no JSON": ([f"echo {SECRET}"], "gave no usable answer for a.test"),
    "no secret": (['echo \'{"Username":"u"}\''], "gave no usable answer for a.test"),
    "a flood": (["exec yes"], f"answered more than {MAX_HELPER_OUTPUT} bytes for a.test"),
    "a flood of errors": (["yes >&2 & sleep 0.2; kill $!; exit 4"], "with status 4"),
    "standard error": ([f"echo {SECRET} >&2; exit 5"], "failed for a.test with status 5"),
}


@pytest.mark.parametrize("case", FAILING)
@real_time
async def test_a_helper_that_fails_is_an_error_that_names_it(case: str, install: Install) -> None:
    lines, words = FAILING[case]
    install("test", *lines)
    message = await failure_of(credential_lookup(OWN))
    assert message.startswith("credHelpers.a.test in auth.json: docker-credential-test ")
    assert words in message


@pytest.mark.parametrize("promised", [True, False])
@real_time
async def test_a_helper_that_is_missing_matters_where_a_login_was_recorded(
    install: Install,
    promised: bool,  # noqa: FBT001  (a parameter)
) -> None:
    install("other", say())
    auths: dict[str, object] = {"auths": {"a.test": {}}} if promised else {}
    ring = credential_lookup({**STORE, **auths})
    if promised:
        assert "docker-credential-test is not in $PATH" in await failure_of(ring)
    else:
        assert await find(ring) is None


@pytest.mark.parametrize("fault", ["mode", "directory", "format"])
@real_time
async def test_a_helper_that_cannot_be_run_is_an_error(install: Install, fault: str) -> None:
    program = install("test", say())
    if fault == "mode":
        program.chmod(0o644)
    elif fault == "directory":
        program.unlink()
        program.mkdir()
    else:
        program.write_bytes(b"\0\1\2\3")
    message = await failure_of(credential_lookup(OWN))
    assert "docker-credential-test cannot be run: " in message


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


SLEEPERS = {
    "silent": "exec sleep 100",
    "after its answer": f"{say()}; exec sleep 100",
    "deaf to signals": "trap '' TERM INT HUP; while :; do sleep 0.05; done",
    "with children": "sleep 100 & echo $! >> $PIDS; wait",
    "with children of children": "sh -c 'sleep 100 & echo $$ $! >> $PIDS; wait'",
    "in a pipeline": "sleep 100 | sleep 100 | sh -c 'echo $$ >> $PIDS; exec sleep 100'",
    "stopped": "kill -STOP $$",
    "a flood of a child": "yes & echo $! >> $PIDS; wait",
}


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Return a function that reads the numbers of processes off the file $PIDS.

    There are none of a helper that was ended before it began.
    """
    file = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(file))
    return lambda: [int(pid) for pid in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("how", SLEEPERS)
@real_time
async def test_a_helper_that_does_not_end_is_ended_with_its_children(
    how: str,
    install: Install,
    pids: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyrings, "HELPER_TIMEOUT", 0.5)
    install("test", "echo $$ > $PIDS", SLEEPERS[how])
    started = time.monotonic()
    message = await failure_of(credential_lookup(OWN))
    if "flood" in how:
        assert f"answered more than {MAX_HELPER_OUTPUT} bytes for a.test" in message
    else:
        assert "gave no answer for a.test in 0.5 s" in message
    assert time.monotonic() - started < 5
    assert eventually(lambda: not any(map(is_running, pids())))


@real_time
async def test_a_helper_that_leaves_a_child_with_its_output_open_is_heard(
    install: Install, pids: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some helpers start an agent in the background on their first use, which goes on."""
    monkeypatch.setattr(keyrings, "HELPER_TIMEOUT", 2.0)
    install("test", "sleep 100 & echo $! > $PIDS", say())
    try:
        assert await find(credential_lookup(OWN)) is not None
        assert all(map(is_running, pids()))
    finally:
        os.kill(*pids(), 9)


@pytest.mark.parametrize("how", SLEEPERS)
@real_time
async def test_who_stops_waiting_leaves_no_helper_behind(
    how: str, install: Install, pids: Callable[[], list[int]]
) -> None:
    install("test", "echo $$ > $PIDS", SLEEPERS[how].replace("yes", "sleep 100"))
    with trio.move_on_after(0.5) as scope:
        await find(credential_lookup(OWN))
    assert scope.cancelled_caught
    assert eventually(lambda: not any(map(is_running, pids())))


@real_time
async def test_no_helper_is_run_without_the_shell_that_ends_it(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyrings, "_GUARD", ("/nowhere/sh", "-c", ""))
    install("test", say())
    for login in (OWN, STORE):
        message = await failure_of(credential_lookup(login))
        assert "docker-credential-test cannot be run: /nowhere/sh, which" in message


@real_time
async def test_helpers_inherit_no_descriptor_and_leave_none(
    install: Install, tmp_path: Path
) -> None:
    install("test", f"ls /proc/$$/fd > {tmp_path}/fds", say())
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)  # noqa: FBT003  (the name says it)
    try:
        await find(credential_lookup(OWN))
        before = os.listdir("/proc/self/fd")
        await find(credential_lookup(OWN))
        assert os.listdir("/proc/self/fd") == before
        inherited = {int(fd) for fd in (tmp_path / "fds").read_text().split()}
        # The shell holds its script by a descriptor from 10 on.
        assert {fd for fd in inherited if fd < 10} == {0, 1, 2}
        assert writing not in inherited
    finally:
        os.close(reading)
        os.close(writing)


# --- registries.conf: credential-helpers --------------------------------------------------------

LISTED = 'credential-helpers = ["one", "containers-auth.json", "two"]'


@pytest.mark.parametrize(
    ("one", "two", "auth", "wanted"),
    [
        (say(), "exit 9", FILE, f"u:{SECRET}: from docker-credential-one for a.test"),
        (NOTHING, "exit 9", FILE, "v:q: from auth.json"),
        (NOTHING, say(), {}, f"u:{SECRET}: from docker-credential-two for a.test"),
        (NOTHING, NOTHING, {}, None),
        ("exit 9", say(), {}, f"u:{SECRET}: from docker-credential-two for a.test"),
        ("exit 9", NOTHING, FILE, "v:q: from auth.json"),
    ],
    ids=["first", "files", "last", "none", "last-after-a-failure", "files-after-a-failure"],
)
@real_time
async def test_listed_helpers_are_asked_in_turn(
    install: Install, one: str, two: str, auth: object, wanted: str | None
) -> None:
    install("one", one)
    install("two", two)
    found = await find(credential_lookup(auth, LISTED))
    assert found is None if wanted is None else (found or "").startswith(wanted)


@pytest.mark.parametrize("insecure", [False, True])
@real_time
async def test_without_tls_port_443_is_a_port_of_its_own(
    install: Install,
    tmp_path: Path,
    insecure: bool,  # noqa: FBT001  (a parameter)
) -> None:
    """Another program may listen there, and what it gets is the password."""
    log = tmp_path / "asked"
    install("one", f"read -r server; echo $server >> {log}", NOTHING)
    install("two", "exit 9")
    file = {"auths": {"a.test": {"auth": "dTpw"}}}
    ring = credential_lookup(file, LISTED.replace(', "two"', ""), insecure=insecure)
    found = await find(ring, "a.test:443")
    assert found == (None if insecure else "u:p: from auth.json (auths.a.test)")
    assert log.read_text().split() == ["a.test:443", *([] if insecure else ["a.test"])]


@real_time
async def test_a_failure_counts_where_nobody_has_anything(install: Install) -> None:
    install("one", "exit 9")
    install("two", "exit 8")
    assert "with status 9" in await failure_of(credential_lookup({}, LISTED))


@pytest.mark.parametrize("name", ["../x", "-x", "a/b", ""])
@real_time
async def test_a_name_that_is_no_helper_s_is_refused_before_anything_runs(name: str) -> None:
    ring = credential_lookup({"credHelpers": {"a.test": name or " "}})
    assert "is not the name of a credential helper" in await failure_of(ring)


@real_time
async def test_places_are_asked_for_side_by_side(install: Install) -> None:
    """A failure for one registry does not affect another."""
    install("slow", "sleep 0.2; exit 9")
    install("test", say())
    ring = credential_lookup({"credHelpers": {"slow.test": "slow", "a.test": "test"}})
    results: list[str | None] = []

    async def note(ask: Callable[[], Awaitable[object]]) -> None:
        results.append(str(await ask()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, lambda: failure_of(ring, "slow.test"))
        await trio.sleep(0.05)
        nursery.start_soon(note, lambda: find(ring))
    assert sorted(each.partition(":")[0] for each in results if each) == [
        "credHelpers.slow.test in auth.json",
        "u",
    ]

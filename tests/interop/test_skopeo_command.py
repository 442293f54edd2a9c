"""The command line of skopeo's protocol: options, descriptors, credentials, and a link."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TYPE_CHECKING

import pytest
from support.effort import some
from support.filled import noise
from support.home import REGISTRIES_CONF, mirror, table
from support.parent import COMMAND, LIMIT
from support.servers import (
    PASSWORD,
    READER,
    Answering,
    basic,
    docker_registry,
    http_server,
    put_image,
)
from support.skopeo_client import PROGRAMS, SUBCOMMAND, Client, Ended, Program

from imgproxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import Converse, Sample
    from support.home import Home
    from support.images import Layout


def run(
    home: Home, *arguments: str, stdin: int | IO[bytes] = subprocess.DEVNULL, link: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, by a link if one is given."""
    command = [link] if link else COMMAND
    return subprocess.run(
        [*command, *arguments],
        stdin=stdin,
        env=home.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a program that refuses to start, as skopeo does with status 1."""
    assert result.returncode == 1, result
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("imgproxy: ")
    return line.removeprefix("imgproxy: ")


# --- descriptors --------------------------------------------------------------------------------


@contextmanager
def seqpacket(*, listens: bool = False) -> Iterator[int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        if listens:
            sock.bind(b"\0" + os.urandom(8).hex().encode())
            sock.listen()
        yield sock.fileno()


@contextmanager
def pair(kind: socket.SocketKind) -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        yield theirs.fileno()


@contextmanager
def tcp() -> Iterator[int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        yield client.fileno()


@contextmanager
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as opened:
        yield opened.fileno()


@contextmanager
def pipe() -> Iterator[int]:
    with ExitStack() as stack:
        ends = [
            stack.enter_context(os.fdopen(fd, mode))
            for fd, mode in zip(os.pipe(), "rw", strict=True)
        ]
        yield ends[0].fileno()


@contextmanager
def device() -> Iterator[int]:
    with open(os.devnull, "rb") as opened:
        yield opened.fileno()


DESCRIPTORS: dict[str, tuple[Callable[[], AbstractContextManager[int]], str]] = {
    "a stream socket": (lambda: pair(socket.SOCK_STREAM), "SOCK_STREAM), not a Unix socket"),
    "a datagram socket": (lambda: pair(socket.SOCK_DGRAM), "SOCK_DGRAM), not a Unix socket"),
    "a TCP socket": (tcp, "(AF_INET, SOCK_STREAM), not a Unix socket"),
    "one that listens": (lambda: seqpacket(listens=True), "not connected"),
    "one that is not connected": (seqpacket, "not connected"),
    "a file": (file, "a regular file, not a Unix socket"),
    "a device": (device, "a character device, not a Unix socket"),
    "a pipe": (pipe, "a FIFO, not a Unix socket"),
}


def test_descriptors_that_are_unusable(home: Home) -> None:
    for name in some(list(DESCRIPTORS)):
        make, said = DESCRIPTORS[name]
        with make() as fd:
            line = complaint(run(home, SUBCOMMAND, stdin=fd))
        assert line.startswith("descriptor 0 is "), name
        assert said in line, name


@pytest.mark.slow
def test_descriptors_that_are_closed(home: Home) -> None:
    for fd in ("77", "99999999999999999999", "1000000"):
        assert complaint(run(home, SUBCOMMAND, "--sockfd", fd)).startswith(
            f"descriptor {fd} is closed; "
        )
    closing = [
        sys.executable,
        "-c",
        "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])",
    ]
    result = subprocess.run(
        [*closing, *COMMAND, SUBCOMMAND],
        env=home.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert complaint(result).startswith("descriptor 0 is ")


# --- options ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
@pytest.mark.parametrize("by_option", [True, False], ids=["--sockfd", "standard input"])
def test_options_stand_before_the_word_or_after_it(
    program: Program, sample: Sample, converse: Converse, *, by_option: bool
) -> None:
    """As the Go client gives them, and as the Rust client does."""
    for before, after in (
        (["--debug", "--override-os=linux"], ["--tls-verify=false"]),
        ([], ["--debug", "--no-creds", "--tls-verify=false", "--cert-dir", "/"]),
        (["--insecure-policy"], []),
        (["--command-timeout", "5s", "--tmpdir", "/nowhere"], ["--daemon-host", "unix:///nowhere"]),
    ):
        policy = None if "--insecure-policy" in before else "--insecure-policy"
        client = converse(
            *after, program=program, before=before, by_option=by_option, policy=policy
        )
        client.initialize()
        image = client.open(sample.name)
        assert client.document("GetManifest", image) == sample.manifest
        assert client.finalize() == 0


FAULTS = {
    "an unknown option": ["--nope"],
    "decryption": ["--decryption-key", "/key"],
    "an operand": ["oci:x"],
    "two policies": ["--insecure-policy", "--policy=x"],
    "signatures by nobody": ["--insecure-policy", "--require-signed"],
    "no file of credentials": ["--authfile=/nowhere"],
    "no policy": ["--policy=/nowhere"],
    "no registries": ["--registries-conf=/nowhere"],
    "no number": ["--sockfd=x"],
}


def test_faults_of_the_command_line(home: Home) -> None:
    for name in some(list(FAULTS)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.send(b'{"method":"Initialize","args":[]}')
            line = complaint(run(home, SUBCOMMAND, *FAULTS[name], stdin=theirs.fileno()))
            theirs.close()
            assert line.isprintable(), name
            ours.settimeout(LIMIT)
            with suppress(ConnectionResetError):
                assert not ours.recv(100), name
    refusal = complaint(run(home, SUBCOMMAND, "--decryption-key", "/key"))
    assert refusal.startswith("--decryption-key is not supported")


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        ("--creds=a:sesame", "--no-creds"),
        ("--username=a", "--no-creds", "--password=sesame"),
        ("--username=a",),
        ("--password=sesame",),
    ],
    ids="".join,
)
def test_contradictions_are_what_initialize_fails_with(
    program: Program, options: tuple[str, ...], converse: Converse
) -> None:
    client = converse(*options, program=program)
    for _ in range(2):
        said = client.failure("Initialize").words
        assert "specified" in said
        assert "sesame" not in said
    assert client.failure("OpenImage", "oci:x").words == "client error: must invoke Initialize"
    assert client.finalize() == 0


# --- a link called skopeo -----------------------------------------------------------------------


@pytest.fixture
def link(home: Home) -> str:
    """Return the path of a link called skopeo to the program."""
    path = home.path / "bin" / "skopeo"
    path.parent.mkdir(parents=True)
    home.program("imgproxy", f'exec {" ".join(COMMAND)} "$@"')
    script = (
        f"#!{sys.executable}\nimport sys\nfrom imgproxy.__main__ import main\nsys.exit(main())\n"
    )
    real = home.write("lib/imgproxy", script)
    real.chmod(0o755)
    path.symlink_to(real)
    return str(path)


def test_a_link_called_skopeo(link: str, home: Home, sample: Sample, converse: Converse) -> None:
    result = run(home, "--help", link=link)
    assert result.returncode == 0
    assert "--user-agent-prefix" in result.stdout, "what the Rust client looks for"
    assert not result.stderr
    client = converse(program=Program("link", (link,)))
    assert client.initialize() == "0.2.8"
    assert client.open(sample.name)
    assert client.finalize() == 0
    said = complaint(run(home, "copy", "oci:a", "oci:b", link=link))
    assert said.startswith("skopeo copy: this is imgproxy")


@pytest.mark.slow
def test_the_link_says_what_it_is(link: str, home: Home) -> None:
    assert run(home, "--version", link=link).stdout.startswith("imgproxy ")
    for arguments in ((), ("inspect", "--raw", "x"), ("--debug",), ("login", "-u", "x"), ("help",)):
        said = complaint(run(home, *arguments, link=link))
        assert "this is imgproxy" in said
        assert SUBCOMMAND in said
    for faulty in ([SUBCOMMAND], [SUBCOMMAND, "--nope"], ["--nope", SUBCOMMAND]):
        complaint(run(home, *faulty, link=link))


# --- credentials --------------------------------------------------------------------------------

WRONG = "wrong-sesame"


@pytest.fixture
def locked(layout: Layout, tmp_path: Path) -> Iterator[str]:
    """Run a registry that requires credentials; return its address."""
    descriptor = layout.save_image(noise(5000))
    with docker_registry(tmp_path / "data") as address:
        put_image(address, "acme/os:1", layout, descriptor)
    with docker_registry(tmp_path / "data", auth="htpasswd") as address:
        yield address


def auth_file(address: str, password: str = PASSWORD) -> str:
    encoded = basic(READER, password).partition(" ")[2]
    return json.dumps({"auths": {address: {"auth": encoded}}})


def opens(client: Client, address: str) -> bool:
    """Return whether an image can be opened; if not, a secret is shown nowhere."""
    client.initialize()
    reply = client.call("OpenImage", f"docker://{address}/acme/os:1")
    if reply.success:
        assert client.document("GetFullConfig", reply.value)
    else:
        assert reply.code == "other"
        assert "401" in reply.words or "unauthorized" in reply.words
    assert client.finalize() == 0
    for secret in (PASSWORD, WRONG, basic(READER, PASSWORD)[6:], basic(READER, WRONG)[6:]):
        assert secret not in reply.words
        assert secret not in client.child.stderr
    return reply.success


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_credentials_are_used(
    program: Program, locked: str, home: Home, converse: Converse
) -> None:
    right = home.write("auth.json", auth_file(locked))
    wrong = home.write("wrong.json", auth_file(locked, WRONG))
    cases: dict[tuple[str, ...], bool] = {
        (): False,
        (f"--creds={READER}:{PASSWORD}",): True,
        (f"--creds={READER}:{WRONG}",): False,
        (f"--username={READER}", f"--password={PASSWORD}"): True,
        (f"--username={READER}", f"--password={WRONG}"): False,
        (f"--authfile={right}",): True,
        (f"--authfile={wrong}",): False,
        (f"--authfile={wrong}", f"--creds={READER}:{PASSWORD}"): True,
        (f"--authfile={right}", "--no-creds"): False,
        ("--registry-token=sesame-token",): False,
        (f"--creds={READER}:{PASSWORD}", "--debug"): True,
        (f"--authfile={wrong}", "--debug"): False,
    }
    for options, expected in cases.items():
        if program.is_old and {"--debug", "--registry-token=sesame-token"} & {*options}:
            continue
        client = converse("--tls-verify=false", *options, program=program)
        assert opens(client, locked) == expected, (options, client.child.stderr)
        assert "sesame-token" not in client.child.stderr
    client = converse("--tls-verify=false", program=program, env={"REGISTRY_AUTH_FILE": str(right)})
    assert opens(client, locked)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_credentials_come_by_a_descriptor(
    program: Program, locked: str, converse: Converse
) -> None:
    """As bootc gives them: an unlinked file whose offset is at its end, named by its path."""
    with tempfile.TemporaryFile("w") as secrets:
        secrets.write(auth_file(locked))
        secrets.flush()
        assert os.lseek(secrets.fileno(), 0, os.SEEK_CUR) > 0
        client = converse(
            "--tls-verify=false",
            f"--authfile=/proc/self/fd/{secrets.fileno()}",
            program=program,
            files=[secrets.fileno()],
        )
        assert opens(client, locked)


class Recorder:
    """A server that has nothing, and the fields of the requests that it got."""

    def __init__(self) -> None:
        self.requests: list[dict[str, str]] = []

    def get(self, request: Answering) -> None:
        self.requests.append(dict(request.headers))
        request.answer(404, b"")


@pytest.mark.slow
def test_creds_never_go_to_a_mirror(locked: str, home: Home, converse: Converse) -> None:
    recorder = Recorder()
    with http_server(recorder.get) as elsewhere:
        conf = table(locked, locked, "insecure = true") + mirror(
            f"{elsewhere}/acme", "insecure = true"
        )
        home.write(REGISTRIES_CONF, conf)
        assert opens(converse(f"--creds={READER}:{PASSWORD}"), locked)
    assert recorder.requests
    assert not [each for each in recorder.requests if "Authorization" in each]


@pytest.mark.slow
def test_a_registry_sees_the_prefix_of_the_user_agent(converse: Converse) -> None:
    for options, expected in (
        ((), f"imgproxy/{__version__}"),
        (("--user-agent-prefix", "bootc/1.2.3"), f"bootc/1.2.3 imgproxy/{__version__}"),
        (("--user-agent-prefix=",), f"imgproxy/{__version__}"),
    ):
        recorder = Recorder()
        with http_server(recorder.get) as address:
            client = converse("--tls-verify=false", *options)
            client.initialize()
            client.failure("OpenImage", f"docker://{address}/acme/os:1")
            assert client.finalize() == 0
        assert {each["User-Agent"] for each in recorder.requests} == {expected}


@pytest.mark.slow
def test_descriptors_do_not_reach_credential_helpers(
    locked: str, home: Home, converse: Converse
) -> None:
    """Neither the socket, nor the file of credentials, nor the pipes of blobs."""
    seen = home.path / "seen"
    home.program(
        "docker-credential-test",
        f"ls -l /proc/$$/fd >{seen}\ncat >/dev/null\n"
        f'echo \'{{"Username":"{READER}","Secret":"{PASSWORD}"}}\'',
    )
    with tempfile.TemporaryFile("w") as secrets:
        json.dump({"credHelpers": {locked: "test"}}, secrets)
        secrets.flush()
        client = converse(
            "--tls-verify=false",
            f"--authfile=/proc/self/fd/{secrets.fileno()}",
            files=[secrets.fileno()],
            by_option=True,
        )
        assert opens(client, locked)
    listed = seen.read_text()
    assert "pipe:" in listed
    assert "socket:" not in listed
    assert "deleted" not in listed


@pytest.mark.slow
def test_the_conversation_is_over_when_the_program_refuses_to_start(converse: Converse) -> None:
    client = converse("--nope")
    with pytest.raises((Ended, BrokenPipeError)):
        client.initialize()
    assert client.child.wait() == 1

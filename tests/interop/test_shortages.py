"""The program while the system is short of something: descriptors, memory, threads, room on a disk.

That is no defect of the program: what is asked for is answered with a 503 that may be tried again,
and what could not be begun ends with a line.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.images import Layout
from support.parent import (
    INSECURE,
    Child,
    Client,
    Incomplete,
    command,
    environment,
    eventually,
    listener_at,
)
from support.servers import certificates, docker_registry, skip
from support.traced import strace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conftest import Keep, Listen, Sample, Serve
    from interop.conftest import Pull
    from support.filled import Registry
    from support.home import Home

MIB = 1 << 20
PLAIN = "--tls-verify=false"
MANIFEST = "/manifest"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the name of an image and the path of its one layer, of 8 MiB."""
    layout = Layout(tmp_path_factory.mktemp("large"))
    (layer,) = layout.layers(layout.save_image(os.urandom(8 * MIB)))
    return f"oci:{layout.path}", f"/blobs/{layer['digest']}"


class Ended(NamedTuple):
    """A program that has ended; `answer` is a status and a code, "cut off", or nothing."""

    child: Child
    status: int
    answer: str


def run_limited(
    keep: Keep,
    prefix: Sequence[str],
    *arguments: str,
    path: str = MANIFEST,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Start the program with another one before it, ask for a path, and hang up.

    It inherits descriptor 3 and no other one.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        program = command(*arguments, INSECURE, "--platform=linux/amd64", "--retries=0", fds=[3])
        move = f'exec 3<&{fd}; [ {fd} = 3 ] || exec {fd}<&-; exec "$@"'
        started = ["bash", "-c", move, "bash", *prefix, *program]
        child = keep(Child(started, pass_fds=[fd], env=environment() if env is None else env))
    child.clients.append(Client(ours))
    try:
        reply = child.client.get(path)
    except (Incomplete, BrokenPipeError):
        answer = ""
    else:
        answer = "200"
        if not reply.complete:
            answer = "cut off"
        elif reply.status != 200:
            answer = f"{reply.status} {reply.code}"
            assert reply.error["detail"]["retryable"] is True
    return Ended(child, child.finish(), answer)


def assert_short(ended: Ended, words: str) -> None:
    """Check that there was a 503 or nothing, a line with these words, and exit status 5."""
    assert ended.answer in {"", "503 UNAVAILABLE", "cut off"}, ended.child.stderr
    assert ended.status == 5, ended.child.stderr
    (line,) = ended.child.stderr.splitlines()
    assert line.startswith("imgproxy: ")
    assert words in line


# --- descriptors --------------------------------------------------------------------------------

# The interpreter itself needs so many.
FEWEST = 6


@pytest.mark.slow
@pytest.mark.parametrize("source", ["layout", "registry over TLS", "registry"])
def test_with_any_number_of_descriptors_there_is_an_answer_or_a_line(
    source: str, keep: Keep, sample: Sample, registry: Registry, home: Home, tmp_path: Path
) -> None:
    tls = certificates(tmp_path / "tls") if source == "registry over TLS" else None
    env = home.environment(SSL_CERT_FILE=str(tls.authority) if tls else None)
    with docker_registry(registry.directory, tls=tls) as address:
        arguments = [sample.name] if source == "layout" else [registry.name(":latest", address)]
        arguments += [PLAIN] * (source == "registry")
        answers = set()
        for count in range(FEWEST, FEWEST + 12):
            ended = run_limited(keep, ["prlimit", f"--nofile={count}"], *arguments, env=env)
            answers.add(ended.answer)
            if ended.answer == "200":
                assert (ended.status, ended.child.stderr) == (0, "")
            else:
                assert_short(ended, "Too many open files")
    assert answers == {"", "503 UNAVAILABLE", "200"}


def limit(child: Child, what: int, count: int) -> None:
    hard = resource.prlimit(child.pid, what)[1]
    resource.prlimit(child.pid, what, (count, hard))


def take_descriptors(child: Child) -> None:
    """Leave a program the descriptors that it has and no other."""
    used = {int(fd) for fd in os.listdir(f"/proc/{child.pid}/fd")}
    limit(child, resource.RLIMIT_NOFILE, min(set(range(len(used) + 1)) - used))


def test_a_shortage_of_descriptors_passes(pull: Pull, registry: Registry) -> None:
    child = pull(registry.name(":latest"), PLAIN, "--retries=0")
    assert child.client.get("/nothing").status == 404  # it has started
    take_descriptors(child)
    for _ in range(2):
        reply = child.client.get(MANIFEST)
        assert (reply.status, reply.code) == (503, "UNAVAILABLE"), reply.body
        assert "Too many open files" in reply.message
    limit(child, resource.RLIMIT_NOFILE, 100)
    assert child.client.get(MANIFEST).status == 200
    assert child.finish() == 5


def test_a_policy_that_cannot_be_read_for_want_of_descriptors_is_no_broken_one(
    serve: Serve, sample: Sample, home: Home
) -> None:
    home.write(".config/containers/policy.json", {"default": [{"type": "insecureAcceptAnything"}]})
    child = serve(sample.name, policy=None, env=home.environment())
    assert child.client.get("/nothing").status == 404
    take_descriptors(child)
    reply = child.client.get(MANIFEST)
    assert (reply.status, reply.code) == (503, "UNAVAILABLE"), reply.body
    limit(child, resource.RLIMIT_NOFILE, 100)
    assert child.client.get(MANIFEST).status == 200


@pytest.mark.slow
def test_a_listener_that_is_short_of_descriptors_says_so_once(
    listen: Listen, sample: Sample, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    child = listen(sample.name, listener=listener_at(tmp_path / "socket"))
    assert child.connect(path).get(MANIFEST).status == 200
    for times in (1, 2):
        take_descriptors(child)
        waiting = child.connect(path)
        waiting.ask("GET", MANIFEST)
        assert eventually(lambda: "accepting" in child.stderr)
        time.sleep(1)  # five more tries
        limit(child, resource.RLIMIT_NOFILE, 100)
        assert waiting.reply().status == 200
        assert child.connect(path).get(MANIFEST).status == 200
        lines = child.stderr.splitlines()
        assert lines == ["imgproxy: accepting a connection: Too many open files"] * times
    assert child.stop() == -signal.SIGTERM


# --- memory -------------------------------------------------------------------------------------


def test_a_shortage_of_memory_passes(serve: Serve, large: tuple[str, str]) -> None:
    image, blob = large
    child = serve(image, "--platform=linux/amd64")
    assert child.client.get(MANIFEST).status == 200
    pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0])
    limit(child, resource.RLIMIT_AS, pages * resource.getpagesize())
    reply = child.client.get(blob)
    assert (reply.status, reply.code) == (503, "UNAVAILABLE"), reply.body
    limit(child, resource.RLIMIT_AS, resource.RLIM_INFINITY)
    assert child.client.get(blob).complete
    assert child.finish() == 5
    assert len(child.stderr.splitlines()) == 1


def test_too_little_memory_to_start_ends_with_a_line(keep: Keep, sample: Sample) -> None:
    assert_short(run_limited(keep, ["prlimit", f"--as={23 * MIB}"], sample.name), "")


# --- threads and processes ----------------------------------------------------------------------


def refused(*calls: str) -> list[str]:
    """Return the command that lets these system calls fail as they do at a limit of processes."""
    names = ",".join(calls)
    return [strace(), "-f", "-qq", "-o/dev/null", f"-einject={names}:error=EAGAIN"]


def test_no_thread_for_the_early_connection_ends_with_a_line(
    keep: Keep, registry: Registry, home: Home, tmp_path: Path
) -> None:
    tls = certificates(tmp_path / "tls")
    with docker_registry(registry.directory, tls=tls) as address:
        image = registry.name(":latest", address)
        env = home.environment(SSL_CERT_FILE=str(tls.authority))
        ended = run_limited(keep, refused("clone3", "clone"), image, env=env)
    assert ended.answer == ""
    assert_short(ended, "can't start new thread")


def test_no_thread_for_a_request_is_a_503(keep: Keep, registry: Registry, home: Home) -> None:
    """A name is looked up in one."""
    image = registry.name(":latest", f"localhost:{registry.address.rpartition(':')[2]}")
    ended = run_limited(keep, refused("clone3", "clone"), image, PLAIN, env=home.environment())
    assert ended.answer == "503 UNAVAILABLE"
    assert_short(ended, "can't start new thread")


def test_no_thread_to_hash_a_blob_in_is_a_503(keep: Keep, large: tuple[str, str]) -> None:
    image, blob = large
    ended = run_limited(keep, refused("clone3", "clone"), image, path=blob)
    assert ended.answer == "503 UNAVAILABLE"
    assert_short(ended, "can't start new thread")


def test_no_process_for_a_credential_helper_is_a_503(
    keep: Keep, registry: Registry, home: Home
) -> None:
    with docker_registry(registry.directory, auth="htpasswd") as address:
        home.program("docker-credential-test", "exit 1")
        home.write(".config/containers/auth.json", {"credHelpers": {address: "test"}})
        image = registry.name(":latest", address)
        ended = run_limited(keep, refused("vfork", "clone"), image, PLAIN, env=home.environment())
    assert ended.answer == "503 UNAVAILABLE"
    assert_short(ended, "running docker-credential-test: Resource temporarily unavailable")


# --- room on a disk -----------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in a file system that has room for 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if made.returncode:
        skip(f"no tmpfs can be mounted: {made.stderr.decode()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_archive_from_a_pipe_that_has_no_room_is_a_503(
    serve: Serve, full_disk: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(bytes(8 * MIB))
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
        assert cat.stdout
        fd = cat.stdout.fileno()
        env = environment(TMPDIR=str(full_disk))
        child = serve(f"oci-archive:/dev/fd/{fd}", files=[fd], env=env)
        cat.stdout.close()
        reply = child.client.get(MANIFEST)
        assert (reply.status, reply.code) == (503, "UNAVAILABLE"), reply.body
        assert "No space left on device" in reply.message
        assert child.finish() == 5
        cat.kill()


def test_a_reply_that_has_no_room_in_its_file_is_lost(
    keep: Keep, full_disk: Path, large: tuple[str, str]
) -> None:
    image, blob = large
    request = full_disk.parent / "request"
    request.write_text(f"GET {blob} HTTP/1.1\r\nHost: x\r\n\r\n")
    with request.open("rb") as stdin, (full_disk / "reply").open("wb") as stdout:
        program = [sys.executable, "-m", "imgproxy", INSECURE, image]
        child = keep(Child(program, stdin=stdin, stdout=stdout))
        assert child.wait() == 5
    assert child.stderr == "imgproxy: sending a reply: No space left on device\n"

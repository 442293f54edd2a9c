"""What the program costs, counted and not timed: system calls, copies, connections, imports.

A loaded machine does not change these, so that a slip in speed fails a test where it is made. The
bench (`tests/bench`) says what they come to in seconds.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support import commands, skopeo_client
from support.home import Home
from support.images import OCI_MANIFEST, Layout, digest_of
from support.networks import line_to
from support.parent import INSECURE, Child, Client, command, environment
from support.servers import certificates, docker_registry, layout_as_registry, nginx, token_service
from support.traced import strace

from imgproxy.cli import options, serve
from imgproxy.cli.at_once import SMALL_AT_ONCE
from imgproxy.net import low_water, streams
from imgproxy.server.handler import MAX_BEGUN
from imgproxy.server.http_connection import _JOINED, MAX_HEAD
from imgproxy.specs.oci import digest as digests
from imgproxy.verification import verified_blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Converse, Serve
    from interop.conftest import Pull
    from support.filled import Registry
    from support.parent import Child as Started

    from imgproxy.specs.oci.digest import Digest

PLAIN = "--tls-verify=false"
MIB = 1 << 20


# --- system calls -----------------------------------------------------------------------------

# Two blobs are served, and the difference is divided by the difference of their sizes: what a
# start costs falls out, whatever the interpreter does there.
SMALL, LARGE = 16 * MIB, 80 * MIB

# How often a call may be made for a MiB, at the worst: the program makes fewer while it is traced,
# and more on a system that grants sockets small buffers. Pieces of 64 KiB anywhere on the way would
# be 16 of each. Whatever is not named here is not made at all.
READING_A_FILE = {
    # 2 MiB at once; a page that was not at hand is read again by a worker thread.
    "preadv2": 0.6,
    "preadv": 0.6,
}
READING_A_SOCKET = {"recvfrom": 12.0}
SENDING = {
    # With the 208 KiB that every system grants, writable again when three quarters are free.
    "sendto": 10.0,
    "sendmsg": 0.0,
}
WAITING = {
    # One wait, and two changes of what is waited for, for a call that had to be made again.
    "epoll_wait": 14.0,
    "epoll_ctl": 28.0,
    "epoll_pwait": 14.0,
    # A thread that has hashed a piece wakes the event loop through a socket of its own.
    "recvfrom": 2.0,
}

# Threads that meet, however often; the C library gets memory for their stacks and gives it back.
UNCOUNTED = {
    *("futex", "sched_yield", "clone3", "clone", "restart_syscall", "rt_sigprocmask"),
    *("set_robust_list", "rseq", "exit", "prctl", "clock_nanosleep", "gettid"),
    "readlink",  # of the names in a path, while another test has mounted what may hang
}

# What a thread's beginning and end cost; buffers that came and went with each piece would be more.
MEMORY = ("mmap", "munmap", "mprotect", "madvise", "brk", "mremap")
MAX_MEMORY = 0.5


def calls(file: Path) -> dict[str, int]:
    """Read how often each call was made off what `strace -c` wrote."""
    rows = [line.split() for line in file.read_text().splitlines()]
    found = {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdecimal()}
    return {name: count for name, count in found.items() if name != "total"}


def counted(file: Path, path: str, size: int, *arguments: str) -> dict[str, int]:
    """Serve a blob under strace; give how often each call was made, from start to end."""
    return counted_all(file, [path], size, *arguments)


def counted_all(file: Path, paths: list[str], size: int, *arguments: str) -> dict[str, int]:
    """Serve blobs of one size, one after the other."""
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    tracing = [strace(), "-f", "-c", "-qq", "-o", str(file)]
    with theirs:
        child = Child(
            [*tracing, *command(arguments[-1], INSECURE, *arguments[:-1], fds=[fd])],
            pass_fds=[fd],
            env=environment(COVERAGE_PROCESS_START=None),
        )
    child.clients.append(Client(ours))
    try:
        assert child.client.get("/manifest").status == 200
        for path in paths:
            child.client.ask("GET", path)
            assert child.client.head().status == 200
            left = size
            while left:
                left -= len(child.client.read(min(left, MIB)))
        assert child.finish() == 0, child.stderr
    finally:
        child.close()
    return calls(file)


class Filled(NamedTuple):
    """An image of one layer in a layout."""

    layout: Layout
    manifest: str
    path: str
    size: int


def filled(path: Path, size: int) -> Filled:
    layout = Layout(path)
    descriptor = layout.save_image(os.urandom(MIB) * (size // MIB))
    (layer,) = layout.layers(descriptor)
    return Filled(layout, descriptor["digest"], f"/blobs/{layer['digest']}", size)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> list[Filled]:
    directory = tmp_path_factory.mktemp("blobs")
    return [filled(directory / str(size), size) for size in (SMALL, LARGE)]


@contextmanager
def arguments_for(source: str, image: Filled, directory: Path) -> Iterator[list[str]]:
    """Return the command line for an image in a layout, or in a registry that serves from it."""
    if source == "oci":
        yield [f"oci:{image.layout.path}"]
        return
    with nginx(directory, layout_as_registry(image.layout.path, OCI_MANIFEST)) as address:
        yield [PLAIN, f"docker://{address}/x@{image.manifest}"]


LIMITS = {
    "oci": {**SENDING, **WAITING, **READING_A_FILE},
    "http": {**SENDING, **WAITING, **READING_A_SOCKET},
}


@pytest.mark.parametrize("source", LIMITS)
def test_a_blob_takes_few_system_calls(source: str, blobs: list[Filled], tmp_path: Path) -> None:
    counts = []
    for image in blobs:
        with arguments_for(source, image, tmp_path / str(image.size)) as arguments:
            file = tmp_path / f"{image.size}.calls"
            counts.append(counted(file, image.path, image.size, *arguments))
    small, large = counts
    assert large.get("sendto", 0) >= LARGE // verified_blob.CHUNK, "nothing counted"
    rates = {
        name: (large[name] - small.get(name, 0)) * MIB / (LARGE - SMALL)
        for name in large
        if name not in UNCOUNTED
    }
    limits = {**LIMITS[source], **dict.fromkeys(MEMORY, MAX_MEMORY)}
    # what a start makes once more or less, by chance, is none of the blob's
    over = {name: rate for name, rate in rates.items() if rate > limits.get(name, 0.25)}
    assert not over, rates


# System calls for a blob of 4 KiB that is asked for alone, each a bit more often than it is made:
# the file is opened for its type and then to be read, the request is waited for (and asked for in
# vain before that, where the client is slow), and the reply is sent in one piece.
SMALL_BLOB = {
    **dict.fromkeys(("openat", "close"), 2.25),
    **dict.fromkeys(("newfstatat", "fstat", "preadv2", "preadv", "sendto"), 1.25),
    **dict.fromkeys(("recvfrom", "epoll_wait", "epoll_pwait", "epoll_ctl"), 2.25),
}


def test_a_small_blob_takes_few_system_calls(tmp_path: Path) -> None:
    counts = []
    for number in (20, 120):
        layout = Layout(tmp_path / str(number))
        contents = [number.to_bytes(4, "big") * 1024 for number in range(number)]
        layout.save_image(*contents)
        file = tmp_path / f"{number}.calls"
        paths = [f"/blobs/{digest_of(each)}" for each in contents]
        counts.append(counted_all(file, paths, 4096, f"oci:{layout.path}"))
    few, many = counts
    rates = {name: (many[name] - few.get(name, 0)) / 100 for name in many if name not in UNCOUNTED}
    over = {name: rate for name, rate in rates.items() if rate > SMALL_BLOB.get(name, 0.25)}
    assert rates["sendto"] >= 1, "nothing counted"
    assert not over, rates


# --- copies -----------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Where bytes are, and how many."""

    start: int
    size: int

    def holds(self, other: Memory) -> bool:
        return self.start <= other.start and other.start + other.size <= self.start + self.size


def memory_of(buffer: Any, count: int | None = None) -> Memory:  # noqa: ANN401  (a buffer)
    view = memoryview(buffer)
    if view.readonly:  # bytes of a head, or bytes that were copied
        return Memory(id(view.obj), view.nbytes)
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return Memory(start, view.nbytes if count is None else count)


class Watch:
    """What came into memory, what was hashed there and what was sent from there, in this process.

    Only what is at least a page is looked at: heads are small, and copied.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.filled: list[Memory] = []
        self.hashed: list[Memory] = []
        self.sent: list[Memory] = []
        receive, send, preadv = (
            streams.SocketStream.receive_into,
            streams.SocketStream.send,
            os.preadv,
        )
        hasher = digests.hasher

        async def watched_receive(self_: streams.SocketStream, buffer: memoryview) -> int:
            count = await receive(self_, buffer)
            self._note(self.filled, buffer, count)
            return count

        async def watched_send(self_: streams.SocketStream, data: streams.Buffer) -> None:
            self._note(self.sent, data)
            await send(self_, data)

        def watched_preadv(fd: int, buffers: list[memoryview], *rest: int) -> int:
            count = preadv(fd, buffers, *rest)
            self._note(self.filled, buffers[0], count)
            return count

        def watched_hasher(digest: Digest) -> Any:  # noqa: ANN401  (a hash)
            return Watched(hasher(digest), self)

        monkeypatch.setattr(streams.SocketStream, "receive_into", watched_receive)
        monkeypatch.setattr(streams.SocketStream, "send", watched_send)
        monkeypatch.setattr(os, "preadv", watched_preadv)
        monkeypatch.setattr(digests, "hasher", watched_hasher)

    def _note(self, notes: list[Memory], buffer: Any, count: int | None = None) -> None:  # noqa: ANN401
        if (len(buffer) if count is None else count) >= 4096:
            notes.append(memory_of(buffer, count))

    def copied(self, notes: list[Memory]) -> list[Memory]:
        """Return what is not the memory that was filled."""
        return [each for each in notes if not any(into.holds(each) for into in self.filled)]


class Watched:
    """A hash that notes what it is given."""

    def __init__(self, inner: Any, watch: Watch) -> None:  # noqa: ANN401  (a hash)
        self._inner = inner
        self._watch = watch

    def update(self, data: Any) -> None:  # noqa: ANN401  (a buffer)
        self._watch._note(self._watch.hashed, data)
        self._inner.update(data)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._inner, name)


def served_here(path: str, size: int, *arguments: str) -> bytes:
    """Serve a blob from this process, to a parent in a thread of it."""
    ours, theirs = socket.socketpair()
    client, received = Client(ours), list[bytes]()

    def ask() -> None:
        try:
            client.ask("GET", path)
            if client.head().status == 200:
                received.append(client.read(size))
        finally:
            client.close()

    parent = threading.Thread(target=ask)
    parent.start()
    try:
        status = serve.run(options.parse([INSECURE, f"--sockfd={theirs.detach()}", *arguments]))
    finally:
        parent.join()
    assert status == 0
    return received[0]


@pytest.mark.parametrize("source", LIMITS)
def test_a_blob_is_not_copied(
    source: str, blobs: list[Filled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system gave is what is hashed and what the system is given, in the same place."""
    image = blobs[0]
    for name, value in Home(tmp_path / "home").environment().items():
        monkeypatch.setenv(name, value)
    with arguments_for(source, image, tmp_path / "nginx") as arguments:
        watch = Watch(monkeypatch)
        content = served_here(image.path, image.size, *arguments)
    assert content == image.layout.read(image.path.removeprefix("/blobs/"))
    assert sum(each.size for each in watch.hashed) >= image.size
    assert sum(each.size for each in watch.sent) >= image.size - MIB
    assert watch.copied(watch.hashed) == []
    small = _JOINED + MAX_HEAD  # what is small is sent together with a head, in one call
    assert [each for each in watch.copied(watch.sent) if each.size > small] == []
    assert any(each.size > small for each in watch.sent)
    where = {each.start // verified_blob.CHUNK for each in watch.filled}
    assert len(where) <= 2 * verified_blob.BUFFERS + 2, "the same few buffers, again and again"


# Turns for a MiB of a line that is slow: four pieces are waited for, and some come on the way.
MAX_TURNS = 10


def test_a_slow_line_takes_few_turns(
    blobs: list[Filled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bursts of 8 KiB would take 128 of each MiB."""
    image, turns, receive = blobs[0], [], streams.SocketStream.receive_into
    for name, value in Home(tmp_path / "home").environment().items():
        monkeypatch.setenv(name, value)

    async def counted_receive(self: streams.SocketStream, buffer: memoryview) -> int:
        turns.append(await receive(self, buffer))
        return turns[-1]

    monkeypatch.setattr(streams.SocketStream, "receive_into", counted_receive)
    # However slow the machine is: these are seconds.
    monkeypatch.setattr(low_water, "BRISK", 60.0)
    monkeypatch.setattr(low_water, "PATIENCE", 60.0)
    server = nginx(tmp_path / "nginx", layout_as_registry(image.layout.path, OCI_MANIFEST))
    with server as address, line_to(address) as line:
        line.burst, line.rate = 8 << 10, 80e6
        content = served_here(
            image.path,
            image.size,
            PLAIN,
            f"docker://{line.address}/x@{image.manifest}",
        )
    assert content == image.layout.read(image.path.removeprefix("/blobs/"))
    assert sum(turns) >= image.size
    assert len(turns) <= MAX_TURNS * image.size / MIB


# --- requests and connections -----------------------------------------------------------------


def pulled(child: Started) -> int:
    """Read all of an image; give how many blobs it has."""
    manifest = child.client.get("/manifest")
    assert manifest.status == 200, manifest.body
    document = manifest.json()
    digests_ = [each["digest"] for each in (document["config"], *document["layers"])]
    for digest in digests_:
        assert child.client.get(f"/blobs/{digest}").status == 200
    assert child.finish() == 0
    return len(digests_)


def test_a_pull_over_tls_takes_one_connection(
    registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    """The one that was begun while the program started; nothing else is dialled."""
    tls = certificates(tmp_path / "tls")
    with (
        docker_registry(registry.directory, tls=tls) as secure,
        line_to(secure) as line,
    ):
        image = registry.name(":latest", line.address)
        blobs = pulled(pull(image, env={"SSL_CERT_FILE": str(tls.authority)}))
    assert blobs == 3
    assert line.connections == 1


def test_a_pull_with_a_token_takes_one_connection_more(
    registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    """To where the tokens are; and one for the probe that plain http costs."""
    with (
        token_service(tmp_path / "tokens") as tokens,
        line_to(tokens.realm.split("/")[2]) as to_tokens,
    ):
        tokens.realm = f"http://{to_tokens.address}/token"
        with (
            docker_registry(registry.directory, auth=tokens) as guarded,
            line_to(guarded) as line,
        ):
            pulled(pull(registry.name(":latest", line.address), PLAIN))
    assert (to_tokens.connections, len(to_tokens.asked)) == (1, 1)
    assert line.connections <= 2


def pipelined(child: Started) -> list[bytes]:
    """Read all of an image, with all of its blobs asked for at once; give the blobs."""
    document = child.client.get("/manifest").json()
    descriptors = [document["config"], *document["layers"]]
    for each in descriptors:
        child.client.ask("GET", f"/blobs/{each['digest']}")
    found = []
    for each in descriptors:
        assert child.client.head().status == 200
        found.append(child.client.read(each["size"]))
        assert digest_of(found[-1]) == each["digest"]
    assert child.finish() == 0
    return found


@pytest.mark.parametrize("cached", [False, True])
def test_a_pipelined_pull_takes_a_connection_for_each_reply_that_is_begun(
    registry: Registry,
    pull: Pull,
    tmp_path: Path,
    cached: bool,  # noqa: FBT001  (a parameter)
) -> None:
    cache = [f"--cache={tmp_path / 'cache'}"] if cached else []
    with line_to(registry.address) as line:
        image = registry.name(":latest", line.address)
        blobs = pipelined(pull(image, PLAIN, *cache))
        first = line.connections
        assert 1 <= first <= 1 + min(len(blobs), 1 + MAX_BEGUN)  # and the probe of plain http
        if cached:
            again = pipelined(pull(image, PLAIN, "--offline", *cache))
            assert (again, line.connections) == (blobs, first)


@pytest.mark.parametrize("at_once", [1 + MAX_BEGUN, SMALL_AT_ONCE], ids=["pipelined", "by pull"])
def test_blobs_elsewhere_are_asked_for_once_on_as_many_connections(
    at_once: int, pull: Pull, tmp_path: Path
) -> None:
    """The next ones are found by the connections that have found those before them."""
    layout = Layout(tmp_path / "layout")
    contents = [number.to_bytes(2, "big") * 4096 for number in range(60)]
    digest = layout.save_image(*contents)["digest"]
    with (
        nginx(tmp_path / "store", layout_as_registry(layout.path, OCI_MANIFEST)) as store,
        line_to(store) as to_store,
        nginx(
            tmp_path / "front",
            f"location ~ /blobs/ {{ return 307 http://{to_store.address}$request_uri; }}"
            f"location / {{ proxy_pass http://{store}; }}",
        ) as front,
        line_to(front) as to_front,
    ):
        image = f"docker://{to_front.address}/x@{digest}"
        if at_once == SMALL_AT_ONCE:
            done = commands.run("pull", INSECURE, PLAIN, image, f"oci:{tmp_path}/new:x")
            assert done.status == 0, done.stderr
        else:
            assert len(pipelined(pull(image, PLAIN))) == len(contents) + 1
    asked = to_front.paths("/blobs/")
    assert (len(asked), len(set(asked))) == (len(contents) + 1,) * 2
    assert sorted(to_store.paths("/blobs/")) == sorted(asked)
    assert to_store.connections <= at_once
    assert to_front.connections <= at_once + 1  # the probe of plain http


def test_layers_in_a_row_by_skopeos_protocol_are_asked_for_once_each(tmp_path: Path) -> None:
    """The next two are opened ahead; each takes the connections of another turn by turn."""
    layout = Layout(tmp_path / "layout")
    contents = [bytes([number]) * 4096 for number in range(9)]
    descriptor = layout.save_image(*contents)
    server = nginx(tmp_path / "nginx", layout_as_registry(layout.path, OCI_MANIFEST))
    with server as address, line_to(address) as line:
        client = skopeo_client.start(PLAIN)
        with skopeo_client.closing(client):
            client.initialize()
            image = client.open(f"docker://{line.address}/x@{descriptor['digest']}")
            found = [client.blob(image, each) for each in layout.layers(descriptor)]
            assert client.shut_down() == 0
    assert found == contents
    asked = line.paths("/blobs/")
    assert sorted(asked) == sorted(f"/v2/x/blobs/{digest_of(each)}" for each in contents)
    assert line.connections <= 4  # with the probe of plain http


# --- imports ----------------------------------------------------------------------------------


def modules(said: str) -> set[str]:
    """Read what was imported off what the interpreter says of it."""
    lines = re.findall(r"^import time: .*\| +(\S+)$", said, re.MULTILINE)
    return set(lines) - {"package"}


def interpreter(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
        env=environment(PYTHONPROFILEIMPORTTIME="1", COVERAGE_PROCESS_START=None),
    )
    return modules(done.stderr)


def brought(*names: str) -> set[str]:
    """Return what these modules bring along, on this very interpreter."""
    return interpreter("-c", f"import {', '.join(names)}")


def of_ours(found: set[str]) -> set[str]:
    return {name.removeprefix("imgproxy.") for name in found if name.startswith("imgproxy.")}


def others(found: set[str]) -> set[str]:
    return {name for name in found if name.partition(".")[0] != "imgproxy"}


# What `python -m` needs to run a module at all, and the line about annotations.
RUNNING = ("runpy", "__future__")
# argparse, the words of its complaints, and what standard error is looked at with; `gc` is part of
# the interpreter.
PARSING = (*RUNNING, "gc", "argparse", "gettext", "locale", "select", "signal", "errno")
INITIALIZING = (*PARSING, "json", "socket", "typing", "warnings")
# The paths of requests are taken apart by `urllib.parse`, what libraries warn of is kept quiet.
SERVING = (*PARSING, "trio", "h11", "json", "urllib.parse", "warnings")
# Names and tables of registries, the dates of tokens and what their names are looked up with.
ASKING = (*SERVING, "tomllib", "datetime", "urllib.parse", "encodings.idna", "encodings.utf_8_sig")


def within(folder: str, *names: str) -> set[str]:
    """Return the modules of a folder, and the folders on the way to it."""
    parts = folder.split(".")
    packages = {".".join(parts[: n + 1]) for n in range(len(parts))}
    return packages | {f"{folder}.{name}" for name in names}


PARSED = {"errors", *within("cli", "options", "parser", "values"), *within("host", "diagnostics")}
INITIALIZED = {
    "errors",
    *within("cli", "options", "parser", "runtime", "skopeo_options", "skopeo_proxy", "values"),
    *within("frontends", "skopeo_initialize", "skopeo_messages"),
    *within("host", "diagnostics", "environment", "mounts"),
    *within("parsing", "strict_json"),
    *within("server", "packet_socket"),
    *within("specs.oci", "platform"),  # of --override-os, as is `typing`
}
SERVED = {
    *(*PARSED, "single_flight"),
    *within("cli", "runtime", "serve"),
    *within("config", "policy", "search_paths"),
    *within("frontends", "oci_manifest", "single_image", "single_image_routes"),
    *within("host", "blocking_calls", "configuration", "environment", "event_loop", "files"),
    *within("host", "mounts"),
    *within("images", "catalog", "image", "opened_image", "selection", "verified_source"),
    *within("net", "connect_time", "streams"),
    *within("parsing", "strict_json", "typed_fields"),
    *within("server", "access", "error_body", "handler", "http_connection", "inherited_sockets"),
    *within("server", "patience", "places", "reply_head", "request_errors", "request_reader"),
    *within("server", "request_target", "service", "shutdown"),
    *within("specs.oci", "convert", "digest", "manifest", "media_type", "platform", "reference"),
    "specs.oci.registry_name",
    *within("transports", "readers", "source", "time_limit"),
    *within("transports.registry", "foreign_layers", "network", "options"),
    *within("verification", "documents", "hashing", "verified_blob"),
}
LAYOUT = {
    *(*SERVED, "transports.file_tree"),
    "specs.oci.choices",
    *within("transports.local", "detect", "near_misses", "oci_layout"),
}
REGISTRY = {
    *SERVED,
    # the first for a blob that wants credentials, while the files are those that were started
    *within("config", "auth_file", "certs", "credential_helpers", "endpoints", "registries_conf"),
    *within("config", "registry_tables", "short_names"),
    *within("host", "credential_lookup", "masking"),
    *within("net", "client", "connection_pool", "dialer", "preconnect", "request"),
    *within("net", "body_turn", "low_water", "response", "response_parser", "tcp", "tls"),
    *within("server", "ahead", "begun"),
    *within("specs.http", "addresses", "basic", "challenge", "chunks", "content_range"),
    *within("specs.http", "credentials", "header_lines", "proxy", "refusal_body", "retry"),
    *within("specs.http", "secrets", "url"),
    *within("specs.oci", "distribution", "token"),
    *within("transports.registry", "authorization", "blob_failover", "blob_part", "failover"),
    *within("transports.registry", "preconnect", "redirects", "registry_host", "registry_image"),
    *within("transports.registry", "outage", "repository", "resumable_blob", "warnings"),
}


COLLECTING = """
import gc, sys
from imgproxy.__main__ import main
counts = [0, 0, 0]
def count(phase, info):
    counts[info["generation"]] += phase == "start"
def freeze(freeze=gc.freeze):
    print(*counts, file=sys.stderr)
    freeze()
gc.callbacks.append(count)
gc.freeze = freeze
status = main()
print(gc.get_freeze_count(), gc.isenabled(), file=sys.stderr)
sys.exit(status)
"""


def test_what_is_imported_is_not_looked_at_for_garbage(
    sample: Any,  # noqa: ANN401
    home: Home,
) -> None:
    """Neither while it is imported, which took dozens of collections, nor afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTING, INSECURE, "--platform=linux/amd64", sample.name],
        input=b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\n",
        capture_output=True,
        timeout=60,
        check=True,
        env=home.environment(COVERAGE_PROCESS_START=None),
    )
    assert done.stdout.startswith(b"HTTP/1.1 200 ")
    counts, frozen, is_enabled = done.stderr.rsplit(maxsplit=2)
    assert counts.split() == [b"0"] * 3
    assert int(frozen) >= 10_000
    assert is_enabled == b"True"


@pytest.mark.parametrize(
    ("option", "wanted", "limit"), [("--version", set[str](), RUNNING), ("--no", PARSED, PARSING)]
)
def test_the_shortest_lives_import_next_to_nothing(
    option: str, wanted: set[str], limit: tuple[str, ...]
) -> None:
    found = interpreter("-m", "imgproxy", option)
    assert of_ours(found) == wanted
    assert others(found) - brought(*limit) == set()


def imported_by(serve: Serve, home: Home, image: str, *options: str, **more: str) -> set[str]:
    """Return what had been imported when the first manifest was there, and the program ended."""
    env = home.environment(PYTHONPROFILEIMPORTTIME="1", COVERAGE_PROCESS_START=None, **more)
    child = serve(image, *options, "--platform=linux/amd64", env=env)
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    return modules(child.stderr)


def test_a_layout_imports_nothing_of_networks(serve: Serve, sample: Any, home: Home) -> None:  # noqa: ANN401
    found = imported_by(serve, home, sample.name)
    assert of_ours(found) == LAYOUT
    assert others(found) - brought(*SERVING) == set()


def test_a_registry_imports_nothing_of_files(
    serve: Serve, registry: Registry, home: Home, tmp_path: Path
) -> None:
    tls = certificates(tmp_path / "tls")
    with docker_registry(registry.directory, tls=tls) as secure:
        image = registry.name(":latest", secure)
        found = imported_by(serve, home, image, SSL_CERT_FILE=str(tls.authority))
    assert of_ours(found) == REGISTRY
    assert others(found) - brought(*ASKING) == set()


def test_initialize_is_answered_before_the_event_loop_is_imported(converse: Converse) -> None:
    """A client that gets no further has waited neither for it nor for anything of images."""
    profiled = {"PYTHONPROFILEIMPORTTIME": "1", "COVERAGE_PROCESS_START": ""}
    client = converse("--username=user", env=profiled)  # and no password
    assert "specified" in client.failure("Initialize").words
    assert client.finalize() == 0
    found = modules(client.child.stderr)
    assert of_ours(found) == INITIALIZED
    assert others(found) - brought(*INITIALIZING) == set()

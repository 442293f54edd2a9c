"""The pipes of skopeo's protocol: when they end, who waits for whom, and what is left of them.

Where Debian's skopeo does the same, it is asked as well.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.damage import flip
from support.filled import noise
from support.parent import descriptors, eventually, peak_memory
from support.servers import docker_registry, put_image, relay
from support.skopeo_client import (
    PROGRAMS,
    Client,
    Program,
    is_silent,
    read_exactly,
    read_to_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Converse, Sample
    from support.images import Json, Layout

MIB = 1 << 20

# What fits into a pipe that nobody reads.
CAPACITY = 1 << 16

# In bytes, of resident memory. The interpreter, trio and the rest of the program are half of it.
MEMORY = 72 * MIB


class Blobs(NamedTuple):
    """An image whose layers are a small blob and two large ones."""

    layout: Layout
    small: Json
    large: Json
    other: Json

    @property
    def name(self) -> str:
        return f"oci:{self.layout.path}"

    def content(self, blob: Json) -> bytes:
        return self.layout.read(blob["digest"])


@pytest.fixture
def blobs(layout: Layout) -> Blobs:
    descriptor = layout.save_image(b"small" * 1000, noise(3 * MIB), noise(2 * MIB))
    return Blobs(layout, *layout.layers(descriptor))


def opened(converse: Converse, name: str, *options: str, program: Program = PROGRAMS[0]) -> Client:
    """Start a program and open its image 1."""
    client = converse(*options, program=program)
    client.initialize()
    assert client.open(name) == 1
    return client


def begin(client: Client, blob: Json) -> tuple[int, int]:
    """Call GetBlob; return the pipe's id and the read end."""
    reply = client.get("GetBlob", 1, blob["digest"], blob["size"])
    return reply.pipe, reply.fds[0]


def has_answer(client: Client, seconds: float = 0.2) -> bool:
    """Return whether there is a reply within so long."""
    poll = select.poll()
    poll.register(client.socket, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_content_ends_with_finishpipe_and_not_before(
    program: Program, blobs: Blobs, converse: Converse
) -> None:
    client = opened(converse, blobs.name, program=program)
    for blob in (blobs.small, blobs.large):
        pipe, fd = begin(client, blob)
        assert read_exactly(fd, blob["size"]) == blobs.content(blob)
        assert is_silent(fd), "an end before FinishPipe: nobody knows that it is whole"
        assert client.finish(pipe).success
        assert not read_to_end(fd)
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_pipes_are_finished_once_and_in_any_order(
    program: Program, blobs: Blobs, converse: Converse
) -> None:
    client = opened(converse, blobs.name, program=program)
    begun = [(blob, *begin(client, blob)) for blob in (blobs.large, blobs.small, blobs.other)]
    pipes = [pipe for _, pipe, _ in begun]
    assert len(set(pipes)) == 3
    for blob, pipe, fd in reversed(begun):
        client.ask("FinishPipe", pipe, "more", 1)  # more arguments have no meaning
        assert read_to_end(fd) == blobs.content(blob)
        assert client.answer("FinishPipe").success
        assert client.failure("FinishPipe", pipe).words == f"finishpipe: no active pipe {pipe}"
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_finishpipe_waits_for_the_reader(
    program: Program, blobs: Blobs, converse: Converse
) -> None:
    client = opened(converse, blobs.name, program=program)
    other, other_fd = begin(client, blobs.other)
    pipe, fd = begin(client, blobs.large)
    client.ask("FinishPipe", pipe)
    client.ask("GetManifest", 99)
    assert not has_answer(client), "requests are answered in their order"
    assert read_exactly(other_fd, MIB) == blobs.content(blobs.other)[:MIB], "others go on"
    assert not has_answer(client)
    assert read_to_end(fd) == blobs.content(blobs.large)
    assert client.answer("FinishPipe").success
    assert client.answer("GetManifest").words == "no image 99"
    client.ask("FinishPipe", other)
    assert read_to_end(other_fd) == blobs.content(blobs.other)[MIB:]
    assert client.answer("FinishPipe").success
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_what_fits_into_a_pipe_needs_no_reader(
    program: Program, blobs: Blobs, converse: Converse
) -> None:
    layout = blobs.layout
    layout.save_image(bytes(CAPACITY))
    client = opened(converse, blobs.name, program=program)
    (blob,) = layout.layers(only(layout))
    pipe, fd = begin(client, blob)
    assert client.finish(pipe).success
    assert read_to_end(fd) == bytes(CAPACITY)
    assert client.finalize() == 0


# How a reader leaves, and whether that is a broken pipe then.
LEAVING: dict[str, tuple[Callable[[Blobs], Json], int, bool]] = {
    "before the content": (lambda blobs: blobs.large, 0, True),
    "within the content": (lambda blobs: blobs.large, 100_000, True),
    "after the content": (lambda blobs: blobs.large, 3 * MIB, False),
    "of a small blob": (lambda blobs: blobs.small, 0, False),
}


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_readers_that_leave(program: Program, blobs: Blobs, converse: Converse) -> None:
    """ostree-ext compares the end of the words, in lower case."""
    client = opened(converse, blobs.name, program=program)
    for name, (choose, count, is_broken) in LEAVING.items():
        pipe, fd = begin(client, choose(blobs))
        read_exactly(fd, count)
        os.close(fd)
        reply = client.finish(pipe)
        if is_broken:
            assert not reply.success, name
            assert reply.words.endswith("broken pipe"), name
            assert program.is_old or reply.code == "EPIPE", name
        elif not program.is_old:  # which may come to write the small one after the reader has left
            assert reply.success, (name, reply)
    assert client.blob(1, blobs.large) == blobs.content(blobs.large)
    assert client.finalize() == 0


@pytest.mark.slow
def test_readers_of_raw_blobs_that_leave(blobs: Blobs, converse: Converse) -> None:
    client = opened(converse, blobs.name)
    for count in (0, 100_000):
        reply = client.get("GetRawBlob", 1, blobs.large["digest"])
        data, errors = reply.fds
        read_exactly(data, count)
        os.close(data)
        trouble = json.loads(read_to_end(errors))
        assert list(trouble) == ["code", "message"]
        assert trouble["code"] == "EPIPE"
        assert trouble["message"].endswith("broken pipe")
    for closed in (0, 1):  # one of the two, and nobody who reads what went wrong
        reply = client.get("GetRawBlob", 1, blobs.large["digest"])
        os.close(reply.fds[1])
        if closed:
            os.close(reply.fds[0])
        else:
            assert read_to_end(reply.fds[0]) == blobs.content(blobs.large)
    assert client.raw_blob(1, blobs.small["digest"])[1:] == (blobs.content(blobs.small), None)
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_blobs_go_on_after_closeimage(program: Program, blobs: Blobs, converse: Converse) -> None:
    client = opened(converse, blobs.name, program=program)
    begun = [(blob, *begin(client, blob)) for blob in (blobs.large, blobs.small, blobs.other)]
    client.get("CloseImage", 1)
    for blob, pipe, fd in begun:
        client.ask("FinishPipe", pipe)
        assert read_to_end(fd) == blobs.content(blob)
        assert client.answer("FinishPipe").success
    assert client.finalize() == 0


def only(layout: Layout) -> Json:
    """Return the only entry of a layout."""
    (descriptor,) = json.loads((layout.path / "index.json").read_text())["manifests"]
    assert isinstance(descriptor, dict)
    return descriptor


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True], ids=["GetBlob", "GetRawBlob"])
@pytest.mark.parametrize("source", ["oci", "docker"])
def test_64_blobs_that_nobody_reads(
    source: str, blobs: Blobs, converse: Converse, tmp_path: Path, *, raw: bool
) -> None:
    with docker_registry(tmp_path / "data") as address:
        put_image(address, "blobs:1", blobs.layout, only(blobs.layout))
        name = blobs.name if source == "oci" else f"docker://{address}/blobs:1"
        client = opened(converse, name, "--tls-verify=false")
        arguments = [blobs.large["digest"], *([] if raw else [blobs.large["size"]])]
        method = "GetRawBlob" if raw else "GetBlob"
        begun = [client.get(method, 1, *arguments) for _ in range(64)]
        assert client.get("GetLayerInfo", 1).value, "the process still answers"
        if source == "oci":  # at a registry, so many connections are waited for
            assert client.blob(1, blobs.small) == blobs.content(blobs.small)
        memory = peak_memory(client.child.pid)
        print(f"{source}, {method}: {memory / 1e6:.1f} MB")  # noqa: T201  (a measurement)
        assert memory < MEMORY
        for reply in begun[::8]:
            if not raw:
                client.ask("FinishPipe", reply.pipe)
            assert read_to_end(reply.fds[0]) == blobs.content(blobs.large)
            if not raw:
                assert client.answer("FinishPipe").success
        assert client.finalize() == 0
        for n, reply in enumerate(begun):
            for fd in reply.fds[1 if n % 8 == 0 else 0 :]:
                read_to_end(fd)  # they end with the process


# Requests of every kind, each of which leaves nothing behind.
ROUNDS = 200
REQUESTS: dict[str, Callable[[Client, Blobs], object]] = {
    "OpenImage": lambda client, blobs: client.get("CloseImage", client.open(blobs.name)),
    "OpenImage fails": lambda client, _: client.failure("OpenImage", "oci:/nowhere"),
    "OpenImageOptional": lambda client, blobs: client.get("OpenImageOptional", f"{blobs.name}:x"),
    "GetManifest": lambda client, _: client.document("GetManifest", 1),
    "GetFullConfig": lambda client, _: client.document("GetFullConfig", 1),
    "GetConfig": lambda client, _: client.document("GetConfig", 1),
    "GetLayerInfo": lambda client, _: client.get("GetLayerInfo", 1),
    "GetLayerInfoPiped": lambda client, _: client.document("GetLayerInfoPiped", 1),
    "GetBlob": lambda client, blobs: client.blob(1, blobs.small),
    "GetBlob, large": lambda client, blobs: client.blob(1, blobs.other),
    "GetBlob fails": lambda client, _: client.failure("GetBlob", 1, "sha256:" + "0" * 64, 1),
    "GetBlob, reader gone": lambda client, blobs: gone(client, blobs.large),
    "GetRawBlob": lambda client, blobs: client.raw_blob(1, blobs.small["digest"]),
    "GetRawBlob, large": lambda client, blobs: client.raw_blob(1, blobs.other["digest"]),
    "GetRawBlob, reader gone": lambda client, blobs: gone_from_raw(client, blobs.large),
    "GetRawBlob fails": lambda client, _: client.failure("GetRawBlob", 1, "x"),
    "FinishPipe fails": lambda client, _: client.failure("FinishPipe", 1 << 31),
    "a faulty request": lambda client, _: client.request(b"x"),
}


def gone(client: Client, blob: Json) -> None:
    pipe, fd = begin(client, blob)
    os.close(fd)
    assert client.finish(pipe).code == "EPIPE"


def gone_from_raw(client: Client, blob: Json) -> None:
    reply = client.get("GetRawBlob", 1, blob["digest"])
    os.close(reply.fds[0])
    assert b"EPIPE" in read_to_end(reply.fds[1])


@pytest.mark.slow
def test_descriptors_do_not_leak(blobs: Blobs, converse: Converse) -> None:
    client = opened(converse, blobs.name)
    pid = client.child.pid
    leaks = {}
    for name, request in REQUESTS.items():
        request(client, blobs)
        before = descriptors(pid)
        rounds = ROUNDS if "large" not in name else ROUNDS // 8
        for _ in range(rounds):
            request(client, blobs)
        if not eventually(lambda: descriptors(pid) <= before, 3):  # noqa: B023  (called here)
            leaks[name] = descriptors(pid) - before
    assert not leaks
    assert client.finalize() == 0


@pytest.mark.slow
def test_a_lack_of_descriptors_passes(blobs: Blobs, converse: Converse) -> None:
    """As in skopeo, which says "pipe2: too many open files", and goes on."""
    client = opened(converse, blobs.name)
    pid = client.child.pid
    limit = descriptors(pid) + 8
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    begun = []
    while True:
        reply = client.call("GetBlob", 1, blobs.large["digest"], blobs.large["size"])
        if not reply.success:
            break
        begun.append(reply)
    assert re.search("[Tt]oo many open files|descriptors", reply.words), reply
    assert 1 <= len(begun) <= 8
    for each in begun:
        client.ask("FinishPipe", each.pipe)
        assert read_to_end(each.fds[0]) == blobs.content(blobs.large)
        assert client.answer("FinishPipe").success
    assert client.blob(1, blobs.large) == blobs.content(blobs.large)
    assert client.finalize() == 0


@pytest.mark.slow
def test_a_reader_that_leaves_is_noticed_while_the_registry_is_awaited(
    blobs: Blobs, converse: Converse, tmp_path: Path
) -> None:
    with docker_registry(tmp_path / "data") as origin:
        put_image(origin, "blobs:1", blobs.layout, only(blobs.layout))
        with relay(origin, after=MIB, fate="stall") as address:
            client = opened(converse, f"docker://{address}/blobs:1", "--tls-verify=false")
            pipe, fd = begin(client, blobs.large)
            client.ask("FinishPipe", pipe)
            read_exactly(fd, MIB // 4)
            assert not has_answer(client)
            os.close(fd)
            reply = client.answer("FinishPipe")
            assert reply.code == "EPIPE"
            assert reply.words.endswith("broken pipe")
            assert client.finalize() == 0


# --- wrong bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [pytest.param("small", marks=pytest.mark.slow), "large"])
def test_wrong_blobs_end_at_once_and_are_never_whole(
    which: str, blobs: Blobs, converse: Converse
) -> None:
    blob = blobs.small if which == "small" else blobs.large
    flip(blobs.layout.file(blob["digest"]), blob["size"] // 2)
    client = opened(converse, blobs.name)
    reply = client.call("GetBlob", 1, blob["digest"], blob["size"])
    if reply.success:
        content = read_to_end(reply.fds[0])  # it ends without FinishPipe
        assert len(content) < blob["size"]
        reply = client.failure("FinishPipe", reply.pipe)
    assert reply.code == "other"
    assert blob["digest"] in reply.words
    reply = client.call("GetRawBlob", 1, blob["digest"])
    if reply.success:
        content, errors = map(read_to_end, reply.fds)
        assert len(content) < blob["size"]
        trouble = json.loads(errors)
        assert trouble["code"] == "other"
        assert blob["digest"] in trouble["message"]
    else:
        assert reply.code == "other"
    assert client.blob(1, blobs.other) == blobs.content(blobs.other)
    assert client.finalize() == 0, "whatever blobs did"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["short", "long", "lost"])
@pytest.mark.parametrize("which", ["small", "large"])
def test_blobs_of_another_length(which: str, fault: str, blobs: Blobs, converse: Converse) -> None:
    blob = blobs.small if which == "small" else blobs.large
    path = blobs.layout.file(blob["digest"])
    content = path.read_bytes()
    client = opened(converse, blobs.name)
    if fault == "lost":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if fault == "short" else content + b"x")
    reply = client.call("GetBlob", 1, blob["digest"], blob["size"])
    if reply.success:
        assert len(read_to_end(reply.fds[0])) < blob["size"]
        reply = client.failure("FinishPipe", reply.pipe)
    assert reply.code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_size_that_is_wrong_fails(program: Program, blobs: Blobs, converse: Converse) -> None:
    """At the call, and not only at the end as in skopeo: the manifest says it already."""
    client = opened(converse, blobs.name, program=program)
    for size in (-1, 0, blobs.small["size"] - 1, blobs.small["size"] + 1, 2**53 - 1):
        reply = client.call("GetBlob", 1, blobs.small["digest"], size)
        if reply.success:
            assert program.is_old
            client.ask("FinishPipe", reply.pipe)
            read_to_end(reply.fds[0])
            reply = client.answer("FinishPipe")
        # Debian's takes a negative one for a positive one
        expected = size % 2**64 if program.is_old else size
        assert reply.words == f"expected {expected} bytes in blob, got {blobs.small['size']}"
        assert reply.code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
def test_wrong_documents(sample: Sample, converse: Converse) -> None:
    layout = sample.layout
    config = layout.document(sample.descriptor)["config"]
    flip(layout.file(config["digest"]), 5)
    client = opened(converse, sample.name)  # the config is not touched
    assert client.document("GetManifest", 1) == sample.manifest
    for method in ("GetConfig", "GetFullConfig"):
        reply = client.failure(method, 1)
        assert reply.code == "other"
        assert config["digest"] in reply.words
    assert client.failure("GetBlob", 1, config["digest"], config["size"]).code == "other"
    flip(layout.file(sample.descriptor["digest"]), 5)
    for method in ("OpenImage", "OpenImageOptional"):
        reply = client.failure(method, sample.name)
        assert reply.code == "other"
        assert sample.descriptor["digest"] in reply.words
    layout.file(sample.descriptor["digest"]).unlink()
    for method in ("OpenImage", "OpenImageOptional"):
        assert client.failure(method, sample.name).code == "other"
    assert client.finalize() == 0

"""The library for parents in Python, with real children: both variants behave alike.

A scenario is written once, for trio; the blocking variant is called through `Waited`. In every
case, nothing hangs, and the child leaves neither a descriptor nor a zombie.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from support.artifacts import HELM, ROCKET, TITLE, helm, oras, said
from support.damage import flip
from support.effort import rounds
from support.images import OCI_MANIFEST, Layout, digest_of
from support.parent import INSECURE, LIMIT, environment, eventually
from support.servers import layout_as_registry, nginx, relay
from support.streams import real_time

from imgproxy import parent
from imgproxy.parent import blocking, with_trio
from imgproxy.parent.failures import (
    BrokenReplyError,
    BusyError,
    HungUpError,
    ParentError,
    RefusedError,
    ShortBodyError,
    StalledError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from conftest import Sample

LARGE = random.Random(8).randbytes(8 << 20)
SMALL = b"a small layer"

# How often a child is killed, each time at another moment; IMGPROXY_TEST_KILLS=1000 is a campaign.
KILLS = rounds("IMGPROXY_TEST_KILLS", slow=12, quick=4)

# Programs in place of imgproxy: the command line holds the number of the first descriptor.
PREAMBLE = """
import os, signal, socket, sys, time
fd = int(sys.argv[1].partition("=")[2])
sock = socket.socket(fileno=fd)
"""


class Waited:
    """A wrapper of a blocking object, with methods that can be awaited."""

    def __init__(self, thing: Any) -> None:  # noqa: ANN401  (of the flavour)
        self.thing = thing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        name = {"receive_some": "read", "aclose": "close"}.get(name, name)
        value = getattr(self.thing, name)
        if not callable(value):
            return value
        if name == "blobs":
            return lambda wanted: WaitedBlobs(value(wanted))

        async def call(*args: object, **named: object) -> Any:  # noqa: ANN401
            await trio.lowlevel.checkpoint()
            result = value(*args, **named)
            return Waited(result) if isinstance(result, parent.Blob) else result

        return call


class WaitedBlobs:
    """A wrapper of the blocking iteration of blobs, used as the one for trio is."""

    def __init__(self, blobs: AbstractContextManager[Iterator[parent.Blob]]) -> None:
        self.blobs = blobs

    async def __aenter__(self) -> Self:
        self.iterator = self.blobs.__enter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return self.blobs.__exit__(*error)

    def __aiter__(self) -> WaitedBlobs:
        return self

    async def __anext__(self) -> Waited:
        await trio.lowlevel.checkpoint()
        for blob in self.iterator:
            return Waited(blob)
        raise StopAsyncIteration


Start = Any  # both flavours' `start`, called in the same way


@pytest.fixture(params=["blocking", "trio"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start a child, in either variant, that finds the program and trusts every image."""

    @asynccontextmanager
    async def start(image: str, *options: str, **named: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        named.setdefault("env", environment())
        if not {INSECURE, "--policy"} & {*options}:
            options = (INSECURE, *options)
        if request.param == "trio":
            async with with_trio.start(image, *options, **named) as child:
                yield child
        else:
            with parent.start(image, *options, **named) as blocking_child:
                yield Waited(blocking_child)

    return start


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Assert that a test leaves neither children nor descriptors."""
    before = (descriptors(), children())
    yield
    assert (descriptors(), children()) == before


def descriptors() -> set[str]:
    """Return the descriptors of this process, except that of the listing itself."""
    links = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.add(f"{each.name}: {each.readlink()}")
    return {link for link in links if f"/proc/{os.getpid()}/fd" not in link}


def children() -> set[int]:
    """Return the children of this process, including zombies."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(int(status.parent.name))
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "layout")
    layout.save_image(LARGE, SMALL)
    return layout


def name(layout: Layout) -> str:
    return f"oci:{layout.path}"


async def content(blob: Any) -> bytes:  # noqa: ANN401
    """Read a blob to its end."""
    parts = []
    while part := await blob.receive_some(1 << 18):
        parts.append(part)
    await blob.aclose()
    return b"".join(parts)


async def fetched(child: Any, digest: str) -> bytes:  # noqa: ANN401
    return await content(await child.blob(digest))


def fake(script: str) -> list[str]:
    """Return the command of a child other than imgproxy."""
    return [sys.executable, "-c", PREAMBLE + script]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the grace time of children that do not end by themselves."""
    for flavour in (blocking, with_trio):
        monkeypatch.setattr(flavour, "GRACE", 0.2)


def lose_patience(child: Any) -> None:  # noqa: ANN401
    """Shorten the timeout from now on, after the slow start of the program."""
    child = getattr(child, "thing", child)
    child._timeout = 0.3
    for connection in [*child._pool._idle, *child._pool._held]:
        if isinstance(connection, blocking.Connection):
            connection.set_timeout(0.3)


# --- what it is for --------------------------------------------------------------------------


@real_time
async def test_a_whole_image_is_read(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        manifest = await child.manifest()
        assert digest_of(manifest.raw) == manifest.digest == manifest.raw_digest
        assert (manifest.media_type, manifest.index_digest) == (OCI_MANIFEST, None)
        config = await child.config()
        assert config.raw == layout.read(str(manifest.config.digest)) != b""
        assert config.digest == str(manifest.config.digest)
        assert config.json()["os"] == "linux"
        assert [await fetched(child, layer) for layer in manifest.layers] == [LARGE, SMALL]
        document = await child.document(manifest.digest)
        assert (document.raw, document.media_type) == (manifest.raw, OCI_MANIFEST)
        assert child.ending is None
        assert child.diagnostics == ()
    assert (child.ending.status, child.ending.diagnostics) == (0, ())


@real_time
async def test_dockers_manifest_from_an_index_has_all_its_digests(
    start: Start, layout: Layout
) -> None:
    described = layout.image(SMALL, docker=True)
    index = layout.index({**described, "platform": {"os": "linux", "architecture": "amd64"}})
    layout.save(index)
    async with start(name(layout), "--platform=linux/amd64") as child:
        manifest = await child.manifest()
        assert manifest.digest == described["digest"] != manifest.raw_digest
        assert manifest.raw_digest == digest_of(manifest.raw)
        assert manifest.media_type == described["mediaType"] != OCI_MANIFEST
        assert manifest.index_digest == index["digest"]
        assert (await child.document(index["digest"])).raw == layout.read(index["digest"])


@real_time
async def test_candidates_and_layers_are_read(start: Start, layout: Layout) -> None:
    charts = [said(helm(layout, str(n)), HELM, n=str(n)) for n in range(2)]
    layout.save(layout.index(*charts, layout.index(said(oras(layout), ROCKET))))
    async with start(name(layout)) as child:
        found = await child.candidates()
        assert [each["digest"] for each in found[:2]] == [each["digest"] for each in charts]
        with pytest.raises(RefusedError) as raised:
            await child.manifest()
        assert (raised.value.status, raised.value.detail["choices"]) == (409, found)
    async with start(name(layout), "--annotation", "org.acme.stage", "--layer=title=*.*") as child:
        (chosen,) = await child.candidates()
        assert chosen["artifactType"] == ROCKET
        layers = await child.layers()
        assert [each.descriptor.title for each in layers] == [
            "one.txt",
            "docs/two.txt",
            "three.json",
        ]
        assert [(each.index, each.offset) for each in layers] == [(0, 0), (1, 1), (2, 2)]
        assert await child.layers(media_type="text/plain", offset="0-1") == layers[:2]
        assert (
            await child.layers(title="docs/*", annotations={TITLE: "docs/two.txt"}) == layers[1:2]
        )
        for layer, content_there in zip(layers, (b"one", b"two", b"{}"), strict=True):
            blob = await child.layer(layer.offset)
            assert (blob.digest, blob.size) == (layer.descriptor.digest, layer.descriptor.size)
            assert await content(blob) == content_there
        for failing in (child.layer(3), child.layers(title="x")):
            with pytest.raises(RefusedError) as raised:
                await failing
            assert (raised.value.status, raised.value.code) == (404, "BLOB_UNKNOWN")
            assert len(raised.value.detail["layers"]) == 3


@real_time
async def test_several_blobs_at_once_over_several_sockets(start: Start, layout: Layout) -> None:
    async with start(name(layout), sockets=3) as child:
        blobs = [await child.blob(digest_of(each)) for each in (LARGE, LARGE, SMALL)]
        for blob, expected in zip(blobs, (LARGE, LARGE, SMALL), strict=True):
            first = await blob.receive_some(10)
            assert first == expected[: len(first)]
            assert first + await content(blob) == expected


@real_time
async def test_tasks_wait_for_a_socket(layout: Layout) -> None:
    read = []

    async def read_one(child: with_trio.Child) -> None:
        read.append(await fetched(child, digest_of(LARGE)))

    async with (
        with_trio.start(name(layout), INSECURE, sockets=2, env=environment()) as child,
        trio.open_nursery() as nursery,
    ):
        for _ in range(7):
            nursery.start_soon(read_one, child)
    assert read == [LARGE] * 7


def test_threads_wait_for_a_socket(layout: Layout) -> None:
    read = []
    with parent.start(name(layout), INSECURE, sockets=2, env=environment()) as child:

        def read_one() -> None:
            with child.blob(digest_of(LARGE)) as blob:
                read.append(blob.read())

        threads = [threading.Thread(target=read_one) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    assert read == [LARGE] * 7


async def contents(
    child: Any,  # noqa: ANN401
    wanted: list[str],
    read: list[bytes] | None = None,
    most: int = 1 << 30,
) -> None:
    """Read blobs in a row, so many bytes of each."""
    async with child.blobs(wanted) as blobs:
        async for blob in blobs:
            content = b""
            while len(content) < most and (piece := await blob.receive_some(min(most, 1 << 18))):
                content += piece
            if read is not None:
                read.append(content)


MANY = [random.Random(number).randbytes(1 + number * 7919) for number in range(30)]


@real_time
@pytest.mark.parametrize("read_size", [1 << 12, 1 << 16, None])
async def test_blobs_come_in_order_over_one_socket(
    start: Start, layout: Layout, read_size: int | None
) -> None:
    wanted = [b"", *MANY, LARGE, SMALL, SMALL, b""]
    layout.save_image(*dict.fromkeys(wanted))
    async with start(name(layout)) as child:
        found = []
        async with child.blobs(map(digest_of, wanted)) as blobs:
            async for blob in blobs:
                content = b""
                while piece := await blob.receive_some(read_size or blob.size + 1):
                    content += piece
                found.append(content)
                assert str(blob.digest) == digest_of(content)
        assert found == wanted
        async with child.blobs([]) as blobs:
            assert [each async for each in blobs] == []
        await child.manifest()  # the socket is free


@real_time
async def test_blobs_that_are_not_read_are_dropped_if_they_are_small(
    start: Start, layout: Layout
) -> None:
    layout.save_image(*MANY)
    async with start(name(layout)) as child:
        async with child.blobs(map(digest_of, MANY)) as blobs:
            assert len([each async for each in blobs]) == len(MANY)
        async with child.blobs(map(digest_of, MANY)) as blobs:
            async for blob in blobs:
                assert await content(blob) == MANY[0]
                break
        assert await fetched(child, digest_of(MANY[1])) == MANY[1]


@real_time
async def test_an_iteration_that_ends_before_large_blobs_costs_its_socket(
    start: Start, layout: Layout
) -> None:
    layout.save_image(*MANY, LARGE)
    async with start(name(layout), sockets=2) as child:
        wanted = [digest_of(each) for each in (SMALL, MANY[0], LARGE)]
        layout.save_image(SMALL, *MANY, LARGE)
        async with child.blobs(wanted[1:]) as blobs:
            async for _ in blobs:
                break
        await child.manifest()
        with pytest.raises(HungUpError):
            await contents(child, [digest_of(LARGE), digest_of(MANY[0])], most=1)
        with pytest.raises(HungUpError):
            await child.manifest()


@real_time
async def test_a_refusal_comes_in_its_turn_and_leaves_the_socket(
    start: Start, layout: Layout
) -> None:
    layout.save_image(*MANY)
    wanted = [digest_of(each) for each in (MANY[3], b"absent", MANY[4])]
    read: list[bytes] = []
    async with start(name(layout)) as child:
        with pytest.raises(RefusedError, match="BLOB_UNKNOWN"):
            await contents(child, wanted, read)
        assert read == [MANY[3]]
        assert await fetched(child, digest_of(MANY[4])) == MANY[4]


@real_time
async def test_a_wrong_blob_in_a_row_is_a_short_body(start: Start, layout: Layout) -> None:
    layout.save_image(SMALL, LARGE)
    flip(layout.file(digest_of(LARGE)))
    async with start(name(layout), sockets=2) as child:
        with pytest.raises(ShortBodyError):
            await contents(child, [digest_of(each) for each in (SMALL, LARGE, SMALL)])
        await child.manifest()


@real_time
async def test_who_would_wait_for_themselves_is_told(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        blob = await child.blob(digest_of(LARGE))
        with pytest.raises(BusyError, match="sockets"):
            await child.manifest()
        assert await content(blob) == LARGE
        await child.manifest()


@real_time
async def test_a_socket_is_free_when_the_last_byte_is_read(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        blob = await child.blob(digest_of(SMALL))
        assert await blob.receive_some(1000) == SMALL
        await child.manifest()
        assert await blob.receive_some(1000) == b""
        await blob.aclose()


@real_time
async def test_an_empty_blob_is_whole_at_once(start: Start, layout: Layout) -> None:
    layout.save_image(b"")
    async with start(name(layout)) as child:
        blob = await child.blob(digest_of(b""))
        await child.manifest()
        assert await blob.receive_some(10) == b""


@real_time
async def test_a_blob_that_is_almost_read_can_be_closed(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        for _ in range(2):
            await (await child.blob(digest_of(SMALL))).aclose()
            blob = await child.blob(digest_of(LARGE))
            while blob.size - (1 << 20) > 0:
                blob.size -= len(await blob.receive_some(1 << 16))
            await blob.aclose()
        assert (await child.config()).json()


@real_time
async def test_a_blob_that_is_hardly_read_costs_its_socket(start: Start, layout: Layout) -> None:
    async with start(name(layout), sockets=2) as child:
        await (await child.blob(digest_of(LARGE))).aclose()
        assert await fetched(child, digest_of(LARGE)) == LARGE
        await (await child.blob(digest_of(LARGE))).aclose()
        with pytest.raises(HungUpError, match="exit status 0"):
            await child.manifest()


@real_time
async def test_the_child_can_be_told_to_quit(start: Start, layout: Layout) -> None:
    async with start(name(layout), sockets=2) as child:
        assert (await child.quit()).status == 0
        assert child.ending.status == 0
        with pytest.raises(HungUpError, match="closed"):
            await child.manifest()


@real_time
async def test_an_image_that_looks_like_an_option_is_none(start: Start) -> None:
    async with start("--nonsense") as child:
        with pytest.raises(RefusedError) as caught:
            await child.manifest()
    assert caught.value.code == "NAME_INVALID"


# --- a blob is a file ------------------------------------------------------------------------


@pytest.fixture
def child(layout: Layout) -> Iterator[parent.Child]:
    with parent.start(name(layout), INSECURE, sockets=2, env=environment()) as child:
        yield child


def test_a_blob_is_read_like_a_file(child: parent.Child) -> None:
    with child.blob(digest_of(LARGE)) as blob:
        assert (blob.readable(), blob.writable(), blob.seekable()) == (True, False, False)
        assert (blob.size, str(blob.digest)) == (len(LARGE), digest_of(LARGE))
        assert blob.read(0) == b""
        first = blob.read(5)
        assert first == LARGE[: len(first)] != b""
        assert first + blob.read() == LARGE
        assert blob.read() == blob.read(1) == b""
    with pytest.raises(ValueError, match="closed"):
        blob.read(1)


def test_a_blob_can_be_buffered_and_copied(child: parent.Child) -> None:
    with child.blob(digest_of(LARGE)) as blob, io.BufferedReader(blob, 1 << 16) as buffered:
        assert buffered.peek(3)[:3] == buffered.read(3) == LARGE[:3]
        assert buffered.read() == LARGE[3:]
    copy = io.BytesIO()
    with child.blob(digest_of(LARGE)) as blob:
        shutil.copyfileobj(blob, copy)
    assert copy.getvalue() == LARGE


def test_tarfile_reads_a_layer_from_the_stream(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as output:
        member = tarfile.TarInfo("usr/share/large")
        member.size = len(LARGE)
        output.addfile(member, io.BytesIO(LARGE))
    layout = Layout(tmp_path / "tar")
    layout.save_image(archive.getvalue())
    with (
        parent.start(name(layout), INSECURE, env=environment()) as child,
        child.blob(child.manifest().layers[0]) as blob,
        tarfile.open(fileobj=blob, mode="r|") as layer,
    ):
        read = {each.name: layer.extractfile(each).read() for each in layer}  # type: ignore[union-attr]
    assert read == {"usr/share/large": LARGE}


@real_time
async def test_a_trio_blob_is_a_stream(layout: Layout) -> None:
    async with with_trio.start(name(layout), INSECURE, env=environment()) as child:
        async with await child.blob(digest_of(LARGE)) as blob:
            assert b"".join([piece async for piece in blob]) == LARGE
            assert await blob.receive_some() == await blob.receive_some(0) == b""
        with pytest.raises(trio.ClosedResourceError):
            await blob.receive_some()


# --- refusals --------------------------------------------------------------------------------


@real_time
async def test_what_is_not_there_is_a_404(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        for ask in (child.blob, child.document):
            with pytest.raises(RefusedError) as caught:
                await ask(digest_of(b"nowhere"))
            assert (caught.value.status, caught.value.retryable) == (404, False)
            assert caught.value.target in str(caught.value)
        assert await fetched(child, digest_of(SMALL)) == SMALL  # the socket is still usable
    async with start(f"{name(layout)}:absent") as child:
        with pytest.raises(RefusedError) as caught:
            await child.manifest()
        assert (caught.value.status, caught.value.code) == (404, "MANIFEST_UNKNOWN")


@real_time
async def test_the_policy_may_refuse(start: Start, layout: Layout, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    async with start(name(layout), "--policy", str(policy)) as child:
        with pytest.raises(RefusedError) as caught:
            await child.manifest()
    assert (caught.value.status, caught.value.code) == (403, "DENIED")
    assert caught.value.message
    assert "retryable" in caught.value.detail


@real_time
async def test_a_registry_that_is_not_there_may_come(start: Start) -> None:
    async with start("docker://127.0.0.1:9/x", "--retries=0", "--tls-verify=false") as child:
        with pytest.raises(RefusedError) as caught:
            await child.manifest()
    assert (caught.value.status, caught.value.retryable) == (504, True)


@real_time
async def test_what_is_no_digest_is_never_asked_for(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        with pytest.raises(ValueError, match="is not a digest"):
            await child.blob("sha256:x /quit")
        await child.manifest()


# --- bodies that stay short ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sockets", [1, 2])
@real_time
async def test_corruption_in_the_middle_is_raised_with_the_childs_reason(
    sockets: int, start: Start, layout: Layout
) -> None:
    digest = digest_of(LARGE)
    flip(layout.file(digest), len(LARGE) // 2)
    async with start(name(layout), sockets=sockets) as child:
        blob = await child.blob(digest)
        with pytest.raises(ShortBodyError) as caught:
            await content(blob)
        with pytest.raises(ShortBodyError):
            await blob.receive_some(1)
        error = caught.value
        assert (error.expected, error.target) == (len(LARGE), f"/blobs/{digest}")
        assert 0 < error.received < error.expected
        assert error.reason is not None
        assert digest in error.reason
        assert not error.retryable
        if sockets == 1:
            assert error.ending is not None
            assert error.ending.status == 4
        else:
            assert error.ending is None
            assert await fetched(child, digest_of(SMALL)) == SMALL
    assert child.ending.status == 4
    assert error.reason in child.ending.diagnostics


@pytest.mark.slow
def test_a_short_body_is_raised_however_it_is_read(layout: Layout) -> None:
    digest = digest_of(LARGE)
    flip(layout.file(digest))
    readers: list[Callable[[parent.Blob], object]] = [
        lambda blob: blob.read(),
        lambda blob: io.BufferedReader(blob).read(),
        lambda blob: shutil.copyfileobj(blob, io.BytesIO()),
        lambda blob: list(iter(partial(blob.readinto, bytearray(1 << 20)), 0)),
    ]
    with parent.start(name(layout), INSECURE, sockets=len(readers) + 1, env=environment()) as child:
        for read in readers:
            with child.blob(digest) as blob, pytest.raises(ShortBodyError):
                read(blob)


@real_time
async def test_a_small_corrupted_blob_is_a_422(start: Start, layout: Layout) -> None:
    flip(layout.file(digest_of(SMALL)))
    async with start(name(layout)) as child:
        with pytest.raises(RefusedError) as caught:
            await child.blob(digest_of(SMALL))
        assert (caught.value.status, caught.value.code) == (422, "DIGEST_INVALID")
        assert await fetched(child, digest_of(LARGE)) == LARGE


@real_time
async def test_a_registry_that_dies_may_be_tried_again(
    start: Start, layout: Layout, tmp_path: Path
) -> None:
    manifest = json.loads((layout.path / "index.json").read_bytes())["manifests"][0]["digest"]
    with (
        nginx(tmp_path / "nginx", layout_as_registry(layout.path, OCI_MANIFEST)) as origin,
        relay(origin, after=5 << 20, fate="reset") as address,
    ):
        image = f"docker://{address}/acme/os@{manifest}"
        async with start(image, "--tls-verify=false", "--retries=0") as child:
            with pytest.raises(ShortBodyError) as caught:
                await fetched(child, digest_of(LARGE))
    assert caught.value.retryable
    assert caught.value.ending is not None
    assert caught.value.ending.status == 5


# --- children that die -----------------------------------------------------------------------


@real_time
async def test_wrong_options_are_told_by_the_first_request(start: Start, layout: Layout) -> None:
    async with start(name(layout), "--nonsense") as child:
        with pytest.raises(HungUpError) as caught:
            await child.manifest()
    error = caught.value
    assert error.ending is not None
    assert (error.ending.status, error.retryable) == (2, False)
    assert "--nonsense" in (error.reason or "")
    assert "wrong usage" in str(error)


@real_time
async def test_what_cannot_be_started_is_an_os_error(start: Start, layout: Layout) -> None:
    with pytest.raises(FileNotFoundError):
        async with start(name(layout), command=["/nowhere/imgproxy"]):
            pytest.fail("there is no such program")
    with pytest.raises(ValueError, match="sockets=0"):
        async with start(name(layout), sockets=0):
            pytest.fail("there is nothing to speak on")


@real_time
async def test_a_child_that_is_killed_between_requests_is_told(
    start: Start, layout: Layout
) -> None:
    async with start(name(layout), sockets=2) as child:
        await child.manifest()
        os.kill(child.pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(HungUpError) as caught:
                await child.manifest()
    assert caught.value.retryable
    assert (child.ending.status, child.ending.signal) == (None, signal.SIGKILL)
    assert "killed by SIGKILL" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("sockets", [1, 3])
@pytest.mark.usefixtures("impatient")
def test_a_child_may_be_killed_at_any_moment(sockets: int, start: Start, layout: Layout) -> None:
    """Complete content is correct, and everything else raises."""
    chance = random.Random(sockets)
    outcomes = [_killed(start, layout, sockets, chance.uniform(0, 0.5)) for _ in range(KILLS // 2)]
    assert False in outcomes  # some of the kills must have had an effect


def _killed(start: Start, layout: Layout, sockets: int, moment: float) -> bool:
    """Read all, kill the child after a while, and return whether all was read before."""

    @real_time
    async def run() -> None:
        async with start(name(layout), sockets=sockets) as child:
            killer = threading.Timer(moment, os.kill, (child.pid, signal.SIGKILL))
            killer.start()
            try:
                for _ in range(20):
                    manifest = await child.manifest()
                    assert digest_of(manifest.raw) == manifest.digest
                    assert await fetched(child, digest_of(LARGE)) == LARGE
            except HungUpError as error:
                errors.append(error)
            finally:
                killer.cancel()
                killer.join()  # before its process ID is reused
        # Everything may have been read just before the kill.
        assert not errors or child.ending.signal == signal.SIGKILL

    errors: list[HungUpError] = []
    run()
    for error in errors:
        assert error.retryable
        if sockets == 1:  # then its end is waited for
            assert error.ending is not None
            assert error.ending.signal == signal.SIGKILL
    return not errors


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@real_time
async def test_a_child_that_is_stopped_is_not_waited_for(start: Start, layout: Layout) -> None:
    async with start(name(layout)) as child:
        blob = await child.blob(digest_of(LARGE))
        lose_patience(child)
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(StalledError) as caught:
            await content(blob)
        assert caught.value.retryable
    assert child.ending.signal == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@real_time
async def test_a_child_that_is_stopped_before_a_request_is_not_waited_for(
    start: Start, layout: Layout
) -> None:
    async with start(name(layout), sockets=2) as child:
        await child.manifest()
        lose_patience(child)
        os.kill(child.pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(StalledError):
                await child.manifest()
    assert child.ending.signal == signal.SIGKILL


@real_time
async def test_a_child_that_hangs_up_is_told(start: Start) -> None:
    """A child that does not end by itself is killed at the end, without a wait."""
    script = 'os.write(2, b"a last word"); sock.recv(9); sys.exit(77)'
    async with start("x", command=fake(script)) as child:
        with pytest.raises(HungUpError) as caught:
            await child.manifest()
    assert caught.value.reason == "a last word"
    assert caught.value.ending == child.ending
    assert child.ending.status == 77
    assert child.ending.diagnostics == ("a last word",)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ('sock.sendall(b"220 mail.example ESMTP\\r\\n\\r\\n"); time.sleep(99)', BrokenReplyError),
        ('sock.sendall(b"x" * 99999); time.sleep(99)', BrokenReplyError),
        (
            'sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 99999999\\r\\n\\r\\n");'
            " time.sleep(99)",
            BrokenReplyError,
        ),
        (
            'sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nx"); time.sleep(99)',
            StalledError,
        ),
        ("sock.close(); time.sleep(99)", HungUpError),
        ("time.sleep(99)", StalledError),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)", StalledError),
        ("[os.write(2, b'x' * 9999) for _ in range(99)]", StalledError),
        ("[os.write(2, b'x\\n' * 9999) for _ in range(3)]", HungUpError),
        ('sock.sendall(b"HTTP/1.1 500 Oh\\r\\nContent-Length: 0\\r\\n\\r\\n")', BrokenReplyError),
    ],
)
@pytest.mark.usefixtures("impatient")
@real_time
async def test_nothing_hangs_whatever_the_child_does(
    script: str, error: type[ParentError], start: Start
) -> None:
    timeout = 0.5 if error is StalledError else LIMIT
    async with start("x", command=fake(script), timeout=timeout) as child:
        with pytest.raises(error):
            await child.manifest()
    assert child.ending is not None
    assert len(child.diagnostics) <= 101


# --- parents that go -------------------------------------------------------------------------


@real_time
async def test_an_error_of_the_parents_ends_the_child(start: Start, layout: Layout) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  (the whole block is the test)
        async with start(name(layout)) as child:
            await child.blob(digest_of(LARGE))
            raise ZeroDivisionError
    assert child.ending.signal is None


@pytest.mark.usefixtures("impatient")
@real_time
async def test_a_cancelled_parent_leaves_nothing(layout: Layout) -> None:
    """Not even a child that has to be killed."""
    with trio.CancelScope() as scope:
        async with with_trio.start(name(layout), INSECURE, env=environment()) as child:
            blob = await child.blob(digest_of(LARGE))
            os.kill(child.pid, signal.SIGSTOP)
            scope.deadline = trio.current_time() + 0.3
            await content(blob)
    assert scope.cancelled_caught
    assert child.ending is not None
    assert child.ending.signal == signal.SIGKILL


@real_time
async def test_a_blob_goes_on_after_a_cancelled_wait(layout: Layout) -> None:
    async with with_trio.start(name(layout), INSECURE, env=environment()) as child:
        blob = await child.blob(digest_of(LARGE))
        parts: list[bytes] = []
        while not parts or parts[-1]:
            with trio.CancelScope() as scope:
                scope.cancel()
                await blob.receive_some(1)
                pytest.fail("it was cancelled")
            parts.append(await blob.receive_some(1 << 20))
        assert b"".join(parts) == LARGE


class _Interrupted(Exception):
    pass


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an alarm interrupt any wait of the main thread."""

    def interrupt(*_: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_an_interrupt_leaves_nothing(layout: Layout) -> None:
    with (  # noqa: PT012  (the whole block is the test)
        interruptible(),
        pytest.raises(_Interrupted),
        parent.start(name(layout), INSECURE, env=environment()) as child,
    ):
        blob = child.blob(digest_of(LARGE))
        os.kill(child.pid, signal.SIGSTOP)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        blob.read()
    with pytest.raises(_Interrupted):
        blob.read()
    assert child.ending is not None
    assert child.ending.signal == signal.SIGKILL


@pytest.mark.usefixtures("impatient")
def test_closing_wakes_the_threads_that_wait(layout: Layout) -> None:
    errors: list[BaseException] = []
    ready = threading.Barrier(3)

    def attempt(act: Callable[[], object]) -> None:
        try:
            ready.wait(LIMIT)
            act()
        except ParentError as error:
            errors.append(error)

    with parent.start(name(layout), INSECURE, env=environment()) as child:
        os.kill(child.pid, signal.SIGSTOP)
        threads = [
            threading.Thread(target=attempt, args=(act,)) for act in (child.manifest, child.config)
        ]
        for thread in threads:
            thread.start()
        ready.wait(LIMIT)
        assert eventually(lambda: len(child._pool._held) == 1)
    for thread in threads:
        thread.join(LIMIT)
    assert [type(error) for error in errors] == [HungUpError] * 2


@pytest.mark.usefixtures("impatient")
@real_time
async def test_closing_wakes_the_tasks_that_wait(layout: Layout) -> None:
    errors: list[BaseException] = []

    async def attempt(act: Callable[[], Awaitable[object]]) -> None:
        try:
            await act()
        except ParentError as error:
            errors.append(error)

    async with (
        trio.open_nursery() as nursery,
        with_trio.start(name(layout), INSECURE, env=environment()) as child,
    ):
        os.kill(child.pid, signal.SIGSTOP)
        nursery.start_soon(attempt, child.manifest)
        nursery.start_soon(attempt, child.config)
        await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in errors] == [HungUpError] * 2


def test_several_children_at_once_do_not_keep_each_other(sample: Sample) -> None:
    """A child that inherited another's socket would keep it from ending."""
    with (
        parent.start(sample.name, INSECURE, env=environment()) as first,
        parent.start(sample.name, INSECURE, env=environment()) as second,
    ):
        assert first.manifest() == second.manifest()
        assert first.close().signal is None
        assert second.manifest()


def test_importing_it_imports_neither_trio_nor_h11() -> None:
    code = "import sys, imgproxy.parent; print({'h11', 'trio'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"

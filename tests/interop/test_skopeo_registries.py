"""Registries that fail, through skopeo's protocol: what is said of another try, and how soon.

No other request is answered while an image is opened, and clients try again themselves.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.damage import flip, respace
from support.filled import noise
from support.servers import (
    Answering,
    address_of,
    docker_registry,
    free_port,
    http_server,
    put_image,
    put_manifest,
    relay,
    silent_server,
    stored_blob,
)
from support.skopeo_client import PROGRAMS, Client, Program, read_to_end

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Converse
    from support.images import Json, Layout

MIB = 1 << 20

# In seconds, of what takes five of them at most.
SOON = 9.0


def begun(converse: Converse, *options: str, program: Program = PROGRAMS[0]) -> Client:
    client = converse("--tls-verify=false", *options, program=program)
    client.initialize()
    return client


class Case(NamedTuple):
    """A reply of a registry, and what OpenImage and OpenImageOptional (if it is 0) say of it."""

    status: int
    body: bytes
    code: str
    is_absent: bool = False


def errors(*codes: str) -> bytes:
    return json.dumps({"errors": [{"code": each, "message": "no"} for each in codes]}).encode()


# skopeo has `other` for 500, which this program tries again as well, and `retryable` for codes
# that it does not know, whatever the status.
CASES = {
    "404": Case(404, b"", "other"),
    "404 as a page": Case(404, b"<html>Not found</html>", "other"),
    "404 without errors": Case(404, b"{}", "other"),
    "404 with no error": Case(404, errors(), "other"),
    "404 of the manifest": Case(404, errors("MANIFEST_UNKNOWN"), "other", is_absent=True),
    "404 of the name": Case(404, errors("NAME_UNKNOWN"), "other"),
    "404 of a blob": Case(404, errors("BLOB_UNKNOWN"), "other"),
    "404 of nothing known": Case(404, errors("UNKNOWN"), "other"),
    "400": Case(400, errors("UNSUPPORTED"), "other"),
    "401": Case(401, errors("UNAUTHORIZED"), "other"),
    "403": Case(403, errors("DENIED"), "other"),
    "403 without errors": Case(403, b"", "other"),
    "410": Case(410, b"", "other"),
    "200, no manifest": Case(200, b"", "other"),
    "500 with errors": Case(500, errors("MANIFEST_UNKNOWN"), "retryable"),
    "500": Case(500, b"", "retryable"),
    "502": Case(502, b"", "retryable"),
    "503": Case(503, b"", "retryable"),
    "503 with errors": Case(503, errors("UNAVAILABLE"), "retryable"),
    "504": Case(504, b"", "retryable"),
    "429": Case(429, errors("TOOMANYREQUESTS"), "retryable"),
}


class Scripted:
    """A registry that answers each request for a manifest by the same reply."""

    def __init__(self) -> None:
        self.case = CASES["404"]
        self.count = 0

    def get(self, request: Answering) -> None:
        if request.path == "/v2/":
            request.answer(200, b"{}")
        else:
            self.count += 1
            request.answer(self.case.status, self.case.body, Content_Type="application/json")


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_replies_of_registries_have_codes(program: Program, converse: Converse) -> None:
    failures = []
    script = Scripted()
    with http_server(script.get) as address:
        client = begun(converse, program=program)
        reference = f"docker://{address}/acme/os:1"
        for name, case in CASES.items():
            if program.is_old and (case.status in {200, 429}):
                continue  # it waits long, and takes anything for a manifest
            script.case, script.count = case, 0
            reply = client.failure("OpenImage", reference)
            if program.is_old:
                continue
            if reply.code != case.code:
                failures.append(f"{name}: {reply}")
            if str(case.status) not in reply.words and case.status != 200:
                failures.append(f"{name}: does not say what came back: {reply.words}")
            if script.count != (2 if case.code == "retryable" else 1):
                failures.append(f"{name}: {script.count} requests")
            if case.code == "other":
                optional = client.call("OpenImageOptional", reference)
                if (optional.value == 0) != case.is_absent or optional.success != case.is_absent:
                    failures.append(f"{name}: optional: {optional}")
    assert not failures, "\n".join(failures)
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_where_nobody_listens(program: Program, converse: Converse) -> None:
    client = begun(converse, program=program)
    began = time.monotonic()
    for method in ("OpenImage", *([] if program.is_old else ["OpenImageOptional"])):
        reply = client.failure(method, f"docker://127.0.0.1:{free_port()}/nonexistent:latest")
        assert "connection refused" in reply.words.lower()
        assert program.is_old or reply.code == "retryable"
    assert time.monotonic() - began < 2 * SOON
    reply = client.failure("OpenImage", "docker://no-such-host.invalid/x:1")
    assert reply.code == "other"
    assert client.finalize() == 0


@pytest.mark.slow
def test_where_nobody_answers(converse: Converse) -> None:
    """Packets that are lost: a queue that is full. The connection is what is waited for."""
    with silent_server() as server:
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)  # noqa: FBT003  (its signature)
            each.connect_ex(server.getsockname())
        client = converse()
        client.initialize()
        began = time.monotonic()
        reply = client.failure("OpenImage", f"docker://{address_of(server)}/acme/os:1")
        assert reply.code == "retryable"
        assert time.monotonic() - began < SOON
        for each in waiting:
            each.close()
        assert client.finalize() == 0


@pytest.mark.slow
def test_registries_that_stall(converse: Converse) -> None:
    with silent_server() as server:
        client = begun(converse, "--stall-timeout=0.5")
        for method in ("OpenImage", "OpenImageOptional"):
            reply = client.failure(method, f"docker://{address_of(server)}/acme/os:1")
            assert reply.code == "retryable"
            assert "no answer" in reply.words
        assert client.finalize() == 0


@pytest.fixture
def image(layout: Layout) -> tuple[Layout, Json]:
    return layout, layout.save_image(noise(5000), noise(3 * MIB))


@pytest.mark.slow
def test_children_and_parts_that_are_lost(
    image: tuple[Layout, Json], converse: Converse, tmp_path: Path
) -> None:
    """A child of an index that is missing is a failure, though the registry says it as of a tag."""
    layout, descriptor = image
    with docker_registry(tmp_path / "data") as address:
        put_image(address, "acme/os:1", layout, descriptor)
        index = layout.index({**descriptor, "platform": {"os": "linux", "architecture": "amd64"}})
        content = layout.read(index["digest"])
        put_manifest(address, "acme/os", "index", content, index["mediaType"])
        client = begun(converse)
        reference = f"docker://{address}/acme/os:index"
        assert client.get("OpenImageOptional", reference).value == 1
        assert client.get("OpenImageOptional", f"docker://{address}/acme/os:none").value == 0
        assert client.get("OpenImageOptional", f"docker://{address}/none:1").value == 0
        layers = layout.layers(descriptor)
        stored_blob(tmp_path / "data", layers[0]["digest"]).unlink()
        reply = client.failure("GetBlob", 1, layers[0]["digest"], layers[0]["size"])
        assert reply.code == "other", "skopeo says that another try may succeed"
        stored_blob(tmp_path / "data", descriptor["digest"]).unlink()
        for method in ("OpenImage", "OpenImageOptional"):
            reply = client.failure(method, reference)
            assert descriptor["digest"] in reply.words
            assert reply.code == "other"
        assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["manifest", "config", "small", "large"])
def test_wrong_bytes_from_a_registry(
    which: str, image: tuple[Layout, Json], converse: Converse, tmp_path: Path
) -> None:
    layout, descriptor = image
    document = layout.document(descriptor)
    blobs = {
        "manifest": descriptor,
        "config": document["config"],
        "small": document["layers"][0],
        "large": document["layers"][1],
    }
    wrong = blobs[which]
    with docker_registry(tmp_path / "data") as address:
        put_image(address, "acme/os:1", layout, descriptor)
        damage = respace if which == "manifest" else flip
        damage(stored_blob(tmp_path / "data", wrong["digest"]))
        client = begun(converse, "--retries=0")
        reference = f"docker://{address}/acme/os:1"
        if which == "manifest":
            for method in ("OpenImage", "OpenImageOptional"):
                assert client.failure(method, reference).code == "other"
            assert client.finalize() == 0
            return
        image_id = client.open(reference)
        for name, blob in blobs.items():
            if name == "manifest":
                continue
            if name != which:
                content = client.blob(image_id, blob)
                assert content == layout.read(blob["digest"])
                continue
            reply = client.call("GetBlob", image_id, blob["digest"], blob["size"])
            if reply.success:
                assert name == "large"
                assert len(read_to_end(reply.fds[0])) < 3 * MIB
                reply = client.failure("FinishPipe", reply.pipe)
            assert reply.code == "other"
            assert blob["digest"] in reply.words
            reply = client.call("GetRawBlob", image_id, blob["digest"])
            if reply.success:
                assert len(read_to_end(reply.fds[0])) < 3 * MIB
                assert json.loads(read_to_end(reply.fds[1]))["code"] == "other"
        if which == "config":
            for method in ("GetConfig", "GetFullConfig"):
                assert client.failure(method, image_id).code == "other"
        assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["end", "reset", "stall"])
def test_networks_that_break_in_mid_blob_are_worth_another_try(
    fate: str, image: tuple[Layout, Json], converse: Converse, tmp_path: Path
) -> None:
    layout, descriptor = image
    blob = layout.layers(descriptor)[1]
    with docker_registry(tmp_path / "data") as origin:
        put_image(origin, "acme/os:1", layout, descriptor)
        with relay(origin, after=2 * MIB, fate=fate) as address:  # type: ignore[arg-type]
            client = begun(converse, "--retries=0", "--stall-timeout=0.5")
            client.open(f"docker://{address}/acme/os:1")
            reply = client.get("GetBlob", 1, blob["digest"], blob["size"])
            assert len(read_to_end(reply.fds[0])) < blob["size"]
            assert client.failure("FinishPipe", reply.pipe).code == "retryable"
            client.failure("GetRawBlob", 1, blob["digest"])
            assert client.finalize() == 0

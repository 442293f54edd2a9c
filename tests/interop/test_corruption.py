"""Bytes that are not what they are named: wherever they lie, they never pass for the real ones."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Json, Layout, encode, on

if TYPE_CHECKING:
    from conftest import Sample, Serve
    from support.parent import Child, Reply

MIB = 1 << 20
SMALL = bytes(range(256)) * 40
LARGE = bytes(range(256)) * (MIB // 64)  # 4 MiB
OTHER = b"the blob beside it"

MISMATCH = {"DIGEST_INVALID", "SIZE_INVALID"}

Damage = Callable[[Path], object]


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, path.stat().st_size - 1)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


SAME_SIZE = [flip_first, flip_last]
OTHER_SIZE = [truncate, halve, empty, extend]
ONE_OF_EACH = [flip_first, truncate, empty, extend]


def blob_path(layer: Json) -> str:
    return f"/blobs/{layer['digest']}"


def assert_mismatch(reply: Reply) -> None:
    assert reply.status == 422
    assert reply.code in MISMATCH
    assert reply.error["detail"]["retryable"] is False


def assert_invalid(reply: Reply) -> None:
    assert (reply.status, reply.code) == (422, "MANIFEST_INVALID")


def assert_still_serving(child: Child, path: str, content: bytes) -> None:
    """Show that the same connection goes on."""
    reply = child.client.get(path)
    assert (reply.status, reply.body) == (200, content)
    assert child.finish() == 0


def assert_short(child: Child, reply: Reply, status: int) -> None:
    """Show that a body broke off as the contract has it, and what was said and returned."""
    assert reply.status == 200
    assert reply.length
    assert len(reply.body) < reply.length
    assert reply.ending == "end"
    assert child.finish() == status
    assert len(child.stderr.splitlines()) == 1, child.stderr


# --- blobs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", SAME_SIZE + OTHER_SIZE)
def test_a_small_bad_blob_is_a_422_and_the_connection_lives(
    damage: Damage, layout: Layout, serve: Serve
) -> None:
    small, other = layout.layers(layout.save_image(SMALL, OTHER))
    damage(layout.file(small["digest"]))
    child = serve(f"oci:{layout.path}")
    reply = child.client.get(blob_path(small))
    assert_mismatch(reply)
    assert small["digest"] in reply.message
    assert_still_serving(child, blob_path(other), OTHER)


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1])
def test_the_border_between_small_and_large_is_one_mebibyte(
    size: int, layout: Layout, serve: Serve
) -> None:
    (layer,) = layout.layers(layout.save_image(bytes(size)))
    flip_last(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}")
    reply = child.client.get(blob_path(layer))
    if size <= MIB:
        assert_mismatch(reply)
        assert child.finish() == 0
    else:
        assert_short(child, reply, 4)


@pytest.mark.parametrize("damage", SAME_SIZE)
def test_a_large_bad_blob_stays_short_and_counts_for_the_exit_status(
    damage: Damage, layout: Layout, serve: Serve
) -> None:
    (layer,) = layout.layers(layout.save_image(LARGE))
    damage(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}")
    assert_short(child, child.client.get(blob_path(layer)), 4)
    assert layer["digest"] in child.stderr


@pytest.mark.parametrize("damage", OTHER_SIZE)
def test_a_large_blob_of_another_size_never_looks_complete(
    damage: Damage, layout: Layout, serve: Serve
) -> None:
    """A file tells its size, so a refusal before the head is as good as a short body."""
    (layer,) = layout.layers(layout.save_image(LARGE))
    damage(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}")
    reply = child.client.get(blob_path(layer))
    if reply.status == 200:
        assert_short(child, reply, 4)
    else:
        assert_mismatch(reply)
        assert child.finish() == 0


@pytest.mark.slow
def test_quit_does_not_erase_a_bad_blob(layout: Layout, serve: Serve) -> None:
    (layer,) = layout.layers(layout.save_image(LARGE))
    flip_first(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}", sockets=2)
    assert child.clients[0].get(blob_path(layer)).ending == "end"
    assert child.clients[1].quit().status == 200
    assert child.wait() == 4


@pytest.mark.slow
def test_a_bad_blob_closes_its_own_conversation_alone(layout: Layout, serve: Serve) -> None:
    layer, other = layout.layers(layout.save_image(LARGE, OTHER))
    flip_first(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}", sockets=2)
    assert child.clients[1].get(blob_path(layer)).ending == "end"
    assert child.clients[0].get(blob_path(other)).body == OTHER
    assert child.finish() == 4


def test_a_bad_blob_behind_pipelined_requests_ends_with_them(layout: Layout, serve: Serve) -> None:
    layer, other = layout.layers(layout.save_image(LARGE, OTHER))
    flip_first(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}")
    for path in (blob_path(other), blob_path(layer), blob_path(other)):
        child.client.ask("GET", path)
    assert child.client.reply().body == OTHER
    assert_short(child, child.client.reply(), 4)


@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_the_head_of_a_bad_blob_comes_from_its_descriptor(
    content: bytes, layout: Layout, serve: Serve
) -> None:
    (layer,) = layout.layers(layout.save_image(content))
    flip_first(layout.file(layer["digest"]))
    child = serve(f"oci:{layout.path}")
    reply = child.client.request("HEAD", blob_path(layer))
    assert (reply.status, reply.length) == (200, len(content))
    assert child.finish() == 0


def test_a_blob_that_shrinks_while_it_is_sent_stays_short(layout: Layout, serve: Serve) -> None:
    (layer,) = layout.layers(layout.save_image(LARGE * 8))
    child = serve(f"oci:{layout.path}")
    child.client.ask("GET", blob_path(layer))
    reply = child.client.head()
    halve(layout.file(layer["digest"]))
    reply.body, reply.ending = child.client.read_to_end()
    assert reply.length == len(LARGE) * 8
    assert len(reply.body) < reply.length
    assert (LARGE * 8).startswith(reply.body)
    assert reply.ending == "end"
    assert child.finish() in {4, 5}


def test_a_blob_that_is_not_there_is_a_404(layout: Layout, serve: Serve) -> None:
    small, other = layout.layers(layout.save_image(SMALL, OTHER))
    layout.file(small["digest"]).unlink()
    child = serve(f"oci:{layout.path}")
    reply = child.client.get(blob_path(small))
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    assert_still_serving(child, blob_path(other), OTHER)


def pipe_at(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory_at(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop_at(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.slow
@pytest.mark.parametrize("put", [pipe_at, directory_at, loop_at])
def test_a_blob_that_is_no_file_is_an_error_and_not_a_hang(
    put: Damage, layout: Layout, serve: Serve
) -> None:
    small, other = layout.layers(layout.save_image(SMALL, OTHER))
    put(layout.file(small["digest"]))
    child = serve(f"oci:{layout.path}")
    assert 400 <= child.client.get(blob_path(small)).status < 500
    assert_still_serving(child, blob_path(other), OTHER)


# --- what a descriptor says ------------------------------------------------------------------


def with_layer(layout: Layout, **fields: Any) -> Json:  # noqa: ANN401  (JSON is any)
    """Save an image whose first layer's descriptor says something else; give that descriptor."""
    document = layout.document(layout.image(SMALL, OTHER))
    document["layers"][0].update(fields)
    layout.save(layout.add(encode(document), OCI_MANIFEST))
    layer: Json = document["layers"][0]
    return layer


@pytest.mark.parametrize("size", [0, len(SMALL) - 1, len(SMALL) + 1])
def test_a_blob_of_another_size_than_its_descriptor_says_is_a_422(
    size: int, layout: Layout, serve: Serve
) -> None:
    layer = with_layer(layout, size=size)
    child = serve(f"oci:{layout.path}")
    assert_mismatch(child.client.get(blob_path(layer)))
    assert child.client.get("/config").status == 200
    assert child.finish() == 0


def test_a_size_that_is_none_makes_the_manifest_invalid(layout: Layout, serve: Serve) -> None:
    child = serve(f"oci:{layout.path}")
    for size in (-1, "12", 1.5, True, None):
        with_layer(layout, size=size)
        assert_invalid(child.client.get("/manifest"))
    assert child.finish() == 0


@pytest.mark.parametrize(
    "data", [base64.b64encode(SMALL[::-1]).decode(), "", base64.b64encode(SMALL + b"x").decode()]
)
def test_data_in_a_descriptor_is_verified_like_any_other(
    data: str, layout: Layout, serve: Serve
) -> None:
    layer = with_layer(layout, data=data)
    child = serve(f"oci:{layout.path}")
    reply = child.client.get(blob_path(layer))
    assert reply.status == 422 or reply.body == SMALL  # refused, or taken from the file
    assert child.finish() == 0


# --- config, manifest and index --------------------------------------------------------------


@pytest.mark.parametrize("damage", ONE_OF_EACH)
def test_a_bad_config_is_a_422_and_the_connection_lives(
    damage: Damage, sample: Sample, serve: Serve
) -> None:
    config = sample.layout.document(sample.descriptor)["config"]
    damage(sample.layout.file(config["digest"]))
    child = serve(sample.name)
    assert_mismatch(child.client.get("/config"))
    assert_mismatch(child.client.get(blob_path(config)))
    layer = sample.layout.layers(sample.descriptor)[0]
    assert_still_serving(child, blob_path(layer), sample.layers[0])


@pytest.mark.parametrize("damage", ONE_OF_EACH)
def test_a_bad_manifest_is_a_422_for_every_request(
    damage: Damage, sample: Sample, serve: Serve
) -> None:
    layer = sample.layout.layers(sample.descriptor)[0]
    damage(sample.layout.file(sample.descriptor["digest"]))
    child = serve(sample.name)
    for path in ("/manifest", "/config", blob_path(layer), "/manifest"):
        assert_mismatch(child.client.get(path))
    assert child.finish() == 0


def test_a_failed_opening_is_not_remembered_for_ever(sample: Sample, serve: Serve) -> None:
    path = sample.layout.file(sample.descriptor["digest"])
    flip_first(path)
    child = serve(sample.name)
    assert_mismatch(child.client.get("/manifest"))
    flip_first(path)
    assert_still_serving(child, "/manifest", sample.manifest)


@pytest.mark.parametrize("damage", ONE_OF_EACH)
def test_a_bad_index_is_a_422(damage: Damage, layout: Layout, serve: Serve) -> None:
    index = layout.index(on(layout.image(SMALL), "linux/amd64"))
    layout.save(index)
    damage(layout.file(index["digest"]))
    child = serve(f"oci:{layout.path}", "--platform=linux/amd64")
    assert_mismatch(child.client.get("/manifest"))
    assert child.finish() == 0


def test_a_bad_manifest_in_an_index_is_a_422(layout: Layout, serve: Serve) -> None:
    good, bad = layout.image(SMALL), layout.image(OTHER, platform="linux/arm64")
    layout.save(layout.index(on(good, "linux/amd64"), on(bad, "linux/arm64")))
    flip_last(layout.file(bad["digest"]))
    child = serve(f"oci:{layout.path}", "--platform=linux/amd64")
    assert child.client.get("/manifest").status == 200
    assert_mismatch(child.client.get(f"/manifests/{bad['digest']}"))
    assert_still_serving(child, f"/manifests/{good['digest']}", layout.read(good["digest"]))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_manifest_of_another_size_than_index_json_says_is_a_422(
    change: int, sample: Sample, serve: Serve
) -> None:
    size = sample.descriptor["size"] + change
    sample.layout.save({**sample.descriptor, "size": size})
    child = serve(sample.name)
    assert_mismatch(child.client.get("/manifest"))
    assert child.finish() == 0


def test_a_manifest_that_is_not_there_is_a_404(sample: Sample, serve: Serve) -> None:
    sample.layout.file(sample.descriptor["digest"]).unlink()
    child = serve(sample.name)
    reply = child.client.get("/manifest")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    assert child.finish() == 0


# --- index.json ------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "cut off": b'{"schemaVersion": 2, "manifests": [',
    "no object": b"[]",
    "no list": b'{"schemaVersion": 2, "manifests": 5}',
    "not UTF-8": b'{"schemaVersion": 2, "manifests": [], "\xff": 1}',
    "a byte too many": b'{"schemaVersion": 2, "manifests": []}}',
    "NaN": b'{"schemaVersion": NaN, "manifests": []}',
    "a key twice": b'{"manifests": [], "schemaVersion": 2, "manifests": []}',
    "deep": b'{"schemaVersion": 2, "manifests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long": b'{"schemaVersion": 2, "manifests": []' + b" " * 5 * MIB + b"}",
    "a huge number": b'{"schemaVersion": 2, "manifests": [], "n": ' + b"9" * 100_000 + b"}",
}


def test_a_broken_index_json_is_a_422_and_the_connection_lives(
    sample: Sample, serve: Serve
) -> None:
    index = sample.layout.path / "index.json"
    good = index.read_bytes()
    child = serve(sample.name)
    for name, content in BROKEN.items():
        index.write_bytes(content)
        reply = child.client.get("/manifest")
        assert reply.status == 422, name
        assert reply.code in {"MANIFEST_INVALID", "SIZE_INVALID"}, name
        assert "index.json" in reply.message, name
    index.write_bytes(good)
    assert_still_serving(child, "/manifest", sample.manifest)


def test_an_index_json_that_is_not_there_is_a_404(sample: Sample, serve: Serve) -> None:
    (sample.layout.path / "index.json").unlink()
    child = serve(sample.name)
    assert child.client.get("/manifest").status == 404
    assert child.finish() == 0


def test_an_index_json_that_is_a_pipe_is_an_error_and_not_a_hang(
    sample: Sample, serve: Serve
) -> None:
    pipe_at(sample.layout.path / "index.json")
    child = serve(sample.name)
    assert 400 <= child.client.get("/manifest").status < 500
    assert child.finish() == 0


NO_DIGESTS = [
    "sha256:../../../../etc/passwd",
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 63,
    "../" + "a" * 64,
    "sha256",
    5,
]


def test_a_digest_that_is_none_never_becomes_a_path(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    for digest in NO_DIGESTS:
        sample.layout.save({**sample.descriptor, "digest": digest})
        assert child.client.get("/manifest").status == 422, digest
    assert child.finish() == 0


AMBIGUOUS: list[Json] = [
    {"manifests": []},
    {"Manifests": []},
    {"fsLayers": []},
    {"mediaType": OCI_INDEX},
    {"mediaType": OCI_LAYER},
]


def test_a_manifest_that_could_be_something_else_is_a_422(sample: Sample, serve: Serve) -> None:
    child = serve(sample.name)
    for fields in AMBIGUOUS:
        document = {**sample.layout.document(sample.descriptor), **fields}
        sample.layout.save(sample.layout.add(encode(document), OCI_MANIFEST))
        assert_invalid(child.client.get("/manifest"))
    assert child.finish() == 0


def test_an_index_that_holds_itself_is_no_endless_walk(layout: Layout, serve: Serve) -> None:
    """By digest that cannot be made; deeper than four levels is refused alike."""
    inner = layout.index(on(layout.image(SMALL), "linux/amd64"))
    for _ in range(6):
        inner = layout.index(inner)
    layout.save(inner)
    child = serve(f"oci:{layout.path}", "--platform=linux/amd64")
    assert child.client.get("/manifest").status == 422
    assert child.finish() == 0


def test_control_characters_of_a_document_do_not_reach_a_message(
    sample: Sample, serve: Serve
) -> None:
    evil = "application/x\x1b[31m\r\nX-Evil: yes\u202e"
    document = {**sample.layout.document(sample.descriptor), "mediaType": evil}
    content = json.dumps(document).encode()
    sample.layout.save({**sample.layout.add(content, OCI_MANIFEST), "mediaType": evil})
    child = serve(sample.name)
    reply = child.client.get("/manifest")
    assert reply.status in {415, 422}
    assert reply.message.isprintable()
    assert reply.get("X-Evil") is None
    assert child.finish() == 0

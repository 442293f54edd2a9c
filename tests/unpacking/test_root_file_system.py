"""Images that are unpacked: verified, within limits, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections import namedtuple
from typing import TYPE_CHECKING

import pytest
from support.tars import END
from support.unpacking import directory, entry, layer, names, tree, unpack

from imgproxy.errors import InvalidError, UnavailableError, UnsupportedFormatError
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.digest import compute
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import ownership, root_file_system
from imgproxy.unpacking.root_file_system import Layer, Settings

if TYPE_CHECKING:
    from pathlib import Path

GZIP = f"{types.OCI_LAYER}+gzip"


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "tree"


def refusal(at: Path, *layers: Layer | bytes, **settings: int) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        unpack(at, *layers, **settings)
    assert os.listdir(at.parent) == []
    return caught.value


def test_layers_are_unpacked_on_each_other(at: Path) -> None:
    done = unpack(
        at, layer(entry("a"), entry("b", b"old")), layer(entry("b", b"x" * 9), media_type=GZIP)
    )
    assert names(at) == ["a", "b"]
    assert (at / "b").read_bytes() == b"x" * 9
    assert done.files == 3
    assert done.size == 512 * (1 + 2 + 2 + 2 + 2)
    assert done.lost == {}


def test_an_image_without_layers_is_an_empty_directory(at: Path) -> None:
    unpack(at)
    assert names(at) == []


def test_an_empty_blob_is_an_empty_layer(at: Path) -> None:
    empty = Layer(Descriptor(types.OCI_LAYER, compute(b""), 0), compute(b""), Empty)
    unpack(at, empty)
    assert names(at) == []


class Empty:
    def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def test_the_same_image_makes_the_same_tree(at: Path) -> None:
    layers = [entry("a/b", mtime=7) + directory("c"), entry("a/.wh.b") + entry("d", b"x" * 70_000)]
    unpack(at, *layers)
    other = at.with_name("other")
    other.mkdir()
    unpack(other, *layers)
    assert tree(at) == tree(other)


def test_what_does_not_have_its_diff_id_is_refused(at: Path) -> None:
    error = refusal(at, layer(entry("a")), layer(entry("b"), diff_id=b"another"))
    assert error.code == "DIGEST_INVALID"
    assert error.message.startswith("layer 1 (sha256:")
    assert "does not have the digest that the image's config has for it" in error.message


def test_what_follows_the_archive_is_hashed_and_not_unpacked(at: Path) -> None:
    raw = entry("a") + END + entry("smuggled") + bytes(200_000)
    unpack(at, layer(raw))
    assert names(at) == ["a"]


@pytest.mark.parametrize(
    ("media_type", "is_compressed", "words"),
    [
        (GZIP, False, "its media type says gzip, and it is plain"),
        (f"{types.OCI_LAYER}+zstd", True, "its media type says zstd, and it is gzip"),
        (types.OCI_LAYER, True, "its media type says plain, and it is gzip"),
        (types.OCI_NONDISTRIBUTABLE, True, "its media type says plain, and it is gzip"),
        (f"{types.DOCKER_LAYER}.gzip", False, None),
        (types.DOCKER_LAYER, True, None),
        ("application/vnd.acme", True, None),
    ],
)
def test_a_media_type_of_oci_s_may_not_contradict_the_content(
    at: Path,
    media_type: str,
    is_compressed: bool,  # noqa: FBT001  (a parameter)
    words: str | None,
) -> None:
    made = layer(entry("a"), media_type=GZIP if is_compressed else types.OCI_LAYER)
    made = made._replace(descriptor=made.descriptor._replace(media_type=media_type))
    if words is None:
        unpack(at, made)
        assert names(at) == ["a"]
    else:
        assert words in refusal(at, made).message


def test_there_are_limits_for_all_layers_together(at: Path) -> None:
    layers = [entry("a", b"x" * 1000), entry("b")]
    size = 512 * (1 + 2 + 2 + 1 + 2)
    assert unpack(at, *layers, max_size=size, max_files=2).size == size
    other = at.parent / "other"
    other.mkdir()
    error = refusal(other / "tree", *layers, max_size=size - 1)
    assert error.code == "SIZE_INVALID"
    assert f"layer 1 ({layer(layers[1]).descriptor.digest}): with it, more than" in error.message
    assert "more than 1 files in all" in refusal(other / "tree", *layers, max_files=1).message


def test_a_small_layer_that_becomes_large_is_refused(at: Path) -> None:
    bomb = layer(entry("zeros", bytes(20_000_000)), media_type=GZIP)
    assert bomb.descriptor.size < 120_000
    assert "--max-size" in refusal(at, bomb, max_size=10_000_000).message


def test_layers_are_those_that_the_config_describes() -> None:
    made = [layer(entry("a")), layer(entry("b"))]
    descriptors = [each.descriptor for each in made]
    config = json.dumps({"rootfs": {"diff_ids": [str(each.diff_id) for each in made]}}).encode()
    opened: list[int] = []

    def open_layer(number: int) -> Empty:
        opened.append(number)
        return Empty()

    found = root_file_system.layers(descriptors, config, "the config", open_layer)
    assert [each[:2] for each in found] == [each[:2] for each in made]
    found[1].open()
    assert opened == [1]
    with pytest.raises(InvalidError, match="the config has 2 diff_ids, and the manifest 1 layers"):
        root_file_system.layers(descriptors[:1], config, "the config", open_layer)
    with pytest.raises(UnsupportedFormatError, match="the config is not that of an image"):
        root_file_system.layers([], b"{}", "the config", open_layer)


def test_what_is_wrong_with_a_layer_is_told_with_its_name_once(at: Path) -> None:
    made = layer(entry("a", os.urandom(500_000)), media_type=GZIP)
    cut = made._replace(
        open=lambda: Whole(gzip.compress(entry("a", os.urandom(500_000)))[:300_000])
    )
    message = refusal(at, cut).message
    assert message.startswith(f"layer 0 ({made.descriptor.digest}): inflating gzip at byte ")
    assert message.count("layer 0") == 1
    assert refusal(at, layer(entry(".."))).message.count("layer 0") == 1


class Broken:
    """A blob that fails after its first piece."""

    def __init__(self) -> None:
        self.is_closed = False
        self._pieces = iter([(entry("a", bytes(5000)))[:1024]])

    def read(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            raise UnavailableError("gone") from None

    def close(self) -> None:
        self.is_closed = True


def test_what_reading_fails_with_is_raised_and_nothing_left(at: Path) -> None:
    blob = Broken()
    made = layer(entry("a"))._replace(open=lambda: blob)
    before = threading.active_count()
    with pytest.raises(UnavailableError, match="gone"):
        unpack(at, made)
    assert blob.is_closed
    assert threading.active_count() == before
    assert os.listdir(at.parent) == []


def test_a_layer_that_has_no_room_is_refused_before(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = namedtuple("space", "f_blocks f_bavail f_frsize")  # noqa: PYI024
    monkeypatch.setattr(os, "statvfs", lambda _: space(1000, 2, 4096))
    fitting, large = layer(entry("a")), layer(entry("a", bytes(9000)))
    unpack(at, fitting)
    with pytest.raises(DestinationError, match="8192 bytes are free, and the layer sha256:"):
        unpack(at.with_name("2"), large)
    monkeypatch.setattr(os, "statvfs", lambda _: space(0, 0, 4096))  # a file system that has none
    unpack(at.with_name("3"), large)


def test_owners_are_kept_by_root_and_recorded_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert root_file_system.default_ownership() == "record"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert root_file_system.default_ownership() == "keep"


def test_a_file_is_written_in_pieces(at: Path) -> None:
    """A large one is never in memory as a whole."""
    content = gzip.compress(entry("a", bytes(3_000_000)) + END, 1)
    digest = compute(gzip.decompress(content))
    made = Layer(Descriptor(GZIP, compute(content), len(content)), digest, lambda: Whole(content))
    settings = Settings(ownership.parse("me"), pytest.fail)
    root_file_system.unpack([made], str(at), settings)
    assert (at / "a").stat().st_size == 3_000_000


class Whole(Empty):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self) -> bytes:
        content, self._content = self._content, b""
        return content

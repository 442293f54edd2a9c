"""A parent that unpacks its child's image, with real children."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.damage import flip
from support.images import OCI_LAYER, Json, Layout, encode, named
from support.parent import INSECURE
from support.unpacking import END, entry, names, tree

from imgproxy import parent
from imgproxy.parent.failures import ParentError, ShortBodyError

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = (INSECURE, "--platform=linux/amd64")
LOWER = entry("a/old") + entry("a/b", b"x" * 3_000_000, mtime=7) + END
UPPER = entry("a/.wh.old") + entry("f", uid=5) + END


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.save(named(made.image(LOWER, UPPER), "v1"))
    return made


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work/tree"


def test_an_image_becomes_a_tree(layout: Layout, at: Path) -> None:
    lines: list[str] = []
    with parent.start(f"oci:{layout.path}:v1", *OPTIONS) as child:
        done = parent.unpack(child, str(at), owner="me", warn=lines.append)
        assert child.config().raw  # the socket is free again
    assert names(at) == ["a", "a/b", "f"]
    assert tree(at)["a/b"].mtime == 7
    assert (done.files, done.size, done.lost) == (4, len(LOWER + UPPER), {})
    assert lines == []


@pytest.mark.slow
def test_docker_s_media_types_say_nothing(layout: Layout, at: Path) -> None:
    layout.save(named(layout.image(LOWER, docker=True), "v1"))
    with parent.start(f"oci:{layout.path}:v1", *OPTIONS) as child:
        parent.unpack(child, str(at), owner="me")
    assert names(at) == ["a", "a/b", "a/old"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "is_full", "code", "words"),
    [
        ({"max_files": 1}, False, "SIZE_INVALID", "--max-files sets another"),
        ({"max_size": 1}, False, "SIZE_INVALID", "--max-size sets another"),
        ({}, True, "DESTINATION", "is not empty"),
    ],
)
def test_failures_are_those_of_the_library(
    layout: Layout,
    at: Path,
    limits: dict[str, int],
    is_full: bool,  # noqa: FBT001  (a parameter)
    code: str,
    words: str,
) -> None:
    if is_full:
        at.mkdir()
        (at / "mine").touch()
    with parent.start(f"oci:{layout.path}:v1", *OPTIONS) as child:
        with pytest.raises(parent.UnpackError, match=words) as caught:
            parent.unpack(child, str(at), owner="me", **limits)
        assert caught.value.code == code
        assert isinstance(caught.value, ParentError)
        with pytest.raises(ValueError, match="keep, me, record"):
            parent.unpack(child, str(at), owner="all")


def test_a_blob_that_is_wrong_leaves_nothing(layout: Layout, at: Path) -> None:
    descriptor: Json = layout.image(LOWER, UPPER)
    flip(layout.file(layout.layers(descriptor)[0]["digest"]), -2000)
    with (
        parent.start(f"oci:{layout.path}:v1", *OPTIONS) as child,
        pytest.raises(ShortBodyError),
    ):
        parent.unpack(child, str(at), owner="me")
    assert os.listdir(at.parent) == []


@pytest.mark.slow
def test_layers_may_be_compressed(layout: Layout, at: Path) -> None:
    descriptor = layout.image(LOWER)
    document = layout.document(descriptor)
    packed = layout.add(gzip.compress(LOWER, 1), f"{OCI_LAYER}+gzip")
    document["layers"] = [packed]
    layout.save(named(layout.add(encode(document), descriptor["mediaType"]), "v1"))
    with parent.start(f"oci:{layout.path}:v1", *OPTIONS) as child:
        parent.unpack(child, str(at), owner="me")
    assert names(at) == ["a", "a/b", "a/old"]


def test_who_does_not_unpack_imports_nothing_for_it() -> None:
    script = "import sys, imgproxy.parent; print([n for n in sys.modules if 'unpacking.' in n])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"

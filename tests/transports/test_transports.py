"""Which module reads what the IMAGE argument names."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from images import Layout, named
from wires import Notes, real_time, refused

from imgproxy.errors import Failure
from imgproxy.transports import Network, open_source
from imgproxy.transports.oci_layout import OciLayout
from imgproxy.transports.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.source import Source

BAD_NAME = (400, "NAME_INVALID", False)


def opened(image: str, *, offline: bool = False) -> Source:
    return open_source(image, Network(offline=offline), Notes())


def failure_of(image: str, *, offline: bool = False) -> Failure:
    with pytest.raises(Failure) as raised:
        opened(image, offline=offline)
    return raised.value


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker://registry.test/x", "docker://registry.test/x:latest"),
        ("docker://busybox", "docker://docker.io/library/busybox:latest"),
        ("registry.test/x:1", "docker://registry.test/x:1"),
        ("localhost:5000/x", "docker://localhost:5000/x:latest"),
    ],
)
def test_names_lead_to_registries(image: str, name: str) -> None:
    source = opened(image)
    assert isinstance(source, Registry)
    assert source.name == name
    source.close()


def test_certificates_are_verified_unless_that_is_forbidden() -> None:
    assert Network() == (False, True, 60.0)


@pytest.mark.parametrize("image", ["docker://busybox", "registry.test/x:1"])
def test_registries_are_not_asked_offline(image: str) -> None:
    failure = failure_of(image, offline=True)
    assert refused(failure) == (404, "MANIFEST_UNKNOWN", False)
    assert "--offline" in failure.message


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("prefix", ["oci:", ""])
@pytest.mark.parametrize("tail", [":a", ":@1"])
@real_time
async def test_paths_lead_to_layouts(
    prefix: str,
    tail: str,
    layout: Layout,
    offline: bool,  # noqa: FBT001  (a parameter)
) -> None:
    wanted = layout.image(b"wanted")
    layout.save(layout.image(b"other"), named(wanted, "a"))
    source = opened(f"{prefix}{layout.path}{tail}", offline=offline)
    assert isinstance(source, OciLayout)
    assert (await source.root()).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize("path", ["./layout", "../here/layout"])
@real_time
async def test_relative_paths_begin_here(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    layout = Layout(tmp_path / "here/layout")
    wanted = layout.save_image(b"x")
    monkeypatch.chdir(tmp_path / "here")
    source = opened(path)
    monkeypatch.chdir("/")
    assert (await source.root()).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize(
    "image",
    ["docker:x", "docker://UPPER/case", "oci:", "busybox", "ftp://x", "sif:/x", "dir:/x", ""],
)
def test_names_that_mean_nothing_are_refused(image: str) -> None:
    assert refused(failure_of(image)) == BAD_NAME


def test_a_path_with_nothing_at_it_is_not_found(tmp_path: Path) -> None:
    failure = failure_of(f"{tmp_path}/nothing")
    assert refused(failure) == (404, "NOT_FOUND", False)
    assert failure.message == f"{tmp_path}/nothing: No such file or directory"


@pytest.mark.parametrize(
    ("make", "words"),
    [(os.mkdir, "a directory"), (os.mknod, "a regular file"), (os.mkfifo, "a FIFO")],
)
def test_a_path_with_something_else_at_it_is_not_read(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    make(place)
    failure = failure_of(str(place))
    assert refused(failure) == (415, "UNSUPPORTED", False)
    assert words in failure.message


def test_a_path_that_may_not_be_looked_at_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    failure = failure_of(f"{tmp_path}/x")
    monkeypatch.undo()
    assert refused(failure) == (403, "DENIED", False)


def test_an_index_that_is_a_dangling_link_makes_a_broken_layout(layout: Layout) -> None:
    """It is no other kind of place either; the message names the file."""
    (layout.path / "index.json").symlink_to("nowhere")
    assert isinstance(opened(str(layout.path)), OciLayout)

"""Archives merged into one tree."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support import tars
from support.attacks import Link, attacks, directory, file, layer, link, symlink
from support.canary import Canary

from imgproxy.errors import AmbiguousError, Failure, InvalidError, UnsupportedFormatError
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import extraction as extractions
from imgproxy.unpacking import resolution
from imgproxy.unpacking.extraction import Extraction, Rules
from imgproxy.unpacking.layer_stream import LayerStream
from imgproxy.unpacking.limits import Limits
from imgproxy.unpacking.tree import Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.attacks import Tree as Expected

DEFAULT = Rules()


def extract(
    layers: Sequence[bytes],
    root: Path,
    rules: Rules = DEFAULT,
    way: resolution.Opener = resolution.openat2,
) -> Limits:
    """Extract layers into a new directory."""
    root.mkdir()
    limits = Limits(1 << 30, 10_000)
    fd = os.open(root, os.O_PATH)
    try:
        with closing(Tree(fd, Scope.BENEATH, way)) as tree:
            extraction = Extraction(tree, limits, rules)
            for n, content in enumerate(layers):
                pieces = iter([content])
                stream = LayerStream(f"layer {n}", lambda it=pieces: next(it, b""), limits)  # type: ignore[misc]
                extraction.add(stream, f"layer {n}")
            extraction.finish()
    finally:
        os.close(fd)
    return limits


def tree_at(root: Path) -> Expected:
    found: Expected = {}
    for each in root.rglob("*"):
        shown = os.fsencode(each.relative_to(root))
        if each.is_symlink():
            found[shown] = Link(os.fsencode(os.readlink(each)))
        else:
            found[shown] = each.read_bytes() if each.is_file() else None
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="the trees have closed directories")
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(resolution.openat2, id="openat2"),
        pytest.param(resolution.walk, id="walk", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", attacks(b"/outside"))
def test_an_attack_makes_what_is_right_or_nothing(
    name: str, way: resolution.Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = Canary(tmp_path / "canary")
    attack = attacks(os.fsencode(canary.path))[name]
    monkeypatch.chdir(canary.path)
    fds = len(os.listdir("/proc/self/fd"))
    if attack.extracted is None:
        with pytest.raises((InvalidError, UnsupportedFormatError)) as raised:
            extract(attack.layers, tmp_path / "out", way=way)
        assert raised.value.message.startswith("layer ")
        del raised
    else:
        extract(attack.layers, tmp_path / "out", way=way)
        assert tree_at(tmp_path / "out") == attack.extracted
    canary.check()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_links_to_links_that_follow_are_made(tmp_path: Path) -> None:
    extract([layer(link(b"a", b"b"), link(b"b", b"c"), file(b"c", b"1"))], tmp_path / "out")
    assert tree_at(tmp_path / "out") == {b"a": b"1", b"b": b"1", b"c": b"1"}
    twice = layer(link(b"h", b"a"), link(b"h", b"b"), file(b"a", b"1"), file(b"b", b"2"))
    extract([twice], tmp_path / "twice")
    assert tree_at(tmp_path / "twice")[b"h"] == b"2"
    with pytest.raises(InvalidError, match=r"link to [ab], which is not extracted"):
        extract([layer(link(b"a", b"b"), link(b"b", b"a"))], tmp_path / "2")


def test_a_layer_that_links_to_an_earlier_one_does_not_own_its_file(tmp_path: Path) -> None:
    first, second = layer(file(b"a", b"1")), layer(link(b"h", b"a"), file(b"a", b"2"))
    with pytest.raises(AmbiguousError, match="layer 1: a is in a layer before it"):
        extract([first, second], tmp_path / "out")
    extract([first, second], tmp_path / "later", Rules(later_wins=True))
    assert tree_at(tmp_path / "later") == {b"a": b"2", b"h": b"1"}


def test_one_file_by_two_paths_is_found(tmp_path: Path) -> None:
    """By way of a link, where the words are different ones."""
    first = layer(directory(b"d/"), symlink(b"l", b"d"), file(b"d/f", b"1"))
    with pytest.raises(AmbiguousError, match="l/f"):
        extract([first, layer(file(b"l/f", b"2"))], tmp_path / "out")
    extract([first + b"", layer(file(b"g"))], tmp_path / "fine")


def test_what_is_left_out_is_not_made(tmp_path: Path) -> None:
    content = layer(directory(b"d/"), file(b"d/a.txt"), file(b"d/b"), file(b"c/a.txt", b"c"))
    extract([content], tmp_path / "out", Rules(include=(b"*/a.txt",), directory_mode=0o711))
    assert tree_at(tmp_path / "out") == {
        b"d": None,
        b"d/a.txt": b"new",
        b"c": None,
        b"c/a.txt": b"c",
    }
    assert (tmp_path / "out/c").stat().st_mode & 0o7777 == 0o711
    with pytest.raises(InvalidError, match="link to d/b, which is not extracted; include that"):
        extract(
            [layer(file(b"d/b"), link(b"h", b"d/b"))], tmp_path / "link", Rules(include=(b"h",))
        )


def test_what_is_taken_off_the_front_is_no_target(tmp_path: Path) -> None:
    content = layer(file(b"a"), link(b"d/h", b"a"))
    with pytest.raises(InvalidError, match="link to a directory that is not extracted"):
        extract([content], tmp_path / "out", Rules(strip=1))


def test_too_many_long_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractions, "MAX_NAMES", 1000)
    many = [directory(b"d%d" % n + b"x" * 90) for n in range(20)]
    with pytest.raises(InvalidError, match="the names of directories and links"):
        extract([layer(*many)], tmp_path / "out")


def test_times_beyond_what_file_systems_have_are_the_epoch(tmp_path: Path) -> None:
    late = b"\x80" + (2**60).to_bytes(11, "big")
    extract([layer(file(b"f", more={136: late}))], tmp_path / "out")
    assert (tmp_path / "out/f").stat().st_mtime == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_the_disk_fails_with_is_not_the_archive_s_fault(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(extractions, "write_all", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        extract([layer(file(b"f"))], tmp_path / "out")


def test_another_process_that_interferes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever room is made is taken again."""

    def fail(*_: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(Tree, "create_file", fail)
    with pytest.raises(DestinationError, match="f is changed by another process"):
        extract([layer(file(b"f"))], tmp_path / "out")


def test_a_sparse_file_has_its_holes(tmp_path: Path) -> None:
    size = 1 << 20
    numbers = {386: tars.octal(size - 512, 11), 398: tars.octal(512, 11), 483: tars.octal(size, 11)}
    sparse = tars.header(b"s", b"S", 512, magic=tars.GNU, more=numbers) + b"x" * 512
    limits = extract([layer(sparse)], tmp_path / "out")
    assert (tmp_path / "out/s").read_bytes() == bytes(size - 512) + b"x" * 512
    assert limits.size >= size


def test_every_failure_is_one_that_people_are_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"layer 0 is no tar archive, .* --layer"):
        extract([b"x" * 1000], tmp_path / "out")

"""Real trees, as this program, GNU tar, umoci and buildah unpack them: to the last attribute.

A difference must be one where image-spec is on this side; each is named.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.images import Layout
from support.parent import INSECURE
from support.real_trees import TAR, archive, debian, differences, image, snapshot
from support.servers import require
from support.unpacking import END, IS_ROOT, directory, entry, link, symlink

if TYPE_CHECKING:
    from pathlib import Path

    from support.real_trees import Attributes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_ROOT, reason="only root can unpack what others own"),
]


def by_us(name: str, at: Path) -> dict[bytes, Attributes]:
    done = run("unpack", INSECURE, "--quiet", name, str(at))
    assert done.status == 0, done.stderr
    return snapshot(at)


def by_umoci(layout: Layout, at: Path) -> dict[bytes, Attributes]:
    command = [require("umoci"), "unpack", "--image", f"{layout.path}:v1", str(at)]
    subprocess.run(command, check=True, capture_output=True)
    return snapshot(at / "rootfs")


def by_buildah(name: str, at: Path) -> dict[bytes, Attributes]:
    """Return the tree that buildah mounts."""
    storage = ["--root", str(at / "root"), "--runroot", str(at / "run"), "--storage-driver=vfs"]

    def buildah(*words: str) -> str:
        command = [require("buildah"), *storage, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    policy = at / "policy.json"
    at.mkdir()
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    container = buildah("from", f"--signature-policy={policy}", name)
    try:
        return snapshot(type(at)(buildah("mount", container)))
    finally:
        buildah("rm", container)


def without_top(tree: dict[bytes, Attributes]) -> dict[bytes, Attributes]:
    return {path: each for path, each in tree.items() if path != b"."}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def test_a_debian_is_the_same_as_before(layout: Layout, tmp_path: Path) -> None:
    raw = archive(debian())
    ours = by_us(image(layout, raw), tmp_path / "ours")
    assert len(ours) > 5000
    assert differences(ours, snapshot(debian())) == []
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run([require("tar"), *TAR[:2], "-C", str(theirs), "-xp"], input=raw, check=True)
    assert differences(ours, snapshot(theirs)) == []


def test_a_debian_is_the_same_as_by_umoci(layout: Layout, tmp_path: Path) -> None:
    name = image(layout, archive(debian()))
    ours, theirs = by_us(name, tmp_path / "ours"), by_umoci(layout, tmp_path / "theirs")
    assert differences(ours, theirs) == []


def test_a_debian_is_the_same_as_by_buildah(layout: Layout, tmp_path: Path) -> None:
    name = image(layout, archive(debian()))
    ours, theirs = by_us(name, tmp_path / "ours"), by_buildah(name, tmp_path / "theirs")
    # buildah's mount is a copy of the layer, with a top of its own.
    assert differences(without_top(ours), without_top(theirs)) == []


def test_extended_attributes_and_capabilities_are_the_same(layout: Layout, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in ("f", "d/g"):
        (source / name).write_bytes(b"x" * 5000)
        os.setxattr(source / name, "user.some", b"\0=\n\xff")
    os.setxattr(source / "d", "user.of-a-directory", b"y")
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    os.chown(source / "f", 1000, 1000)
    os.setxattr(source / "f", "security.capability", capability)
    (source / "f").chmod(0o6755)
    (source / "l").symlink_to("f")
    os.link(source / "f", source / "h")
    os.mkfifo(source / "p")
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    for number, path in enumerate(sorted(source.rglob("*"))):
        os.utime(path, ns=(0, 1_600_000_000_987_654_321 + number), follow_symlinks=False)
    # GNU tar 1.34 makes a directory's time known by a record with less than nine digits as well.
    ours = by_us(image(layout, archive(source)), tmp_path / "ours")
    assert differences(without_top(ours), without_top(snapshot(source))) == []
    theirs = by_umoci(layout, tmp_path / "theirs")
    assert differences(without_top(ours), without_top(theirs)) == []


def test_64_layers_with_whiteouts_are_the_same(layout: Layout, tmp_path: Path) -> None:
    """The tree of a Debian in 32 parts, and as many layers that take some of it away."""
    source = debian()
    tops = sorted(path for path in (source / "usr/share/doc").iterdir())
    lowest = [require("tar"), *TAR, "-C", str(source), "-c", "--exclude=./usr/share/doc/*", "."]
    layers = [subprocess.run(lowest, check=True, capture_output=True).stdout]
    for n in range(32):
        part = [f"./{each.relative_to(source)}" for each in tops[n::32]]
        command = [require("tar"), *TAR, "-C", str(source), "-c", *part]
        layers.append(subprocess.run(command, check=True, capture_output=True).stdout)
    for n, each in enumerate(tops[:31]):
        path = str(each.relative_to(source))
        if n % 3 == 0:
            change = entry(f"usr/share/doc/.wh.{each.name}", mtime=5)
        elif n % 3 == 1 and each.is_dir() and not each.is_symlink():
            change = directory(path, mtime=7) + entry(f"{path}/.wh..wh..opq") + entry(f"{path}/new")
        else:
            change = entry(f"etc/new-{n}", b"new", mtime=n * 10**9) + link(
                f"etc/h{n}", "etc/hostname"
            )
        described = (
            directory("etc", mtime=3)
            + directory("usr/share", mtime=3)
            + directory("usr/share/doc", mtime=3)
        )
        layers.append(described + change + symlink(f"etc/l{n}", "/x") + END)
    assert len(layers) == 64
    name = image(layout, *layers)
    ours, theirs = by_us(name, tmp_path / "ours"), by_umoci(layout, tmp_path / "umoci")
    assert differences(without_top(ours), without_top(theirs)) == []


def test_what_pull_writes_is_for_umoci_as_well(layout: Layout, tmp_path: Path) -> None:
    """As GUIDE has it: a bundle of a runtime is made by umoci."""
    raw = directory("etc", mtime=5) + entry("etc/f", b"x", mtime=7, uid=5) + END
    name = image(layout, raw)
    store = Layout(tmp_path / "store")
    done = run("pull", INSECURE, "--convert=oci", name, f"oci:{store.path}:v1")
    assert done.status == 0, done.stderr
    theirs = by_umoci(store, tmp_path / "bundle")
    assert (tmp_path / "bundle/config.json").is_file()
    assert differences(without_top(by_us(name, tmp_path / "ours")), without_top(theirs)) == []

"""Trees of files as they are on disk, to the last attribute; and a real one, that of a Debian."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from support.images import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    digest_of,
    encode,
    named,
)
from support.parent import ROOT
from support.servers import require, skip

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = ROOT / "build/debian"

# All that GNU tar can keep.
TAR = ("--xattrs", "--xattrs-include=*", "--format=pax")


class Attributes(NamedTuple):
    """What a file has besides its names. `links` are its other names."""

    mode: int
    owner: tuple[int, int]
    modified: int
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: bytes
    links: tuple[bytes, ...]


def snapshot(root: Path) -> dict[bytes, Attributes]:
    """Return the attributes of all files below a directory, and its own as `.`."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[int, Attributes]] = {}
    names: dict[int, list[bytes]] = {}
    left = [top]
    while left:
        path = left.pop()
        state = os.lstat(path)
        shown = os.path.relpath(path, top)
        content, xattrs = b"", os.listxattr(path, follow_symlinks=False)
        if stat.S_ISDIR(state.st_mode):
            left += [os.path.join(path, name) for name in os.listdir(path)]
        elif stat.S_ISLNK(state.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(state.st_mode):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        names.setdefault(state.st_ino, []).append(shown)
        attributes = Attributes(
            state.st_mode,
            (state.st_uid, state.st_gid),
            state.st_mtime_ns,
            state.st_rdev,
            tuple(
                (name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(xattrs)
            ),
            content,
            (),
        )
        found[shown] = state.st_ino, attributes
    return {
        path: each._replace(links=tuple(sorted(names[inode])))
        for path, (inode, each) in found.items()
    }


def differences(ours: dict[bytes, Attributes], theirs: dict[bytes, Attributes]) -> list[str]:
    """Return what differs, in lines."""
    return [
        f"{path!r}: {ours.get(path)} and {theirs.get(path)}"
        for path in sorted({*ours, *theirs})
        if ours.get(path) != theirs.get(path)
    ]


def debian() -> Path:
    """Return the root file system of a Debian, which is made once; skip where it cannot be."""
    if DEBIAN.is_dir():
        return DEBIAN
    if os.geteuid() != 0:
        skip("only root can make a Debian root file system")
    beside = DEBIAN.with_suffix(".new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(exist_ok=True)
    command = [require("debootstrap"), "--variant=minbase", "bookworm", str(beside)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        skip(f"debootstrap failed: {result.stdout[-300:]}")
    beside.rename(DEBIAN)
    return DEBIAN


def image(layout: Layout, *layers: bytes) -> str:
    """Write an image of plain archives, compressed; return its name."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(each) for each in layers]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(config), OCI_CONFIG),
        "layers": [layout.add(gzip.compress(each, 1), f"{OCI_LAYER}+gzip") for each in layers],
    }
    layout.save(named(layout.add(encode(manifest), OCI_MANIFEST), "v1"))
    return f"oci:{layout.path}:v1"


def archive(root: Path) -> bytes:
    command = [require("tar"), *TAR, "-C", str(root), "-c", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout

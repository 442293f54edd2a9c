"""Layers to unpack, here or by the program, and trees as a test looks at them."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.commands import run
from support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, digest_of, encode, named
from support.parent import INSECURE
from support.tars import END, extended, header, long_name, member, octal, padded, pax, record

from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.digest import Digest, compute
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.unpacking import ownership, root_file_system
from imgproxy.unpacking.root_file_system import Layer, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.commands import Done
    from support.images import Json, Layout

    from imgproxy.unpacking.root_file_system import Unpacked

__all__ = ["END", "extended", "header", "long_name", "member", "padded", "pax", "record"]

IS_ROOT = os.geteuid() == 0

# What directories get that no layer describes: kind and mode, and the time.
IMPLIED = ("directory", 0o755)


def entry(name: str | bytes, content: bytes = b"", kind: str = "file", **fields: object) -> bytes:
    """Return a member; `fields` are `target`, `mode`, `uid`, `gid`, `mtime`, `device`, `xattrs`."""
    raw = name.encode() if isinstance(name, str) else name
    target = fields.get("target", b"")
    target = target.encode() if isinstance(target, str) else target
    assert isinstance(target, bytes)
    records = []
    if len(raw) > 100:
        records.append(record(b"path", raw))
    if len(target) > 100:
        records.append(record(b"linkpath", target))
    mtime = int(fields.get("mtime", 0))  # type: ignore[call-overload]
    if mtime:
        whole, rest = divmod(mtime, 10**9)
        records.append(record(b"mtime", b"%d.%09d" % (whole, rest)))
    records += [
        record(key.encode(), b"%d" % fields[key]) for key in ("uid", "gid") if key in fields
    ]
    xattrs = fields.get("xattrs", {})
    assert isinstance(xattrs, dict)
    records += [record(b"SCHILY.xattr." + key.encode(), value) for key, value in xattrs.items()]
    major, minor = fields.get("device", (0, 0))  # type: ignore[misc]
    default = 0o755 if kind == "directory" else 0o644
    more = {
        100: octal(int(fields.get("mode", default)), 7),  # type: ignore[call-overload]
        329: octal(major, 7),
        337: octal(minor, 7),
    }
    kinds = {"file": b"0", "link": b"1", "symlink": b"2", "character": b"3", "block": b"4"}
    kinds |= {"directory": b"5", "fifo": b"6"}
    own = member(
        content, name=raw[:100], kind=kinds.get(kind, kind.encode()), target=target[:100], more=more
    )
    return (extended(*records) if records else b"") + own


def directory(name: str | bytes, **fields: object) -> bytes:
    return entry(name, kind="directory", **fields)


def symlink(name: str | bytes, target: str | bytes, **fields: object) -> bytes:
    return entry(name, kind="symlink", target=target, **fields)


def link(name: str | bytes, target: str | bytes) -> bytes:
    return entry(name, kind="link", target=target)


# Two layers of a system.
BASE = directory("etc") + entry("etc/os", b"old") + entry("etc/gone") + directory("bin", mode=0o711)
UPPER = entry("etc/os", b"new" * 1000, mtime=5) + entry("etc/.wh.gone") + symlink("sbin", "bin")


def unpack_image(source: Layout | str, at: Path, *options: str, policy: str = INSECURE) -> Done:
    """Unpack the image `v1` of a layout, or one by its name, by the program itself."""
    name = source if isinstance(source, str) else f"oci:{source.path}:v1"
    return run("unpack", policy, *options, name, str(at))


@contextmanager
def public_directory() -> Iterator[Path]:
    """Return a directory that other users reach, as those of pytest are closed to them."""
    path = Path(tempfile.mkdtemp())
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


class _Blob:
    """A blob in memory, in small pieces: a `BlobReader`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.is_closed = False

    def read(self) -> bytes:
        piece, self._content = self._content[:1000], self._content[1000:]
        return piece

    def close(self) -> None:
        self.is_closed = True


def layer(
    *members: bytes, media_type: str = types.OCI_LAYER, diff_id: bytes | None = None
) -> Layer:
    """Return a layer of these members, compressed as its media type says."""
    raw = b"".join(members) + END
    blob = gzip.compress(raw, 1) if media_type.endswith("gzip") else raw
    digest = Digest("sha256", hashlib.sha256(raw if diff_id is None else diff_id).hexdigest())
    return Layer(Descriptor(media_type, compute(blob), len(blob)), digest, lambda: _Blob(blob))


def unpack(path: Path, *layers: bytes | Layer, owner: str = "me", **settings: int) -> Unpacked:
    """Unpack layers, each of which is the members of one, into a directory."""
    warnings: list[str] = []
    made = [each if isinstance(each, Layer) else layer(each) for each in layers]
    return root_file_system.unpack(
        made, str(path), Settings(ownership.parse(owner), warnings.append, **settings)
    )


def image(layout: Layout, *layers: bytes, **config: object) -> Json:
    """Write an image of layers without their ends, compressed, and return its descriptor."""
    raw = [each + END for each in layers]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in raw]},
        **config,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add(encode(document), OCI_CONFIG),
        "layers": [layout.add(gzip.compress(each, 1), f"{OCI_LAYER}+gzip") for each in raw],
    }
    return named(layout.add(encode(manifest), OCI_MANIFEST), "v1")


class File(NamedTuple):
    """A file of a tree; `content` is also the target of a link."""

    kind: str
    mode: int
    content: bytes
    mtime: int

    @property
    def shape(self) -> tuple[str, int]:
        return self.kind, self.mode


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
}


def tree(root: Path) -> dict[str, File]:
    """Return the files below a directory by their paths."""
    found = {}
    for path in root.rglob("*"):
        state = path.lstat()
        kind = _KINDS[stat.S_IFMT(state.st_mode)]
        content = b""
        if kind == "file":
            content = path.read_bytes()
        elif kind == "symlink":
            content = os.fsencode(path.readlink())
        mode = 0 if kind == "symlink" else stat.S_IMODE(state.st_mode)
        found[str(path.relative_to(root))] = File(kind, mode, content, state.st_mtime_ns)
    return found


def names(root: Path) -> list[str]:
    return sorted(tree(root))

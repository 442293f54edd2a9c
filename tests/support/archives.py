"""Archives and trees of images, member by member as each program writes them.

A tar is a list of `Member`s until `pack` makes bytes of it, so that a test may take one away, add
one or put another in its place. What is compressed comes from `COMPRESSIONS`, what is broken from
the functions after it. Like `images`, nothing here is shared with the program.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import struct
import tarfile
import zlib
from typing import TYPE_CHECKING, NamedTuple

from support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    Json,
    Layout,
    digest_of,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

try:
    from compression import zstd
except ImportError:
    from backports import zstd

IMAGE_NAME = "io.containerd.image.name"
REFERENCE_TYPE = "vnd.docker.reference.type"
BLOCK = 512

# Larger than what is kept while an archive is indexed, and not a multiple of a block.
LARGE = bytes(range(256)) * 1200 + b"the end"
SMALL = b"small"


def write_file(path: Path, content: bytes) -> str:
    """Write a file, in a directory that need not exist yet; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


# --- tar ----------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A member of a tar as it is going to be written; `kind` is the byte that tar has for it."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    uid: int = 0


def directory(name: str) -> Member:
    return Member(name, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    return Member(name, kind=tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> Member:
    return Member(name, kind=tarfile.LNKTYPE, target=target)


def control(name: str, document: object) -> Member:
    """Return a member that holds JSON as Go writes it: in one line."""
    return Member(name, json.dumps(document, separators=(",", ":")).encode())


def pack(members: Iterable[Member], dialect: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return the tar; long names need another dialect of tarfile."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=dialect) as tar:
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.linkname, entry.uid = member.kind, member.target, member.uid
            entry.size = len(member.content)
            tar.addfile(entry, io.BytesIO(member.content))
            if not entry.isreg():  # tarfile writes no contents for these, whatever their size says
                assert not member.content
    return file.getvalue()


def layer(text: str, size: int = 0) -> bytes:
    """Return a layer with one file, `size` bytes of which are repeated text."""
    return pack([Member("etc/text", (text or "\0").encode() * max(1, size // max(1, len(text))))])


def replaced(members: Iterable[Member], name: str, *by: Member) -> list[Member]:
    """Return the members with others (or none) in the place of those of this name."""
    replaced: list[Member] = []
    for member in members:
        replaced += by if member.name == name else [member]
    return replaced


def packed(layout: Layout) -> bytes:
    """Return the tar of a layout's directory."""
    return pack(of_directory(layout.path))


def of_directory(path: Path, prefix: str = "") -> list[Member]:
    """Return a directory as skopeo packs a layout: sorted, with the directories."""
    members = []
    for each in sorted(path.iterdir()):
        if each.is_dir():
            members += [directory(f"{prefix}{each.name}/")]
            members += of_directory(each, f"{prefix}{each.name}/")
        else:
            members.append(Member(prefix + each.name, each.read_bytes()))
    return members


# --- Docker archives ----------------------------------------------------------------------------


class Saved(NamedTuple):
    """An image that is going to be saved; its layers are plain tars."""

    config: bytes
    layers: tuple[bytes, ...]
    tags: tuple[str, ...] = ()

    @property
    def diff_ids(self) -> list[str]:
        return [digest_of(each) for each in self.layers]


def saved(*layers: bytes, tags: Sequence[str] = (), platform: str = "linux/amd64") -> Saved:
    os_name, architecture, *variant = platform.split("/")
    config: Json = {
        "architecture": architecture,
        "os": os_name,
        **({"variant": variant[0]} if variant else {}),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in layers]},
    }
    return Saved(encode(config), layers, tuple(tags))


def saved_from(layout: Layout, descriptor: Json, *tags: str) -> Saved:
    """Return an image of a layout whose layers are plain, config byte for byte."""
    manifest = layout.document(descriptor)
    layers = tuple(layout.read(each["digest"]) for each in manifest["layers"])
    return Saved(layout.read(manifest["config"]["digest"]), layers, tags)


def hex_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def once(members: Iterable[Member]) -> list[Member]:
    """Return the first member of each name, because images share what they can."""
    return list({member.name: member for member in reversed(list(members))}.values())[::-1]


def docker_legacy(*images: Saved) -> list[Member]:
    """`docker save` up to 24: a directory a layer, what is there already by a link to it."""
    members: list[Member] = []
    items, places = [], dict[str, str]()
    for image in images:
        parent, paths = "", []
        for content in image.layers:
            v1id = hex_of((parent + hex_of(content)).encode())
            where = places.setdefault(hex_of(content), v1id)
            members += [
                directory(f"{v1id}/"),
                Member(f"{v1id}/VERSION", b"1.0"),
                control(f"{v1id}/json", {"id": v1id, **({"parent": parent} if parent else {})}),
                Member(f"{v1id}/layer.tar", content)
                if where == v1id
                else symlink(f"{v1id}/layer.tar", f"../{where}/layer.tar"),
            ]
            paths.append(f"{v1id}/layer.tar")
            parent = v1id
        members.append(Member(f"{hex_of(image.config)}.json", image.config))
        items.append(_item(f"{hex_of(image.config)}.json", image, paths))
    return [*once(members), control("manifest.json", items), *_repositories(images)]


def docker_graphdriver(*images: Saved) -> list[Member]:
    """`docker save` from 25 on with one of the old stores: a layout, and manifest.json."""
    members = [directory("blobs/"), directory("blobs/sha256/")]
    items, entries = [], []
    for image in images:
        paths = [f"blobs/sha256/{hex_of(content)}" for content in image.layers]
        members += [Member(*each) for each in zip(paths, image.layers, strict=True)]
        members.append(_blob(image.config))
        manifest = _manifest(image.config, image.layers, OCI_LAYER)
        members.append(_blob(manifest))
        entries += _entries(_described(manifest, OCI_MANIFEST), image.tags)
        sources = {
            digest_of(each): _described(each, "application/vnd.docker.image.rootfs.diff.tar")
            for each in image.layers
        }
        config = f"blobs/sha256/{hex_of(image.config)}"
        items.append({**_item(config, image, paths), "LayerSources": sources})
    return [
        *once(members),
        control("index.json", _index(entries)),
        control("manifest.json", items),
        control("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        *_repositories(images),
    ]


def docker_containerd(*images: Saved) -> list[Member]:
    """`docker save` with containerd's store: layers as they were pulled, indexes as they are.

    The indexes name manifests that are not there: of another platform, and an attestation.
    """
    members = [directory("blobs/"), directory("blobs/sha256/")]
    items, entries = [], []
    for image in images:
        layers = [gzip.compress(content, mtime=0) for content in image.layers]
        manifest = _manifest(image.config, layers, OCI_LAYER + "+gzip")
        config = json.loads(image.config)
        platform = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
        index = encode(
            _index(
                [
                    {
                        **_described(b"an attestation", OCI_MANIFEST),
                        "platform": {"architecture": "unknown", "os": "unknown"},
                        "annotations": {REFERENCE_TYPE: "attestation-manifest"},
                    },
                    {
                        **_described(b"of another platform", OCI_MANIFEST),
                        "platform": {"architecture": "s390x", "os": "linux"},
                    },
                    {**_described(manifest, OCI_MANIFEST), "platform": platform},
                ]
            )
        )
        members += [_blob(each) for each in (*layers, image.config, manifest, index)]
        entries += _entries(_described(index, OCI_INDEX), image.tags)
        paths = [f"blobs/sha256/{hex_of(each)}" for each in layers]
        items.append(_item(f"blobs/sha256/{hex_of(image.config)}", image, paths))
    return [
        *once(members),
        control("index.json", _index(entries)),
        control("manifest.json", items),
        control("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ]


def skopeo(*images: Saved) -> list[Member]:
    """As skopeo and podman do: layers by their diff_id, and links where they once were."""
    members: list[Member] = []
    items = []
    for image in images:
        parent = ""
        for content in image.layers:
            v1id = hex_of((parent + hex_of(content)).encode())
            members += [
                Member(f"{hex_of(content)}.tar", content),
                symlink(f"{v1id}/layer.tar", f"../{hex_of(content)}.tar"),
                Member(f"{v1id}/VERSION", b"1.0"),
                control(f"{v1id}/json", {"id": v1id}),
            ]
            parent = v1id
        members.append(Member(f"{hex_of(image.config)}.json", image.config))
        paths = [f"{hex_of(content)}.tar" for content in image.layers]
        items.append(_item(f"{hex_of(image.config)}.json", image, paths))
    return [*once(members), control("manifest.json", items), *_repositories(images)]


def nix_layered(*images: Saved) -> list[Member]:
    """dockerTools.buildLayeredImage: no directories, config and manifest.json at the very end."""
    members = [
        Member(f"{hex_of(content)}/layer.tar", content)
        for image in images
        for content in image.layers
    ]
    items = []
    for image in images:
        paths = [f"{hex_of(content)}/layer.tar" for content in image.layers]
        members.append(Member(f"{hex_of(image.config)}.json", image.config))
        items.append(_item(f"{hex_of(image.config)}.json", image, paths))
    return [*once(members), Member("manifest.json", json.dumps(items, indent=4).encode())]


def nix_plain(*images: Saved) -> list[Member]:
    """dockerTools.buildImage: sorted, with directories; layers are not named by their content."""
    members, items = [], []
    for image in images:
        paths = []
        for content in image.layers:
            v1id = hex_of(b"an id of Nix's own" + content)
            paths.append(f"{v1id}/layer.tar")
            members += [
                directory(f"{v1id}/"),
                Member(f"{v1id}/VERSION", b"1.0"),
                control(f"{v1id}/json", {"id": v1id}),
                Member(f"{v1id}/layer.tar", content),
            ]
        members.append(Member(f"{hex_of(image.config)}.json", image.config))
        items.append(_item(f"{hex_of(image.config)}.json", image, paths))
    members += [control("manifest.json", items), *_repositories(images)]
    return sorted(once(members))


def ggcr(*images: Saved) -> list[Member]:
    """go-containerregistry's (crane, ko): config by its digest, layers as gzip."""
    members, items = [], []
    for image in images:
        layers = [gzip.compress(content, mtime=0) for content in image.layers]
        members.append(Member(digest_of(image.config), image.config))
        members += [Member(f"{hex_of(each)}.tar.gz", each) for each in layers]
        paths = [f"{hex_of(each)}.tar.gz" for each in layers]
        items.append(_item(digest_of(image.config), image, paths))
    return [*once(members), control("manifest.json", items)]


# Each takes images and returns the members of their archive. `GZIPPED` are those whose layers are
# stored as gzip, `WITH_INDEX` those that are OCI layouts as well.
DIALECTS: dict[str, Callable[..., list[Member]]] = {
    "docker 24": docker_legacy,
    "docker 25": docker_graphdriver,
    "docker with containerd": docker_containerd,
    "skopeo": skopeo,
    "nix layered": nix_layered,
    "nix plain": nix_plain,
    "ggcr": ggcr,
}
GZIPPED = ("docker with containerd", "ggcr")
WITH_INDEX = ("docker 25", "docker with containerd")


def stored(dialect: str, content: bytes) -> bytes:
    """Return the bytes that a dialect stores for a layer, and that are served for it."""
    return gzip.compress(content, mtime=0) if dialect in GZIPPED else content


def _item(config: str, image: Saved, paths: list[str]) -> Json:
    return {"Config": config, "RepoTags": list(image.tags) or None, "Layers": paths}


def _repositories(images: Sequence[Saved]) -> list[Member]:
    names: dict[str, dict[str, str]] = {}
    for image in images:
        for tag in image.tags:
            name, _, version = tag.rpartition(":")
            names.setdefault(name, {})[version] = hex_of(image.config)
    return [control("repositories", names)] if names else []


def _blob(content: bytes) -> Member:
    return Member(f"blobs/sha256/{hex_of(content)}", content)


def _described(content: bytes, media_type: str) -> Json:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _manifest(config: bytes, layers: Sequence[bytes], layer_type: str) -> bytes:
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _described(config, OCI_CONFIG),
            "layers": [_described(each, layer_type) for each in layers],
        }
    )


def _index(entries: list[Json]) -> Json:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}


def _entries(descriptor: Json, tags: Sequence[str]) -> list[Json]:
    """Return what index.json has of an image: the whole name is containerd's, OCI's is the tag."""
    if not tags:
        return [descriptor]
    return [
        {**descriptor, "annotations": {IMAGE_NAME: _whole(tag), REF_NAME: tag.rpartition(":")[2]}}
        for tag in tags
    ]


def _whole(tag: str) -> str:
    first, slash, _ = tag.partition("/")
    if not slash:
        return f"docker.io/library/{tag}"
    return tag if "." in first or ":" in first or first == "localhost" else f"docker.io/{tag}"


# --- dir: and registry trees --------------------------------------------------------------------


def write_dir(path: Path, layout: Layout, descriptor: Json) -> None:
    """Write an image of a layout, or an index and what it has, as skopeo's `dir:`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "version").write_text("Directory Transport Version: 1.1\n")
    (path / "manifest.json").write_bytes(layout.read(descriptor["digest"]))
    for each in _below(layout, descriptor):
        is_document = each["mediaType"] in _DOCUMENTS
        name = each["digest"].partition(":")[2] + (".manifest.json" if is_document else "")
        (path / name).write_bytes(layout.read(each["digest"]))


_DOCUMENTS = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

# Where a registry's tree has the blob of an algorithm and its hex digits.
BLOB_PATHS = {
    "by digest": "{0}:{1}",
    "as a layout": "{0}/{1}",
    "as a registry": "{0}/{2}/{1}/data",
}


def write_registry_tree(
    root: Path,
    repository: str,
    tag: str,
    layout: Layout,
    descriptor: Json,
    *,
    blobs: str = "by digest",
) -> Path:
    """Write `<repository>/manifests` as K3s' air-gap tooling does; return the tag's path.

    The tag is a link to the file by digest; blobs are in `<root>/blobs`, and every directory on the
    way has a link to it. `blobs` is a key of `BLOB_PATHS`.
    """
    shared = root / "blobs"
    manifests = root / repository / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    at = root
    for part in repository.split("/"):
        shared.mkdir(exist_ok=True)
        at /= part
        if not (at / "blobs").is_symlink():
            (at / "blobs").symlink_to("../blobs")
    for each in [descriptor, *_below(layout, descriptor)]:
        algorithm, encoded = each["digest"].split(":")
        path = manifests / each["digest"]
        if each["mediaType"] not in _DOCUMENTS:
            path = shared / BLOB_PATHS[blobs].format(algorithm, encoded, encoded[:2])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(layout.read(each["digest"]))
    (manifests / tag).unlink(missing_ok=True)
    (manifests / tag).symlink_to(descriptor["digest"])
    return manifests / tag


def _below(layout: Layout, descriptor: Json) -> list[Json]:
    """Return the descriptors of everything a manifest or an index leads to, if it exists."""
    document = layout.document(descriptor)
    if "manifests" not in document:
        return [document["config"], *document["layers"]]
    found: list[Json] = []
    for each in document["manifests"]:
        if layout.file(each["digest"]).exists():
            found += [each, *_below(layout, each)]
    return found


def write_archive(
    path: Path, *members: Member, compress: Callable[[bytes], bytes] = lambda content: content
) -> str:
    """Write an archive of these members, compressed if wanted; return its path."""
    return write_file(path, compress(pack(members, tarfile.PAX_FORMAT)))


def write_oci_archive(path: Path, layout: Layout, compress: Callable[[bytes], bytes]) -> None:
    path.write_bytes(compress(pack(of_directory(layout.path))))


def copy_layout(layout: Layout, path: Path) -> Layout:
    shutil.copytree(layout.path, path)
    return Layout(path)


# --- compression --------------------------------------------------------------------------------


def in_parts(content: bytes, count: int = 3) -> list[bytes]:
    """Return the content in so many pieces, none of which ends at a round offset."""
    size = len(content) // count + 1
    return [content[at : at + size] for at in range(0, len(content), size)] or [b""]


def plain(content: bytes) -> bytes:
    return content


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def gzip_members(content: bytes) -> bytes:
    return b"".join(map(gzipped, in_parts(content)))


def gzip_padded(content: bytes) -> bytes:
    return gzipped(content) + bytes(10_240)


def gzip_with_fields(content: bytes) -> bytes:
    """Return gzip whose header has every optional field: extra field, name, comment, checksum."""
    flags = 0b11110  # FHCRC, FEXTRA, FNAME, FCOMMENT
    extra = b"AB" + struct.pack("<H", 4) + b"1f8b"
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, flags, 0, 0, 255)
    header += struct.pack("<H", len(extra)) + extra + b"image.tar\0" + b"a comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(content) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFF_FFFF)


def gzip_flushed(content: bytes) -> bytes:
    """Return gzip as pigz makes it: one member, with points where the compression starts afresh."""
    deflate = zlib.compressobj(wbits=31)
    pieces = [
        deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in in_parts(content, 7)
    ]
    return b"".join(pieces) + deflate.flush()


def zstd_compressed(content: bytes) -> bytes:
    return zstd.compress(content)


def zstd_frames(content: bytes) -> bytes:
    return b"".join(map(zstd.compress, in_parts(content)))


def zstd_skippable(content: bytes) -> bytes:
    """Return zstd with skippable frames: before, between and after, one of them empty."""
    frames = [zstd.compress(part) for part in in_parts(content)]
    return b"".join(
        skippable_frame(b"\x28\xb5\x2f\xfd" * n, n) + frame for n, frame in enumerate(frames)
    ) + skippable_frame(bytes(100), 15)


def skippable_frame(content: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(content)) + content


def zstd_streamed(content: bytes) -> bytes:
    """Return zstd without the size of its content, with a checksum."""
    options = {zstd.CompressionParameter.checksum_flag: 1}
    compressor = zstd.ZstdCompressor(options=options)
    pieces = [compressor.compress(part) for part in in_parts(content)]
    return b"".join(pieces) + compressor.flush()


def bzip2_streams(content: bytes) -> bytes:
    return b"".join(map(bz2.compress, in_parts(content)))


def xz_streams(content: bytes) -> bytes:
    return b"".join(lzma.compress(part) + bytes(8) for part in in_parts(content))


# All supported compressions; each takes a tar and returns the file.
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": plain,
    "gzip": gzipped,
    "gzip in members": gzip_members,
    "gzip and zeros": gzip_padded,
    "gzip with fields": gzip_with_fields,
    "gzip with flushes": gzip_flushed,
    "zstd": zstd_compressed,
    "zstd in frames": zstd_frames,
    "zstd with skippable frames": zstd_skippable,
    "zstd in a stream": zstd_streamed,
    "bzip2": bz2.compress,
    "bzip2 in streams": bzip2_streams,
    "xz": lzma.compress,
    "xz in streams": xz_streams,
}
SUFFIXES = {
    "plain": ".tar",
    "gzip": ".tar.gz",
    "zstd": ".tar.zst",
    "bzip2": ".tbz",
    "xz": ".tar.xz",
}


# Unsupported, broken or incomplete files.


def truncated(compressed: bytes, by: int = 20) -> bytes:
    return compressed[:-by]


def gzip_bad_checksum(content: bytes) -> bytes:
    whole = bytearray(gzipped(content))
    whole[-8] ^= 1
    return bytes(whole)


def gzip_bad_size(content: bytes) -> bytes:
    whole = bytearray(gzipped(content))
    whole[-4] ^= 1
    return bytes(whole)


def gzip_then_garbage(content: bytes) -> bytes:
    return gzipped(content) + b"garbage"


def zstd_with_window(content: bytes, window_log: int) -> bytes:
    """Return zstd that declares so large a window, in stored blocks."""
    frame = struct.pack("<IBB", 0xFD2FB528, 0, (window_log - 10) << 3)
    parts = in_parts(content, len(content) // 100_000 + 1)
    for n, part in enumerate(parts):
        frame += struct.pack("<I", (n == len(parts) - 1) | len(part) << 3)[:3] + part
    return frame


def zstd_with_dictionary(content: bytes) -> bytes:
    samples = [
        f"sample {n} of what comes in every frame, number {n * n}".encode() for n in range(99)
    ]
    return zstd.compress(content, zstd_dict=zstd.train_dict(samples, 1024))


def lz4_stored(content: bytes) -> bytes:
    """Return an lz4 frame in stored blocks; LZ4 Frame Format, 1.6."""
    frame = b"\x04\x22\x4d\x18\x60\x70\x73"
    for part in in_parts(content, len(content) // 1_000_000 + 1):
        frame += struct.pack("<I", 1 << 31 | len(part)) + part
    return frame + bytes(4)

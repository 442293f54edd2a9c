"""Unpack the layers of an image into a directory that appears whole, or not at all.

One thread reads and decompresses, which takes longest, another hashes and writes: both spend most
of their time outside of Python, so that two processors are busy. Nothing here knows images, or
where blobs come from.
"""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgproxy.errors import InvalidError, UnsupportedFormatError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import docker_archive
from imgproxy.specs.oci import media_type as types
from imgproxy.store.files import DestinationError, using
from imgproxy.unpacking.destination import Destination
from imgproxy.unpacking.layer_application import LayerApplication
from imgproxy.unpacking.layer_stream import LayerStream
from imgproxy.unpacking.limits import MAX_FILES, MAX_SIZE, Limits
from imgproxy.unpacking.metadata import Metadata
from imgproxy.unpacking.piece_queue import PieceQueue
from imgproxy.unpacking.tree import Scope, Tree, change_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imgproxy.specs.compression import Buffer
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.unpacking.ownership import Ownership

# What OCI's media types say of the compression. Docker's say gzip of whatever there is.
_COMPRESSIONS = {
    f"{layer}{suffix}": name
    for layer in (types.OCI_LAYER, types.OCI_NONDISTRIBUTABLE)
    for suffix, name in (("", ""), ("+gzip", "gzip"), ("+zstd", "zstd"))
}

# Of a directory with files of other users' images in it: nobody else may start what is setuid.
_PRIVATE = 0o700


class BlobReader(Protocol):
    """The verified content of a blob, in pieces."""

    def read(self) -> Buffer:
        """Return the next piece, valid until the next call; empty at the end. Raises `Failure`."""

    def close(self) -> None:
        """Close the reader."""


class Layer(NamedTuple):
    """A layer: its blob, which `open` opens, and the digest of what that decompresses to.

    It is opened and read in a thread of its own.
    """

    descriptor: Descriptor
    diff_id: Digest
    open: Callable[[], BlobReader]


class Settings(NamedTuple):
    """How to unpack. `warn` takes lines about what cannot be kept."""

    ownership: Ownership
    warn: Callable[[str], None]
    max_size: int = MAX_SIZE
    max_files: int = MAX_FILES


class Unpacked(NamedTuple):
    """What was unpacked: members of layers, bytes of the layers, and what was lost, by kind."""

    files: int
    size: int
    lost: dict[str, int]


def default_ownership() -> str:
    """Return how files are owned if nothing else is said: see `ownership.parse`."""
    return "keep" if os.geteuid() == 0 else "record"


def layers(
    descriptors: Sequence[Descriptor],
    config: bytes,
    name: str,
    open_layer: Callable[[int], BlobReader],
) -> list[Layer]:
    """Return the layers of a manifest with the digests that its config has for them.

    `name` is that of the config in messages. `open_layer` opens the layer of a number, from 0 on.
    Raises `InvalidError`, and `UnsupportedFormatError` for a config that has no layers.
    """
    diff_ids = docker_archive.parse_diff_ids(config, name)
    if diff_ids is None:
        raise UnsupportedFormatError(
            f"{name} is not that of an image, and there is no root file system; extract unpacks the"
            " archives in an artifact"
        )
    if len(diff_ids) != len(descriptors):
        raise InvalidError(
            f"{name} has {len(diff_ids)} diff_ids, and the manifest {len(descriptors)} layers"
        )
    return [
        Layer(descriptor, diff_id, partial(open_layer, number))
        for number, (descriptor, diff_id) in enumerate(zip(descriptors, diff_ids, strict=True))
    ]


def unpack(layers: Sequence[Layer], path: str, settings: Settings) -> Unpacked:
    """Unpack layers, the lowest first, into a directory that is absent or empty.

    Raises `Failure`: `InvalidError` for layers that are broken or beyond the limits, and
    `DestinationError`; nothing is left then.
    """
    is_privileged = os.geteuid() == 0
    metadata = Metadata(settings.ownership, settings.warn, is_privileged=is_privileged)
    inflated = Limits(settings.max_size, settings.max_files)
    written = Limits(settings.max_size, settings.max_files)
    with closing(Destination(path)) as destination:
        with using(path), closing(Tree(destination.fd, Scope.IN_ROOT)) as tree:
            application = LayerApplication(tree, metadata, written)
            for number, layer in enumerate(layers):
                _check_space(destination.fd, path, layer.descriptor)
                name = f"layer {number} ({layer.descriptor.digest})"
                _apply(application, layer, name, inflated)
            application.settle()
        top = application.top
        if not is_privileged:
            top = top._replace(mode=_PRIVATE)
        destination.finish(lambda fd: metadata.note(b".", change_open(fd, top)))
    return Unpacked(written.files, inflated.size, dict(metadata.lost))


def _check_space(fd: int, path: str, blob: Descriptor) -> None:
    """Raise `DestinationError` where not even the blob itself has room."""
    status = os.statvfs(fd)
    if status.f_blocks and status.f_bavail * status.f_frsize < blob.size:
        raise DestinationError(
            f"{clean(path)}: {status.f_bavail * status.f_frsize} bytes are free, and the layer"
            f" {blob.digest} alone has {blob.size}"
        )


def _apply(application: LayerApplication, layer: Layer, name: str, limits: Limits) -> None:
    hasher = digests.hasher(layer.diff_id)
    with closing(PieceQueue(partial(_pieces, layer, name, limits), hasher.update)) as content:
        application.apply(name, content)
        content.drain()
    if hasher.hexdigest() != layer.diff_id.encoded:
        raise InvalidError(
            f"{name}: what it decompresses to does not have the digest that the image's config has"
            f" for it, {layer.diff_id}, but {layer.diff_id.algorithm}:{hasher.hexdigest()}",
            code="DIGEST_INVALID",
        )


def _pieces(layer: Layer, name: str, limits: Limits) -> Iterator[bytes]:
    """Yield what a layer decompresses to."""
    with closing(layer.open()) as reader:
        stream = LayerStream(name, reader.read, limits)
        stated = _COMPRESSIONS.get(layer.descriptor.media_type)
        if stated is not None and stated != stream.compression:
            raise InvalidError(
                f"{name}: its media type says {stated or 'plain'}, and it is"
                f" {stream.compression or 'plain'}",
                code="ARCHIVE_INVALID",
            )
        while piece := stream.read_some():
            yield piece

"""A parent that makes a root file system of its child's image, as `imgproxy unpack` does.

The child verifies the blobs; they are decompressed, compared with the image's config and unpacked
in this process, by the code that the command has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import Failure
from imgproxy.parent.failures import ParentError
from imgproxy.specs.oci import media_type as types

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.parent.blocking import Blob, Child
    from imgproxy.unpacking.root_file_system import Layer, Unpacked

# What is received of a blob at once, in bytes.
_PIECE = 1024 * 1024


class UnpackError(ParentError):
    """The layers, or the directory, cannot be unpacked. `code` is one of imgproxy(1), ERRORS."""

    def __init__(self, directory: str, failure: Failure) -> None:
        super().__init__(directory, failure.message, retryable=failure.retryable)
        self.code = failure.code


def unpack(
    child: Child,
    directory: str,
    *,
    owner: str | None = None,
    max_size: int | None = None,
    max_files: int | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Unpacked:
    """Unpack the image of a child into a directory, which is absent or empty; see imgproxy(1).

    `owner`, `max_size` and `max_files` are as for the command, `warn` takes lines about what
    cannot be kept. One of the child's sockets is occupied meanwhile. Returns how many files and
    bytes there were, and what was lost, by kind. Raises `ParentError`, and `UnpackError` of these;
    nothing is left then. Raises `ValueError` for an `owner` that is none.
    """
    from imgproxy.unpacking import limits, ownership, root_file_system

    settings = root_file_system.Settings(
        ownership.parse(owner or root_file_system.default_ownership()),
        warn,
        limits.MAX_SIZE if max_size is None else max_size,
        limits.MAX_FILES if max_files is None else max_files,
    )
    try:
        return root_file_system.unpack(_layers(child), directory, settings)
    except Failure as failure:
        raise UnpackError(directory, failure) from None


def _layers(child: Child) -> list[Layer]:
    """Return the layers with what they decompress to. Raises `Failure`."""
    from imgproxy.unpacking import root_file_system

    manifest = child.manifest()
    descriptors = manifest.layers
    if manifest.media_type == types.DOCKER_MANIFEST:  # which says gzip of whatever there is
        descriptors = tuple(each._replace(media_type="") for each in descriptors)
    name = f"the config {manifest.config.digest}"
    return root_file_system.layers(
        descriptors,
        child.config().raw,
        name,
        lambda number: _Reader(child.blob(descriptors[number])),
    )


class _Reader:
    """A blob of the child in pieces: a `root_file_system.BlobReader`."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._buffer = memoryview(bytearray(_PIECE))
        self.close = blob.close

    def read(self) -> memoryview:
        """See `BlobReader`."""
        return self._buffer[: self._blob.readinto(self._buffer)]

"""`imgproxy unpack`: an image's root file system in a directory.

The layers are verified while they are unpacked, and the directory appears when all of them have
been. `unpacking/root_file_system.py` does the work, in threads; blobs are read in the event loop.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import options as common
from imgproxy.cli import runtime, values
from imgproxy.cli.options import Options
from imgproxy.cli.progress import new_progress
from imgproxy.errors import InvalidError, UnsupportedFormatError, clean
from imgproxy.host import environment
from imgproxy.specs.oci import docker_archive
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.store import files
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import ownership, root_file_system
from imgproxy.unpacking.root_file_system import Layer, Settings
from imgproxy.verification.documents import embedded

if TYPE_CHECKING:
    from imgproxy.cli.options import Parser
    from imgproxy.cli.progress import Progress
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image, OpenedImage
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.unpacking.ownership import Ownership
    from imgproxy.unpacking.root_file_system import Unpacked
    from imgproxy.verification.verified_blob import Blob

DESCRIPTION = "Unpack the root file system of an image into a directory that is absent or empty."

_CONFIG_MODE = 0o644


class UnpackOptions(Options):
    """The options of `unpack`."""

    directory: str
    owner: Ownership | None
    config: str | None
    max_size: int
    max_files: int


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="the image to unpack")
    add("directory", metavar="DIR", type=values.new_directory, help="where to")
    add(
        "--owner",
        metavar="keep|me|record|map=FIRST:THERE:COUNT,…",
        type=values.ownership,
        help="keep: the owners in the image; me: you own all; record: you do, and an extended"
        " attribute has the owners in the image; map: other numbers for users and groups"
        " (default: keep for root, else record)",
    )
    add("--config", metavar="FILE", help="write the image's configuration there as well")
    add(
        "--max-size",
        metavar="SIZE",
        type=values.size,
        default=root_file_system.MAX_SIZE,
        help="bytes that all layers may decompress to (default: 256GiB)",
    )
    add(
        "--max-files",
        metavar="N",
        type=values.number,
        default=root_file_system.MAX_FILES,
        help="files that all layers may have (default: 5000000)",
    )
    common.add_choice(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_configuration(parser)
    common.add_networks(parser)
    common.add_cache(parser)


async def run(options: UnpackOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    _refuse_existing(options.config)
    configuration = runtime.new_configuration(options, runtime.OptionFiles(options), diagnostics)
    network = runtime.new_network(options, configuration, diagnostics, None)
    progress = new_progress(options, diagnostics)
    catalog = runtime.new_catalog(options, configuration, network, None)
    image = catalog.image(options.image, options.platform or environment.host_platform())
    settings = Settings(
        options.owner or ownership.parse(root_file_system.default_ownership()),
        progress.say,
        options.max_size,
        options.max_files,
    )
    try:
        return await _Unpacking(image, progress, settings).into(options.directory, options.config)
    finally:
        progress.close()
        image.close()
        catalog.close()
        network.close()


def _refuse_existing(path: str | None) -> None:
    """Raise `DestinationError` for a file that would be replaced."""
    if path is not None and os.path.lexists(path):
        raise DestinationError(f"{clean(path)} exists")


class _Unpacking:
    """An image that is unpacked."""

    def __init__(self, image: Image, progress: Progress, settings: Settings) -> None:
        self._image = image
        self._progress = progress
        self._settings = settings
        self._has_another_try = False

    async def into(self, directory: str, config_file: str | None) -> dict[str, Any]:
        """Unpack the image, and return what was done. Raises `Failure`."""
        with self._image.limited():
            opened = await self._image.open()
            config = await self._config(opened)
        manifest = opened.manifest
        assert isinstance(manifest.parsed, Manifest)  # noqa: S101  (the image made sure)
        layers = self._layers(opened, manifest.parsed, config)
        self._progress.begin(sum(each.descriptor.size for each in layers))
        done = await self._unpack(layers, directory)
        if config_file is not None:
            with files.using(config_file):
                files.write(config_file, config, _CONFIG_MODE, replace=False)
        self._progress.say(f"{clean(directory)}: {done.files} files of {len(layers)} layers")
        return {
            "directory": directory,
            "digest": str(manifest.digest),
            "layers": len(layers),
            "files": done.files,
            "size": done.size,
            "lost": done.lost,
            **({} if opened.age is None else {"stale": True, "age": opened.age}),
        }

    async def _unpack(self, layers: list[Layer], directory: str) -> Unpacked:
        """Unpack layers, and begin anew where a blob was wrong and may be had elsewhere."""
        while True:
            try:
                return await trio.to_thread.run_sync(
                    root_file_system.unpack, layers, directory, self._settings
                )
            except InvalidError:
                if not self._has_another_try:
                    raise
                self._has_another_try = False

    async def _config(self, opened: OpenedImage) -> bytes:
        descriptor = opened.find_config()
        content = embedded(descriptor)
        if content is None:
            pieces = []
            blob = await opened.open_blob(descriptor)
            try:
                while piece := await blob.read():
                    pieces.append(bytes(piece))
            finally:
                blob.close()
            content = b"".join(pieces)
        return content

    def _layers(self, opened: OpenedImage, manifest: Manifest, config: bytes) -> list[Layer]:
        """Return the layers with their diff_ids. Raises `Failure`."""
        name = f"the config {manifest.config.digest}"
        if manifest.artifact_type:
            raise UnsupportedFormatError(
                f"of the type {clean(manifest.artifact_type)}, and not an image that has a root"
                " file system; extract unpacks the archives in it"
            )
        diff_ids = docker_archive.parse_diff_ids(config, name) or ()
        if len(diff_ids) != len(manifest.layers):
            raise InvalidError(
                f"{name} has {len(diff_ids)} diff_ids, and the manifest {len(manifest.layers)}"
                " layers"
            )
        token = trio.lowlevel.current_trio_token()
        return [
            Layer(each, diff_id, partial(_Reader, self, opened, each, token))
            for each, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ]

    async def read(self, blob: Blob, descriptor: Descriptor) -> memoryview:
        """Return the next piece of a blob."""
        try:
            piece = await blob.read()
        except InvalidError:
            self._has_another_try = blob.has_another_try
            raise
        if piece:
            self._progress.advance(descriptor, len(piece))
        else:
            self._progress.finish(descriptor)
        return piece


class _Reader:
    """A blob that another thread than the event loop's reads: a `root_file_system.BlobReader`."""

    def __init__(
        self,
        unpacking: _Unpacking,
        opened: OpenedImage,
        descriptor: Descriptor,
        token: trio.lowlevel.TrioToken,
    ) -> None:
        self._unpacking = unpacking
        self._descriptor = descriptor
        self._token = token
        self._embedded = embedded(descriptor)
        self._blob: Blob | None = None
        self._ended = False
        if self._embedded is None:
            self._blob = trio.from_thread.run(opened.open_blob, descriptor, trio_token=token)

    def read(self) -> bytes | memoryview:
        """See `BlobReader`."""
        if self._blob is None:
            piece, self._embedded = self._embedded or b"", None
            return piece
        if self._ended:
            return b""
        read = partial(self._unpacking.read, self._blob, self._descriptor)
        received = trio.from_thread.run(read, trio_token=self._token)
        self._ended = not received
        return received

    def close(self) -> None:
        """See `BlobReader`."""
        if self._blob is not None:
            trio.from_thread.run_sync(self._blob.close, trio_token=self._token)

"""`imgproxy unpack`: an image's root file system in a directory.

The layers are verified while they are unpacked, and the directory appears when all of them have
been. `unpacking/root_file_system.py` does the work, in threads; blobs are read in the event loop.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import layers, values
from imgproxy.cli.layers import LayerOptions
from imgproxy.errors import InvalidError, UnsupportedFormatError, clean
from imgproxy.specs.oci import docker_archive
from imgproxy.store import files
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import ownership, root_file_system
from imgproxy.unpacking.root_file_system import Layer, Settings

if TYPE_CHECKING:
    from imgproxy.cli.layers import ChosenLayers, LayerContent
    from imgproxy.cli.options import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.layer_selection import Layer as ChosenLayer
    from imgproxy.unpacking.ownership import Ownership
    from imgproxy.unpacking.root_file_system import Unpacked

DESCRIPTION = "Unpack the root file system of an image into a directory that is absent or empty."

_CONFIG_MODE = 0o644


class UnpackOptions(LayerOptions):
    """The options of `unpack`."""

    owner: Ownership | None
    config: str | None


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="the image")
    add(
        "directory",
        metavar="DIR",
        type=values.new_directory,
        help="a directory, absent or empty",
    )
    add(
        "--owner",
        metavar="keep|me|record|map=FIRST:THERE:COUNT,…",
        type=values.ownership,
        help="keep: the owners in the image; me: you own all; record: you do, and an extended"
        " attribute tells the owners in the image; map: other numbers for users and groups"
        " (default: keep for root, else record)",
    )
    add("--config", metavar="FILE", help="write the image's configuration there as well")
    parser.set_defaults(layer_specs=[])
    limits = root_file_system.MAX_SIZE >> 30, root_file_system.MAX_FILES
    layers.add_options(parser, max_size=f"{limits[0]}GiB", max_files=limits[1])


async def run(options: UnpackOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    _refuse_existing(options.config)
    async with layers.chosen(options, diagnostics) as chosen:
        config = await chosen.config()
        settings = Settings(
            options.owner or ownership.parse(root_file_system.default_ownership()),
            chosen.progress.say,
            options.max_size,
            options.max_files,
        )
        done = await _Unpacking(chosen, config).into(options.directory, settings)
        if options.config is not None:
            with files.using(options.config):
                files.write(options.config, config, _CONFIG_MODE, replace=False)
        diagnostics.progress(
            f"{clean(options.directory)}: {done.files} files of {len(chosen.layers)} layers"
        )
        return {
            "directory": options.directory,
            **chosen.described(),
            "files": done.files,
            "size": done.size,
            "layers": len(chosen.layers),
            "lost": done.lost,
        }


def _refuse_existing(path: str | None) -> None:
    """Raise `DestinationError` for a file that would be replaced."""
    if path is not None and os.path.lexists(path):
        raise DestinationError(f"{clean(path)} exists")


class _Unpacking:
    """The layers of an image, read by the thread that decompresses them.

    Raises `Failure` for an image whose config does not describe them.
    """

    def __init__(self, chosen: ChosenLayers, config: bytes) -> None:
        manifest, name = chosen.manifest, f"the config {chosen.manifest.config.digest}"
        if manifest.artifact_type:
            raise UnsupportedFormatError(
                f"of the type {clean(manifest.artifact_type)}, and not an image that has a root"
                " file system; extract unpacks the archives in it"
            )
        diff_ids = docker_archive.parse_diff_ids(config, name) or ()
        if len(diff_ids) != len(chosen.layers):
            raise InvalidError(
                f"{name} has {len(diff_ids)} diff_ids, and the manifest {len(chosen.layers)} layers"
            )
        token = trio.lowlevel.current_trio_token()
        self._may_be_right_elsewhere = False
        self._layers = [
            Layer(each.descriptor, diff_id, partial(_Reader, self, chosen, each, token))
            for each, diff_id in zip(chosen.layers, diff_ids, strict=True)
        ]

    async def into(self, directory: str, settings: Settings) -> Unpacked:
        """Unpack, and begin anew where a blob was wrong and may be had elsewhere."""
        while True:
            try:
                return await trio.to_thread.run_sync(
                    root_file_system.unpack, self._layers, directory, settings
                )
            except InvalidError:
                if not self._may_be_right_elsewhere:
                    raise
                self._may_be_right_elsewhere = False

    async def read(self, content: LayerContent) -> memoryview:
        """Return the next piece of a layer."""
        try:
            return await content.read()
        except InvalidError:
            self._may_be_right_elsewhere = content.may_be_right_elsewhere()
            raise


class _Reader:
    """A layer that another thread than the event loop's reads: a `root_file_system.BlobReader`."""

    def __init__(
        self,
        unpacking: _Unpacking,
        chosen: ChosenLayers,
        layer: ChosenLayer,
        token: trio.lowlevel.TrioToken,
    ) -> None:
        self._unpacking = unpacking
        self._token = token
        self._content = trio.from_thread.run(chosen.open, layer, trio_token=token)
        self._ended = False

    def read(self) -> memoryview:
        """See `BlobReader`."""
        if self._ended:
            return memoryview(b"")
        piece = trio.from_thread.run(self._unpacking.read, self._content, trio_token=self._token)
        if not piece:
            self._ended = True
            trio.from_thread.run_sync(self._content.finish, trio_token=self._token)
        return piece

    def close(self) -> None:
        """See `BlobReader`."""
        trio.from_thread.run_sync(self._content.close, trio_token=self._token)

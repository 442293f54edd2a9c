"""`imgproxy unpack`: an image's root file system in a directory.

The layers are verified while they are unpacked, and the directory appears when all of them have
been. `unpacking/root_file_system.py` does the work, in threads; blobs are read in the event loop.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import layers
from imgproxy.cli.progress import counted
from imgproxy.errors import InvalidError, clean
from imgproxy.store import files
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import ownership, root_file_system
from imgproxy.unpacking.root_file_system import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.cli.layers import ChosenLayers, LayerContent
    from imgproxy.cli.runtime import Beginning
    from imgproxy.cli.unpack_options import UnpackOptions
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.unpacking.root_file_system import Unpacked


_CONFIG_MODE = 0o644


async def run(
    options: UnpackOptions, beginning: Beginning, diagnostics: Diagnostics
) -> dict[str, Any]:
    """See `commands.Command`."""
    _refuse_existing(options.config)
    async with layers.chosen(options, beginning, diagnostics) as chosen:
        config = await chosen.opened.config()
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
            f"{clean(options.directory)}: {counted(done.files, 'file')} of"
            f" {counted(len(chosen.layers), 'layer')}"
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
        self._chosen = chosen
        self._token = trio.lowlevel.current_trio_token()
        self._may_be_right_elsewhere = False
        self._layers = root_file_system.layers(
            chosen.manifest.layers,
            config,
            f"the config {chosen.manifest.config.digest}",
            self._open,
        )

    def _open(self, number: int) -> _Reader:
        layer = self._chosen.layers[number]
        content = trio.from_thread.run(self._chosen.open_in_turn, layer, trio_token=self._token)
        return _Reader(self, content)

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

    def read(self, content: LayerContent) -> memoryview:
        """Return the next piece of a layer, to another thread than the event loop's."""
        try:
            return trio.from_thread.run(content.read, trio_token=self._token)
        except InvalidError:
            self.call(self._note, content)
            raise

    def _note(self, content: LayerContent) -> None:
        self._may_be_right_elsewhere = content.may_be_right_elsewhere()

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function in the event loop, from another thread."""
        trio.from_thread.run_sync(function, *arguments, trio_token=self._token)


class _Reader:
    """A layer that another thread than the event loop's reads: a `root_file_system.BlobReader`."""

    def __init__(self, unpacking: _Unpacking, content: LayerContent) -> None:
        self._unpacking = unpacking
        self._content = content
        self._ended = False

    def read(self) -> memoryview:
        """See `BlobReader`."""
        if self._ended:
            return memoryview(b"")
        piece = self._unpacking.read(self._content)
        if not piece:
            self._ended = True
            self._unpacking.call(self._content.finish)
        return piece

    def close(self) -> None:
        """See `BlobReader`."""
        self._unpacking.call(self._content.close)

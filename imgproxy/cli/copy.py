"""`imgproxy copy`: layers as files, as they are.

Each is written under a number, and gets its name when all of them are there: what a name depends
on, and whether two are the same, may be known no sooner.
"""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import layers
from imgproxy.cli.at_once import run_all
from imgproxy.cli.copy_options import STDOUT
from imgproxy.cli.progress import counted
from imgproxy.errors import AmbiguousError, Failure, InvalidError, clean
from imgproxy.specs.compression import HEAD
from imgproxy.specs.oci import layer_names, layer_selection
from imgproxy.specs.oci.tar_fields import BLOCK
from imgproxy.store.files import using, write_all
from imgproxy.store.new_file import Output
from imgproxy.unpacking.additions import Additions, is_filled
from imgproxy.unpacking.destination import Destination
from imgproxy.unpacking.layer_stream import PIECE, LayerStream
from imgproxy.unpacking.limits import Limits
from imgproxy.unpacking.tree import Attributes, Scope, Tree, change_open

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.cli.copy_options import CopyOptions
    from imgproxy.cli.layers import ChosenLayers
    from imgproxy.cli.runtime import Beginning
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.layer_names import Template
    from imgproxy.specs.oci.layer_selection import Layer


async def run(
    options: CopyOptions, beginning: Beginning, diagnostics: Diagnostics
) -> dict[str, Any]:
    """See `commands.Command`."""
    if options.directory == "-":
        return await _write_out(options, beginning, diagnostics)
    is_added_to = options.overwrite and is_filled(options.directory)
    with (
        closing((Additions if is_added_to else Destination)(options.directory)) as destination,
        using(options.directory),
        closing(Tree(destination.fd, Scope.BENEATH)) as tree,
    ):
        async with layers.chosen(options, beginning, diagnostics) as chosen:
            mode = 0o777 & ~layers.umask()
            files = await _Copy(chosen, options, tree, mode).run()
            if isinstance(destination, Additions):
                destination.finish([each["name"].encode() for each in files], mode)
            else:
                destination.finish(lambda fd: os.chmod(fd, mode) if destination.is_new else None)
            diagnostics.progress(f"{clean(options.directory)}: {counted(len(files), 'file')}")
            return {"directory": options.directory, **chosen.described(), "files": files}


async def _write_out(
    options: CopyOptions, beginning: Beginning, diagnostics: Diagnostics
) -> dict[str, Any]:
    """Write one layer to standard output."""
    async with layers.chosen(options, beginning, diagnostics) as chosen:
        if len(chosen.layers) != 1:
            raise AmbiguousError(
                f"{len(chosen.layers)} layers are chosen, and standard output is for one: choose it"
                f" by --layer (there are: {layer_selection.listed(chosen.layers)})",
                layers=layer_selection.detail(chosen.layers, clean),
            )
        (layer,) = chosen.layers
        _check_limits(options, chosen.layers)
        output = Output(STDOUT, "standard output")
        with closing(await chosen.open(layer)) as content:
            while piece := await content.read():
                await trio.to_thread.run_sync(output.write, piece)
            content.finish()
        return chosen.described()


def _check_limits(options: CopyOptions, chosen: Sequence[Layer]) -> None:
    """Raise `InvalidError` for more than the limits, before anything is asked for."""
    limits = Limits(options.max_size, options.max_files)
    for layer in chosen:
        limits.add_file(layers.shown(layer))
        limits.add_bytes(layer.descriptor.size, layers.shown(layer))


class _Copy:
    """The copy of the chosen layers into a tree; `mode` is that of directories."""

    def __init__(self, chosen: ChosenLayers, options: CopyOptions, tree: Tree, mode: int) -> None:
        self._chosen = chosen
        self._options = options
        self._tree = tree
        self._mode = mode

    async def run(self) -> list[dict[str, Any]]:
        """Write all files; return what they are, as JSON has it. Raises `Failure`."""
        chosen = self._chosen.layers
        _check_limits(self._options, chosen)
        self._names([each for each in chosen if not self._template(each).needs_content])
        # The largest takes longest, and should not come last.
        by_size = sorted(chosen, key=lambda each: each.descriptor.size, reverse=True)
        await run_all([(each.descriptor.size, partial(self._receive, each)) for each in by_size])
        names = self._names(chosen)
        for layer, name in zip(chosen, names, strict=True):
            path = name.encode()
            for parent in self._tree.make_parents(path):
                self._tree.change(parent, Attributes(mode=self._mode))
            # Of names that this file system takes for the same one, none is lost.
            self._tree.move(_number(layer), self._tree, path, replace=False)
        return [
            {"name": name, **described}
            for name, described in zip(names, layer_selection.detail(chosen, clean), strict=True)
        ]

    def _template(self, layer: Layer) -> Template:
        return layer_names.file_template(self._options.name, layer)

    def _names(self, of: Sequence[Layer]) -> list[str]:
        """Return the names of layers. Raises `Failure`, where two have the same one as well."""
        names, taken = [], layer_names.Names()
        for layer in of:
            template = self._template(layer)
            extension = self._extension(layer) if template.needs_content else ""
            names.append(layer_names.name(template, layer, extension))
            taken.add(names[-1], layer)
        return names

    async def _receive(self, layer: Layer) -> None:
        while True:
            with closing(await self._chosen.open(layer)) as content:
                fd = self._tree.create_file(_number(layer))
                try:
                    while piece := await content.read():
                        await trio.to_thread.run_sync(write_all, fd, piece)
                    change_open(fd, Attributes(mode=0o666 & self._mode))
                except InvalidError:
                    if not content.may_be_right_elsewhere():
                        raise
                    self._tree.remove(_number(layer))
                else:
                    content.finish()
                    return
                finally:
                    os.close(fd)

    def _extension(self, layer: Layer) -> str:
        """Return the extension that the content of a layer has, which has been written."""
        fd = self._tree.open_file(_number(layer))
        try:
            head = os.pread(fd, HEAD, 0)
            try:
                stream = LayerStream("", lambda: os.read(fd, PIECE), Limits(_PROBE, 1))
                begin = stream.peek(BLOCK)
            except Failure:  # a compression that is broken or not read is as good as any content
                begin = b""
        finally:
            os.close(fd)
        return layer_names.extension(layer.descriptor.media_type, head, begin)


# As much of a layer as is decompressed to see whether it is an archive; a block of bzip2 has less.
_PROBE = 1 << 20


def _number(layer: Layer) -> bytes:
    """Return what the file of a layer is called until it has its name."""
    return f"{layer_names.RESERVED}{layer.index}".encode()

"""`imgproxy extract`: the files in the archives that layers are."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import layers
from imgproxy.cli.progress import counted
from imgproxy.errors import InvalidError, NotFoundError, UsageError, clean
from imgproxy.specs.oci import layer_names, layer_selection
from imgproxy.store.files import using
from imgproxy.unpacking.destination import Destination
from imgproxy.unpacking.extraction import Extraction, Rules
from imgproxy.unpacking.layer_stream import LayerStream
from imgproxy.unpacking.limits import Limits
from imgproxy.unpacking.tree import Attributes, Scope, Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.cli.extract_options import ExtractOptions
    from imgproxy.cli.layers import ChosenLayers
    from imgproxy.cli.runtime import Beginning
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.layer_names import Template
    from imgproxy.specs.oci.layer_selection import Layer


async def run(
    options: ExtractOptions, beginning: Beginning, diagnostics: Diagnostics
) -> dict[str, Any]:
    """See `commands.Command`."""
    with closing(Destination(options.directory)) as destination, using(options.directory):
        async with layers.chosen(options, beginning, diagnostics) as chosen:
            mode = 0o777 & ~layers.umask()
            while True:
                attempt = _Attempt(options, chosen, destination.fd, mode)
                if await attempt.run():
                    break
                destination.empty()
            destination.finish(lambda fd: os.chmod(fd, mode) if destination.is_new else None)
            count = attempt.limits.files
            diagnostics.progress(f"{clean(options.directory)}: {counted(count, 'file')}")
            return {
                "directory": options.directory,
                **chosen.described(),
                "files": count,
                "size": attempt.limits.size,
                "layers": attempt.done,
            }


class _Attempt:
    """An attempt to extract all layers; `done` are those that are, as JSON has it."""

    def __init__(self, options: ExtractOptions, chosen: ChosenLayers, root: int, mode: int) -> None:
        self._options = options
        self._chosen = chosen
        self._root = root
        self._rules = Rules(
            strip=options.strip,
            include=tuple(map(os.fsencode, options.include)),
            later_wins=options.merge == "later",
            directory_mode=mode,
        )
        self._names = _names(options.layer_per_dir, chosen.layers)
        self.limits = Limits(options.max_size, options.max_files)
        self.done: list[dict[str, Any]] = []

    async def run(self) -> bool:
        """Extract; return false where content was wrong and other bytes may be right."""
        with closing(Tree(self._root, Scope.BENEATH)) as top:
            whole = await (self._merge(top) if self._names is None else self._separate(top))
        if whole and self._options.include and not any(each["files"] for each in self.done):
            patterns = ", ".join(map(clean, self._options.include))
            raise NotFoundError(f"no layer has a file that fits --include {patterns}")
        return whole

    async def _merge(self, top: Tree) -> bool:
        """Extract all layers into one directory. Returns and raises what `run` does."""
        extraction = Extraction(top, self.limits, self._rules)
        for layer in self._chosen.layers:
            if not await self._extract(layer, extraction):
                return False
        await trio.to_thread.run_sync(extraction.finish)
        return True

    async def _separate(self, top: Tree) -> bool:
        """Extract each layer into a directory of its own. Returns and raises what `run` does."""
        assert self._names is not None  # noqa: S101  (the caller has looked)
        for layer, name in zip(self._chosen.layers, self._names, strict=True):
            path = name.encode()
            made = [*top.make_parents(path), path]
            top.make_directory(path)
            with closing(Tree(top.directory(path), Scope.BENEATH)) as tree:
                extraction = Extraction(tree, self.limits, self._rules)
                if not await self._extract(layer, extraction, directory=name):
                    return False
                await trio.to_thread.run_sync(extraction.finish)
            for each in made:
                top.change(each, Attributes(mode=self._rules.directory_mode))
        return True

    async def _extract(self, layer: Layer, extraction: Extraction, **more: str) -> bool:
        """Extract a layer, and note that as done, with `more`. Returns what `run` does."""
        shown = layers.shown(layer)
        with closing(await self._chosen.open_in_turn(layer)) as content:

            def extract() -> int:
                stream = LayerStream(shown, lambda: trio.from_thread.run(content.read), self.limits)
                return extraction.add(stream, shown)

            try:
                files = await trio.to_thread.run_sync(extract)
            except InvalidError:
                if content.may_be_right_elsewhere():
                    return False
                raise
            content.finish()
        (described,) = layer_selection.detail([layer], clean)
        self.done.append({**more, **described, "files": files})
        return True


def _names(template: Template | None, chosen: Sequence[Layer]) -> list[str] | None:
    """Return the names of the directories for each layer, None for one for all."""
    if template is None:
        return None
    if template.needs_content:
        raise UsageError("--layer-per-dir: {ext} is for the names of files")
    names, taken = [], layer_names.Names()
    for layer in chosen:
        names.append(layer_names.name(template, layer))
        taken.add(names[-1], layer)
    return names

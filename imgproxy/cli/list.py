"""`imgproxy list`: what a name leads to; all that a layout or an archive holds.

The document of `--format json` is made first, and the text for people is made of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from imgproxy.cli import options as common
from imgproxy.cli import runtime
from imgproxy.cli.options import Options
from imgproxy.errors import HOST_FAILURES, Failure, clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imgproxy.cli.parser import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.listing import Item
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Source

DESCRIPTION = (
    "List what an image name leads to; without REF, all that a layout or an archive holds."
)

_HEAD = ("NAME", "KIND", "PLATFORM", "SIZE", "CREATED", "DIGEST")
_RIGHT = 3  # the column that is aligned by its end

# Of RFC 3339; what follows the minutes is of no use in a table.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)")

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_KILO = 1000


class ListOptions(Options):
    """The options of `list`."""

    layers: bool


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    parser.add_argument("image", metavar="IMAGE", help="the image, layout, archive or directory")
    parser.add_argument("--layers", action="store_true", help="the layers of each manifest as well")
    common.add_places(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_registries(parser)
    common.add_networks(parser)
    common.add_cache(parser)
    # No policy is asked, and no layer read.
    parser.set_defaults(policy=None, insecure_policy=False, registries_d=None, foreign_layers=False)


async def run(options: ListOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    from imgproxy.images.listing import unique_sizes
    from imgproxy.transports import open_sources

    configuration = runtime.new_configuration(options, runtime.OptionFiles(options), diagnostics)
    network = runtime.new_network(options, configuration, diagnostics, None)
    cache = runtime.new_cache(options, network)
    try:
        sources = await open_sources(options.image, network, options.sideload, cache)
        items, age = await _first(sources, all_documents=options.layers)
    finally:
        if cache is not None:
            cache.close()
        network.close()
    unique = unique_sizes(items)
    blobs = {digest: size for each in items for digest, size in (each.blobs or {}).items()}
    return {
        "items": [
            {**_described(each, layers=options.layers), "unique": own}
            for each, own in zip(items, unique, strict=True)
        ],
        "size": sum(blobs.values()),
        "shared": sum(blobs.values()) - sum(own or 0 for own in unique),
        **({} if age is None else {"stale": True, "age": age}),
    }


async def _first(sources: list[Source], *, all_documents: bool) -> tuple[list[Item], int | None]:
    """Return what the first source has that has anything, and its age: see `source.age`.

    A short name may stand for several sources.
    """
    from imgproxy.images.listing import items_of
    from imgproxy.transports.source import age

    failures: list[Failure] = []
    try:
        for source in sources:
            try:
                return await items_of(source, all_documents=all_documents), age(source)
            except HOST_FAILURES:
                raise
            except Failure as failure:
                failures.append(failure)
        message = "; ".join(each.message for each in failures)
        raise failures[0] if len(failures) == 1 else failures[-1].merged(failures, message)
    finally:
        for source in sources:
            source.close()


def _described(item: Item, *, layers: bool, path: Sequence[str] = ()) -> dict[str, Any]:
    """Return an item as the document has it: imgproxy(1), COMMANDS, "list".

    `path` has the digests of the indexes around it.
    """
    descriptor = item.descriptor
    annotations = () if descriptor is None else descriptor.annotations
    described: dict[str, Any] = {
        "name": clean(item.names[0]) if item.names else None,
        "names": [clean(name) for name in item.names],
        "position": item.position,
        "kind": item.kind,
        "artifactType": clean(item.artifact_type) or None,
        "platform": clean(str(item.platform)) if item.platform else None,
        "size": item.size,
        "created": clean(item.created) or None,
        "digest": None if descriptor is None else str(descriptor.digest),
        "mediaType": None if descriptor is None else descriptor.media_type,
        "annotations": {clean(key): clean(value) for key, value in annotations},
        "path": [*path],
        "problem": clean(item.problem) or None,
    }
    if layers:
        described["layers"] = [_layer(each) for each in item.layers]
    if item.kind == "index":
        within = [*path, str(described["digest"])]
        described["items"] = [_described(each, layers=layers, path=within) for each in item.items]
    return described


def _layer(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
        "title": None if descriptor.title is None else clean(descriptor.title),
    }


def text(done: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that people read, made of the document that programs do."""
    rows = [_HEAD, *(row for item in done["items"] for row in _rows(item, 0))]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_HEAD))]
    for row in rows:
        cells = [
            cell.rjust(width) if n == _RIGHT else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join([*cells, *row[len(_HEAD) :]]).rstrip()
    shared = f", {_size(done['shared'])} of it shared" if done["shared"] else ""
    yield f"{len(done['items'])} in all, {_size(done['size'])}{shared}"


def _rows(item: dict[str, Any], depth: int) -> Iterator[tuple[str, ...]]:
    indent = "  " * depth
    place = "-" if item["position"] is None else f"@{item['position']}"
    name = ", ".join(item["names"]) or place
    when = _TIME.match(item["created"] or "")
    yield (
        indent + name,
        (item["artifactType"] if item["kind"] == "artifact" else None) or item["kind"],
        item["platform"] or "-",
        _size(item["size"], "?" if item["problem"] else "-"),
        f"{when[1]} {when[2]}" if when else "-",
        item["digest"] or "?",
        *([item["problem"]] if item["problem"] else []),
    )
    for number, layer in enumerate(item.get("layers", ())):
        title = layer["title"] or f"layer {number}"
        yield (
            f"{indent}  {title}",
            layer["mediaType"],
            "",
            _size(layer["size"]),
            "",
            layer["digest"],
        )
    for each in item.get("items", ()):
        yield from _rows(each, depth + 1)


def _size(size: int | None, unknown: str = "-") -> str:
    """Return a number of bytes in three digits or so."""
    if size is None:
        return unknown
    left = float(size)
    for unit in _UNITS:
        if left < _KILO - 0.5 or unit == _UNITS[-1]:
            break
        left /= _KILO
    return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"

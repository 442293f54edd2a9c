"""`imgproxy rm`: names less in stores. Blobs stay until `gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgproxy.cli import stored_names
from imgproxy.cli.options import Options
from imgproxy.errors import clean
from imgproxy.specs.oci import layout_index
from imgproxy.store.content_store import ContentStore

if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.cli.stored_names import StoredName
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.layout_index import LayoutIndex

DESCRIPTION = "Remove names from stores; what no name reaches any more stays until gc."


class RmOptions(Options):
    """The options of `rm`."""

    stored: list[StoredName]


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    parser.add_argument(
        "stored",
        metavar="oci:DIR:REF",
        type=stored_names.stored,
        nargs="+",
        help="a name, or oci:DIR:@DIGEST for all names of an image; of those in one DIR, either"
        " all are removed or none",
    )


async def run(options: RmOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    by_store: dict[str, list[StoredName]] = {}
    for each in options.stored:
        by_store.setdefault(each.path, []).append(each)
    done = []
    for path, names in by_store.items():
        for removed in await _remove(path, names):
            diagnostics.progress(f"removed {clean(str(removed['name']))}: {removed['digest']}")
            done.append({"store": clean(path), **removed})
    return {"removed": done}


async def _remove(path: str, names: list[StoredName]) -> list[dict[str, Any]]:
    """Remove names from a store; return name and digest of each entry that was removed."""
    store = ContentStore(path)
    store.open()
    removed: list[dict[str, Any]] = []

    def change(index: LayoutIndex) -> LayoutIndex:
        removed.clear()  # of an attempt that a foreign writer has made useless
        after = index
        for each in names:
            each.entries(index)  # which raises where it is not there
            after = each.removed_from(after)
        removed.extend(
            {"name": layout_index.name_of(entry), "digest": entry.get("digest")}
            for entry in index.entries
            if not any(entry is kept for kept in after.entries)
        )
        return after

    await store.change_index(change)
    return removed

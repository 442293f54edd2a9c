"""`imgproxy tag`: another name for an image in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgproxy.cli import stored_names
from imgproxy.cli.options import Options
from imgproxy.errors import AmbiguousError, UsageError, clean
from imgproxy.specs.oci import mentions
from imgproxy.specs.oci import reference as references
from imgproxy.store.content_store import ContentStore

if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.cli.stored_names import StoredName
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.specs.oci.layout_index import Entry, LayoutIndex

DESCRIPTION = "Give an image in a store another name, which another image may have had."


class TagOptions(Options):
    """The options of `tag`."""

    stored: StoredName
    new: str


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add(
        "stored",
        metavar="oci:DIR:REF",
        type=stored_names.stored,
        help="the image, by a name or as oci:DIR:@DIGEST",
    )
    add("new", metavar="NEW", help="the other name")


async def run(options: TagOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    wanted, new = options.stored, options.new
    if not _is_name(new, wanted.path):
        raise UsageError(
            f'"{references.shown(new)}" cannot be a name in a store, such as 1 or quay.io/acme/os:1'
        )
    store = ContentStore(wanted.path)
    store.open()
    tagged: Entry = {}

    def change(index: LayoutIndex) -> LayoutIndex:
        nonlocal tagged
        tagged = _only(wanted, wanted.entries(index))
        mentions.of_entry(tagged, clean(str(wanted)))  # which raises for what is no descriptor
        return index.with_name(new, tagged)

    await store.change_index(change)
    diagnostics.progress(f"{clean(new)}: {tagged['digest']}")
    return {"name": new, "digest": tagged["digest"], "mediaType": tagged.get("mediaType")}


def _is_name(text: str, path: str) -> bool:
    try:
        return stored_names.layout(f"oci:{path}:{text}").ref_name == text
    except UsageError:
        return False


def _only(wanted: StoredName, entries: list[Entry]) -> Entry:
    """Return the entry of an image. Raises `AmbiguousError` where a name stands for several."""
    found = list(dict.fromkeys(str(entry.get("digest")) for entry in entries))
    if len(found) > 1:
        raise AmbiguousError(
            f"{clean(str(wanted))} is the name of {len(found)} images; choose one by its digest:"
            f" {', '.join(f':@{clean(each)}' for each in found)}",
            choices=[{"digest": each} for each in found],
        )
    return entries[0]

"""`imgproxy gc`: what no name in a store reaches is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgproxy.cli import stored_names, values
from imgproxy.cli.options import Options
from imgproxy.errors import clean
from imgproxy.store.collection import Collection
from imgproxy.store.content_store import ContentStore
from imgproxy.store.reachability import Documents
from imgproxy.verification.documents import compare

if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.store.inventory import StoredFile

DESCRIPTION = "Remove the blobs of a store that no name reaches, also while images are pulled."


class GcOptions(Options):
    """The options of `gc`. `grace` is in seconds."""

    store: str
    dry_run: bool
    grace: float


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add("store", metavar="oci:DIR", type=stored_names.directory, help="the store")
    add("--dry-run", action="store_true", help="remove nothing; say what would be")
    add(
        "--grace",
        metavar="DURATION",
        type=values.duration,
        default=3600.0,
        help="keep what was written so lately, as programs that take no lock may be about to name"
        " it: seconds, or a number with s, m, h or d (default: 1h)",
    )


async def run(options: GcOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    store = ContentStore(options.store)
    if options.dry_run:
        store.check()
    else:
        store.open()
    collection = Collection(store, Documents(store, compare), options.grace)
    found, blobs, count, size = collection.find(), list[str](), 0, 0
    said = "would be removed" if options.dry_run else "removed"
    for each in found if options.dry_run else collection.remove(found):
        diagnostics.progress(f"{said}: {_name(each)}, {each.size} bytes")
        blobs += [] if each.digest is None else [str(each.digest)]
        count += 1
        size += each.size
    unknown = [*map(clean, collection.unknown)]
    for path in unknown:
        diagnostics.progress(f"left alone, as gc does not know what it is: {path}")
    diagnostics.progress(
        f"{count} files {said}, {size} bytes; {collection.kept} blobs are needed,"
        f" {collection.young} files are younger than the grace period"
    )
    return {
        "dryRun": options.dry_run,
        "blobs": blobs,
        "files": count,
        "bytes": size,
        "needed": collection.kept,
        "young": collection.young,
        "unknown": unknown,
    }


def _name(file: StoredFile) -> str:
    return clean(file.path) if file.digest is None else str(file.digest)

"""`imgproxy export`: images of layouts in an archive, written from front to back.

The archive gets its name when it is whole. On standard output it ends early where content is wrong:
before the last piece of that content, and so without what ends a tar.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.cli import options as common
from imgproxy.cli import stored_names
from imgproxy.cli.options import Options
from imgproxy.cli.progress import counted
from imgproxy.errors import UsageError, clean
from imgproxy.specs.oci import mentions, tar_writer
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.reference import DockerArchiveName, LayoutName
from imgproxy.store.content_store import ContentStore
from imgproxy.store.new_file import NewFile, Output
from imgproxy.store.reachability import Documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imgproxy.cli.parser import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.export import Chosen, DockerArchive, Member, OciArchive
    from imgproxy.specs.oci.digest import Digest

DESCRIPTION = "Write images of OCI layouts into an archive, the same bytes for the same images."

_STDOUT = 1


class ExportOptions(Options):
    """The options of `export`."""

    layouts: list[LayoutName]
    archive: _Archive


class _Archive(NamedTuple):
    """Where to write, None for standard output, and what."""

    path: str | None
    is_docker_s: bool


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add(
        "layouts",
        metavar="oci:DIR[:REF]",
        nargs="+",
        type=stored_names.images,
        help="images, or without REF all that the layout names",
    )
    add(
        "archive",
        metavar="oci-archive:FILE|docker-archive:FILE",
        type=_archive,
        help="the archive; - is standard output",
    )
    common.add_platform(parser, "what to choose from an index, for a docker-archive:")


def _archive(text: str) -> _Archive:
    name = stored_names.image(text)
    is_docker_s = isinstance(name, DockerArchiveName)
    if (
        (isinstance(name, LayoutName) and name.transport == "oci-archive" and not name.ref_name)
        or (isinstance(name, DockerArchiveName) and not name.reference)
    ) and name.position is None:
        return _Archive(None if text.endswith(":-") else name.path, is_docker_s)
    raise UsageError(
        f"expected oci-archive:FILE or docker-archive:FILE, got {references.shown(text)}"
    )


async def run(options: ExportOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    from imgproxy.images import export

    target = options.archive
    if options.platform is not None and not target.is_docker_s:
        raise UsageError("--platform chooses for a docker-archive:; an oci-archive: has all")
    if target.path is None and (options.format == "json" or os.isatty(_STDOUT)):
        raise UsageError("standard output is for the archive: redirect it, without --format json")
    with ExitStack() as used:
        found = [each for name in options.layouts for each in await _chosen(name, used)]
        chosen = export.in_order(found)
        archive = (
            export.DockerArchive(chosen, options.platform)
            if target.is_docker_s
            else export.OciArchive(chosen)
        )
        file = Output(_STDOUT, "standard output") if target.path is None else NewFile(target.path)
        with closing(file):
            size = await _write(archive, file)
    for digest in archive.missing:
        diagnostics.progress(f"{digest} is named by an index, and not in the layout")
    where = clean(target.path or "standard output")
    diagnostics.progress(f"{where}: {counted(len(chosen), 'image')}, {size} bytes")
    return {
        "names": [each.name for each in chosen if each.name],
        "size": size,
        "missing": [str(each) for each in archive.missing],
    }


async def _chosen(name: LayoutName, used: ExitStack) -> list[Chosen]:
    """Return the images that a name fits, none of whose blobs is collected while `used` is."""
    from imgproxy.images import export
    from imgproxy.transports.local.detect import open_named
    from imgproxy.transports.source import is_listable

    source = await open_named(name)
    used.callback(source.close)
    assert is_listable(source)  # noqa: S101  (a layout is)
    store = ContentStore(name.path)
    chosen = await export.choose(source, store.blob_path)
    if store.is_ours:
        used.enter_context(store.using())
        store.use(_reached(store, chosen))
    return chosen


def _reached(store: ContentStore, chosen: Iterable[Chosen]) -> Iterator[Digest]:
    """Yield what images consist of, as far as it can be told: the export says what is wrong."""
    from imgproxy.verification.documents import compare

    documents = Documents(store, compare)
    for each in chosen:
        mention = mentions.of_entry(each.raw, each.source.name)
        for reached in documents.reachable(mention, failed=lambda *_: None):
            yield reached.digest


async def _write(archive: OciArchive | DockerArchive, file: NewFile | Output) -> int:
    """Write the archive, and return its size in bytes. Raises `Failure`."""
    size = len(tar_writer.END)
    async for member in archive.members():
        size += await _write_member(member, file)
    file.write(tar_writer.END)
    file.finish()
    return size


async def _write_member(member: Member, file: NewFile | Output) -> int:
    header, padding = tar_writer.header(member.name, member.size), tar_writer.padding(member.size)
    content = member.content
    try:
        file.write(header)
        if isinstance(content, bytes):
            file.write(content)
        else:
            while piece := await content.read():
                file.write(piece)
        file.write(padding)
    finally:
        if not isinstance(content, bytes):
            content.close()
    return len(header) + member.size + len(padding)

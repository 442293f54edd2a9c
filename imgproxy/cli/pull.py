"""`imgproxy pull`: a verified copy of an image in a store.

The store is the cache of the source, so that what is there is not asked for, what a killed process
has begun goes on, and reading a blob to its end keeps it. The name comes last: it is that of a
whole image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.cli import options as common
from imgproxy.cli import runtime, stored_names
from imgproxy.cli.options import Options
from imgproxy.errors import InvalidError, UsageError
from imgproxy.host import environment
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.specs.oci.reference import DockerArchiveName, LayoutName
from imgproxy.store.content_store import ContentStore
from imgproxy.store.keeper import Keeper
from imgproxy.transports.cached import CachedSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from imgproxy.cli.options import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image, OpenedImage
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import ImageName, Reference
    from imgproxy.verification.documents import VerifiedDocument

DESCRIPTION = "Copy an image, verified, into an OCI layout that many processes may share."

# Blobs that are received at the same time. More share the same line, and cost memory.
AT_ONCE = 4


class PullOptions(Options):
    """The options of `pull`."""

    store: LayoutName
    all_platforms: bool


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="the image to copy")
    add(
        "store",
        metavar="oci:DIR[:REF]",
        type=stored_names.layout,
        help="the store, and the name there",
    )
    add("--all-platforms", action="store_true", help="the whole index, with all that it names")
    common.add_choice(parser)
    common.add_credentials(parser, parser.add_mutually_exclusive_group())
    common.add_configuration(parser)
    common.add_networks(parser)
    common.add_cache(parser)


async def run(options: PullOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`."""
    name = references.parse_image(options.image)
    store = ContentStore(options.store.path)
    configuration = runtime.new_configuration(options, runtime.OptionFiles(options), diagnostics)
    network = runtime.new_network(options, configuration, diagnostics, None)
    store.create()
    keeper = Keeper()
    wrap = partial(CachedSource, store=store, keep=keeper.keep)
    catalog = runtime.new_catalog(options, configuration, network, wrap, store.path)
    image = catalog.image(options.image, options.platform or environment.host_platform())
    try:
        with store.using():
            with image.limited():
                opened = await image.open()
            ref = options.store.ref_name or _own_name(name, opened.reference)
            pull = _Pull(image, opened, store, keeper, diagnostics.progress)
            root = (opened.index if options.all_platforms else None) or opened.manifest
            await pull.content_of(root)
            entry = _entry(root)
            await store.change_index(lambda index: index.with_name(ref, entry))
    finally:
        keeper.close()
        image.close()
        catalog.close()
        network.close()
    return {
        "name": ref,
        "digest": str(root.digest),
        "mediaType": root.media_type,
        **pull.counts,
        **({} if opened.age is None else {"stale": True, "age": opened.age}),
    }


def _own_name(name: ImageName, reference: Reference | None) -> str:
    """Return the name of an image in a store, where none is given. Raises `UsageError`.

    `reference` is that of an image in a registry.
    """
    if reference is not None:
        return f"{reference.name}:{reference.tag}" if reference.tag else str(reference)
    own = name.ref_name if isinstance(name, LayoutName) else None
    if isinstance(name, DockerArchiveName) and name.reference is not None:
        own = str(name.reference)
    if not own:
        raise UsageError("the image has no name of its own; give one: oci:DIR:REF")
    return own


def _entry(document: VerifiedDocument) -> dict[str, Any]:
    """Return the entry of `index.json` for a manifest or an index, without its name."""
    entry: dict[str, Any] = {
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": len(document.raw),
    }
    parsed = document.parsed
    if isinstance(parsed, Manifest) and parsed.artifact_type:
        entry["artifactType"] = parsed.artifact_type
    return entry


async def _each(most: int, tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run tasks, so many at the same time. Raises what one raises, when the others have stopped."""
    raised: list[Exception] = []
    places = trio.CapacityLimiter(most)

    async def run_one(task: Callable[[], Awaitable[None]]) -> None:
        try:
            async with places:
                await task()
        except Exception as error:  # noqa: BLE001  (it is raised below)
            raised.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(run_one, task)
    if raised:
        raise raised[0]


class _Pull:
    """The copy of what documents name. `counts` are bytes and blobs, received and found there."""

    def __init__(
        self,
        image: Image,
        opened: OpenedImage,
        store: ContentStore,
        keeper: Keeper,
        report: Callable[[str], None],
    ) -> None:
        self._image = image
        self._opened = opened
        self._store = store
        self._keeper = keeper
        self._report = report
        self.counts = {"blobs": 0, "bytes": 0, "present": 0}

    async def content_of(self, root: VerifiedDocument) -> None:
        """Receive all blobs that a document and what it names have. Raises `Failure`."""
        wanted: dict[Digest, Descriptor] = {}
        async for manifest in self._manifests(root):
            for descriptor in (manifest.config, *manifest.layers):
                wanted.setdefault(descriptor.digest, descriptor)
        self._store.use(wanted)
        missing = [each for each in wanted.values() if not self._store.has(each.digest, each.size)]
        self.counts["present"] = len(wanted) - len(missing)
        # The largest takes longest, and should not come last.
        missing.sort(key=lambda each: each.size, reverse=True)
        await _each(AT_ONCE, [partial(self._receive, each) for each in missing])

    async def _manifests(self, document: VerifiedDocument) -> AsyncIterator[Manifest]:
        """Yield the manifests in a document, however deep in indexes, each once."""
        if isinstance(document.parsed, Manifest):
            yield document.parsed
            return
        for entry in document.parsed.manifests:
            with self._image.limited():
                inner = await self._opened.document(entry.digest)
            async for manifest in self._manifests(inner):
                yield manifest

    async def _receive(self, descriptor: Descriptor) -> None:
        while not await self._try_to_receive(descriptor):
            pass
        await self._keeper.commit()
        self.counts["blobs"] += 1
        self.counts["bytes"] += descriptor.size
        self._report(f"{descriptor.digest}: {descriptor.size} bytes")

    async def _try_to_receive(self, descriptor: Descriptor) -> bool:
        """Receive a blob; return false where its bytes were wrong and others may be right."""
        blob = await self._opened.open_blob(descriptor)
        try:
            while await blob.read():
                pass
        except InvalidError:
            if not blob.has_another_try:
                raise
            return False
        finally:
            blob.close()
        return True

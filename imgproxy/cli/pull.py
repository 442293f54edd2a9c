"""`imgproxy pull`: a verified copy of an image in a store.

The store is the cache of the source, so that what is there is not asked for, what a killed process
has begun goes on, and reading a blob to its end keeps it. The name comes last: it is that of a
whole image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from imgproxy.cli import runtime
from imgproxy.cli.at_once import run_all
from imgproxy.cli.progress import new_progress
from imgproxy.errors import InvalidError, UsageError, clean
from imgproxy.images.conversion import as_oci
from imgproxy.images.selection import MAX_DEPTH, MAX_ENTRIES
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.manifest import Manifest
from imgproxy.store.content_store import ContentStore
from imgproxy.store.keeper import Keeper
from imgproxy.transports.kept_blobs import KeptBlobs
from imgproxy.verification.documents import embedded

if TYPE_CHECKING:
    from imgproxy.cli.progress import Progress
    from imgproxy.cli.pull_options import PullOptions
    from imgproxy.cli.runtime import Beginning
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.images.image import Image
    from imgproxy.images.opened_image import OpenedImage
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.verification.documents import VerifiedDocument

# In seconds: how long another process may add nothing to a blob that it receives. It may be hashing
# what there was, trying again, or waiting for the disk.
_PATIENCE = 900.0


async def run(
    options: PullOptions, beginning: Beginning, diagnostics: Diagnostics
) -> dict[str, Any]:
    """See `commands.Command`."""
    store = ContentStore(options.store.path)
    network = runtime.new_network(
        options, beginning.configuration, diagnostics, beginning.preconnection
    )
    store.create()
    progress = new_progress(options, diagnostics)
    keeper = Keeper()
    blobs = KeptBlobs(store, keeper.keep, patience=_PATIENCE)
    catalog = runtime.new_catalog(options, beginning.configuration, network, blobs)
    image = catalog.image(options.image, runtime.wanted(options))
    try:
        with store.using():
            with image.limited():
                opened = await image.open()
            ref = options.store.ref_name or _own_name(opened)
            pull = _Pull(image, opened, store, keeper, progress)
            root = (opened.index if options.all_platforms else None) or opened.manifest
            await pull.content_of(root)
            kept = pull.converted(root) if options.convert else root
            entry = _entry(kept)
            await store.change_index(lambda index: index.with_name(ref, entry))
    finally:
        progress.close()
        keeper.close()
        image.close()
        catalog.close()
        network.close()
    diagnostics.progress(f"{clean(ref)}: {kept.digest}")
    return {
        "name": ref,
        "digest": str(kept.digest),
        "mediaType": kept.media_type,
        **({"original": str(root.digest)} if options.convert else {}),
        **pull.counts,
        "omitted": [str(each) for each in pull.omitted],
        **({} if opened.age is None else {"stale": True, "age": opened.age}),
    }


def _own_name(opened: OpenedImage) -> str:
    """Return the name of an image in a store, where none is given. Raises `UsageError`."""
    reference = opened.reference
    if reference is not None:
        return f"{reference.name}:{reference.tag}" if reference.tag else str(reference)
    names = (opened.index or opened.manifest).names
    if not names:
        raise UsageError("the image has no name of its own; give one: oci:DIR:REF")
    return names[0]


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


class _Pull:
    """The copy of what documents name. `counts` are bytes and blobs, received and found there.

    `omitted` are entries of indexes that are no documents of any known kind.
    """

    def __init__(
        self,
        image: Image,
        opened: OpenedImage,
        store: ContentStore,
        keeper: Keeper,
        progress: Progress,
    ) -> None:
        self._image = image
        self._opened = opened
        self._store = store
        self._keeper = keeper
        self._progress = progress
        self._documents: dict[Digest, VerifiedDocument] = {}
        self.counts = {"blobs": 0, "bytes": 0, "present": 0}
        self.omitted: list[Digest] = []

    async def content_of(self, root: VerifiedDocument) -> None:
        """Receive all blobs that a document and what it names have. Raises `Failure`."""
        await self._collect(root, 1)
        wanted: dict[Digest, Descriptor] = {}
        for document in self._documents.values():
            self._store.put(document.digest, document.raw)
            if isinstance(document.parsed, Manifest):
                for descriptor in (document.parsed.config, *document.parsed.layers):
                    wanted.setdefault(descriptor.digest, descriptor)
        self._store.use(wanted)
        await self._keeper.commit()  # a config that was read to choose, which nothing may wait for
        missing = [each for each in wanted.values() if not self._store.has(each.digest, each.size)]
        self.counts["present"] = len(wanted) - len(missing)
        # The largest takes longest, and should not come last.
        missing.sort(key=lambda each: each.size, reverse=True)
        self._progress.begin(sum(each.size for each in missing))
        await run_all([(each.size, partial(self._receive, each)) for each in missing])

    async def _collect(self, document: VerifiedDocument, depth: int) -> None:
        """Collect a document and those in it, however deep in indexes, each once."""
        self._documents[document.digest] = document
        if isinstance(document.parsed, Manifest):
            return
        if depth > MAX_DEPTH or len(self._documents) > MAX_ENTRIES:
            raise InvalidError(
                f"{document.digest}: more than {MAX_DEPTH} indexes in one another, or"
                f" {MAX_ENTRIES} documents in all"
            )
        for entry in document.parsed.manifests:
            if entry.media_type not in types.MANIFESTS | types.INDEXES | {""}:
                self.omitted.append(entry.digest)
                self._progress.say(
                    f"{entry.digest}: omitted, of the kind {clean(entry.media_type)}"
                )
            elif entry.digest not in self._documents:
                with self._image.limited():
                    inner = await self._opened.document(entry.digest)
                await self._collect(inner, depth + 1)

    def converted(self, root: VerifiedDocument) -> VerifiedDocument:
        """Return what a document is with OCI's media types, and keep that."""
        made = as_oci(root, self._documents)
        for document in made:
            self._store.put(document.digest, document.raw)
        return made[-1] if made else root

    async def _receive(self, descriptor: Descriptor) -> None:
        content = embedded(descriptor)
        if content is not None:
            self._store.put(descriptor.digest, content)
        else:
            while not await self._try_to_receive(descriptor):
                pass
            await self._keeper.commit()
        self.counts["blobs"] += 1
        self.counts["bytes"] += descriptor.size
        self._progress.finish(descriptor)

    async def _try_to_receive(self, descriptor: Descriptor) -> bool:
        """Receive a blob; return false where its bytes were wrong and others may be right."""
        received = 0
        blob = await self._opened.open_blob(descriptor)
        try:
            while piece := await blob.read():
                received += len(piece)
                self._progress.advance(descriptor, len(piece))
        except InvalidError:
            self._progress.advance(descriptor, -received)
            if not blob.has_another_try:
                raise
            return False
        finally:
            blob.close()
        return True

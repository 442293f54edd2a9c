"""What the names of a layout reach: through indexes and manifests to configs, layers and the rest.

Every entry of `index.json` is a root, named or not: also one with a `subject`, as signatures are
listed. What refers to an image is thus kept by its own entry, and keeps not the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import Failure, InvalidError, clean
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import layout_index, mentions
from imgproxy.specs.oci.manifest import MAX_DOCUMENT_SIZE
from imgproxy.store.files import NotRegularError, read, using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.mentions import Mention
    from imgproxy.store.content_store import ContentStore


class Root(NamedTuple):
    """An entry of `index.json`. `name` is that of the image, or the entry's place in messages."""

    name: str
    mention: Mention


class Documents:
    """The documents of a store, each read once: what a digest names does not change.

    `compare` raises `InvalidError` where content does not have a digest; it is given a name for
    messages, the digest and the content.
    """

    def __init__(self, store: ContentStore, compare: Callable[[str, Digest, bytes], None]) -> None:
        self._store = store
        self._compare = compare
        self._read: dict[Digest, list[Mention]] = {}

    def mentioned_by(self, mention: Mention) -> list[Mention]:
        """Return what the content of a mention mentions in turn; nothing if it is not there.

        Raises `Failure` for a document that cannot be read.
        """
        if not mention.is_document:
            return []
        found = self._read.get(mention.digest)
        if found is None:
            try:
                found = self._read[mention.digest] = self._parse(mention)
            except FileNotFoundError:
                return []
        return found

    def _parse(self, mention: Mention) -> list[Mention]:
        path = self._store.blob_path(mention.digest)
        name = f"{clean(self._store.path)}: {mention.digest}"
        try:
            with using(path, passing=(FileNotFoundError, NotRegularError)):
                raw, status = read(path, MAX_DOCUMENT_SIZE)
        except NotRegularError as error:
            raise InvalidError(f"{name}: {error.strerror}") from None
        if len(raw) <= MAX_DOCUMENT_SIZE:
            if digests.is_available(mention.digest):
                self._compare(name, mention.digest, raw)
            try:
                return mentions.parse(raw, name)
            except InvalidError:
                if not mention.may_be_opaque:
                    raise
        elif not mention.may_be_opaque:
            raise InvalidError(
                f"{name}: {status.st_size} bytes are more than a document has", code="SIZE_INVALID"
            )
        return []

    def reachable(
        self, mention: Mention, failed: Callable[[Mention, Failure], None] | None = None
    ) -> Iterator[Mention]:
        """Yield a mention and all that it reaches, each once.

        `failed` is told of a document that cannot be read. Without it, raises its `Failure`.
        """
        seen: set[Mention] = set()
        left = [mention]
        while left:
            each = left.pop()
            if each in seen:
                continue
            seen.add(each)
            yield each
            try:
                left += self.mentioned_by(each)
            except Failure as failure:
                if failed is None:
                    raise
                failed(each, failure)


def roots(store: ContentStore) -> Iterator[Root | Failure]:
    """Yield what the entries of `index.json` stand for; for an unreadable one the failure."""
    for place, entry in enumerate(store.index().entries):
        where = f"{clean(store.path)}/index.json: entry {place}"
        try:
            mention = mentions.of_entry(entry, where)
        except InvalidError as failure:
            yield failure
        else:
            yield Root(layout_index.name_of(entry) or f"@{place}", mention)

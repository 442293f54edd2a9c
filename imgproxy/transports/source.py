"""The contract that every transport fulfils: raw access to one image, nothing verified.

A transport is a class that fulfils `Source`, and a function that opens it, which
`transports.open_sources` calls for the names that it is responsible for. The others are
optional capabilities: a source that fulfils `SearchableSource` can be sideloaded.
`tests/transports/test_source.py` holds every source to the duties below; a new one is added to its
table.

What all methods have in common:

- Nothing is verified here. A source reports in `Document.digests` which digests named what it
  found, and hands out the bytes as they are; `verification` alone compares them.
- Failures are those of `errors`: whatever the system or a server reports is translated, and each
  message begins with `name` or the path or URL in question. `NotFoundError` carries the
  distribution specification's code: `MANIFEST_UNKNOWN` for a document, `BLOB_UNKNOWN` for a blob.
- A failed or cancelled call leaves nothing open. What a call returns belongs to the caller: a
  `Reader` is closed by the caller, and before its source is.
- Methods may be called by several tasks at the same time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgproxy.config.policy import scopes_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Any, TypeGuard

    from imgproxy.errors import Failure
    from imgproxy.host.files import FileState
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.specs.oci.reference import Reference
    from imgproxy.specs.signing.signature import Signature


class Document(NamedTuple):
    """A manifest or an index as it was found.

    `raw` is at most `manifest.MAX_DOCUMENT_SIZE` bytes. `media_type` is the type it was stored or
    sent under, empty where there was none. `digests` are all digests that named it: by reference,
    by descriptor, by a header. `size` is in bytes where a descriptor promised one. `name` stands
    for it in messages. `reject` is `Reader.reject` for documents; by default there is no other
    location to try. `accept` is called with its digest once it has been verified. `is_insecure`:
    it came over a network, and not over verified TLS. `by_login`: credentials were sent for it.
    `names` are what the place that it was found in calls it, the wanted one first.
    """

    raw: bytes
    media_type: str
    digests: tuple[Digest, ...]
    size: int | None
    name: str
    reject: Callable[[Failure], bool] = lambda _: False
    accept: Callable[[Digest], None] = lambda _: None
    is_insecure: bool = False
    by_login: bool = False
    names: tuple[str, ...] = ()


class Identity(NamedTuple):
    """What policy.json calls the image: its transport, and its scopes, most specific first.

    `reference` is the name that signatures know it by, None where its transport has no such names.
    """

    transport: str
    scopes: list[str]
    reference: Reference | None = None


class SignaturePlace(NamedTuple):
    """A location that may hold signatures: its name in messages, and a function that reads them.

    `read` returns every signature there, or none; it raises `Failure`.
    """

    name: str
    read: Callable[[], Awaitable[list[Signature]]]


def docker_identity(reference: Reference) -> Identity:
    """Return the identity of an image of a registry, wherever its content is read from."""
    return Identity("docker", scopes_of(reference), reference)


class Origin(NamedTuple):
    """Where bytes lie on this host: in which file, and the position there where they begin.

    In a compressed file, the position is that in what it decompresses to.
    """

    file: FileState
    position: int


class Reader(Protocol):
    """The content of a blob, or of a part of it, read once from its beginning to its end.

    `size` is the number of bytes that it has, None where it is not known yet. `name` stands for the
    content in messages: what it is, and from where.
    """

    size: int | None

    @property
    def origin(self) -> Origin | None:
        """Where the blob begins on this host: there, the same bytes come again.

        None for what comes from elsewhere, and where the source itself replaces what is wrong.
        """

    @property
    def name(self) -> str:
        """What it is, and from where."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Write the next bytes to the start of `buffer`; return how many, 0 at the end.

        Raises `Failure`. A call that was cancelled may be repeated, and continues where it was.
        """

    def reject(self, failure: Failure) -> bool:
        """Record that the content did not verify; return whether to ask the source again.

        True means that there are other locations: the caller opens the same blob again, and the
        source leaves out the locations that were rejected for it; where none is left, that raises
        the failure of each. False means that the same bytes would come again.
        """

    def accept(self) -> None:
        """Record that all of the content has been received, and did verify."""

    def close(self) -> None:
        """Release what is held, before the end too. May be called again."""


class Source(Protocol):
    """One image in one location; all methods but `close` raise `errors.Failure`.

    `name` is the name of the image for messages, in printable characters. `identity` decides which
    requirements of the policy apply.
    """

    name: str
    identity: Identity

    async def root(self) -> Document:
        """Return what the image's name refers to: a manifest, or an index to choose from.

        Raises `NotFoundError` where there is no such image, and `AmbiguousError`, with the choices
        in its detail, where the name fits several.
        """

    async def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest or an index that another one names.

        Its digests begin with that of the descriptor. Raises `NotFoundError`.
        """

    async def blob(
        self, descriptor: Descriptor, offset: int = 0, stop: int | None = None
    ) -> Reader:
        """Open a blob that a manifest names, from a byte on. Raises `NotFoundError`.

        Where `stop` is given, the reader ends before that byte, and not with the blob. Nothing is
        read of the bytes before and after, as far as the format permits.
        """

    def signatures(self, digest: Digest) -> list[SignaturePlace]:
        """Return where signatures of a manifest or an index may be, in the order to read them.

        It reads nothing itself. A transport that cannot hold signatures returns an empty list.
        """

    def close(self) -> None:
        """Close connections and descriptors. May be called again."""


class Entry(NamedTuple):
    """One of the things that a layout or an archive holds, where `position` says.

    `descriptor` is None for an entry that cannot be read, and `problem` says why. `raw` is what an
    index has there, None elsewhere.
    """

    position: int
    names: tuple[str, ...]
    descriptor: Descriptor | None
    problem: str = ""
    raw: Any = None


class ListableSource(Source, Protocol):
    """A source in a place that may hold several images."""

    async def entries(self) -> list[Entry]:
        """Return all that the name fits, which is all there is where it has no REF.

        Nothing is chosen, and what is broken is an entry as well. Raises `AbsentError` where the
        name fits nothing.
        """


def is_listable(source: Source) -> TypeGuard[ListableSource]:
    """Return whether a source is in a place that may hold several images."""
    return hasattr(source, "entries")


async def everything(source: Source) -> Document:
    """Return where to search: all that a layout holds, if that is what its name fits.

    It is the root of any other source. Raises `Failure`.
    """
    find: Callable[[], Awaitable[Document]] = getattr(source, "everything", source.root)
    return await find()


def stale_since(source: Source) -> float | None:
    """Return when it was asked what the name of a source's image stands for, if it is stale.

    In seconds since the epoch: the registry could not be asked again. None for a source that has
    just looked.
    """
    since: float | None = getattr(source, "stale_since", None)
    return since


def age(source: Source) -> int | None:
    """Return how many seconds ago that was, None likewise."""
    since = stale_since(source)
    return None if since is None else max(int(time.time() - since), 0)


class AccompaniedSource(Source, Protocol):
    """A source that may have documents beside the image, which refer to it."""

    async def companions(self) -> list[Descriptor]:
        """Return the documents that have no name of their own. Raises `Failure`."""

    async def listed(self) -> Sequence[Descriptor]:
        """Return all documents that lie there, those with names as well. Raises `Failure`."""


def is_accompanied(source: Source) -> TypeGuard[AccompaniedSource]:
    """Return whether a source may have documents beside the image."""
    return hasattr(source, "companions")


def is_at_hand(source: Source, descriptor: Descriptor) -> bool:
    """Return whether a document that another one names can be had without asking anybody for it.

    That is so with all sources but those that say otherwise.
    """
    answer: Callable[[Descriptor], bool] = getattr(source, "is_at_hand", lambda _: True)
    return answer(descriptor)


def is_distant(source: Source, descriptor: Descriptor | None = None) -> bool:
    """Return whether a blob of a source has to be waited for, or any if none is named.

    That is so only with sources that say it. To open such a blob before it is needed saves the
    wait, and keeps nobody else from what the source holds for it.
    """
    answer: Callable[[Descriptor | None], bool] = getattr(source, "is_distant", lambda _: False)
    return answer(descriptor)


class SearchableSource(Source, Protocol):
    """A source that can look up a document by its digest alone.

    That makes it fit to stand in for an image of a registry (`transports.sideload`), whose
    reference may have a digest that the local name does not contain.
    """

    async def find(self, digest: Digest) -> Document:
        """Return the document with this digest.

        Where there is none, either raises `Failure`, or returns the document that should have the
        digest with the digest among those that name it, so that verification rejects it and can
        name both.
        """

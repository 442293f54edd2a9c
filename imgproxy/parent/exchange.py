"""One request and its reply, without I/O: the caller passes the bytes in and reads the results.

This is the part of RFC 9112 that the program uses (imgproxy-protocol(7)): every reply has a
Content-Length.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from imgproxy.errors import Failure, clean
from imgproxy.parent.failures import BrokenReplyError, RefusedError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import layer_selection
from imgproxy.specs.oci import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layer_selection import Layer
    from imgproxy.specs.oci.manifest import Descriptor

MANIFEST, CONFIG, QUIT, CANDIDATES = "/manifest", "/config", "/quit", "/candidates"

OK = 200

# In bytes; heads of the program have some 500.
_MAX_HEAD = 64 * 1024

# In bytes, of documents, which are kept in memory; the program sends at most a quarter of this.
MAX_DOCUMENT = 16 * 1024 * 1024

# Requests that are sent on a connection before a reply has ended: the program opens seven ahead,
# and looks where seven more are.
UNDER_WAY = 15

# A message may list all platforms of an index.
_MAX_MESSAGE = 4096

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f]*)?")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f]*)")
_LENGTH = re.compile(r"[0-9]{1,19}")


class IncompleteReplyError(Exception):
    """The connection ended before the reply was complete."""


class Head(NamedTuple):
    """The head of a reply. Field names are lower-case; `length` is that of the body in bytes."""

    status: int
    fields: dict[str, str]
    length: int


class Document(NamedTuple):
    """A config, a manifest or an index as received. `digest` is that of `raw`."""

    raw: bytes
    media_type: str
    digest: str

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        """Return the parsed content. Raises `ValueError` where it is not JSON."""
        return json.loads(self.raw)


class Manifest(NamedTuple):
    """The chosen manifest, as OCI.

    `raw` are the received bytes, `raw_digest` is their digest. `digest` and `media_type` are those
    of the original manifest at its source: they differ for Docker manifests, which are converted.
    `index_digest` is that of the index it was chosen from.
    """

    raw: bytes
    raw_digest: str
    digest: str
    media_type: str
    index_digest: str | None
    artifact_type: str | None
    config: Descriptor
    layers: tuple[Descriptor, ...]

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        """Return the parsed content, with annotations and all other members."""
        return json.loads(self.raw)


def blob_target(what: Descriptor | Digest | str) -> str:
    """Return the path of a blob. Raises `ValueError` for a malformed digest."""
    return f"/blobs/{_digest_of(what)}"


def document_target(what: Descriptor | Digest | str) -> str:
    """Return the path of a manifest or an index. Raises `ValueError` for a malformed digest."""
    return f"/manifests/{_digest_of(what)}"


def layers_target(
    media_type: str | None = None,
    title: str | None = None,
    annotations: Mapping[str, str] | None = None,
    offset: int | str | None = None,
) -> str:
    """Return the path of the layers that fulfil conditions, of all where there are none."""
    pairs = [
        ("type", media_type),
        ("title", title),
        *(("annotation", f"{key}={value}") for key, value in (annotations or {}).items()),
        ("offset", offset),
    ]
    query = "&".join(
        f"{key}={quote(str(value), safe='')}" for key, value in pairs if value is not None
    )
    return f"/layers?{query}" if query else "/layers"


def layer_target(offset: int) -> str:
    """Return the path of the layer at an offset."""
    return f"/layers/{int(offset)}"


def _digest_of(what: Descriptor | Digest | str) -> Digest:
    digest = what.digest if isinstance(what, manifests.Descriptor) else what
    return digests.parse(str(digest))  # nothing else may get into a request


class Exchange:
    """One request, and its reply while it is received. `request` are the bytes to send.

    Until `head` is set, and for a body to be kept in memory, received bytes are passed to `feed`.
    Other bodies may be received directly into the caller's buffer: first the bytes that arrived
    with the head (`take_into`), then up to `remaining` bytes from the connection, whose number is
    passed to `count_received`. If another request `follows` on the connection, `surplus` are bytes
    of its reply that were passed to `feed`.
    """

    def __init__(self, target: str, method: str = "GET", *, follows: bool = False) -> None:
        self.target = target
        self.request = f"{method} {target} HTTP/1.1\r\nHost: imgproxy\r\n\r\n".encode()
        self.head: Head | None = None
        self.follows = follows
        self.surplus = b""
        self._received = 0
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Process received bytes; none are the end of the connection.

        Raises `IncompleteReplyError` or `BrokenReplyError`.
        """
        if not data:
            raise IncompleteReplyError
        self._pending += data
        while self.head is None and b"\r\n\r\n" in self._pending:
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            self.head = self._parse(bytes(head))
        if self.head is None and len(self._pending) > _MAX_HEAD:
            raise self._broken(f"a head of more than {_MAX_HEAD} bytes")
        if self.head is not None and len(self._pending) > self.remaining:
            if not self.follows:
                raise self._broken("more bytes than the reply has")
            self.surplus += self._pending[self.remaining :]
            del self._pending[self.remaining :]

    @property
    def remaining(self) -> int:
        """How many bytes of the body have not been handed to the caller yet."""
        return (self.head.length if self.head else 0) - self._received

    @property
    def counts(self) -> tuple[int, int]:
        """How many bytes of the body have been received, and how many it has."""
        length = self.head.length if self.head else 0
        return length - self.remaining + len(self._pending), length

    @property
    def is_whole(self) -> bool:
        """Return whether the whole body has been received."""
        return self.head is not None and self.remaining == len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Return whether bytes that arrived with the head have not been taken yet."""
        return bool(self._pending)

    @property
    def is_reusable(self) -> bool:
        """Return whether the connection accepts another request after this reply."""
        return self.head is not None and self.head.fields.get("connection", "").lower() != "close"

    def take_into(self, buffer: memoryview) -> int:
        """Move bytes that arrived with the head into a buffer; return their number."""
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        del self._pending[:count]
        self._received += count
        return count

    def count_received(self, count: int) -> None:
        """Count bytes that the caller has received directly; 0 is the end of the connection.

        Raises `IncompleteReplyError`.
        """
        if not count:
            raise IncompleteReplyError
        self._received += count

    def expect_document(self) -> None:
        """Raise `BrokenReplyError` for a body that is too large to be kept in memory."""
        if self.remaining > MAX_DOCUMENT:
            raise self._broken(f"a body of more than {MAX_DOCUMENT} bytes")

    def document(self) -> Document:
        """Return the body, which must be complete."""
        assert self.head is not None  # noqa: S101  (it is whole)
        fields = self.head.fields
        digest = fields.get("docker-content-digest", "")
        return Document(bytes(self._pending), fields.get("content-type", ""), digest)

    def candidates(self) -> list[dict[str, Any]]:
        """Return the body, which must be complete, as candidates. Raises `BrokenReplyError`."""
        try:
            found = self.document().json()
        except ValueError as error:
            raise self._broken(f"not JSON: {error}") from None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self._broken("not an array of objects")
        return found

    def layers(self) -> list[Layer]:
        """Return the body, which must be complete, as layers. Raises `BrokenReplyError`."""
        try:
            return layer_selection.parse_detail(bytes(self._pending), "the layers")
        except Failure as failure:
            raise self._broken(failure.message) from None

    def blob_digest(self) -> Digest:
        """Return the digest of the blob that the body is. Raises `BrokenReplyError`."""
        assert self.head is not None  # noqa: S101  (the caller has waited for it)
        try:
            return digests.parse(self.head.fields.get("docker-content-digest", ""))
        except ValueError as error:
            raise self._broken(str(error)) from None

    def manifest(self) -> Manifest:
        """Return the body, which must be complete, as a manifest. Raises `BrokenReplyError`."""
        document = self.document()
        assert self.head is not None  # noqa: S101  (it is whole)
        fields = self.head.fields
        try:
            parsed = manifests.parse(document.raw, document.media_type, "the manifest")
        except Failure as failure:
            raise self._broken(failure.message) from None
        if not isinstance(parsed, manifests.Manifest):
            raise self._broken("an index in place of a manifest")
        return Manifest(
            document.raw,
            document.digest,
            fields.get("manifest-digest", ""),
            fields.get("manifest-media-type", ""),
            fields.get("index-digest"),
            fields.get("artifact-type"),
            parsed.config,
            parsed.layers,
        )

    def refusal(self) -> RefusedError:
        """Return the content of a complete error reply. Raises `BrokenReplyError`."""
        assert self.head is not None  # noqa: S101  (it is whole)
        try:
            error = json.loads(self._pending)["errors"][0]
            code, message = clean(str(error["code"])), clean(str(error["message"]), _MAX_MESSAGE)
            detail = dict(error.get("detail") or {})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self._broken(f"a {self.head.status} without an error body") from None
        return RefusedError(self.target, self.head.status, code, message, detail)

    def _parse(self, head: bytes) -> Head | None:
        """Parse a head; return None for an interim one."""
        start, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(start)
        matches = [_FIELD_LINE.fullmatch(line) for line in lines]
        if status is None or not all(matches):
            raise self._broken("not an HTTP/1.1 reply")
        if status[1].startswith(b"1"):
            return None
        pairs = [(m[1].decode().lower(), m[2].decode("latin-1").strip(" \t")) for m in matches if m]
        lengths = [value for name, value in pairs if name == "content-length"]
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
            raise self._broken("a reply without one Content-Length")
        if any(name == "transfer-encoding" for name, _ in pairs):
            raise self._broken("a reply with a Transfer-Encoding")
        return Head(int(status[1]), dict(pairs), int(lengths[0]))

    def _broken(self, what: str) -> BrokenReplyError:
        return BrokenReplyError(self.target, f"not understood: {what}")


class Pipeline:
    """Requests of which several are under way on one connection, and their replies in order.

    `present` is the exchange whose turn it is, once `next` has been called, and in the end the last
    one.
    """

    def __init__(self, targets: Iterable[str]) -> None:
        self._targets = iter(targets)
        self._sent: deque[Exchange] = deque()
        self.present = Exchange("", follows=True)

    def requests(self) -> bytes:
        """Return the requests to send now, none if enough are under way or there are no more."""
        requests = b""
        while len(self._sent) < UNDER_WAY and (target := next(self._targets, None)) is not None:
            self._sent.append(Exchange(target, follows=True))
            requests += self._sent[-1].request
        return requests

    @property
    def target(self) -> str:
        """The path of the next request that was sent."""
        return self._sent[0].target

    def next(self) -> Exchange | None:
        """Return the next exchange, after one that is whole; None at the end."""
        if not self._sent:
            return None
        surplus = self.present.surplus
        self.present = self._sent.popleft()
        if surplus:
            self.present.feed(surplus)
        return self.present

    def rest(self, most: int) -> Iterator[Exchange]:
        """Yield the exchange that received bytes are for, until all that are under way are whole.

        Raises `IncompleteReplyError` where they have more than so many bytes.
        """
        self._targets = iter(())
        exchange: Exchange | None = self.present
        while exchange is not None:
            while not exchange.is_whole:
                if exchange.remaining > most:
                    raise IncompleteReplyError
                yield exchange
            most -= exchange.remaining
            exchange = self.next()

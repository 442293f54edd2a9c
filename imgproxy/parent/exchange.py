"""One request and its reply, without I/O: bytes go in, and the head, counts and facts come out.

RFC 9112, as far as the program speaks it (imgproxy-protocol(7)): every reply has a Content-Length.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from imgproxy.errors import Failure, clean
from imgproxy.parent.failures import BrokenReplyError, RefusedError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor

MANIFEST, CONFIG, QUIT = "/manifest", "/config", "/quit"

OK = 200

# Ours have some 500 bytes.
_MAX_HEAD = 64 * 1024

# Of documents, which are had whole; the program delivers no larger ones than a quarter of this.
MAX_DOCUMENT = 16 * 1024 * 1024

# A message may list all platforms of an index.
_MAX_MESSAGE = 4096

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f]*)?")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f]*)")
_LENGTH = re.compile(r"[0-9]{1,19}")


class CutOff(Exception):
    """The connection ended before the reply did."""


class Head(NamedTuple):
    """The head of a reply. Names of fields are in lower case; `length` is that of the body."""

    status: int
    fields: dict[str, str]
    length: int


class Document(NamedTuple):
    """A config, a manifest or an index as it came. `digest` is that of `raw`."""

    raw: bytes
    media_type: str
    digest: str

    def json(self) -> Any:  # noqa: ANN401  (JSON is any)
        """Give the content, parsed. Raises `ValueError` where it is no JSON."""
        return json.loads(self.raw)


class Manifest(NamedTuple):
    """The chosen manifest, as OCI.

    `raw` are the bytes that came, of which `raw_digest` is the digest. `digest` is that of the
    manifest as it lies at its source, where its type is `media_type`: the two differ for Docker's.
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
        """Give the content, parsed: annotations and whatever else there is."""
        return json.loads(self.raw)


def blob_target(what: Descriptor | Digest | str) -> str:
    """Give the path of a blob. Raises `ValueError` for what is no digest."""
    return f"/blobs/{_digest_of(what)}"


def document_target(what: Descriptor | Digest | str) -> str:
    """Give the path of a manifest or an index. Raises `ValueError` for what is no digest."""
    return f"/manifests/{_digest_of(what)}"


def _digest_of(what: Descriptor | Digest | str) -> Digest:
    digest = what.digest if isinstance(what, manifests.Descriptor) else what
    return digests.parse(str(digest))  # so that nothing else ever gets into a request


class Exchange:
    """One request, and its reply as it comes. `request` is what to send.

    Until `head` is there, and for a body that is wanted whole, bytes are given to `feed`. The
    others may go straight to where they are wanted: first what came with the head (`take_into`),
    and then up to `remaining` bytes from the connection, which are told to `passed`.
    """

    def __init__(self, target: str, method: str = "GET") -> None:
        self.target = target
        self.request = f"{method} {target} HTTP/1.1\r\nHost: imgproxy\r\n\r\n".encode()
        self.head: Head | None = None
        self._received = 0
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came; nothing is the end of the connection.

        Raises `CutOff` or `BrokenReplyError`.
        """
        if not data:
            raise CutOff
        self._pending += data
        while self.head is None and b"\r\n\r\n" in self._pending:
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            self.head = self._parse(bytes(head))
        if self.head is None and len(self._pending) > _MAX_HEAD:
            raise self._broken(f"a head of more than {_MAX_HEAD} bytes")
        if self.head is not None and len(self._pending) > self.remaining:
            raise self._broken("more bytes than the reply has")

    @property
    def remaining(self) -> int:
        """How much of the body has not been handed on yet."""
        return (self.head.length if self.head else 0) - self._received

    @property
    def counts(self) -> tuple[int, int]:
        """How many bytes of the body had come, and how many there are."""
        length = self.head.length if self.head else 0
        return length - self.remaining + len(self._pending), length

    @property
    def is_whole(self) -> bool:
        """Whether the body is here, handed on or not."""
        return self.head is not None and self.remaining == len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether some of the body came with the head and has not been handed on."""
        return bool(self._pending)

    @property
    def stays(self) -> bool:
        """Whether the connection takes another request after this reply."""
        return self.head is not None and self.head.fields.get("connection", "").lower() != "close"

    def take_into(self, buffer: memoryview) -> int:
        """Hand on what came with the head; give how much it is."""
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        del self._pending[:count]
        self._received += count
        return count

    def passed(self, count: int) -> None:
        """Count bytes that went past; none is the end of the connection. Raises `CutOff`."""
        if not count:
            raise CutOff
        self._received += count

    def expect_document(self) -> None:
        """Raise `BrokenReplyError` for a body that is too large to be had whole."""
        if self.remaining > MAX_DOCUMENT:
            raise self._broken(f"a body of more than {MAX_DOCUMENT} bytes")

    def document(self) -> Document:
        """Give the body, which is whole."""
        assert self.head is not None  # noqa: S101  (it is whole)
        fields = self.head.fields
        digest = fields.get("docker-content-digest", "")
        return Document(bytes(self._pending), fields.get("content-type", ""), digest)

    def manifest(self) -> Manifest:
        """Give the body, which is whole, as a manifest. Raises `BrokenReplyError`."""
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
        """Give what an error reply, which is whole, says. Raises `BrokenReplyError`."""
        assert self.head is not None  # noqa: S101  (it is whole)
        try:
            error = json.loads(self._pending)["errors"][0]
            code, message = clean(str(error["code"])), clean(str(error["message"]), _MAX_MESSAGE)
            detail = dict(error.get("detail") or {})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self._broken(f"a {self.head.status} that does not say why") from None
        return RefusedError(self.target, self.head.status, code, message, detail)

    def _parse(self, head: bytes) -> Head | None:
        """Take a head apart; None for an interim one."""
        start, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(start)
        matches = [_FIELD_LINE.fullmatch(line) for line in lines]
        if status is None or not all(matches):
            raise self._broken("no HTTP/1.1 reply")
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

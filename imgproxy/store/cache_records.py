"""What a cache knows besides content: files in `.imgproxy/`, each written at once, under no lock.

    names/<hash>/tags/<tag>            which digest a tag had, when that was asked, and how safely
    names/<hash>/documents/<digest>    a document that was had under the name; its time is that of
                                       its last use, and it is locked (shared) while it is in use
    names/<hash>/signatures/<digest>   the signatures of a document, by the place they were read at

`<hash>` is that of the name, a repository with its registry, which has components of any length.
Blobs may be had under a name where one of its documents names them: there is no list of them. The
documents are the roots of what the cache keeps, and `roots` yields them: `gc` keeps those, and
what they name as far as it is there. What cannot be read is not there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.mentions import Mention
from imgproxy.store import locks
from imgproxy.store.files import read, using, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.store.locks import LockedFile

T = TypeVar("T")

# In bytes.
_MAX_RECORD = 64 * 1024

_PRIVATE = 0o700
_MODE = 0o600


class CachedDocument(NamedTuple):
    """A manifest or an index that was had under a name.

    `media_type` is the one it was sent under. `is_insecure`: it never came over verified TLS.
    `by_login`: it never came without credentials.
    """

    digest: Digest
    media_type: str
    size: int
    is_insecure: bool
    by_login: bool

    @property
    def mention(self) -> Mention:
        """The document as `reachability` has it."""
        return Mention(self.digest, self.size, self.media_type, in_list=True, is_elsewhere=False)


class CachedTag(NamedTuple):
    """What a tag stood for when a registry was asked, at `asked`, in seconds since the epoch."""

    document: CachedDocument
    asked: float


class UsedDocument(NamedTuple):
    """A document of any name; `used` is when it was last used, as `CachedTag.asked`."""

    path: str
    used: float
    document: CachedDocument


class CacheRecords:
    """The records of the store in a directory. Methods that write raise `Failure`."""

    def __init__(self, store: str) -> None:
        self._names = f"{store}/.imgproxy/names"

    # --- tags and documents ---------------------------------------------------------------------

    def tag(self, name: str, tag: str) -> CachedTag | None:
        """Return what a tag stood for, None where that is not known."""

        def parse(fields: Fields) -> CachedTag:
            return CachedTag(_document(fields), float(fields.integer("asked")))

        return _parsed(self._tag(name, tag), parse)

    def set_tag(self, name: str, tag: str, found: CachedTag) -> None:
        """Record what a tag stands for."""
        record = {"tag": f"{name}:{tag}", "asked": int(found.asked), **_members(found.document)}
        _write(self._tag(name, tag), record)

    def document(self, name: str, digest: Digest) -> CachedDocument | None:
        """Return a document that was had under a name, None where it was not."""
        found = _parsed(self._document(name, digest), _document)
        return found if found is not None and found.digest == digest else None

    def add_document(self, name: str, found: CachedDocument) -> None:
        """Record that a document was had under a name, and is used now.

        One that came over verified TLS, or without credentials, before is not worse for having come
        otherwise.
        """
        path, known = self._document(name, found.digest), self.document(name, found.digest)
        if known is not None:
            is_worse = found.is_insecure and not known.is_insecure
            found = (known if is_worse else found)._replace(
                is_insecure=known.is_insecure and found.is_insecure,
                by_login=known.by_login and found.by_login,
            )
        if known == found:
            with using(path):
                os.utime(path)
        else:
            _write(path, {"name": name, **_members(found)})

    def use(self, name: str, digest: Digest) -> LockedFile | None:
        """Record that a document is used now, and lock it until that is closed; None if it cannot.

        A document that is locked is not removed to make room.
        """
        path = self._document(name, digest)
        with suppress(OSError):
            os.utime(path)  # first: locking would make the file
            return locks.try_lock(path, locks.SHARED)
        return None

    def had(self, name: str, most: int) -> list[Digest]:
        """Return the documents that were had under a name, so many that were used last."""
        found = []
        for file in _newest(self._path(name, "documents", ""), most):
            with suppress(ValueError):
                found.append(digests.parse(file.replace("-", ":", 1)))
        return found

    def tags(self, name: str, most: int) -> dict[str, CachedTag]:
        """Return the tags of a name, so many that were asked last, with what they stood for."""
        found = {each: self.tag(name, each) for each in _newest(self._path(name, "tags", ""), most)}
        return {tag: known for tag, known in found.items() if known is not None}

    def all_documents(self) -> Iterator[UsedDocument]:
        """Yield the documents of all names."""
        for name in _listed(self._names):
            documents = f"{self._names}/{name}/documents"
            for file in _listed(documents):
                path = f"{documents}/{file}"
                found = _parsed(path, _document)
                with suppress(OSError):
                    if found is not None:
                        yield UsedDocument(path, os.stat(path).st_mtime, found)

    def forget(self, used: UsedDocument) -> bool:
        """Remove a document, with its tags and signatures; return whether: it may be in use."""
        with using(used.path):
            lock = locks.try_lock(used.path, locks.EXCLUSIVE)
            if lock is None:
                return False
            try:
                name, _, file = used.path.rpartition("/documents/")
                tags = [f"{name}/tags/{tag}" for tag in _listed(f"{name}/tags")]
                named = [tag for tag in tags if _parsed(tag, _document) == used.document]
                for path in (*named, f"{name}/signatures/{file}", used.path):
                    with suppress(FileNotFoundError):
                        os.unlink(path)
            finally:
                lock.close()
        return True

    def roots(self) -> Iterator[Mention]:
        """Yield the documents that the cache keeps, with all that they reach."""
        for used in self.all_documents():
            yield used.document.mention

    def _tag(self, name: str, tag: str) -> str:
        return self._path(name, "tags", tag)

    def _document(self, name: str, digest: Digest) -> str:
        return self._path(name, "documents", _file(digest))

    def _path(self, name: str, kind: str, file: str) -> str:
        return f"{self._names}/{digests.compute(name.encode()).encoded}/{kind}/{file}"

    # --- signatures -----------------------------------------------------------------------------

    def signatures(self, name: str, digest: Digest, limit: int) -> bytes:
        """Return the signatures of a document as they were kept, nothing where there are none."""
        with suppress(OSError):
            raw, _ = read(self._path(name, "signatures", _file(digest)), limit)
            if len(raw) <= limit:
                return raw
        return b""

    def keep_signatures(self, name: str, digest: Digest, raw: bytes) -> None:
        """Keep the signatures of a document."""
        _write_raw(self._path(name, "signatures", _file(digest)), raw)


def _file(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.encoded}"


def _listed(path: str) -> list[str]:
    try:
        return sorted(each for each in os.listdir(path) if ".imgproxy-" not in each)
    except OSError:
        return []


def _newest(directory: str, most: int) -> list[str]:
    """Return the files in a directory that were written or used last."""
    found = []
    for file in _listed(directory):
        with suppress(OSError):
            found.append((os.stat(f"{directory}{file}").st_mtime_ns, file))
    return [file for _, file in sorted(found, reverse=True)[:most]]


def _document(fields: Fields) -> CachedDocument:
    try:
        digest = digests.parse(fields.text("digest"))
    except ValueError as error:
        raise FieldError(str(error)) from None
    media_type, size = fields.text("mediaType"), fields.integer("size")
    is_secure, is_anonymous = fields.flag("verifiedTls"), fields.flag("anonymous")
    return CachedDocument(digest, media_type, size, not is_secure, not is_anonymous)


def _members(found: CachedDocument) -> dict[str, Any]:
    return {
        "digest": str(found.digest),
        "mediaType": found.media_type,
        "size": found.size,
        "verifiedTls": not found.is_insecure,
        "anonymous": not found.by_login,
    }


def _parsed(path: str, parse: Callable[[Fields], T]) -> T | None:
    with suppress(OSError, FieldError, strict_json.JsonError):
        raw, _ = read(path, _MAX_RECORD)
        return parse(Fields(strict_json.loads(raw)))
    return None


def _write(path: str, record: Mapping[str, Any]) -> None:
    _write_raw(path, json.dumps(record, separators=(",", ":")).encode())


def _write_raw(path: str, raw: bytes) -> None:
    with using(path):
        os.makedirs(os.path.dirname(path), _PRIVATE, exist_ok=True)
        write(path, raw, _MODE)

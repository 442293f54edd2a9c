"""The files of a store: blobs, what was begun and not finished, and what is neither."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.oci import digest as digests
from imgproxy.store.files import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.specs.oci.digest import Digest
    from imgproxy.store.content_store import ContentStore

_TEMPORARY = re.compile(TEMPORARY)


class StoredFile(NamedTuple):
    """A file in a store. `digest` is None for one that is no blob, `size` is in bytes."""

    path: str
    size: int
    digest: Digest | None


def blobs(store: ContentStore, unknown: list[str]) -> Iterator[StoredFile]:
    """Yield the blobs, and add the paths of what is not understood. Raises `OSError`.

    Whatever has another name than a blob is not understood, nor is an algorithm that is not
    available.
    """
    for algorithm in _entries(f"{store.path}/blobs"):
        if algorithm.name not in digests.AVAILABLE or not algorithm.is_dir(follow_symlinks=False):
            unknown.append(algorithm.path)
            continue
        for entry in _entries(algorithm.path):
            digest = _digest(algorithm.name, entry)
            if digest is None:
                if not _TEMPORARY.search(entry.name):
                    unknown.append(entry.path)
                continue
            with suppress(FileNotFoundError):
                yield StoredFile(entry.path, entry.stat(follow_symlinks=False).st_size, digest)


def begun(store: ContentStore) -> Iterator[StoredFile]:
    """Yield the files of processes that have not come to their end. Raises `OSError`."""
    ours = (store.partials, store.users)
    shared = (store.path, *(f"{store.path}/blobs/{each}" for each in digests.AVAILABLE))
    for directory in (*ours, *shared):
        for entry in _entries(directory):
            is_ours = directory in ours or _TEMPORARY.search(entry.name)
            if is_ours and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    yield StoredFile(entry.path, entry.stat(follow_symlinks=False).st_size, None)


def _entries(path: str) -> list[os.DirEntry[str]]:
    """Return the entries of a directory by name, none where it does not exist."""
    with suppress(FileNotFoundError), os.scandir(path) as found:
        return sorted(found, key=lambda each: each.name)
    return []


def _digest(algorithm: str, entry: os.DirEntry[str]) -> Digest | None:
    try:
        digest = digests.parse(f"{algorithm}:{entry.name}")
    except ValueError:
        return None
    return digest if entry.is_file(follow_symlinks=False) else None

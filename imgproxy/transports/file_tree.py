"""Files by their paths: what a directory with an image and an archive of one have in common."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from imgproxy.errors import NotFoundError, clean
from imgproxy.host.blocking_calls import call
from imgproxy.transports.local import near_misses
from imgproxy.transports.readers import open_local

if TYPE_CHECKING:
    from imgproxy.transports.readers import Content


class Tree(Protocol):
    """Files below one directory or in one archive; `path` is its own path."""

    path: str

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:
        """Open the file at a path in the tree; `name` stands for it in messages.

        `sole`: the file decides what is trusted, so its path must not be in the tree twice. Raises
        `Failure`, `NotFoundError` where there is no such file.
        """

    def close(self) -> None:
        """Close what is open. May be called again."""


class Directory:
    """A directory. Fulfils `Tree`."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:  # noqa: ARG002
        """See `Tree`. A directory has each name once."""
        try:
            return await open_local(f"{self.path}/{path}", name)
        except NotFoundError as error:
            raise await call(self.path, near_misses.backslashes, path, self, error) from None

    def __contains__(self, path: object) -> bool:
        return os.path.lexists(f"{self.path}/{path}")

    def close(self) -> None:
        """See `Tree`. Nothing is open."""


async def read(tree: Tree, path: str, limit: int) -> bytes:
    """Return the content of a control file of at most `limit` bytes. Raises `Failure`."""
    content = await tree.open(path, f"{clean(tree.path)}: {path}", sole=True)
    return await content.read(limit)

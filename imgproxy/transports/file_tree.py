"""Files by their paths: what an image's directory and an archive of it have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imgproxy.errors import clean
from imgproxy.transports.readers import LocalFile

if TYPE_CHECKING:
    from imgproxy.transports.readers import Content


class Tree(Protocol):
    """Files below one place. `path` is where that is."""

    path: str

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:
        """Open the file at a path in the tree; `name` stands for it in messages.

        `sole`: it decides what is trusted, so there must not be two of it. Raises `Failure`.
        """

    def close(self) -> None:
        """Let go of what is held."""


class Directory:
    """A directory. See `Tree`."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def open(self, path: str, name: str, *, sole: bool = False) -> Content:  # noqa: ARG002
        """See `Tree`; names in a directory stand there once."""
        return LocalFile(f"{self.path}/{path}", name)

    def close(self) -> None:
        """See `Tree`. Nothing is kept open."""


async def read(tree: Tree, path: str, limit: int) -> bytes:
    """Give a control file of at most `limit` bytes. Raises `Failure`."""
    content = await tree.open(path, f"{clean(tree.path)}: {path}", sole=True)
    return await content.read(limit)

"""Signatures in numbered files: those of a `dir:` image, and of a lookaside.

The files are `signature-1` and so on, up to the first that does not exist: containers-signature(5)
and containers-registries.d(5). `specs.signing.signature` decodes them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from imgproxy.errors import InvalidError, NotFoundError, clean
from imgproxy.specs.signing import signature
from imgproxy.specs.signing.signature import (
    MAX_SIGNATURE_SIZE,
    MAX_SIGNATURES,
    MAX_TOTAL_SIZE,
    SignatureError,
)
from imgproxy.transports import file_tree
from imgproxy.transports.source import SignaturePlace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.file_tree import Tree

T = TypeVar("T")


class Total:
    """The total size of the signatures read from one location, which is limited."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL_SIZE

    def add(self, size: int, where: str) -> None:
        """Add the size of a signature in bytes. Raises `InvalidError` beyond a limit."""
        self._left -= size
        if size > MAX_SIGNATURE_SIZE or self._left < 0:
            raise InvalidError(
                f"{where}: a signature of more than {MAX_SIGNATURE_SIZE} bytes,"
                f" or more than {MAX_TOTAL_SIZE} bytes of signatures",
                code="SIZE_INVALID",
            )


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Raise `InvalidError` in place of `SignatureError` in the block."""
    try:
        yield
    except SignatureError as error:
        raise InvalidError(f"{where}: {error}") from None


def limited(found: list[T], where: str) -> list[T]:
    """Return the signatures that were found. Raises `InvalidError` for too many."""
    if len(found) > MAX_SIGNATURES:
        raise InvalidError(f"{where}: more than {MAX_SIGNATURES} signatures")
    return found


async def numbered(read: Callable[[str], Awaitable[bytes]], where: str) -> list[Signature]:
    """Return the signatures that `read` returns by name, until it raises `NotFoundError`.

    Raises `InvalidError` for content that is not a signature, and for too much or too many.
    """
    found: list[Signature] = []
    total = Total()
    while True:
        name = f"signature-{len(found) + 1}"
        try:
            content = await read(name)
        except NotFoundError:
            return found
        total.add(len(content), f"{where}{name}")
        with readable(f"{where}{name}"):
            found.append(signature.decode(content, f"{where}{name}"))
        limited(found, where)


def place(files: Tree, prefix: str = "") -> SignaturePlace:
    """Return the location of the signatures in `files`; `prefix` is that of their file names."""
    where = f"{clean(files.path)}/{prefix}"

    async def read(name: str) -> bytes:
        return await file_tree.read(files, f"{prefix}{name}", MAX_SIGNATURE_SIZE)

    async def every() -> list[Signature]:
        return await numbered(read, where)

    return SignaturePlace(where, every)

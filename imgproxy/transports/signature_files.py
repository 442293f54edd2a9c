"""Signatures in files with numbers: those of a `dir:` image, and of a lookaside.

They are named `signature-1` and so on, up to the first that is not there; `spec.signature` knows
what is in them.
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
    """How much has been read at one place; it has a limit."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL_SIZE

    def add(self, size: int, where: str) -> None:
        """Take note of a signature's size. Raises `InvalidError` where it is too much."""
        self._left -= size
        if size > MAX_SIGNATURE_SIZE or self._left < 0:
            raise InvalidError(
                f"{where}: more than {MAX_SIGNATURE_SIZE} bytes of a signature,"
                f" or {MAX_TOTAL_SIZE} of all",
                code="SIZE_INVALID",
            )


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Raise `InvalidError` for what does not parse."""
    try:
        yield
    except SignatureError as error:
        raise InvalidError(f"{where}: {error}") from None


def limited(found: list[T], where: str) -> list[T]:
    """Give what was found. Raises `InvalidError` for too many of them."""
    if len(found) > MAX_SIGNATURES:
        raise InvalidError(f"{where}: more than {MAX_SIGNATURES} signatures")
    return found


async def numbered(read: Callable[[str], Awaitable[bytes]], where: str) -> list[Signature]:
    """Give the signatures that `read` gives by name, until it raises `NotFoundError`.

    Raises `InvalidError` for what is no signature, or for too many of them.
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
    """Give the signatures in a directory, whose names have a prefix, as a place of them."""
    where = f"{clean(files.path)}/{prefix}"

    async def read(name: str) -> bytes:
        return await file_tree.read(files, f"{prefix}{name}", MAX_SIGNATURE_SIZE)

    async def every() -> list[Signature]:
        return await numbered(read, where)

    return SignaturePlace(where, every)

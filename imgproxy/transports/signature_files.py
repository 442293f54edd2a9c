"""Signatures in numbered files: those of a `dir:` image, and of a lookaside.

The files are `signature-1` and so on, up to the first that does not exist: containers-signature(5)
and containers-registries.d(5). `specs.signing.signature` decodes them.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from imgproxy.errors import Failure, InvalidError, NotFoundError, clean
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
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from imgproxy.specs.signing.signature import Signature
    from imgproxy.transports.file_tree import Tree

T = TypeVar("T")

# Signatures that are read at the same time: as many connections as a browser has to one server.
MAX_TOGETHER = 6


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


async def together(attempts: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Return what these attempts return, in their order, all made at the same time.

    Raises the first failure, and makes an end of the others then.
    """
    results: dict[int, T] = {}
    failures: list[Exception] = []

    async def make(n: int, attempt: Callable[[], Awaitable[T]]) -> None:
        try:
            results[n] = await attempt()
        except Exception as failure:  # noqa: BLE001  (it is raised below, without a group around it)
            failures.append(failure)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for n, attempt in enumerate(attempts):
            nursery.start_soon(make, n, attempt)
    if failures:
        raise failures.pop(0)
    return [results[n] for n in range(len(attempts))]


def next_together(done: int) -> int:
    """Return how many signatures to read at the same time, after so many have been read.

    The usual one or two are read one after the other on one connection, and where the end is not
    known, no more requests are in vain than half of the others.
    """
    return min(max(done // 2, 1), MAX_TOGETHER)


async def in_batches(attempts: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Return what these attempts return, in their order, made a few at the same time."""
    results: list[T] = []
    while batch := attempts[len(results) :][: next_together(len(results))]:
        results += await together(batch)
    return results


async def numbered(read: Callable[[str], Awaitable[bytes]], where: str) -> list[Signature]:
    """Return the signatures that `read` returns by name, until it raises `NotFoundError`.

    Raises `InvalidError` for content that is not a signature, and for too much or too many.
    """
    found: list[Signature] = []
    total = Total()

    async def attempt(name: str) -> bytes | Failure:
        try:
            return await read(name)
        except Failure as failure:  # of no interest after the first that does not exist
            return failure

    while True:
        end = len(found) + next_together(len(found))
        names = [f"signature-{n + 1}" for n in range(len(found), end)]
        contents = await together([partial(attempt, name) for name in names])
        for name, content in zip(names, contents, strict=True):
            if isinstance(content, NotFoundError):
                return found
            if isinstance(content, Failure):
                raise content
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

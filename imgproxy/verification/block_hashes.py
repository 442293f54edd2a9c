"""Hashes at the end of each block of a blob, by which a part of it is verified without the rest.

While a whole blob is hashed, a copy of the hash is kept after each block. A part that begins and
ends with blocks is verified by hashing on from the copy before it: it must come to what the copy
after it came to. Other bytes that do would give, after the same beginning, two contents of one
length with the same SHA-256. So a part is as safe as a whole blob, by the same algorithm, and the
pass over the whole costs a copy for each block, where hashes of the blocks alone would cost as much
as the digest itself. The copies cannot be written to disk; they are for this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests

if TYPE_CHECKING:
    from imgproxy.net.streams import Buffer
    from imgproxy.specs.http.ranges import Part
    from imgproxy.specs.oci.manifest import Descriptor

# What is read at least for a part, and held in memory until it is verified.
BLOCK = 256 * 1024

# Blocks of one blob, at 250 bytes for each copy: those of blobs beyond 8 GiB are longer.
MAX_BLOCKS = 32 * 1024


class BlockHashes:
    """The hash of a blob, and its copies after each block of `length` bytes.

    It is updated like a hash of `hashlib`. Once all of it has been, and has been found to have its
    digest, parts can be compared.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self._hash = digests.hasher(descriptor.digest)
        self._digest = descriptor.digest
        self.length = BLOCK
        while self.length * MAX_BLOCKS < descriptor.size:
            self.length *= 2
        self._copies = [self._hash.copy()]
        self._missing = self.length  # to the end of the block

    @property
    def count(self) -> int:
        """The number of copies that are kept."""
        return len(self._copies)

    def block_at(self, position: int) -> int:
        """Return the first byte of the block that a byte is in."""
        return position // self.length * self.length

    def blocks_of(self, part: Part) -> tuple[int, int]:
        """Return the first byte, and the one after the last, of the blocks that a part is in."""
        last = self.block_at(part.stop - 1)
        return self.block_at(part.start), min(last + self.length, part.size)

    def update(self, content: Buffer) -> None:
        """Hash the next bytes."""
        rest = memoryview(content)
        while len(rest) >= self._missing:
            self._hash.update(rest[: self._missing])
            self._copies.append(self._hash.copy())
            rest, self._missing = rest[self._missing :], self.length
        self._hash.update(rest)
        self._missing -= len(rest)

    def hexdigest(self) -> str:
        """Return the hash of all that was hashed."""
        return self._hash.hexdigest()

    def compare(self, name: str, content: Buffer, start: int) -> None:
        """Raise `InvalidError` where a part of the blob is not what it was when it was verified.

        `content` begins at byte `start`, with a block, and ends with one or with the blob. `name`
        stands for the blob.
        """
        first, skipped = divmod(start, self.length)
        count, cut = divmod(len(content), self.length)
        assert not skipped  # noqa: S101  (of our own)
        after = self._hash if cut else self._copies[first + count]
        found = self._copies[first].copy()
        found.update(content)
        if found.digest() != after.digest():
            raise InvalidError(
                f"{name}: between bytes {start} and {start + len(content)}, it does not have the"
                f" bytes that had the digest {self._digest}",
                code="DIGEST_INVALID",
            )

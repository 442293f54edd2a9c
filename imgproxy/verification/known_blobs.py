"""What this process has found out about blobs: how to verify parts of them, and where one is wrong.

Nothing of it is a verdict that is passed on: bytes are compared each time that they are read. A
blob that was found wrong is not read again before its file has changed, because a client that has
got a beginning of it comes back for the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from imgproxy.errors import BadUpstreamError
from imgproxy.verification.block_hashes import BlockHashes

if TYPE_CHECKING:
    from imgproxy.errors import InvalidError
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Descriptor
    from imgproxy.transports.source import Origin, Reader

    # Two descriptors of one digest may have different sizes, and only one of them is right.
    Key = tuple[Digest, int]

K = TypeVar("K")
V = TypeVar("V")

# Copies of hashes that are kept in all: 16 MiB, for 16 GiB of blobs.
MAX_COPIES = 64 * 1024

# Wrong blobs that are remembered.
MAX_WRONG = 4096


class KnownBlobs:
    """The blobs that were verified or found wrong most recently. It is shared by all images."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[Key, BlockHashes] = OrderedDict()
        self._copies = 0
        self._wrong: OrderedDict[tuple[Key, Origin], str] = OrderedDict()

    def hashes(self, descriptor: Descriptor) -> BlockHashes | None:
        """Return the hashes of a blob that has been verified, None where they are not known."""
        return _recent(self._hashes, _key(descriptor))

    def new_hashes(self, descriptor: Descriptor) -> BlockHashes:
        """Return a new hash of a blob, which is to be kept once the blob has been verified.

        Raises `NotImplementedByUsError` where the algorithm of the digest is not available.
        """
        return BlockHashes(descriptor)

    def keep(self, descriptor: Descriptor, hashes: BlockHashes) -> None:
        """Keep the hashes of a blob that has been verified just now."""
        before = self._hashes.pop(_key(descriptor), None)
        self._hashes[_key(descriptor)] = hashes
        self._copies += hashes.count - (0 if before is None else before.count)
        while self._copies > MAX_COPIES and len(self._hashes) > 1:
            _, oldest = self._hashes.popitem(last=False)
            self._copies -= oldest.count

    def condemn(self, descriptor: Descriptor, reader: Reader, error: InvalidError) -> None:
        """Note that a blob is wrong where `reader` has read it, if that is on this host."""
        if reader.origin is None:
            return
        self._wrong[_key(descriptor), reader.origin] = error.code
        if len(self._wrong) > MAX_WRONG:
            self._wrong.popitem(last=False)

    def check(self, descriptor: Descriptor, reader: Reader) -> None:
        """Raise `BadUpstreamError` where a blob has been found wrong in what `reader` reads.

        A file that has changed since is another one.
        """
        if reader.origin is None:
            return
        code = _recent(self._wrong, (_key(descriptor), reader.origin))
        if code is not None:
            raise BadUpstreamError(
                f"{reader.name}: its bytes were found wrong before, and their file has not changed"
                " since; replace it by a good copy",
                code=code,
            )


def _key(descriptor: Descriptor) -> Key:
    return descriptor.digest, descriptor.size


def _recent(known: OrderedDict[K, V], key: K) -> V | None:
    """Return the value of a key, which is then the last to be given up."""
    value = known.get(key)
    if value is not None:
        known.move_to_end(key)
    return value

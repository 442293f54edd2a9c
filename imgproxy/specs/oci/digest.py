"""Content digests: OCI image specification, descriptor.md, "Digests".

`parse` accepts digests of any algorithm that match the grammar; only those whose algorithm is
available can be computed. The two are separate, because a digest that is merely mentioned, and not
verified, needs no algorithm.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import NotImplementedByUsError, clean

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_GRAMMAR = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")

_HEX = re.compile(r"[0-9a-f]+")

# Registered algorithms, with the count of hex digits of their hashes.
_REGISTERED = {"sha256": 64, "sha384": 96, "sha512": 128, "blake3": 64}

# Those that this program can compute.
AVAILABLE = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}

# No registered algorithm comes near; a longer name is an attack on file names and headers.
_MAX_LENGTH = 255


class Digest(NamedTuple):
    """A digest `algorithm:encoded`, in its two parts."""

    algorithm: str
    encoded: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


def parse(text: str) -> Digest:
    """Parse a digest.

    Raises `ValueError` for text that violates the grammar or the form of a registered algorithm.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None or len(text) > _MAX_LENGTH:
        raise ValueError(f'"{clean(text)}" is not a digest (algorithm:encoded)')
    algorithm, encoded = match.groups()
    length = _REGISTERED.get(algorithm, len(encoded))
    if len(encoded) != length or (algorithm in _REGISTERED and not _HEX.fullmatch(encoded)):
        raise ValueError(f'"{clean(text)}": {algorithm} has {length} lower-case hex digits')
    return Digest(algorithm, encoded)


def is_available(digest: Digest) -> bool:
    """Return whether this program can compute the digest's algorithm."""
    return digest.algorithm in AVAILABLE


def hasher(digest: Digest) -> Hash:
    """Return a new hash object for the digest's algorithm.

    Raises `NotImplementedByUsError` where the algorithm is not available.
    """
    new = AVAILABLE.get(digest.algorithm)
    if new is None:
        available = ", ".join(AVAILABLE)
        raise NotImplementedByUsError(
            f"verifying {digest}: the algorithm {digest.algorithm} is not available"
            f" (available: {available})"
        )
    return new()


def compute(content: bytes, algorithm: str = "sha256") -> Digest:
    """Return the digest of `content` by an available algorithm."""
    return Digest(algorithm, AVAILABLE[algorithm](content).hexdigest())

"""Content digests: OCI image specification, descriptor.md, "Digests".

Grammar-valid digests of any algorithm can be named; only those whose algorithm is available can be
computed. The two are kept apart, because an unavailable algorithm is no obstacle where it is merely
mentioned.
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

# Registered algorithms, and how many hex digits their hashes have.
_REGISTERED = {"sha256": 64, "sha384": 96, "sha512": 128, "blake3": 64}

_AVAILABLE = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}

# Nothing registered comes near; a longer name is an attack on file names and headers.
_MAX_LENGTH = 255


class Digest(NamedTuple):
    """An algorithm and the encoded hash, both as they stand in `algorithm:encoded`."""

    algorithm: str
    encoded: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


def parse(text: str) -> Digest:
    """Give the digest that `text` spells.

    Raises `ValueError` where the grammar, or the form of a registered algorithm, is broken.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None or len(text) > _MAX_LENGTH:
        raise ValueError(f'"{clean(text)}" is not a digest (algorithm:encoded)')
    algorithm, encoded = match.groups()
    length = _REGISTERED.get(algorithm, len(encoded))
    if len(encoded) != length or (algorithm in _REGISTERED and not _HEX.fullmatch(encoded)):
        raise ValueError(f'"{clean(text)}": {algorithm} wants {length} lower-case hex digits')
    return Digest(algorithm, encoded)


def is_available(digest: Digest) -> bool:
    """Whether this program can compute the digest's algorithm."""
    return digest.algorithm in _AVAILABLE


def hasher(digest: Digest) -> Hash:
    """Give a fresh hash object for the digest's algorithm.

    Raises `NotImplementedByUsError` where there is none.
    """
    new = _AVAILABLE.get(digest.algorithm)
    if new is None:
        available = ", ".join(_AVAILABLE)
        raise NotImplementedByUsError(
            f"verifying {digest}: the algorithm {digest.algorithm} is not available"
            f" (available: {available})"
        )
    return new()


def compute(content: bytes, algorithm: str = "sha256") -> Digest:
    """Give the digest of `content` by an available algorithm."""
    return Digest(algorithm, _AVAILABLE[algorithm](content).hexdigest())

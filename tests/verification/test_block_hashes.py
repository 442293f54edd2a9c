"""Parts of a blob are verified by hashes that its digest vouches for."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blobs import SMALL, WRONG_DIGEST, described, noise
from support.images import digest_of
from support.streams import refused

from imgproxy.errors import InvalidError, NotImplementedByUsError
from imgproxy.specs.oci import digest as digests
from imgproxy.verification import block_hashes
from imgproxy.verification.block_hashes import BLOCK, MAX_BLOCKS, BlockHashes


def hashes_of(content: bytes, algorithm: str = "sha256", step: int = 7) -> BlockHashes:
    """Return the hashes of content that arrives in steps of so many bytes, in small blocks."""
    with patch.object(block_hashes, "BLOCK", SMALL):
        hashes = BlockHashes(described(content, algorithm))
    for at in range(0, len(content), step):
        hashes.update(content[at : at + step])
    return hashes


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 5 * SMALL, 5 * SMALL + 3])
def test_all_of_it_has_the_digest(algorithm: str, size: int) -> None:
    content = noise(size)
    for step in (1, 7, SMALL, SMALL + 1, 100):
        hashes = hashes_of(content, algorithm, step)
        assert f"{algorithm}:{hashes.hexdigest()}" == digest_of(content, algorithm)
        assert hashes.count == 1 + size // SMALL


@given(st.binary(min_size=1, max_size=6 * SMALL), st.integers(1, 3 * SMALL), st.data())
@settings(deadline=None)
def test_every_run_of_blocks_is_compared(content: bytes, step: int, data: st.DataObject) -> None:
    hashes = hashes_of(content, step=step)
    start = hashes.block_at(data.draw(st.integers(0, len(content) - 1)))
    blocks = data.draw(st.integers(1, 6))
    part = content[start : start + blocks * SMALL]
    hashes.compare("the blob", part, start)
    at = data.draw(st.integers(0, len(part) - 1))
    wrong = bytearray(part)
    wrong[at] ^= data.draw(st.integers(1, 255))
    for other in (bytes(wrong), part[:-1] if len(part) % SMALL > 1 else bytes(wrong)):
        with pytest.raises(InvalidError) as raised:
            hashes.compare("the blob", other, start)
        assert refused(raised.value) == WRONG_DIGEST
    hashes.compare("the blob", part, start)  # nothing has changed


def test_a_block_in_another_place_is_wrong() -> None:
    content = noise(4 * SMALL)
    hashes = hashes_of(content)
    with pytest.raises(InvalidError, match=r"^the blob: between bytes 16 and 32, it does not"):
        hashes.compare("the blob", content[:SMALL], SMALL)
    repeated = noise(SMALL) * 3
    hashes_of(repeated).compare("the blob", repeated[:SMALL], SMALL)


def test_the_hashes_of_a_huge_blob_are_bounded() -> None:
    for size, length in (
        (0, BLOCK),
        (MAX_BLOCKS * BLOCK, BLOCK),
        (MAX_BLOCKS * BLOCK + 1, 2 * BLOCK),
        (64 << 30, 8 * BLOCK),
    ):
        assert BlockHashes(described(b"", size=size)).length == length


def test_without_its_algorithm_there_are_no_hashes() -> None:
    descriptor = described(b"")._replace(digest=digests.parse("md5:abc"))
    with pytest.raises(NotImplementedByUsError):
        BlockHashes(descriptor)

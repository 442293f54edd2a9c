"""What is known of blobs is bounded, and does not outlive the file that it is about."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from support.blobs import Chunks, described, noise
from support.streams import refused

from imgproxy.errors import BadUpstreamError, InvalidError
from imgproxy.host.files import FileState
from imgproxy.transports.source import Origin
from imgproxy.verification import known_blobs
from imgproxy.verification.block_hashes import BlockHashes
from imgproxy.verification.known_blobs import KnownBlobs

CONTENT = noise(100)
DESCRIPTOR = described(CONTENT)
FILE = FileState(1, 2, 100, 4, 5)
CONDEMNED = (502, "DIGEST_INVALID", False)


def at(origin: Origin | None) -> Chunks:
    reader = Chunks(CONTENT, [10])
    reader.origin = origin
    return reader


def wrong(code: str = "DIGEST_INVALID") -> InvalidError:
    return InvalidError("it is wrong", code=code)


def test_a_wrong_blob_is_gone_until_its_file_changes() -> None:
    known = KnownBlobs()
    known.check(DESCRIPTOR, at(Origin(FILE, 0)))
    known.condemn(DESCRIPTOR, at(Origin(FILE, 0)), wrong())
    with pytest.raises(BadUpstreamError) as raised:
        known.check(DESCRIPTOR, at(Origin(FILE, 0)))
    assert refused(raised.value) == CONDEMNED
    assert raised.value.message.startswith("the blob: its bytes were found wrong before")
    for index in range(len(FILE)):
        changed = FileState(*[each + (n == index) for n, each in enumerate(FILE)])
        known.check(DESCRIPTOR, at(Origin(changed, 0)))


def test_what_lies_elsewhere_is_not_wrong() -> None:
    known = KnownBlobs()
    known.condemn(DESCRIPTOR, at(Origin(FILE, 0)), wrong())
    known.check(DESCRIPTOR, at(Origin(FILE, 512)))
    known.check(DESCRIPTOR, at(None))
    known.check(described(CONTENT, "sha512"), at(Origin(FILE, 0)))


def test_a_descriptor_with_a_wrong_size_condemns_no_other() -> None:
    """Whoever names a blob with another size cannot take it from those who name it rightly."""
    known, lie = KnownBlobs(), described(CONTENT, size=99)
    known.condemn(lie, at(Origin(FILE, 0)), wrong("SIZE_INVALID"))
    known.check(DESCRIPTOR, at(Origin(FILE, 0)))
    with pytest.raises(BadUpstreamError) as raised:
        known.check(lie, at(Origin(FILE, 0)))
    assert raised.value.code == "SIZE_INVALID"
    known.keep(DESCRIPTOR, known.new_hashes(DESCRIPTOR))
    assert known.hashes(lie) is None


def test_what_comes_from_elsewhere_is_asked_for_again() -> None:
    known = KnownBlobs()
    known.condemn(DESCRIPTOR, at(None), wrong())
    known.check(DESCRIPTOR, at(None))


def test_only_the_last_wrong_blobs_are_remembered() -> None:
    known = KnownBlobs()
    with patch.object(known_blobs, "MAX_WRONG", 2):
        for position in (1, 2):
            known.condemn(DESCRIPTOR, at(Origin(FILE, position)), wrong())
        with pytest.raises(BadUpstreamError):
            known.check(DESCRIPTOR, at(Origin(FILE, 1)))
        known.condemn(DESCRIPTOR, at(Origin(FILE, 3)), wrong())
    for position in (1, 3):
        with pytest.raises(BadUpstreamError):
            known.check(DESCRIPTOR, at(Origin(FILE, position)))
    known.check(DESCRIPTOR, at(Origin(FILE, 2)))


def test_hashes_are_kept_within_a_bound() -> None:
    known = KnownBlobs()
    blobs = [described(noise(size)) for size in (10, 20, 30)]
    hashes = {each: BlockHashes(each) for each in blobs}
    with patch.object(known_blobs, "MAX_COPIES", 2):
        for each in blobs[:2]:
            known.keep(each, hashes[each])
            known.keep(each, hashes[each])  # which counts once
        assert known.hashes(blobs[0]) is hashes[blobs[0]]
        known.keep(blobs[2], hashes[blobs[2]])
    assert [known.hashes(each) is not None for each in blobs] == [True, False, True]
    with patch.object(known_blobs, "MAX_COPIES", 0):
        known.keep(blobs[1], hashes[blobs[1]])
    assert [known.hashes(each) is not None for each in blobs] == [False, True, False]

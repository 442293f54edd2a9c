"""Packets of OpenPGP, one after the other."""

from __future__ import annotations

import pytest

from imgproxy.specs.signing.packets import HEADER_SIZE, Packet, Reader, framed
from imgproxy.specs.signing.signature import SignatureError

BODIES = [b"", b"x", bytes(191), bytes(192), bytes(8383), bytes(8384), bytes(70_000)]


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_what_is_written_is_read(body: bytes) -> None:
    raw = framed(6, body)
    assert raw[HEADER_SIZE:] == body
    reader = Reader(raw + framed(13, b"user"))
    assert reader.next_tag == 6
    assert reader.packet() == Packet(6, body)
    assert reader.next_tag == 13
    assert not reader.at_end
    assert reader.packet() == Packet(13, b"user")
    assert reader.at_end


@pytest.mark.parametrize(
    ("head", "tag"), [(0x99, 6), (0x94, 5), (0xC6, 6), (0xCD, 13), (0xFF, 63), (0x7F, None)]
)
def test_the_next_tag_is_known_before_the_packet_is_read(head: int, tag: int | None) -> None:
    assert Reader(bytes([head])).next_tag == tag


def test_a_packet_that_is_cut_is_none() -> None:
    raw = framed(6, b"body")
    for end in range(1, len(raw)):
        with pytest.raises(SignatureError, match="it ends in the middle of a packet"):
            Reader(raw[:end]).packet()

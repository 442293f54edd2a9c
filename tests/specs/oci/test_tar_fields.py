"""Headers of tar archives: sums, numbers and blocks; `test_tar` has how archives are read."""

from __future__ import annotations

import random

import pytest
from support.tars import BLOCK, END, GNU, Tape, base_256, header, member, summed

from imgproxy.specs.oci import tar_fields as fields
from imgproxy.specs.oci.tar_fields import TarError


def test_the_sum_of_a_header_is_exact_whatever_its_bytes() -> None:
    """It is computed by Adler's checksum, which is modulo 65521; the largest sum is 124,000."""
    chance = random.Random(1)
    for fill in (b"\0", b"\xff", *(bytes([chance.randrange(256)]) for _ in range(50))):
        block = summed(bytearray(fill * 124 + b"0".ljust(12, b"\0") + fill * 376))
        assert next(fields.headers(Tape([block]))).block == block
        for by in (1, -1, 65521, -65521, 65536):
            total = sum(block[:148] + b" " * 8 + block[156:]) + by
            wrong = block[:148] + b"%07o\0" % max(total, 0) + block[156:]
            with pytest.raises(TarError, match="the checksum is wrong"):
                next(fields.headers(Tape([wrong])))


def test_fields_are_where_posix_has_them() -> None:
    block = header(
        *(b"n\0x", b"3", 5), target=b"t\0x", prefix=b"p\0x", more={329: b"11\0", 337: b"12\0"}
    )
    (found,) = fields.headers(Tape([block + END]))
    assert (found.at, found.kind, found.size, found.block) == (0, b"3", 5, block)
    assert (found.path, found.target_path) == (b"p/n", b"t")
    assert [fields.number(each, 0) for each in (found.mode, found.major, found.minor)] == [
        *(0o644, 9, 10)
    ]
    (gnu,) = fields.headers(Tape([header(b"n", prefix=b"p", magic=GNU)]))
    assert gnu.path == b"n"


def test_what_follows_a_header_is_for_whoever_asks() -> None:
    tape = Tape([member(b"x" * 600) + member(name=b"b") + END])
    places = []
    for each in fields.headers(tape):
        places.append((each.at, each.path))
        fields.skip_to(tape, tape.position + each.size, "a")
    assert places == [(0, b"a"), (3 * BLOCK, b"b")]


def test_a_number_is_refused_with_the_place() -> None:
    assert fields.number(base_256(2**40), 7) == 2**40
    for _ in range(2):  # what is remembered is refused again
        with pytest.raises(TarError, match=r"^the header at byte 7 has a malformed number$"):
            fields.number(b"8", 7)

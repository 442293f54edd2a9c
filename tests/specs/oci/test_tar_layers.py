"""Layers: what their members are, to the last field, and which archives are refused."""

from __future__ import annotations

import pytest
from support.tars import (
    BLOCK,
    END,
    GNU,
    Tape,
    base_256,
    extended,
    header,
    long_name,
    member,
    octal,
    pax,
    record,
)

from imgproxy.specs.oci import tar_layers as layers
from imgproxy.specs.oci.tar_fields import MAX_PATH, TarError
from imgproxy.specs.oci.tar_layers import MAX_XATTR, Member


def read(archive: bytes) -> list[Member]:
    return list(layers.members(Tape([archive])))


def only(archive: bytes) -> Member:
    (found,) = read(archive + END)
    return found


def refusal(archive: bytes) -> str:
    with pytest.raises(TarError) as caught:
        read(archive + END)
    return str(caught.value)


METADATA = {100: b"0104755\0", 108: octal(1000, 7), 116: octal(100, 7), 136: octal(1700000000, 11)}


def test_a_member_has_all_that_its_header_says() -> None:
    found = only(member(b"abc", name=b"\xff/x", more=METADATA))
    assert found == Member(
        *(0, b"\xff/x", "file", 3, b"", 0o4755, 1000, 100, 1700000000 * 10**9, {}, (0, 0), None)
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((b"0", "file"), (b"\0", "file"), (b"7", "file"), (b"1", "link"), (b"2", "symlink")),
        *((b"3", "character"), (b"4", "block"), (b"5", "directory"), (b"6", "fifo")),
        *((kind, "unknown") for kind in (b"8", b"V", b"M", b"N", b"D", b"\xff")),
    ],
)
def test_every_kind_is_told(kind: bytes, expected: str) -> None:
    assert only(member(kind=kind)).kind == expected


def test_a_directory_may_be_told_by_its_slash_alone() -> None:
    assert only(member(name=b"d/", kind=b"\0")).kind == "directory"
    assert only(member(name=b"d/", kind=b"0")).kind == "file"


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("opening", [b"", pax(size="512")])
def test_what_has_no_contents_is_followed_by_a_header(kind: bytes, opening: bytes) -> None:
    """As Go has it; the size may be that of what a link leads to."""
    first, second = read(opening + header(kind=kind, size=512) + member(name=b"b") + END)
    assert (first.size, second.name) == (0, b"b")


def test_numbers_of_devices_are_those_of_devices_alone() -> None:
    numbers = {329: b"\xffbad\xff", 337: octal(3, 7)}
    assert only(member(more=numbers)).device == (0, 0)
    assert "malformed number" in refusal(member(kind=b"3", more=numbers))
    large = {329: base_256(2**32 + 1, 8), 337: octal(3, 7)}
    assert only(member(kind=b"4", more=large)).device == (2**32 + 1, 3)


# --- which value counts -------------------------------------------------------------------------


def test_pax_counts_before_gnu_and_gnu_before_the_header() -> None:
    own = member(kind=b"2", name=b"header", target=b"header")
    gnu = long_name(b"gnu") + long_name(b"gnu", b"K")
    for opening in (gnu + pax(path="pax", linkpath="pax"), pax(path="pax", linkpath="pax") + gnu):
        assert (only(opening + own).name, only(opening + own).target) == (b"pax", b"pax")
    assert (only(gnu + own).name, only(gnu + own).target) == (b"gnu", b"gnu")
    assert only(pax(path="pax") + own).target == b"header"


def test_an_extended_header_is_not_that_of_a_long_name_in_between() -> None:
    """CVE-2026-53655: with the size of the file, the name would swallow the header after it."""
    archive = pax(size="3") + long_name(b"n" * 200) + header() + b"abc" + bytes(509)
    found = only(archive)
    assert (found.name, found.size) == (b"n" * 200, 3)


@pytest.mark.parametrize("own", [0, 1, 5000])
def test_the_size_of_pax_counts_whatever_the_header_says(own: int) -> None:
    """CVE-2025-62518: what one reader takes for content is a header to another."""
    inner = member(name=b"inner")
    first, second = read(pax(size="512") + header(size=own) + inner + member(name=b"b") + END)
    assert (first.size, second.name) == (len(inner), b"b")


def test_owners_and_times_of_pax_count() -> None:
    found = only(pax(uid="4294967294", gid="70000", mtime="1.5") + member(more=METADATA))
    assert (found.uid, found.gid, found.mtime) == (2**32 - 2, 70000, 1_500_000_000)


@pytest.mark.parametrize("key", ["path", "linkpath", "size", "uid", "gid", "mtime"])
def test_a_value_that_is_taken_back_is_that_of_the_header(key: str) -> None:
    own = member(b"abc", more=METADATA, target=b"t")
    assert only(pax(**{key: ""}) + own)[1:] == only(own)[1:]


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    assert only(extended(record(b"path", b"b"), record(b"path", b"c")) + member()).name == b"c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((b"0", 0), (b"1", 10**9), (b"-1", -(10**9)), (b"1.", 10**9), (b"1.5", 1_500_000_000)),
        (b"1700000000.123456789", 1700000000123456789),
        (b"1700000000.1234567891", 1700000000123456789),
        (b"-1.5", -1_500_000_000),
        (b"-0.0000000001", -1),
        (b"-1.0000000000", -(10**9)),
        (b"1." + b"9" * 3000, 1_999_999_999),
        (b"9" * 18, (10**18 - 1) * 10**9),
    ],
)
def test_times_are_exact(text: bytes, expected: int) -> None:
    assert only(pax(mtime=text) + member()).mtime == expected


@pytest.mark.parametrize(
    "text", [b"nan", b"inf", b"1e5", b"+1", b" 1", b"1,5", b".5", b"-", b"0x1", b"1\0", b"9" * 19]
)
def test_what_is_no_time_is_refused(text: bytes) -> None:
    message = "the header before byte 1024 has a mtime that is not a number"
    assert refusal(pax(mtime=text) + member()) == message


def test_old_times_may_be_before_1970() -> None:
    for number in (-1, -(2**40)):
        field = (2**96 + number).to_bytes(12, "big")
        assert only(member(more={136: field})).mtime == number * 10**9
    assert only(member(more={136: base_256(2**40)})).mtime == 2**40 * 10**9


@pytest.mark.parametrize("key", ["size", "uid", "gid"])
@pytest.mark.parametrize("text", [b"-1", b"+1", b"1.0", b" 1", b"0x1", b"1\0", b"9" * 19])
def test_what_is_no_number_is_refused(key: str, text: bytes) -> None:
    message = f"the header before byte 1024 has a {key} that is not a number"
    assert refusal(pax(**{key: text}) + member()) == message


@pytest.mark.parametrize("at", [100, 108, 116, 136])
def test_a_malformed_field_is_refused(at: int) -> None:
    assert refusal(member(more={at: b"99"})) == "the header at byte 0 has a malformed number"


@pytest.mark.parametrize("at", [108, 116, 124])
def test_a_negative_number_is_refused(at: int) -> None:
    width = 12 if at == 124 else 8
    archive = header(more={at: b"\xff" * width})
    assert refusal(archive) == "the header at byte 0 has a malformed number"


# --- extended attributes ------------------------------------------------------------------------


def test_extended_attributes_are_bytes() -> None:
    values = {b"user.a": b"\0=\n\xff", b"security.capability": b"\1\0\0\2" + bytes(16)}
    records = [record(b"SCHILY.xattr." + key, value) for key, value in values.items()]
    gone = record(b"SCHILY.xattr.user.gone", b"")
    assert only(extended(*records, gone) + member()).xattrs == values
    assert read(extended(*records) + member() + member() + END)[1].xattrs == {}


@pytest.mark.parametrize("name", [b"", b"user.a\0b", b"user." + b"n" * 251])
def test_an_extended_attribute_has_a_name_that_the_system_takes(name: bytes) -> None:
    assert refusal(extended(record(b"SCHILY.xattr." + name, b"1")) + member()) == (
        "the header at byte 0 has a malformed name of an extended attribute"
    )


def test_an_extended_attribute_has_a_limit() -> None:
    key = b"SCHILY.xattr.user.x" + b"x" * 249
    assert only(extended(record(key, b"x" * MAX_XATTR)) + member()).xattrs
    assert refusal(extended(record(key, b"x" * (MAX_XATTR + 1))) + member()) == (
        f"the header at byte 0 has an extended attribute of more than {MAX_XATTR} bytes"
    )


# --- headers that describe others ---------------------------------------------------------------


def test_what_is_said_of_all_members_must_not_matter() -> None:
    remark = extended(record(b"comment", b"abc"), record(b"VENDOR.x", b"y"), kind=b"g")
    assert [each.name for each in read(remark * 2 + member() + remark + END)] == [b"a"]
    between = pax(path="b") + remark + member()
    assert only(between).name == b"b"


@pytest.mark.parametrize(
    "key",
    [
        *("path", "linkpath", "size", "uid", "gid", "mtime"),
        *("SCHILY.xattr.user.x", "GNU.sparse.major"),
    ],
)
def test_what_is_said_of_all_members_and_matters_is_refused(key: str) -> None:
    archive = member() + extended(record(key.encode(), b"1"), kind=b"g") + member()
    assert refusal(archive) == f"the global header at byte 512 sets {key} for all members"


@pytest.mark.parametrize("kind", [b"x", b"X", b"L", b"K"])
def test_two_headers_of_a_kind_are_refused(kind: bytes) -> None:
    one = long_name(b"b", kind) if kind in b"LK" else extended(record(b"path", b"b"), kind=kind)
    message = f"the header at byte {len(one)} repeats another of its kind"
    assert refusal(one * 2 + member()) == message


@pytest.mark.parametrize("opening", [pax(comment="b"), long_name(b"b")])
def test_a_header_that_belongs_to_nothing_is_refused(opening: bytes) -> None:
    archive = member() + opening
    words = f"ends at byte {len(archive)}, after a header that belongs to another"
    assert refusal(archive) == words


@pytest.mark.parametrize(
    ("opening", "words"),
    [
        (pax(path=b"a\0b"), "a name with a NUL in it"),
        (pax(linkpath=b"a\0b"), "a name with a NUL in it"),
        (long_name(b"a\0b"), "a name with a NUL in it"),
        (pax(path=b"x" * (MAX_PATH + 1)), f"a name of {MAX_PATH + 1} bytes"),
        (long_name(b"x" * (MAX_PATH + 1)), f"a name of {MAX_PATH + 1} bytes"),
    ],
)
def test_names_that_can_be_none_are_refused(opening: bytes, words: str) -> None:
    assert refusal(opening + member()) == f"the header at byte 0 has {words}"


# --- reading ------------------------------------------------------------------------------------


def test_contents_may_be_read_on_the_way() -> None:
    tape = Tape([member(b"x" * 700) + member(b"y" * 512, name=b"b") + END])
    got = {each.name: tape.read(min(each.size, 600)) for each in layers.members(tape)}
    assert got == {b"a": b"x" * 600, b"b": b"y" * 512}


def test_nothing_after_the_end_is_a_member() -> None:
    assert [each.name for each in read(member() + END + member(name=b"smuggled") + END)] == [b"a"]


def test_a_layer_that_is_cut_is_refused_with_the_name() -> None:
    cut = member(b"x" * 700, name=b"\xff")[:-BLOCK]
    with pytest.raises(TarError, match=r"in the middle of \\xff$"):
        list(layers.members(Tape([cut])))


# --- sparse files -------------------------------------------------------------------------------


def test_a_sparse_file_is_a_file_with_holes() -> None:
    old = header(kind=b"S", size=3, magic=GNU, more={386: octal(0, 11) + octal(3, 11), 483: b"11"})
    found = only(old + b"abc" + bytes(509))
    assert (found.kind, found.size) == ("file", 3)
    assert found.holes is not None
    assert (found.holes.size, list(found.holes.numbers or ())) == (9, [0, 3])
    new = extended(
        *(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")),
        *(record(b"GNU.sparse.name", b"own"), record(b"GNU.sparse.realsize", b"9")),
    )
    found = only(new + member(b"0\n", name=b"GNUSparseFile.1/own"))
    assert (found.name, found.holes) == (b"own", (9, None))
    assert refusal(new + member(kind=b"5")) == (
        f"the header at byte {len(new)} has holes, but its type has no contents"
    )

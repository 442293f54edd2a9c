"""Tar archives: where their members are, and what is refused because readers differ about it."""

from __future__ import annotations

import io
import itertools
import tarfile

import pytest
from support.tars import (
    BLOCK,
    END,
    GNU,
    USTAR,
    Tape,
    base_256,
    contents,
    extended,
    header,
    long_name,
    member,
    octal,
    padded,
    pax,
    read,
    record,
    summed,
)

from imgproxy.specs.oci import tar
from imgproxy.specs.oci.tar import (
    MAX_EXTENSION,
    MAX_PATH,
    Entry,
    TarError,
    normalise,
)


def only(archive: bytes) -> Entry:
    """Give the one member of an archive that has not ended yet."""
    (entry,) = read(archive + END)
    return entry


def refusal(archive: bytes) -> str:
    with pytest.raises(TarError) as caught:
        read(archive)
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- what tarfile writes ------------------------------------------------------------------------

DIALECTS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def written(dialect: str, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=DIALECTS[dialect]) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize("dialect", DIALECTS)
def test_members_are_found_with_their_contents(dialect: str) -> None:
    files = {f"f{size}": bytes([size % 251]) * size for size in (0, 1, 511, 512, 513, 5000)}
    archive = written(dialect, *((info(name), content) for name, content in files.items()))
    found = list(contents(archive))
    assert {entry.name: content for entry, content in found} == files
    assert {entry.kind for entry, _ in found} == {"file"}
    assert [entry.size for entry, _ in found] == [len(content) for content in files.values()]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (tarfile.REGTYPE, "file"),
        (tarfile.AREGTYPE, "file"),
        (tarfile.CONTTYPE, "file"),
        (tarfile.DIRTYPE, "directory"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.SYMTYPE, "symlink"),
        (tarfile.CHRTYPE, "other"),
        (tarfile.BLKTYPE, "other"),
        (tarfile.FIFOTYPE, "other"),
    ],
)
def test_every_kind_is_told(dialect: str, kind: bytes, expected: str) -> None:
    target = "to/there" if expected.endswith("link") else ""
    archive = written(dialect, (info("a/b", kind, target), b""), (info("next"), b"x"))
    assert read(archive) == [
        Entry("a/b", expected, BLOCK, 0, target),  # type: ignore[arg-type]
        Entry("next", "file", 2 * BLOCK, 1, ""),
    ]


LONG = "/".join(["directory" * 5] * 5)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "name",
    ["x" * 99, "x" * 100, "p" * 90 + "/" + "x" * 100, "p" * 155 + "/" + "x" * 100, LONG],
    ids=["99", "100", "a prefix", "the longest prefix", "parts"],
)
def test_long_names_are_whole(dialect: str, name: str) -> None:
    assert only(written(dialect, (info(name), b"x"))).name == name


@pytest.mark.parametrize("dialect", ["gnu", "pax"])
@pytest.mark.parametrize("name", ["x" * 101, "y" * MAX_PATH, f"{LONG}/{LONG}", "ä" * 60, "日本"])
def test_names_that_ustar_has_no_room_for_are_whole(dialect: str, name: str) -> None:
    kinds = [(tarfile.REGTYPE, name, ""), (tarfile.SYMTYPE, "short", name), (b"1", name, name)]
    archive = written(dialect, *((info(*(n, kind, to)), b"") for kind, n, to in kinds))
    found = [(entry.name, entry.target) for entry in read(archive)]
    assert found == [(name, ""), ("short", name), (name, name)]


def test_a_name_that_is_no_utf_8_can_be_told_from_another() -> None:
    names = [only(member(name=raw)).name for raw in (b"\xff", b"\xfe")]
    assert names == ["\udcff", "\udcfe"]
    assert only(pax(path=b"\xff") + member()).name == "\udcff"


@pytest.mark.parametrize("dialect", ["gnu", "pax"])
def test_what_is_too_large_for_octal_digits_is_no_obstacle(dialect: str) -> None:
    owner = info("a")
    owner.uid, owner.gid, owner.mtime = 2**21, 2**40, 1e11
    assert only(written(dialect, (owner, b"x"))).size == 1


@pytest.mark.parametrize(
    "text", ["", "comment", "SCHILY.xattr.user.x", "atime", "hdrcharset", "mtime", "uid", "gname"]
)
def test_what_else_is_said_of_a_member_does_not_matter(text: str) -> None:
    first = extended(record(text.encode(), b"1 = 2\n3"), record(b"path", b"b"))
    assert only(first + member()).name == "b"


def test_what_is_said_of_a_member_holds_for_no_other() -> None:
    archive = pax(path="b", linkpath="c") + member(kind=b"2") + member(kind=b"2", target=b"d") + END
    assert [(entry.name, entry.target) for entry in read(archive)] == [("b", "c"), ("a", "d")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [(b"g", b"comment"), (b"g", b"mtime"), (b"x", b"comment"), (b"X", b"comment")],
)
def test_a_header_that_says_nothing_of_names_may_stand_anywhere(kind: bytes, said: bytes) -> None:
    """Git's archives begin with the commit."""
    remark = extended(record(said, b"abc"), kind=kind)
    assert [entry.name for entry in read(remark * 2 + member() + remark + END)] == ["a"]
    assert read(remark + END) == []


# --- what other programs write ------------------------------------------------------------------


@pytest.mark.parametrize("magic", [USTAR, GNU, bytes(8), b"ustar\0  ", b"tar\0    "])
def test_a_header_is_read_whatever_its_version(magic: bytes) -> None:
    assert only(member(b"x", magic=magic)) == Entry("a", "file", BLOCK, 1, "")


@pytest.mark.parametrize(
    ("magic", "name"), [(USTAR, "p/q/a"), (GNU, "a"), (bytes(8), "a"), (b"tar\0    ", "a")]
)
def test_a_prefix_is_one_where_posix_has_it(magic: bytes, name: str) -> None:
    """GNU's own format has times in its place."""
    assert only(member(magic=magic, prefix=b"p/q")).name == name


@pytest.mark.parametrize(
    "size",
    [
        *(b"%011o\0" % 600, b"%012o" % 600, b"%11o " % 600, b"%o\0" % 600, b"%10o \0" % 600),
        *(b"%o" % 600 + b" " * 8, base_256(600)),
    ],
)
def test_numbers_are_written_in_many_ways(size: bytes) -> None:
    assert only(header(size=size) + bytes(1024)).size == 600


@pytest.mark.parametrize("size", [b"", b" " * 12, b"\0" * 12, b"0"])
def test_no_number_is_zero(size: bytes) -> None:
    assert only(header(size=size)).size == 0


@pytest.mark.parametrize(
    "size",
    [
        *(b"-1\0", b"-00000000001", b"\xff" * 12, b"\x81" + bytes(11), b"\x00" * 11 + b"1"),
        *(b"8", b"0x10", b"1_0", b"1 1", b"1\x001", b"+1", b"1.0", b"\xc0" + bytes(11)),
    ],
)
def test_what_is_no_number_is_refused(size: bytes) -> None:
    """Negative ones too, which base 256 could say."""
    assert refusal(header(size=size) + END) == "the header at byte 0 has a number that is none"


def test_a_number_of_another_field_does_not_matter() -> None:
    assert only(header(more={100: b"nonsense", 108: b"\xff" * 16, 136: b"99"})).name == "a"


def sum_of(raw: bytes, *, signed: bool) -> int:
    others = raw[:148] + b" " * 8 + raw[156:]
    return sum(byte - 256 if signed and byte > 127 else byte for byte in others)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("write", [b"%06o\0 ", b"%07o\0", b"%6o\0 ", b"%6o \0", b"%08o"])
def test_a_checksum_is_of_bytes_with_or_without_a_sign(write: bytes, signed: bool) -> None:  # noqa: FBT001  (a parameter)
    raw = header(name=b"\xc3\xa4")
    assert sum_of(raw, signed=True) != sum_of(raw, signed=False)
    raw = raw[:148] + write % sum_of(raw, signed=signed) + raw[156:]
    assert only(raw).name == "ä"


def test_a_checksum_in_base_256_is_one_as_well() -> None:
    raw = header()
    raw = raw[:148] + base_256(sum_of(raw, signed=False), 8) + raw[156:]
    assert only(raw).name == "a"


@pytest.mark.parametrize("by", [1, -1, 256, -256])
def test_a_checksum_that_is_wrong_is_told_with_the_place(by: int) -> None:
    wrong = summed(header(), by=by)
    assert refusal(wrong + END) == "no header at byte 0: the checksum is wrong"
    assert refusal(member(b"x") + wrong) == "no header at byte 1024: the checksum is wrong"


def test_every_byte_of_a_header_counts() -> None:
    whole = header(name=b"name", size=0)
    assert only(whole)
    for at in range(BLOCK):
        broken = bytearray(whole)
        broken[at] ^= 1
        assert refusal(bytes(broken) + END)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        (b"d/", b"\0", "directory"),  # as it was before directories had a type
        (b"d", b"\0", "file"),
        (b"d/", b"5", "directory"),
        (b"d", b"5", "directory"),
        (b"d/", b"0", "file"),
        (b"d", b"V", "other"),
        (b"d", b"D", "other"),
        (b"d", b"M", "other"),
        (b"d", b"\xff", "other"),
        (b"d", b"8", "other"),
    ],
)
def test_kinds_of_old_and_of_unknown_programs(name: bytes, kind: bytes, expected: str) -> None:
    assert only(member(name=name, kind=kind)) == Entry("d", expected, BLOCK, 0, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7", b"V", b"D", b"M", b"8", b"S"])
def test_what_can_have_contents_is_passed_over_with_them(kind: bytes) -> None:
    first, second = read(member(b"x" * 700, kind=kind) + member(name=b"b") + END)
    assert (first.offset, first.size) == (BLOCK, 700)
    assert (second.name, second.offset) == ("b", 4 * BLOCK)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_has_no_contents_and_claims_some_is_refused(kind: bytes) -> None:
    """One reader would take them for the next header, another would pass them over."""
    message = "the header at byte 0 gives contents to a member that has none"
    assert refusal(member(b"x", kind=kind) + END) == message
    sized = refusal(pax(size="1") + member(kind=kind) + END)
    assert sized == "the header at byte 1024 gives contents to a member that has none"
    assert refusal(member(b"x", name=b"d/", kind=b"\0") + END) == message
    assert only(member(kind=kind)).size == 0


def test_a_size_may_stand_in_an_extended_header() -> None:
    """That is how pax says what octal digits cannot."""
    archive = pax(size="700") + header(size=0) + bytes(1024) + member(name=b"b") + END
    first, second = read(archive)
    assert (first.size, first.offset) == (700, 1536)
    assert second.name == "b"
    large = Tape([pax(size="9" * 18) + header()])
    assert next(tar.entries(large)).size == 10**18 - 1


@pytest.mark.parametrize(
    "size", ["-1", "+1", "1.5", "1 ", " 1", "0x1", "9" * 19, "1_0", "\uff11", b"\xff"]
)
def test_a_size_that_is_no_number_is_refused(size: str | bytes) -> None:
    message = "the header before byte 1024 says a size that is no number"
    assert refusal(pax(size=size) + member(b"x") + END) == message


# --- sparse members -----------------------------------------------------------------------------

SPARSE = {
    "0.0": extended(
        record(b"GNU.sparse.size", b"9000"),
        record(b"GNU.sparse.numblocks", b"2"),
        *[record(b"GNU.sparse.offset", b"0"), record(b"GNU.sparse.numbytes", b"1")] * 2,
    ),
    "0.1": extended(
        record(b"GNU.sparse.size", b"9000"),
        record(b"GNU.sparse.map", b"0,1"),
        record(b"GNU.sparse.name", b"a"),
        record(b"path", b"./GNUSparseFile.1/a"),
    ),
    "1.0": extended(
        record(b"GNU.sparse.major", b"1"),
        record(b"GNU.sparse.minor", b"0"),
        record(b"GNU.sparse.name", b"a"),
        record(b"GNU.sparse.realsize", b"9000"),
        record(b"path", b"./GNUSparseFile.1/a"),
    ),
}


@pytest.mark.parametrize("version", SPARSE)
def test_a_sparse_member_is_told_by_its_own_name(version: str) -> None:
    archive = SPARSE[version] + member(b"1\n0\n1\n" + bytes(506) + b"x") + member(name=b"b") + END
    first, second = read(archive)
    assert (first.name, first.kind, first.size) == ("a", "sparse", 513)
    assert (second.name, second.kind) == ("b", "file")


@pytest.mark.parametrize("extensions", range(3))
def test_a_sparse_member_of_gnu_s_own_format_has_its_map_before_the_contents(
    extensions: int,
) -> None:
    blocks = [bytes(504) + (b"\1" if n + 1 < extensions else b"\0") for n in range(extensions)]
    more = {482: b"\1" if extensions else b"\0"}
    archive = header(kind=b"S", size=3, magic=GNU, more=more)
    archive += b"".join(map(padded, blocks)) + padded(b"abc") + member(name=b"b") + END
    first, second = read(archive)
    assert first == Entry("a", "sparse", BLOCK * (1 + extensions), 3, "")
    assert second.name == "b"


def test_a_map_of_holes_that_does_not_end_ends_with_the_archive() -> None:
    archive = header(kind=b"S", size=3, magic=GNU, more={482: b"\1"})
    archive += padded(bytes(504) + b"\1") * 3
    assert refusal(archive) == "ends at byte 2048, in the middle of a"


# --- what is refused because readers differ -----------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    list(
        itertools.product(
            [pax(path="b"), long_name(b"b"), extended(record(b"path", b"b"), kind=b"X")], repeat=2
        )
    ),
)
def test_a_name_that_is_said_twice_is_refused(first: bytes, second: bytes) -> None:
    message = f"the header at byte {len(first)} says path again"
    assert refusal(first + second + member() + END) == message


@pytest.mark.parametrize("key", ["path", "linkpath", "size"])
def test_a_key_that_stands_twice_in_one_header_is_refused(key: str) -> None:
    twice = extended(*[record(key.encode(), b"1")] * 2)
    assert refusal(twice + member(b"x") + END) == f"the header at byte 0 says {key} again"


def test_a_target_that_is_said_twice_is_refused() -> None:
    archive = long_name(b"b", b"K") + pax(linkpath="c") + member(kind=b"2") + END
    assert refusal(archive) == "the header at byte 1024 says linkpath again"


def test_a_name_and_a_target_may_be_long() -> None:
    for headers in itertools.permutations([long_name(b"n" * 200), long_name(b"t" * 200, b"K")]):
        entry = only(b"".join(headers) + member(kind=b"2", target=b"x"))
        assert (entry.name, entry.target) == ("n" * 200, "t" * 200)


@pytest.mark.parametrize("key", ["path", "linkpath", "size"])
def test_a_name_for_all_members_is_refused(key: str) -> None:
    archive = member() + extended(record(key.encode(), b"1"), kind=b"g") + member() + END
    assert refusal(archive) == f"the global header at byte 512 says {key} for all members"


@pytest.mark.parametrize("key", ["path", "linkpath", "size"])
def test_a_name_that_is_taken_back_is_refused(key: str) -> None:
    """For pax that means the one in the header, for others an empty one."""
    archive = extended(record(key.encode(), b"")) + member() + END
    assert refusal(archive) == f"the header at byte 0 says {key}, and no value"


@pytest.mark.parametrize(
    "archive",
    [
        extended(record(b"GNU.sparse.name", b"a\0b")) + member(),
        pax(path=b"manifest.json\0x") + member(),
        pax(linkpath=b"a\0b") + member(kind=b"2"),
        pax(size=b"1\0") + member(b"x"),
        long_name(b"manifest.json\0x") + member(),
        long_name(b"a\0b", b"K") + member(kind=b"2"),
    ],
    ids=["sparse", "path", "linkpath", "size", "gnu's name", "gnu's target"],
)
def test_a_nul_in_a_name_is_refused(archive: bytes) -> None:
    assert refusal(archive + END) == "the header at byte 0 has a name with a NUL in it"


def test_a_name_in_a_field_ends_at_its_nul() -> None:
    entry = only(member(name=b"a\0b", kind=b"2", target=b"c\0d", prefix=b"p\0q"))
    assert (entry.name, entry.target) == ("p/a", "c")


def test_a_long_name_may_be_empty_or_end_without_a_nul() -> None:
    assert only(member(b"b", kind=b"L", magic=GNU) + member()).name == "b"
    assert only(long_name(b"") + member()).name == "a"


@pytest.mark.parametrize(
    "content",
    [
        *(b"x", b"6 a=b", b"6 a=bX", b"7 a=b\n", b"5 a=b\n", b"6 a:b\n", b" 6 a=b\n", b"06 a=b\n"),
        *(b"\n", b"0 \n", b"-6 a=b\n", b"6a=b\n", b"6\ta=b\n", b"1 \n", b"2 \n", b"3 =\n"),
        *(b"6 a=b\n6 a=b", b"6 a=b\n\0", b"999999999 a=b\n", b"\xef\xbc\x96 a=b\n", b"1" * 5000),
    ],
)
def test_an_extended_header_that_is_malformed_is_refused(content: bytes) -> None:
    for kind in (b"x", b"g"):
        archive = member(content, kind=kind) + member() + END
        assert refusal(archive) == "the extended header at byte 0 is malformed"


def test_an_extended_header_may_be_empty() -> None:
    assert only(member(kind=b"x") + member()).name == "a"


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_an_extended_header_has_a_limit(kind: bytes) -> None:
    archive = header(kind=kind, size=MAX_EXTENSION + 1)
    assert refusal(archive) == f"the extended header at byte 0 has {MAX_EXTENSION + 1} bytes"
    endless = header(kind=kind, size=base_256(2**80))
    assert refusal(endless) == f"the extended header at byte 0 has {2**80} bytes"


def test_a_header_as_long_as_the_limit_is_read() -> None:
    empty = len(record(b"comment", b"")) + len(str(MAX_EXTENSION)) - 2
    remark = record(b"comment", b"x" * (MAX_EXTENSION - empty))
    assert len(remark) == MAX_EXTENSION
    assert only(extended(remark) + member()).name == "a"


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Limit members and their names to what is made in no time."""
    members, names = 100, 8 * MAX_PATH
    monkeypatch.setattr(tar, "MAX_MEMBERS", members)
    monkeypatch.setattr(tar, "MAX_NAMES", names)
    return members, names


def count_until_refused(members: bytes) -> int:
    """Give how many entries an archive gives that has the same members again and again."""
    found = tar.entries(Tape(itertools.repeat(members, 1_000_000)))
    count = 0
    too_much = f"^more than {tar.MAX_MEMBERS} members, or {tar.MAX_NAMES} bytes of their names$"
    with pytest.raises(TarError, match=too_much):
        for count, _ in enumerate(found, 1):  # noqa: B007  (the last one is wanted)
            pass
    return count


def test_an_archive_has_a_limit_of_members(small_limits: tuple[int, int]) -> None:
    assert count_until_refused(member()) == small_limits[0]


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH // 2 + 1])
def test_the_names_in_an_archive_have_a_limit_together(
    length: int, small_limits: tuple[int, int]
) -> None:
    """They are kept, and a compressed archive could bring any number of them."""
    names = long_name(b"n" * length) + long_name(b"t" * length, b"K") + member(kind=b"2")
    assert count_until_refused(names) == small_limits[1] // (2 * length)


@pytest.mark.parametrize(
    "opening",
    [
        long_name(b"x" * (MAX_PATH + 1)),
        long_name(b"x" * (MAX_PATH + 1), b"K"),
        pax(path="x" * (MAX_PATH + 1)),
        pax(linkpath="x" * (MAX_PATH + 1)),
        pax(size="1" * (MAX_PATH + 1)),
        extended(record(b"GNU.sparse.name", b"x" * (MAX_PATH + 1))),
    ],
    ids=["gnu's name", "gnu's target", "path", "linkpath", "size", "sparse"],
)
def test_a_name_has_a_limit(opening: bytes) -> None:
    message = f"the header at byte 0 has a name of {MAX_PATH + 1} bytes"
    assert refusal(opening + member() + END) == message


def test_what_is_said_of_holes_is_not_kept() -> None:
    """A compressed archive could bring any number of such headers, before one member."""
    holes = extended(*[record(b"GNU.sparse.%d" % n, b"x" * 1000) for n in range(1000)])
    assert only(holes + member()).kind == "sparse"
    assert refusal(holes * 2 + member() + END) == (
        f"the header at byte {len(holes)} says GNU.sparse. again"
    )


# --- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [b"", bytes(BLOCK), END, bytes(20 * BLOCK), bytes(BLOCK + 1), END + b"anything", END + b"\1"],
    ids=["none", "one block", "two blocks", "a record", "a block and a bit", "more", "one more"],
)
def test_an_archive_ends_with_zeros_or_the_file(end: bytes) -> None:
    assert [entry.name for entry in read(member(b"x") + end)] == ["a"]
    assert read(end if end.startswith(b"\0") else b"") == []


@pytest.mark.parametrize("more", [member(name=b"b"), b"x", bytes(511) + b"x"])
def test_a_lone_block_of_zeros_is_refused(more: bytes) -> None:
    """GNU's tar stops there, others go on."""
    message = "one block of zeros at byte 1024, and then more"
    assert refusal(member(b"x") + bytes(BLOCK) + more) == message


@pytest.mark.parametrize(
    "opening", [pax(path="b"), long_name(b"b"), long_name(b"b", b"K"), SPARSE["1.0"]]
)
@pytest.mark.parametrize("end", [b"", bytes(BLOCK), END])
def test_a_header_that_belongs_to_nothing_is_refused(opening: bytes, end: bytes) -> None:
    archive = member() + opening
    words = f"ends at byte {len(archive)}, after a header that belongs to another"
    assert refusal(archive + end) == words


def test_an_archive_that_is_cut_anywhere_is_refused_or_ends_before_the_cut() -> None:
    """Only between members, and in zeros that nobody needs, may it end early."""
    archive, whole_at = b"", {0: 0}
    for number, opening in enumerate([b"", pax(path="b"), long_name(b"c") + pax(size="1")]):
        content = b"x" * 700 if not number else b"x"
        archive += opening + header(size=len(content)) + content
        padding = -len(archive) % BLOCK
        whole_at |= {len(archive) + n: number + 1 for n in range(padding + 1)}
        archive += bytes(padding)
    archive += END
    whole_at |= {len(archive) - n: 3 for n in range(BLOCK + 1)}
    for cut in range(len(archive) + 1):
        if cut in whole_at:
            assert len(read(archive[:cut])) == whole_at[cut]
        else:
            assert refusal(archive[:cut]).startswith("ends at byte ")


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (member(b"x" * 700)[:-400], "ends at byte 1136, in the middle of a"),
        (member(b"x", name=b"..")[:-BLOCK], "ends at byte 512, in the middle of a member"),
        (member(b"x", name=b"d/../b/")[:-BLOCK], "ends at byte 512, in the middle of b"),
        (header()[:100], "ends at byte 100, in the middle of a header"),
        (bytes(100), "ends at byte 100, in the middle of a header"),
        (pax(path="b")[:520], "ends at byte 520, in the middle of a header"),
        (header(size=base_256(2**80)), "ends at byte 512, in the middle of a"),
    ],
)
def test_where_an_archive_is_cut_is_told(archive: bytes, words: str) -> None:
    assert refusal(archive) == words


# --- reading ------------------------------------------------------------------------------------


def test_contents_may_be_read_on_the_way() -> None:
    archive = member(b"x" * 700) + member(b"y" * 512, name=b"b") + member(b"z", name=b"c") + END
    tape = Tape([archive])
    got = {entry.name: tape.read(min(entry.size, 600)) for entry in tar.entries(tape)}
    assert got == {"a": b"x" * 600, "b": b"y" * 512, "c": b"z"}


def test_members_come_as_they_stand_even_if_their_names_are_the_same() -> None:
    archive = member(b"1") + member(b"22") + END
    assert [(entry.name, entry.size) for entry in read(archive)] == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("manifest.json", "manifest.json"),
        ("./manifest.json", "manifest.json"),
        ("/manifest.json", "manifest.json"),
        ("manifest.json/", "manifest.json"),
        (".//a/./b//", "a/b"),
        ("a/../b", "b"),
        ("a/b/../../c", "c"),
        ("a/..", ""),
        (".", ""),
        ("/", ""),
        ("", ""),
        ("...", "..."),
        ("..a/b..", "..a/b.."),
        ("a\\..\\b", "a\\..\\b"),
        ("..", None),
        ("../a", None),
        ("/..", None),
        ("a/../../a", None),
        ("./../a", None),
    ],
)
def test_paths_have_one_spelling_and_do_not_lead_out(path: str, expected: str | None) -> None:
    assert normalise(path) == expected
    assert only(pax(path=path or ".") + member()).name == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (header(), True),
        (header(kind=b"g", size=100), True),
        (bytes(BLOCK), True),
        (b"", False),
        (header()[:-1], False),
        (bytes(BLOCK - 1), False),
        (summed(header(), by=1), False),
        (header(size=b"nonsense"), False),
        (b"\x1f\x8b" + bytes(510), False),
        (b'{"a": 1}' + b" " * 504, False),
    ],
)
def test_a_block_is_the_beginning_of_an_archive_or_not(block: bytes, expected: bool) -> None:  # noqa: FBT001  (a parameter)
    assert tar.is_header(block) is expected


def test_the_numbers_of_this_test_are_those_of_tarfile() -> None:
    """The headers by hand are headers; what is tried with them means something."""
    archive = pax(path="b") + member(b"x" * 700, prefix=b"p", more={108: octal(5, 7)}) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        (found,) = opened.getmembers()
    assert (found.name, found.size, found.uid, found.offset_data) == ("b", 700, 5, 1536)

"""Headers of archives, as tarfile reads them."""

from __future__ import annotations

import io
import tarfile

import pytest

from imgproxy.specs.oci import tar_writer

GIB = 1 << 30
NAMES = [
    "index.json",
    "é" * 49 + "ab",
    "é" * 51,
    "blobs/sha512/" + "0" * 128,
    "d" * 980,
    "x" * 8000,
]


def member(name: str, size: int) -> tarfile.TarInfo:
    """Return the only member of an archive, whose content is left out."""
    raw = tar_writer.header(name, size)
    assert len(raw) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        info = archive.next()
    assert info is not None
    return info


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_length_is_read(name: str) -> None:
    info = member(name, 5)
    assert (info.name, info.size, info.type) == (name, 5, tarfile.REGTYPE)
    assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)


@pytest.mark.parametrize("size", [0, 8 * GIB - 1, 8 * GIB, 1 << 60])
def test_a_size_of_any_length_is_read(size: int) -> None:
    assert member("name", size).size == size


def test_a_directory_is_one() -> None:
    info = member("blobs/", 0)
    assert (info.name, info.type, info.mode) == ("blobs", tarfile.DIRTYPE, 0o755)


@pytest.mark.parametrize("length", range(85, 130))
def test_a_record_counts_its_own_digits(length: int) -> None:
    name = "n" * length
    assert member(name, 8 * GIB).name == name


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_content_is_padded_to_blocks(size: int) -> None:
    padding = tar_writer.padding(size)
    assert (size + len(padding)) % 512 == 0
    assert len(padding) < 512
    assert not padding.strip(b"\0")


def test_an_archive_is_what_another_writer_makes_of_the_same() -> None:
    """Byte for byte, but for the end, which GNU fills up to 10,240 bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("name")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    ours = tar_writer.header("name", 3) + b"abc" + tar_writer.padding(3) + tar_writer.END
    assert ours == made.getvalue()[: len(ours)]

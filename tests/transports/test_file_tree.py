"""Files by their paths, in directories and archives; control files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.archives import Member, gzipped, pack, plain
from support.opened import NOT_FOUND, TOO_LARGE, UNSUPPORTED, drained, open_descriptors, refusing
from support.streams import real_time

from imgproxy.transports import file_tree
from imgproxy.transports.file_tree import Directory
from imgproxy.transports.local.tar_archive import open_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.file_tree import Tree

CONTENT = b'{"a":1}' * 100


async def open_directory(path: Path) -> Tree:
    os.makedirs(path / "sub")
    for name in ("control.json", "sub/file"):
        write(path / name, CONTENT)
    return Directory(str(path))


async def open_packed(path: Path, compress: Callable[[bytes], bytes] = plain) -> Tree:
    write(path, compress(pack([Member("control.json", CONTENT), Member("sub/file", CONTENT)])))
    return await open_archive(str(path))


async def open_compressed(path: Path) -> Tree:
    return await open_packed(path, gzipped)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


TREES = {"directory": open_directory, "archive": open_packed, "compressed": open_compressed}


@pytest.mark.parametrize("kind", TREES)
@real_time
async def test_files_are_opened_by_their_paths(tmp_path: Path, kind: str) -> None:
    found = await TREES[kind](tmp_path / "tree")
    assert found.path == str(tmp_path / "tree")
    before = open_descriptors()
    for path in ("control.json", "sub/file"):
        for sole in (True, False):
            content = await found.open(path, "what it is called", sole=sole)
            assert content.name == "what it is called"
            assert content.size == len(CONTENT)
            assert await drained(content, 99) == CONTENT
    assert open_descriptors() == before
    found.close()


@pytest.mark.parametrize("kind", TREES)
@real_time
async def test_a_control_file_is_read_within_its_limit(tmp_path: Path, kind: str) -> None:
    found = await TREES[kind](tmp_path / "tree")
    before = open_descriptors()
    assert await file_tree.read(found, "control.json", len(CONTENT)) == CONTENT
    with refusing(TOO_LARGE, f"{tmp_path}/tree: control.json: 700 bytes are more than the limit"):
        await file_tree.read(found, "control.json", len(CONTENT) - 1)
    assert open_descriptors() == before
    found.close()


@pytest.mark.parametrize("kind", TREES)
@real_time
async def test_a_file_that_is_missing_is_not_found(tmp_path: Path, kind: str) -> None:
    found = await TREES[kind](tmp_path / "tree")
    for path in ("gone", "sub/gone", "sub/file/gone"):
        with refusing(NOT_FOUND, path):
            await found.open(path, "it")
    found.close()


@pytest.mark.parametrize(
    ("make", "words"), [(os.mkfifo, "is a FIFO"), (os.mkdir, "is a directory")]
)
@real_time
async def test_what_is_no_file_in_a_directory_is_refused(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "control.json")
    with refusing(UNSUPPORTED, f"{tmp_path}/control.json", words):
        await file_tree.read(Directory(str(tmp_path)), "control.json", 100)

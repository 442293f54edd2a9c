"""Compressed archives: reads in any order return the content that was compressed."""

from __future__ import annotations

import bz2
import lzma
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import archives
from support.archives import Member, pack

from imgproxy.host.files import OpenFile
from imgproxy.specs import compression
from imgproxy.transports.local import compressed_member, decompression, tar_archive
from imgproxy.transports.local.tar_archive import open_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgproxy.transports.source import Reader

STREAMS: dict[str, list[Callable[[bytes], bytes]]] = {
    "gzip": [archives.gzipped, archives.gzip_with_fields, archives.gzip_flushed],
    "zstd": [archives.zstd_compressed, archives.zstd_streamed, archives.zstd_skippable],
    "bzip2": [bz2.compress, lambda content: bz2.compress(content, 1)],
    "xz": [lambda content: lzma.compress(content, preset=0)],
}

# Content that compresses well, and content that does not.
contents = st.lists(
    st.one_of(
        st.binary(max_size=500),
        st.builds(lambda piece, times: piece * times, st.binary(max_size=20), st.integers(0, 800)),
    ),
    max_size=8,
).map(b"".join)


@st.composite
def compressed(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file that inflates to the content: one codec, any streams, padded or not."""
    streams = STREAMS[draw(st.sampled_from(sorted(STREAMS)))]
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=6)))
    file = b""
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        file += draw(st.sampled_from(streams))(content[start:end])
        file += bytes(draw(st.sampled_from([0, 0, 0, 4, 512])))
    return file


@contextmanager
def steps(draw: st.DataObject) -> Iterator[None]:
    """Reduce the sizes of all steps, so that little content takes many of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, sizes in (
            (decompression, "_MIN_FEED", (1, 7, 64, 4096)),
            (decompression, "_MAX_FEED", (1, 100, 4096)),
            (decompression, "_SPACING", (1, 100, 1000)),
            (decompression, "_MAX_POINTS", (2, 3, 16)),
            (decompression, "_MAX_IDLE", (1, 2)),
            (decompression, "PIECE", (1, 100, 1 << 20)),
            (compressed_member, "_AHEAD", (1, 100, 5000)),
            (tar_archive, "_SMALL", (0, 100)),
            (tar_archive, "_MAX_KEPT", (0, 300)),
        ):
            patch.setattr(module, name, draw.draw(st.sampled_from(sizes), label=name))
        yield


@contextmanager
def file_of(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory."""
    fd = os.memfd_create("archive")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/{os.getpid()}/fd/{fd}"  # it was not inherited
    finally:
        os.close(fd)


@given(st.data())
def test_whatever_is_read_is_what_was_compressed(data: st.DataObject) -> None:
    content = data.draw(contents)
    with steps(data), file_of(data.draw(compressed(content))) as path:
        file = OpenFile(path)
        codec = compression.codec(path, file.read(16, 0))
        assert codec is not None
        compressed_file = decompression.CompressedFile(file, codec)
        first = compressed_file.first_pass()
        whole = b"".join(iter(lambda: first.read(data.draw(st.integers(1, 3000))), b""))
        assert whole == content
        cursors = [compressed_file.cursor(0)]
        for _ in range(data.draw(st.integers(1, 12))):
            at = data.draw(st.integers(0, len(cursors) - 1))
            match data.draw(st.sampled_from(["read", "read", "begin", "keep", "skip"])):
                case "begin":
                    cursors.append(compressed_file.cursor(data.draw(st.integers(0, len(content)))))
                case "keep" if len(cursors) > 1:
                    compressed_file.keep(cursors.pop(at))
                case "skip":
                    cursors[at].skip(data.draw(st.integers(0, 2000)))
                case _:
                    size = data.draw(st.integers(1, 3000))
                    start = cursors[at].position
                    assert cursors[at].read(size) == content[start : start + size]
        assert len(compressed_file._points) <= decompression._MAX_POINTS
        file.close()


@given(st.data())
def test_members_are_what_they_are_in_the_plain_archive(data: st.DataObject) -> None:
    members = [
        Member(f"{n}", content)
        for n, content in enumerate(data.draw(st.lists(contents, max_size=5)))
    ]
    plain = pack(members)
    is_plain = data.draw(st.booleans())
    file = plain if is_plain else data.draw(compressed(plain))
    wanted = data.draw(st.lists(st.sampled_from(members), max_size=6)) if members else []

    async def read() -> None:
        tree = await open_archive(path)
        readers = [await tree.open(member.name, member.name) for member in wanted]
        got = [bytearray() for _ in readers]
        left = list(range(len(readers)))
        while left:
            at = data.draw(st.sampled_from(left))
            if data.draw(st.integers(0, 20)) == 0:
                readers[at].close()  # a reader that stops early does not affect the others
                left.remove(at)
                assert wanted[at].content.startswith(got[at])
            elif not await receive(readers[at], got[at], data.draw(st.integers(1, 4000))):
                readers[at].close()
                left.remove(at)
                assert bytes(got[at]) == wanted[at].content
        tree.close()

    with steps(data), file_of(file) as path:
        trio.run(read)


async def receive(reader: Reader, got: bytearray, size: int) -> int:
    buffer = memoryview(bytearray(size))
    count = await reader.receive_into(buffer)
    got += buffer[:count]
    return count

"""Compressed files as what they decompress to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.archives import COMPRESSIONS, truncated
from support.opened import drained, open_descriptors, refusing
from support.streams import real_time

from imgproxy.transports.local.inflated import open_inflated

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"".join(bytes([n % 251]) * 1000 for n in range(5000))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@real_time
async def test_any_compression_is_inflated_to_its_size(compression: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(COMPRESSIONS[compression](CONTENT))
    before = open_descriptors()
    reader = await open_inflated(str(file), "layer")
    assert reader.size == len(CONTENT)
    assert await drained(reader) == CONTENT
    assert open_descriptors() == before


@real_time
async def test_half_a_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(truncated(COMPRESSIONS["gzip"](CONTENT)))
    before = open_descriptors()
    with refusing((422, "ARCHIVE_INVALID"), "ends in the middle"):
        await open_inflated(str(file), "layer")
    assert open_descriptors() == before

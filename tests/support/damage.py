"""Damage to files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def flip(path: Path, place: int = 0) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def lose(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def respace(path: Path) -> None:
    """Change a manifest and leave it JSON; the registry still shows its old digest."""
    path.write_bytes(path.read_bytes().replace(b": ", b":\t", 1))

"""Sideload patterns, for local paths of a registry's images: imgproxy(1), SIDELOADING.

`/opt/<name>/<ref>.tar`: `<ref>` is the tag or the digest, `<name>` the repository, whose slashes
become directories, `<basename>` the last component of it, `<registry>` the host with its port, in
the form of `registry_name.place`. The values inserted for them match the grammar of references,
so no `..` gets into a path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from imgproxy.errors import clean
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from imgproxy.specs.oci.reference import Reference

_PLACEHOLDER = re.compile(r"<([^<>]*)>")
_KNOWN = ("ref", "name", "basename", "registry")


class Pattern(NamedTuple):
    """A pattern in pieces: text and names of placeholders alternate, text is first and last."""

    pieces: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f"<{each}>" if n % 2 else each for n, each in enumerate(self.pieces))

    def path(self, reference: Reference, ref: str) -> str:
        """Return the path for an image by its tag or its digest, `ref`."""
        values = {
            "ref": ref,
            "name": reference.repository,
            "basename": reference.repository.rpartition("/")[2],
            "registry": registry_name.place(reference.registry),
        }
        return "".join(values[each] if n % 2 else each for n, each in enumerate(self.pieces))

    def paths(self, reference: Reference) -> list[str]:
        """Return the paths for an image in the order in which to try them: by digest, by tag."""
        refs = (str(reference.digest) if reference.digest else None, reference.tag)
        return [self.path(reference, ref) for ref in refs if ref is not None]


def parse(text: str) -> Pattern:
    """Parse a pattern.

    Raises `ValueError`, with the column (from 1) of the mistake.
    """
    pieces = tuple(_PLACEHOLDER.split(text))
    names = pieces[1::2]
    repository = [each for each in names if each in ("name", "basename")]
    if not text.startswith("/"):
        _refuse(1, "a pattern is an absolute path")
    if "\0" in text:
        _refuse(text.index("\0") + 1, "a path has no NUL")
    column = 1
    for n, piece in enumerate(pieces):
        if n % 2 and piece not in _KNOWN:
            known = ", ".join(f"<{each}>" for each in _KNOWN)
            shown = clean(f"<{piece}>")
            _refuse(column, f'"{shown}" is none of {known}')
        lone = re.search("[<>]", piece)
        if lone is not None:
            _refuse(column + lone.start(), f'"{lone[0]}" is unpaired')
        if n % 2 and piece in repository and piece != repository[0]:
            _refuse(column, "only one of <name> and <basename>")
        column += len(piece) + 2 * (n % 2)
    if "ref" not in names:
        _refuse(len(text) + 1, "<ref> is missing")
    if not repository:
        _refuse(len(text) + 1, "<name> or <basename> is missing")
    return Pattern(pieces)


def _refuse(column: int, reason: str) -> NoReturn:
    raise ValueError(f"column {column}: {reason}")

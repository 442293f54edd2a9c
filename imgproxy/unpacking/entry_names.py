"""Names in layers: the components of a path, and what whiteouts say.

image-spec, layer.md, "Whiteouts"; AUFS, from which these names are, left some of its own in old
images.
"""

from __future__ import annotations

from typing import NamedTuple

from imgproxy.errors import InvalidError, clean

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."

# No system has longer names (NAME_MAX), and no image deeper trees.
MAX_COMPONENT = 255
MAX_DEPTH = 256


class MemberError(InvalidError):
    """A member of a layer is such that no tree can have it."""

    default_code = "ARCHIVE_INVALID"


class Name(NamedTuple):
    """The components of a name in a layer; the last one is apart, and empty for the top.

    `hides` is the name that a whiteout hides, `OPAQUE` for all that is in the directory. Names
    that `is_reserved` are AUFS's own: neither they nor what is below them is part of the tree.
    """

    parents: tuple[bytes, ...]
    last: bytes
    hides: bytes = b""
    is_reserved: bool = False


def shown(name: bytes) -> str:
    """Return a name as a message has it."""
    return clean(name.decode(errors="backslashreplace"))


def invalid(name: bytes, what: str) -> MemberError:
    """Return the failure for a member of this name."""
    return MemberError(f"{shown(name)}: {what}")


def components(name: bytes) -> tuple[bytes, ...]:
    """Return the components of a path in an archive. Raises `MemberError`."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if len(name) > MAX_COMPONENT and max(map(len, parts), default=0) > MAX_COMPONENT:
        raise invalid(name, f"a component of more than {MAX_COMPONENT} bytes")
    if len(parts) > MAX_DEPTH:
        raise invalid(name, f"more than {MAX_DEPTH} directories in one another")
    if b".." in parts:
        raise invalid(name, 'a path with ".." in it')
    return parts


def parse(name: bytes) -> Name:
    """Parse the name of a member. Raises `MemberError` for one that may not be."""
    parts = components(name)
    if not parts:
        return Name((), b"")
    *above, last = parts
    parents = tuple(above)
    if WHITEOUT not in name:
        return Name(parents, last)
    for part in parents:
        if part.startswith(_RESERVED):
            return Name(parents, last, is_reserved=True)
        if part.startswith(WHITEOUT):
            raise invalid(name, "below a whiteout")
    if last == OPAQUE:
        return Name(parents, last, hides=OPAQUE)
    if last.startswith(_RESERVED):
        return Name(parents, last, is_reserved=True)
    if last.startswith(WHITEOUT):
        hidden = last[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise invalid(name, "a whiteout of nothing that can be there")
        return Name(parents, last, hides=hidden)
    return Name(parents, last)

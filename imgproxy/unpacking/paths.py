"""Paths from outside: what they are called inside of a tree, and where links lead."""

from __future__ import annotations

# No system has longer ones (PATH_MAX, NAME_MAX); deeper ones are nobody's.
MAX_PATH = 4096
MAX_COMPONENT = 255
MAX_DEPTH = 256


def inside(path: bytes) -> bytes:
    """Return a path as `Tree` has it, empty for the top; one from `/` on is one from the top on.

    Raises `ValueError` for an empty path, one with `..` or a NUL, and one beyond a limit.
    """
    if not path:
        raise ValueError("it is empty")
    if b"\0" in path:
        raise ValueError("it has a NUL in it")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError('it has ".." in it')
    if len(path) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise ValueError(f"it is longer than {MAX_PATH} bytes or {MAX_DEPTH} directories")
    if any(len(part) > MAX_COMPONENT for part in parts):
        raise ValueError(f"a part of it is longer than {MAX_COMPONENT} bytes")
    return b"/".join(parts)


def leads_outside(path: bytes, target: bytes) -> bool:
    """Return whether a symbolic link leads out of the tree, by its words alone.

    Where it leads through other links, `Tree.leads_outside` tells. `path` is that of the link, as
    `inside` returns it.
    """
    if target.startswith(b"/"):
        return True
    depth = path.count(b"/")
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif part not in (b"", b"."):
            depth += 1
    return False

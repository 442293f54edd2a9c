"""The target of a request: RFC 9112 section 3.2."""

from __future__ import annotations

from urllib.parse import urlsplit


def split(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a target, neither decoded; the absolute form has a host as well.

    The path of a URL may be empty, for `/`.
    Raises `ValueError` for what is no path, such as the target of CONNECT.
    """
    if not target.startswith(b"/"):
        parts = urlsplit(target)
        if parts.scheme not in (b"http", b"https") or not parts.netloc:
            raise ValueError("neither a path nor a URL")
        target = target[target.index(b"//") + 2 + len(parts.netloc) :]
    path, _, query = target.partition(b"?")
    return path, query

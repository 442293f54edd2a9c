"""The requests that a parent may make of one image, as values: imgproxy(1), PROTOCOL.

A target is percent-decoded once and matched whole. Nothing here does I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from imgproxy.errors import BadRequestError, NotFoundError, NotImplementedByUsError, clean
from imgproxy.server import request_target
from imgproxy.server.request_errors import MethodNotAllowedError
from imgproxy.specs.oci import digest as digests

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class GetManifest(NamedTuple):
    """`GET /manifest`: the manifest for the chosen platform, as OCI."""


class GetConfig(NamedTuple):
    """`GET /config`: the config blob."""


class GetBlob(NamedTuple):
    """`GET /blobs/<digest>`."""

    digest: Digest


class GetDocument(NamedTuple):
    """`GET /manifests/<digest>`: a manifest or an index in its original bytes."""

    digest: Digest


class Quit(NamedTuple):
    """`POST /quit`: no more requests are taken."""


Request = GetManifest | GetConfig | GetBlob | GetDocument | Quit


def parse(method: bytes, target: bytes) -> Request:
    """Return what is asked for; `HEAD` asks for the same as `GET`.

    Raises `BadRequestError`, `NotFoundError`, `MethodNotAllowedError` or `NotImplementedByUsError`.
    """
    if method == b"CONNECT" and not target.startswith(b"/"):
        raise NotImplementedByUsError("CONNECT is a request to a proxy, and this is none")
    path = _path(target)
    request = _route(path)
    allowed = (b"POST",) if isinstance(request, Quit) else (b"GET", b"HEAD")
    if method not in allowed:
        allow = b", ".join(allowed).decode()
        raise MethodNotAllowedError(
            f"{clean(method.decode('latin-1'))} {path}: the method must be {allow}", allow=allow
        )
    return request


def _path(target: bytes) -> str:
    """Return the path of a request target (RFC 9112 section 3.2), decoded once."""
    try:
        path, query = request_target.split(target)
    except ValueError:
        raise BadRequestError(f"the request target {_shown(target)} is not a path") from None
    if query:
        raise BadRequestError(f"{_shown(path)}?{_shown(query)}: a query is not supported")
    if _BAD_ESCAPE.search(path):
        raise BadRequestError(f"{_shown(path)}: a % must be followed by two hex digits")
    try:
        return unquote_to_bytes(path or b"/").decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"{_shown(path)}: the path is not UTF-8") from None


def _route(path: str) -> Request:
    if path in _FIXED:
        return _FIXED[path]
    for prefix, request in _BY_DIGEST.items():
        if path.startswith(prefix):
            return request(_digest(path.removeprefix(prefix)))
    raise NotFoundError(
        f"no such path: {clean(path)} (there are /manifest, /config, /blobs/<digest>,"
        " /manifests/<digest> and /quit)"
    )


_FIXED: dict[str, Request] = {
    "/manifest": GetManifest(),
    "/config": GetConfig(),
    "/quit": Quit(),
}
_BY_DIGEST: dict[str, type[GetBlob | GetDocument]] = {
    "/blobs/": GetBlob,
    "/manifests/": GetDocument,
}


def _digest(text: str) -> Digest:
    try:
        return digests.parse(text)
    except ValueError as error:
        raise BadRequestError(str(error), code="DIGEST_INVALID") from None


def _shown(target: bytes) -> str:
    return clean(target.decode("latin-1"))

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
    from imgproxy.specs.oci.layer_selection import LayerSpec

# The only path with a query.
_LAYERS = "/layers"

# No manifest has a thousand million layers.
_OFFSET = re.compile(r"[0-9]{1,9}")

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


class GetCandidates(NamedTuple):
    """`GET /candidates`: what could be chosen."""


class GetLayers(NamedTuple):
    """`GET /layers`: the chosen layers, or with a query those of them that it describes."""

    query: LayerSpec | None = None


class GetLayer(NamedTuple):
    """`GET /layers/N`: the blob of one of the chosen layers."""

    offset: int


class Quit(NamedTuple):
    """`POST /quit`: no more requests are taken."""


Request = (
    GetManifest | GetConfig | GetBlob | GetDocument | GetCandidates | GetLayers | GetLayer | Quit
)


def parse(method: bytes, target: bytes) -> Request:
    """Return what is asked for; `HEAD` asks for the same as `GET`.

    Raises `BadRequestError`, `NotFoundError`, `MethodNotAllowedError` or `NotImplementedByUsError`.
    """
    if method == b"CONNECT" and not target.startswith(b"/"):
        raise NotImplementedByUsError("CONNECT is a request to a proxy, and this is none")
    path, query = _split(target)
    request = GetLayers(_query(query)) if query else _route(path)
    allowed = (b"POST",) if isinstance(request, Quit) else (b"GET", b"HEAD")
    if method not in allowed:
        allow = b", ".join(allowed).decode()
        raise MethodNotAllowedError(
            f"{clean(method.decode('latin-1'))} {path}: the method must be {allow}", allow=allow
        )
    return request


def _split(target: bytes) -> tuple[str, bytes]:
    """Return the path of a request target (RFC 9112 section 3.2), decoded once, and the query.

    Raises `BadRequestError`, also for a query where none is supported.
    """
    try:
        path, query = request_target.split(target)
    except ValueError:
        raise BadRequestError(f"the request target {_shown(target)} is not a path") from None
    decoded = _decoded(path or b"/", "the path")
    if query and decoded != _LAYERS:
        raise BadRequestError(f"{_shown(path)}?{_shown(query)}: a query is not supported")
    return decoded, query


def _decoded(text: bytes, what: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise BadRequestError(f"{_shown(text)}: a % must be followed by two hex digits")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"{_shown(text)}: {what} is not UTF-8") from None


def _query(query: bytes) -> LayerSpec:
    """Return what a query says of layers (RFC 3986 section 3.4: a `+` is no space)."""
    from imgproxy.specs.oci import layer_selection

    pairs = []
    for each in query.split(b"&"):
        key, _, value = each.partition(b"=")
        pairs.append((_decoded(key, "the query"), _decoded(value, "the query")))
    try:
        return layer_selection.of_query(pairs)
    except ValueError as error:
        raise BadRequestError(f"{_LAYERS}?{_shown(query)}: {error}") from None


def _route(path: str) -> Request:
    if path in _FIXED:
        return _FIXED[path]
    for prefix, request in _BY_DIGEST.items():
        if path.startswith(prefix):
            return request(_digest(path.removeprefix(prefix)))
    if path.startswith(f"{_LAYERS}/"):
        return GetLayer(_offset(path.removeprefix(f"{_LAYERS}/")))
    raise NotFoundError(
        f"no such path: {clean(path)} (there are /manifest, /config, /blobs/<digest>,"
        " /manifests/<digest>, /candidates, /layers, /layers/<offset> and /quit)"
    )


_FIXED: dict[str, Request] = {
    "/manifest": GetManifest(),
    "/config": GetConfig(),
    "/candidates": GetCandidates(),
    _LAYERS: GetLayers(),
    "/quit": Quit(),
}
_BY_DIGEST: dict[str, type[GetBlob | GetDocument]] = {
    "/blobs/": GetBlob,
    "/manifests/": GetDocument,
}


def _offset(text: str) -> int:
    if _OFFSET.fullmatch(text) is None:
        raise BadRequestError(f'"{clean(text)}" is not the offset of a layer')
    return int(text)


def _digest(text: str) -> Digest:
    try:
        return digests.parse(text)
    except ValueError as error:
        raise BadRequestError(str(error), code="DIGEST_INVALID") from None


def _shown(target: bytes) -> str:
    return clean(target.decode("latin-1"))
